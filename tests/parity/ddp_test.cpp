// Against PyTorch's DistributedDataParallel, run live.
#include "support/folder.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

using namespace accel;
using namespace accel::testing;

namespace {

constexpr int ddp_steps = 20;
constexpr std::int64_t ddp_rows = 8;

struct NormedMlp : torch::nn::Module {
  torch::Tensor forward(const torch::Tensor& x) { return second(torch::tanh(norm(first(x)))); }

  torch::nn::Linear first{register_module("first", torch::nn::Linear(5, 7))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(7))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(7, 3))};
};

void write(const std::filesystem::path& path, const torch::Tensor& tensor) {
  const auto flat = tensor.detach().contiguous();
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(flat.const_data_ptr()), static_cast<std::streamsize>(flat.nbytes()));
}

torch::Tensor flat(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> rows_of;
  for (const auto& tensor : tensors) rows_of.push_back(tensor.detach().flatten());
  return torch::cat(rows_of);
}

/// Lets DDP train as ddp.py says; each rank's file is in `folder` then.
void train_ddp(int world_size, const std::filesystem::path& folder) {
  torch::manual_seed(3);
  const Noise data(ddp_steps * ddp_rows * world_size);
  write(folder / "parameters.bin", flat(NormedMlp().parameters()));
  write(folder / "data.bin", data.all.data);
  write(folder / "target.bin", data.all.target);
  ReservedPort port;
  const auto result =
      run_program({ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/parity/ddp.py", folder.string(), std::to_string(ddp_steps),
                   std::to_string(ddp_rows), std::to_string(world_size), std::to_string(port.number())},
                  {.deadline = Seconds(120), .variables = {{"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  REQUIRE(result.succeeded());
}

/// What ddp.py notes, of the same training with accel.
void train_accel(int window, std::int64_t world_size, std::vector<torch::Tensor>& seen) {
  torch::manual_seed(3);
  const Noise data(ddp_steps * ddp_rows * world_size);
  Accelerator<backend::Gloo, precision::Fp32> accelerator({.accumulation_steps = window});
  auto net = std::make_shared<NormedMlp>();
  auto [model, loader] = accelerator.prepare(net, data::DataLoader{data, {.batch_size = ddp_rows}});
  for (auto& batch : loader) {
    auto micro_step = accelerator.accumulate(batch);
    seen.push_back(model->norm->running_mean.clone());
    seen.push_back(model->norm->running_var.clone());
    accelerator.backward(cross_entropy(model(batch.data), batch.target));
    if (!micro_step.synchronises()) continue;
    torch::NoGradGuard no_grad;
    for (auto& parameter : net->parameters()) {
      seen.push_back(parameter.grad().clone());
      parameter.sub_(parameter.grad() * 0.5);
    }
    net->zero_grad();
  }
  model.eval();
  torch::NoGradGuard no_grad;
  seen.push_back(model(data.all.data.narrow(0, 0, ddp_rows)));
}

}  // namespace

TEST_CASE("gradients, and the statistics that each forward finds, are DDP's: bit for bit at 2 ranks, within 1e-6 at 3",
          "[parity]") {
  if (std::string(ACCEL_TEST_PYTHON).empty())
    accel::testing::skip_without("torchrun", "no Python with torch was found, so DDP cannot run");
  for (const int world_size : {2, 3}) {
    std::optional<Folder> own;  // of the test; its ranks are told where it is
    if (std::getenv("RANK") == nullptr) {
      own.emplace();
      train_ddp(world_size, own->path());
      ::setenv("ACCEL_TEST_DDP_FOLDER", own->path().c_str(), 1);
    }
    const std::filesystem::path folder = std::getenv("ACCEL_TEST_DDP_FOLDER");
    on_ranks({world_size}, [&](Rank rank) {
      std::vector<torch::Tensor> seen;
      train_accel(1, rank.world_size, seen);
      train_accel(2, rank.world_size, seen);
      std::ifstream file(folder / ("seen" + std::to_string(rank.rank) + ".bin"), std::ios::binary);
      const std::string bytes((std::istreambuf_iterator<char>(file)), {});
      const auto ours = flat(seen);
      REQUIRE(bytes.size() == ours.nbytes());
      if (rank.world_size == 2) {
        REQUIRE(bits({ours})[0] == bytes);
      } else {
        auto theirs = torch::empty_like(ours);
        std::memcpy(theirs.mutable_data_ptr(), bytes.data(), bytes.size());
        REQUIRE(distance({ours}, {theirs}) < 1e-6);
      }
    });
  }
}
