// A reduction that never comes to its end, where the host does not wait for it: nothing is stepped by it.
#include <torch/torch.h>

#include <iostream>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/backend/basic_nccl.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"
#include "support/recording_driver.hpp"

namespace accel::testing::lost {
namespace {

using Catch::Matchers::ContainsSubstring;
using RecordedNccl = backend::BasicNccl<RecordingDriver>;

/// What a step may have changed: weights, states and counts of steps.
template <class O>
std::vector<std::string> state_of(const Mlp& net, O& optimizer) {
  auto state = bits(net.parameters());
  if constexpr (requires { optimizer.state_dict(); }) {
    const auto dict = optimizer.state_dict();
    for (const auto& entry : dict.entries())
      for (const auto& one : bits({entry.tensor})) state.push_back(entry.name + ": " + one);
  }
  return state;
}

/// After some steps together rank 1 fails, before its backward or behind it. The others go on, and must not step.
template <class P, class Make>
void goes_on_alone(Rank rank, Make make, bool behind_backward = false, bool in_backward = false) {
  RecordingDriver::faults.runs_ahead = true;
  // The last has given up long before, and its part of the work has passed on what was there.
  if (rank.rank == 0 && rank.world_size > 2) RecordingDriver::faults.abort_takes_s = 0.4;
  typename Accelerator<RecordedNccl, P>::Options options;
  options.gradient.caps = {.bucket_cap = Bytes{64}, .last_bucket_cap = Bytes{32}};
  options.backend.timeout_s = 30;
  torch::manual_seed(3);
  Accelerator<RecordedNccl, P> accelerator(options);
  auto net = std::make_shared<Mlp>();
  auto own = make(*net);
  auto [model, optimizer] = accelerator.prepare(net, own);
  if constexpr (requires { optimizer.step_in_backward(); })
    if (in_backward) optimizer.step_in_backward();
  const auto input = torch::ones({2, 5}) * (1 + rank.rank);
  const auto backward = [&] {
    optimizer.zero_grad();
    accelerator.backward(model(input).square().mean());
  };
  for (int step = 0; step < 3; ++step) {
    const auto before = bits(net->parameters());
    backward();
    optimizer.step();
    const bool has_stepped = bits(net->parameters()) != before;
    REQUIRE(has_stepped);
  }
  accelerator.wait_for_everyone();
  if (rank.rank == 1) {
    if (behind_backward) backward();
    stay_for(0.2);
    accelerator.abort("the disk is full");
    return;
  }
  const auto before = state_of(*net, own);
  std::string error;
  const auto on = [&](auto&& call) {
    if (error.empty()) error = thrown_by<CommError>(call);
    const bool is_as_before = state_of(*net, own) == before;  // not for a terminal
    CHECK(is_as_before);
  };
  on(backward);
  on([&] { optimizer.step(); });
  if (error.empty()) std::cout << "the host went on, and the device did not step\n";
  on(backward);
  std::cout << error << "\n";
  CHECK_THAT(error, ContainsSubstring("rank 1 (host ") && ContainsSubstring("the disk is full"));
  CHECK_FALSE(thrown_by<CommError>([&] { (void)accelerator.reduce(torch::ones({2})); }).empty());
}

const auto adamw = [](Mlp& net) { return optim::AdamW(net.parameters(), {.lr = 1e-2}); };
const auto sgd = [](Mlp& net) { return optim::SGD(net.parameters(), {.lr = 1e-2, .momentum = 0.9}); };
const auto lion = [](Mlp& net) { return optim::Lion(net.parameters(), {.lr = 1e-2}); };
const auto of_libtorch = [](Mlp& net) { return torch::optim::AdamW(net.parameters(), 1e-2); };

/// A net whose forward changes buffers.
struct Normed : torch::nn::Module {
  Normed() {
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    last = register_module("last", torch::nn::Linear(5, 1));
  }
  torch::Tensor forward(const torch::Tensor& x) { return last(norm(x)); }
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Linear last{nullptr};
};

}  // namespace

TEST_CASE("buffers of a lost reduction are not what an abort has left", "[optimizer][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    RecordingDriver::faults.runs_ahead = true;
    torch::manual_seed(3);
    Accelerator<RecordedNccl, precision::Fp32> accelerator;
    auto net = std::make_shared<Normed>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD(net->parameters(), {.lr = 1e-2}));
    const auto input = torch::randn({4, 5}) * (1 + rank.rank);
    const auto backward = [&] { accelerator.backward(model(input).square().mean()); };
    const auto statistics = [&] { return net->norm->running_mean.clone(); };
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      backward();
      optimizer.step();
    }
    // What forward makes of rank 0's: every rank can tell.
    accelerator.wait_for_everyone();
    const auto of_rank_0 = accelerator.broadcast(statistics());
    if (rank.rank == rank.world_size - 1) {
      stay_for(0.2);
      return accelerator.abort("the disk is full");
    }
    (void)thrown_by<CommError>(backward);
    (void)thrown_by<CommError>([&] { (void)model(input); });
    // Twice through forward, from what all had, or from what this rank's own forward had made of it.
    const auto mean = input.mean(0);
    const auto next = [&](const torch::Tensor& from) { return 0.9 * from + 0.1 * mean; };
    const auto found = statistics();
    const bool is_one_of_them = found.allclose(next(of_rank_0)) || found.allclose(next(next(of_rank_0)));
    INFO(found);
    CHECK(is_one_of_them);
  });
}

TEST_CASE("an optimizer of the library leaves a lost reduction to the device: weights, states and counts stay",
          "[optimizer][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    goes_on_alone<precision::Fp32>(rank, adamw);
    goes_on_alone<precision::Fp32>(rank, sgd);
    goes_on_alone<precision::Fp32>(rank, lion);
    goes_on_alone<precision::Fp16>(rank, adamw);
    goes_on_alone<precision::Fp16>(rank, lion);
  });
}

TEST_CASE("before any other optimizer steps, the host has seen the end of the reduction", "[optimizer][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    goes_on_alone<precision::Fp32>(rank, of_libtorch);
    goes_on_alone<precision::Fp16>(rank, of_libtorch);
  });
}

TEST_CASE("where a rank fails between its backward and its step, under a loss scale no rank steps",
          "[optimizer][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    goes_on_alone<precision::Fp16>(rank, adamw, true);
    goes_on_alone<precision::Fp16>(rank, of_libtorch, true);
  });
}

TEST_CASE("inside of backward no bucket is stepped whose end the host has not seen", "[optimizer][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    goes_on_alone<precision::Fp32>(rank, adamw, false, true);
    goes_on_alone<precision::Fp32>(rank, sgd, false, true);
  });
}

}  // namespace accel::testing::lost
