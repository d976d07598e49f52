// The laws of training over NCCL itself, on as many GPUs as there are.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/backend/nccl.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

#include "devices.hpp"
#include "support/models.hpp"
#include "support/training.hpp"

using accel::testing::bits;
using accel::testing::copies;
using accel::testing::cross_entropy;
using accel::testing::distance;
using accel::testing::Mlp;
using accel::testing::needs_devices;
using accel::testing::Noise;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::with_cuda;

namespace {

using OnGpus = accel::Accelerator<accel::backend::Nccl, accel::precision::Fp32>;

constexpr int steps = 10;
constexpr std::int64_t rows = 24;  // of all ranks together, at each step

std::vector<torch::Tensor> on_cpu(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().cpu());
  return result;
}

/// What plain LibTorch trains on a GPU with all rows, as parameters on the host.
std::vector<torch::Tensor> plainly_trained() {
  const c10::Device gpu(c10::DeviceType::CUDA, 0);
  torch::manual_seed(3);
  Mlp net;
  net.to(gpu);
  torch::optim::AdamW adamw(net.parameters(), torch::optim::AdamWOptions(1e-2));
  const Noise noise(rows * steps);
  for (std::int64_t step = 0; step < steps; ++step) {
    adamw.zero_grad();
    const auto data = noise.all.data.narrow(0, step * rows, rows).to(gpu);
    const auto target = noise.all.target.narrow(0, step * rows, rows).to(gpu);
    cross_entropy(net.forward(data), target).backward();
    adamw.step();
  }
  return on_cpu(net.parameters());
}

/// The same by an accelerator whose ranks share the rows of each step.
std::vector<torch::Tensor> trained_by_ranks() {
  OnGpus::Options options;
  options.gradient.caps = {.bucket_cap = accel::Bytes{64}, .last_bucket_cap = accel::Bytes{32}};
  OnGpus accelerator(options);
  torch::manual_seed(3);
  auto net = std::make_shared<Mlp>();
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-2));
  auto [model, optimizer] = accelerator.prepare(net, adamw);
  CHECK(net->first->weight.device() == accelerator.device());
  const Noise noise(rows * steps);
  const std::int64_t part = rows / accelerator.world_size();
  for (std::int64_t step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    const std::int64_t first = step * rows + accelerator.rank() * part;
    const auto data = noise.all.data.narrow(0, first, part).to(accelerator.device());
    const auto target = noise.all.target.narrow(0, first, part).to(accelerator.device());
    accelerator.backward(cross_entropy(model(data), target));
    optimizer.step();
  }
  // Every rank has the same weights.
  for (const auto& parameter : net->parameters()) {
    const auto all = accelerator.gather(parameter.detach().unsqueeze(0));
    for (int rank = 0; rank < accelerator.world_size(); ++rank) CHECK(all[rank].equal(all[0]));
  }
  return on_cpu(net->parameters());
}

}  // namespace

TEST_CASE("one rank over NCCL equals plain LibTorch on its GPU, bit for bit", "[nccl]") {
  needs_devices(1);
  on_ranks({1}, [](Rank) { CHECK(bits(trained_by_ranks()) == bits(plainly_trained())); }, with_cuda());
}

TEST_CASE("an epoch over NCCL, with loader, clipping and buckets, is finite and the same twice", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1},
      [](Rank) {
        const auto first = accel::testing::trained<accel::backend::Nccl>();
        CHECK(first == accel::testing::trained<accel::backend::Nccl>());
      },
      with_cuda());
}

TEST_CASE("two ranks with half batches equal one GPU with the whole batch, within 1e-4", "[nccl]") {
  needs_devices(2);
  on_ranks({2}, [](Rank) { CHECK(distance(trained_by_ranks(), plainly_trained()) < 1e-4); }, with_cuda());
}

TEST_CASE("ranks on all GPUs end with the same weights", "[nccl]") {
  needs_devices(2);
  on_ranks({c10::cuda::device_count()}, [](Rank) { (void)trained_by_ranks(); }, with_cuda());
}

TEST_CASE("two ranks that share a GPU equal one with the whole batch, within 1e-4", "[nccl]") {
  needs_devices(1);
  int code = 0;
  (void)::ncclGetVersion(&code);
  if (code < 23003)
    SKIP("ranks can share a GPU from NCCL 2.30.3 on, and this is " << accel::backend::NcclDriver::version());
  on_ranks(
      {2}, [](Rank) { CHECK(distance(trained_by_ranks(), plainly_trained()) < 1e-4); },
      with_cuda({{"NCCL_MULTI_RANK_GPU_ENABLE", "1"}}));
}
