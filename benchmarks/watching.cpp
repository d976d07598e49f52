// What do the heartbeat, Checked and Traced cost per step?
//
// A model of 8 x Linear(512, 512), batch 16 per rank, SGD. One process per rank, as any program here;
// the systems take turns of 10 steps each in the same run. Rank 0 prints a table.
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

namespace {

struct System {
  std::string name;
  std::function<void()> step;
  std::vector<double> milliseconds;
};

/// Trains a model of its own with `accelerator`; two buckets of 4 MiB, and the small last one.
template <class B>
System make(const std::string& name, double heartbeat_s) {
  using Accelerator = accel::Accelerator<B, accel::precision::Fp32>;
  struct State {
    explicit State(typename Accelerator::Options options) : accelerator(std::move(options)) {}
    Accelerator accelerator;
    torch::nn::Sequential net;
    std::unique_ptr<torch::optim::SGD> sgd;
  };
  typename Accelerator::Options options;
  options.heartbeat_s = heartbeat_s;
  options.gradient.caps.bucket_cap = accel::Bytes{4 << 20};
  auto state = std::make_shared<State>(options);
  torch::manual_seed(1);
  for (int i = 0; i < 8; ++i) {
    state->net->push_back(torch::nn::Linear(512, 512));
    state->net->push_back(torch::nn::ReLU());
  }
  state->sgd = std::make_unique<torch::optim::SGD>(state->net->parameters(), 1e-3);
  auto [model, optimizer] = state->accelerator.prepare(state->net, *state->sgd);
  const auto x = torch::randn({16, 512});
  auto step = [state, prepared = model, stepper = optimizer, x]() mutable {
    stepper.zero_grad();
    state->accelerator.backward(prepared(x).square().mean());
    stepper.step();
  };
  return {name, std::move(step), {}};
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1))];
}

}  // namespace

int main() {
  using accel::backend::Checked;
  using accel::backend::Gloo;
  using accel::backend::Traced;
  std::vector<System> systems;
  systems.push_back(make<Gloo>("gloo, no heartbeat", 0));
  systems.push_back(make<Gloo>("gloo, heartbeat 1.5 s", 1.5));
  systems.push_back(make<Gloo>("gloo, heartbeat 0.05 s", 0.05));
  systems.push_back(make<Traced<Gloo>>("traced gloo", 1.5));
  systems.push_back(make<Checked<Gloo>>("checked gloo", 1.5));
  accel::Accelerator<Gloo, accel::precision::Fp32> accelerator;
  using Clock = std::chrono::steady_clock;
  for (int turn = 0; turn < 32; ++turn)
    for (auto& system : systems) {
      accelerator.wait_for_everyone();
      for (int step = 0; step < 10; ++step) {
        const auto begin = Clock::now();
        system.step();
        if (turn > 1)
          system.milliseconds.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
      }
    }
  if (!accelerator.is_main_process()) return 0;
  std::printf("%d ranks, %d threads each, ms per step\n", accelerator.world_size(), at::get_num_threads());
  std::printf("%-24s %8s %8s %8s %8s\n", "system", "p10", "p50", "p99", "p50 ratio");
  const double reference = quantile(systems.front().milliseconds, 0.5);
  for (const auto& system : systems)
    std::printf("%-24s %8.2f %8.2f %8.2f %8.3f\n", system.name.c_str(), quantile(system.milliseconds, 0.1),
                quantile(system.milliseconds, 0.5), quantile(system.milliseconds, 0.99),
                quantile(system.milliseconds, 0.5) / reference);
}
