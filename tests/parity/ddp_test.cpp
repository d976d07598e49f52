// Against PyTorch's DistributedDataParallel, run live.
#include "files.hpp"
#include "support/folder.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdlib>
#include <filesystem>
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

/// Lets DDP train as ddp.py says; each rank's file is in `folder` then.
void train_ddp(int world_size, const std::filesystem::path& folder) {
  torch::manual_seed(3);
  const Noise data(ddp_steps * ddp_rows * world_size);
  write_raw(folder / "parameters.bin", flat(NormedMlp().parameters()));
  write_raw(folder / "data.bin", data.all.data);
  write_raw(folder / "target.bin", data.all.target);
  ReservedPort port;
  const auto result =
      run_program({ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/parity/ddp.py", folder.string(), std::to_string(ddp_steps),
                   std::to_string(ddp_rows), std::to_string(world_size), std::to_string(port.number())},
                  {.deadline = Seconds(600), .variables = {{"OMP_NUM_THREADS", "1"}}});
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
      const auto theirs = read_raw(folder / ("seen" + std::to_string(rank.rank) + ".bin"));
      const auto ours = flat(seen);
      REQUIRE(theirs.numel() == ours.numel());
      if (rank.world_size == 2)
        REQUIRE(bits({ours}) == bits({theirs}));
      else
        REQUIRE(distance({ours}, {theirs}) < 1e-6);
    });
  }
}
