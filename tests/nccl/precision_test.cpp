// Mixed precision on a GPU: the same scales, skipped steps and weights as by hand, as torch.amp's parts make them.
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/_fused_adamw.h>
#include <accel/accelerator.hpp>
#include <accel/backend/nccl.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

#include "devices.hpp"
#include "support/models.hpp"

namespace {

namespace precision = accel::precision;
using accel::testing::bits;
using accel::testing::Mlp;
using accel::testing::needs_devices;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::with_cuda;

constexpr int amp_steps = 30;
constexpr double first_scale = 0x1p24;  // too much for fp16: the first steps overflow
constexpr std::int64_t interval = 4;

struct Course {
  std::vector<double> scales;
  std::vector<std::string> weights;
};

torch::Tensor rows_of(int step, c10::Device device) {
  return (torch::arange(40, torch::kFloat).view({8, 5}) * 0.05F - 0.1F * static_cast<float>(step)).to(device);
}

/// By autocast, LibTorch's three ops of loss scaling and its fused optimizer.
Course by_hand(torch::ScalarType dtype) {
  const c10::Device gpu(c10::DeviceType::CUDA, 0);
  torch::manual_seed(3);
  Mlp net;
  net.to(gpu);
  const auto on_gpu = torch::TensorOptions(torch::kFloat).device(gpu);
  auto scale = torch::full({}, dtype == torch::kHalf ? first_scale : 1.0, on_gpu);
  auto tracker = torch::zeros({}, on_gpu.dtype(torch::kInt));
  const auto parameters = net.parameters();
  std::vector<torch::Tensor> first, second, steps;
  for (const auto& parameter : parameters) {
    first.push_back(torch::zeros_like(parameter));
    second.push_back(torch::zeros_like(parameter));
    steps.push_back(torch::zeros({}, on_gpu));
  }
  Course course;
  for (int step = 0; step < amp_steps; ++step) {
    torch::Tensor output;
    {
      const precision::Autocast region(c10::DeviceType::CUDA, dtype);
      output = net.forward(rows_of(step, gpu)).to(torch::kFloat);
    }
    net.zero_grad();
    (output.square().mean() * scale).backward();
    const torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> weights, gradients;
    for (const auto& parameter : parameters) {
      weights.push_back(parameter.detach());
      gradients.push_back(parameter.grad());
    }
    auto found = torch::zeros({}, on_gpu);
    std::vector<torch::Tensor> copies;
    for (const auto& gradient : gradients) copies.push_back(gradient.clone());
    at::_amp_foreach_non_finite_check_and_unscale_(copies, found, torch::ones({}, on_gpu));
    for (const auto& count : steps) count.add_(1);
    at::_fused_adamw_(weights, gradients, first, second, {}, steps, 1e-2, 0.9, 0.999, 1e-2, 1e-8, false, false, scale,
                      found);
    for (const auto& count : steps) count.sub_(found);
    if (dtype == torch::kHalf) at::_amp_update_scale_(scale, tracker, found, 2.0, 0.5, interval);
    course.scales.push_back(scale.item<double>());
  }
  course.weights = bits(parameters);
  return course;
}

template <class P>
Course by_accel(const typename P::Options& options) {
  accel::Accelerator<accel::backend::Nccl, P> accelerator({.precision = options});
  torch::manual_seed(3);
  auto net = std::make_shared<Mlp>();
  auto [model, optimizer] = accelerator.prepare(net, accel::optim::AdamW{{.lr = 1e-2}});
  Course course;
  for (int step = 0; step < amp_steps; ++step) {
    optimizer.zero_grad();
    accelerator.backward(model(rows_of(step, accelerator.device())).square().mean());
    optimizer.step();
    course.scales.push_back(accelerator.loss_scale());
  }
  course.weights = bits(net->parameters());
  return course;
}

}  // namespace

TEST_CASE("fp16 on a GPU takes the steps, and the scales, of LibTorch's parts put together by hand", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1},
      [](Rank) {
        const auto ours = by_accel<precision::Fp16>({.init_scale = first_scale, .growth_interval = interval});
        const auto theirs = by_hand(torch::kHalf);
        CHECK(ours.scales == theirs.scales);
        CHECK(ours.weights == theirs.weights);
      },
      with_cuda());
}

TEST_CASE("bf16 on a GPU takes the steps of autocast and the fused optimizer by hand", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1}, [](Rank) { CHECK(by_accel<precision::Bf16>({}).weights == by_hand(torch::kBFloat16).weights); },
      with_cuda());
}

TEST_CASE("an overflow on a GPU changes no weight, no state and no count, and is told and named", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1},
      [](Rank) {
        accel::Accelerator<accel::backend::Nccl, precision::Fp16> accelerator(
            {.precision = {.init_scale = 1024, .name_overflow = true}});
        auto net = std::make_shared<Mlp>();
        auto [model, optimizer] = accelerator.prepare(net, accel::optim::AdamW{{.lr = 1e-2}});
        for (int step = 0; step < 4; ++step) {
          const bool overflows = step == 2;
          optimizer.zero_grad();
          accelerator.backward(model(rows_of(step, accelerator.device())).square().mean());
          if (overflows) net->second->bias.mutable_grad().fill_(std::numeric_limits<float>::infinity());
          const auto weights = bits(net->parameters());
          const auto state = optimizer->state_dict();
          std::vector<torch::Tensor> before;
          for (const auto& entry : state.entries()) before.push_back(entry.tensor.clone());
          optimizer.step();
          CHECK(optimizer.step_was_skipped() == overflows);
          CHECK((bits(net->parameters()) == weights) == overflows);
          if (!overflows) continue;
          const auto after = optimizer->state_dict();
          for (std::size_t i = 0; i < before.size(); ++i) CHECK(before[i].equal(after.entries()[i].tensor));
          CHECK(accelerator.overflow()->parameter == "second.bias of model 0");
        }
        CHECK(accelerator.loss_scale() == 512);
      },
      with_cuda());
}

TEST_CASE("tf32 is on after it was asked for", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1},
      [](Rank) {
        const accel::Accelerator<accel::backend::Nccl, precision::Fp32> accelerator({.precision = {.tf32 = true}});
        CHECK(at::globalContext().allowTF32CuBLAS());
        CHECK(at::globalContext().allowTF32CuDNN());
      },
      with_cuda());
}
