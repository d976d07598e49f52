// The GPT-2 of examples/gpt is Hugging Face's: it takes the weights that transformers has written, gives the same logits,
// and transformers takes what it writes.
#include <torch/torch.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <string>

#include <accel/accelerator.hpp>
#include <accel/tensor/safetensors.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "../examples/gpt/config.hpp"
#include "../examples/gpt/model.hpp"
#include "support/folder.hpp"
#include "support/ranks.hpp"

namespace {

namespace gpt_parity {

std::string python(const std::string& what, const std::filesystem::path& folder) {
  const std::string interpreter = ACCEL_TEST_PYTHON;
  if (interpreter.empty()) accel::testing::skip_without("transformers", "no Python was given to the tests");
  const auto result =
      accel::testing::run_program({interpreter, "-B", ACCEL_TEST_DIR "/checkpoint/gpt.py", what, folder.string()},
                                  {.deadline = accel::testing::Seconds(300), .variables = {{"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  REQUIRE(result.succeeded());
  return result.output;
}

}  // namespace gpt_parity

TEST_CASE("a GPT-2 of transformers' gives the same logits here to the rounding of float32, and goes back as it came",
          "[checkpoint][python]") {
  using namespace gpt_parity;
  if (const auto missing = python("missing", "."); missing != "\n")
    accel::testing::skip_without("transformers", "Python has no " + missing);
  const accel::testing::Folder folder;
  (void)python("make", folder.path());
  at::set_num_threads(1);
  accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32> accelerator;
  const auto config = gpt::read_model_config(folder / "hf" / "config.json");
  CHECK(config.n_layer == 3);
  CHECK(config.dropout == 0.2);
  auto net = std::make_shared<gpt::GptImpl>(config);
  auto model = accelerator.prepare(net);
  const auto report = accelerator.load_model(model, folder / "hf");
  CHECK(report.fits());
  net->eval();
  const accel::tensor::safetensors::File given(folder / "logits.safetensors");
  const auto expected = given.read("logits");
  torch::Tensor logits;
  {
    const torch::NoGradGuard no_grad;
    logits = model(given.read("tokens"));
  }
  const double largest = (logits - expected).abs().max().item<double>();
  const double size = expected.abs().max().item<double>();
  std::cout << "largest difference of logits " << largest << ", of up to " << size << "\n";
  CHECK(largest <= 4 * 1.2e-7 * size);

  accelerator.save_model(model, folder / "ours");
  std::filesystem::copy_file(folder / "hf" / "config.json", folder / "ours" / "config.json");
  CHECK_THAT(python("read", folder.path()), Catch::Matchers::ContainsSubstring("largest difference 0.0\n"));
}

}  // namespace
