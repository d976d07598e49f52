// What a training takes of each parameter, in bytes: the table of the README, measured at LibTorch's allocator.
#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <c10/util/ThreadLocalDebugInfo.h>
#include <catch2/catch_test_macros.hpp>

#include <atomic>
#include <cmath>
#include <memory>

#include "support/models.hpp"
#include "support/ranks.hpp"

using namespace accel;
using namespace accel::testing;

namespace {

/// Bytes that this thread, and backward for it, has taken from the CPU's allocator and not given back.
class Bytes {
 public:
  [[nodiscard]] double taken() const { return static_cast<double>(counter_->bytes.load()); }

 private:
  struct Counter final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* /*ptr*/, std::int64_t size, std::size_t /*allocated*/, std::size_t /*reserved*/,
                           c10::Device /*device*/) override {
      bytes += size;
    }
    [[nodiscard]] bool memoryProfilingEnabled() const override { return true; }

    std::atomic<std::int64_t> bytes{0};
  };

  std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();
  c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, counter_};
};

/// Two matrices, whose activations and scalars are next to nothing beside them. Forward notes what is taken then.
struct Matrices : torch::nn::Module {
  static constexpr double numel = 2 * 1024 * 1024;

  Matrices() {
    first = register_parameter("first", torch::full({1024, 1024}, 0.01));
    second = register_parameter("second", torch::full({1024, 1024}, 0.01));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    auto product = torch::mm(torch::mm(x, first), second);
    in_forward = bytes->taken();
    return product;
  }

  torch::Tensor first, second;
  const Bytes* bytes = nullptr;
  double in_forward = 0;
};

struct PerParameter {
  double at_rest, in_forward;  // bytes; the second beyond the first
};

/// With gradients, after some steps.
template <class P>
PerParameter bytes_per_parameter(optim::AdamWOptions options) {
  Accelerator<backend::Gloo, P> accelerator;
  const Bytes bytes;
  const auto net = std::make_shared<Matrices>();
  net->bytes = &bytes;
  auto [model, optimizer] = accelerator.prepare(net, optim::AdamW(options));
  const auto x = torch::ones({1, 1024});
  const auto per_parameter = [](double all) { return std::round(100 * all / Matrices::numel) / 100; };
  PerParameter found{};
  for (int step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    const double before = bytes.taken();
    accelerator.backward(model(x).mean());
    found.in_forward = per_parameter(net->in_forward - before);
    optimizer.step();
    REQUIRE_FALSE(optimizer.step_was_skipped());
  }
  auto held = net->parameters();
  for (const auto& gradient : gradients(net->parameters())) held.push_back(gradient);
  for (const auto& state : optimizer.state()) {
    held.insert(held.end(), state.tensors.begin(), state.tensors.end());
    held.push_back(state.master);
  }
  found.at_rest = per_parameter(storage_bytes(held));
  // And nothing else. At several ranks what they share is no allocator's, and other threads give back, too.
  if (accelerator.world_size() == 1) REQUIRE(per_parameter(bytes.taken()) == found.at_rest);
  return found;
}

}  // namespace

TEST_CASE("a parameter takes the bytes that the table of precisions says", "[precision]") {
  on_ranks({1, 2}, [](Rank) {
    const auto takes = [](const PerParameter& found, double at_rest, double casts) {
      CHECK(found.at_rest == at_rest);
      CHECK(found.in_forward == casts);
    };
    constexpr double weight = 4, gradient = 4, states = 8, casts = 2;
    takes(bytes_per_parameter<precision::Fp32>({}), weight + gradient + states, 0);
    takes(bytes_per_parameter<precision::Bf16>({}), weight + gradient + states, casts);
    takes(bytes_per_parameter<precision::Fp16>({}), weight + gradient + states, casts);
    constexpr double half = 2, master = 4;
    takes(bytes_per_parameter<precision::Bf16Weights>({}), half + half + states + master, 0);
    takes(bytes_per_parameter<precision::Bf16Weights>({.low_precision = optim::LowPrecision::stochastic_rounding}),
          half + half + states, 0);
  });
}
