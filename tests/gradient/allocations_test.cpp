// What a step allocates: no more than the plain loop, and what the backend's own calls take.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace bench {
std::int64_t allocations();  // of the whole process, LibTorch's, too
}

using namespace accel;
using namespace accel::testing;

namespace {

/// Gloo of which an all_reduce does nothing: what is counted then is ours and LibTorch's.
struct SilentGloo : backend::Gloo {
  /// One of Gloo, or nothing.
  struct Work {
    void wait() {
      if (inner) inner->wait();
    }
    void wait_until(Deadline deadline) {
      if (inner) inner->wait_until(deadline);
    }
    [[nodiscard]] bool done() const { return !inner || inner->done(); }

    std::optional<Gloo::Work> inner;
  };

  using Gloo::Gloo;
  explicit SilentGloo(Gloo&& part) : Gloo(std::move(part)) {}
  Work all_reduce(const at::Tensor&, ReduceOp) { return {}; }
  Work all_reduce(std::span<at::Tensor>, ReduceOp) { return {}; }
  Work broadcast(const at::Tensor& tensor, int root) { return {Gloo::broadcast(tensor, root)}; }
  SilentGloo split(std::span<const int> ranks, std::string_view part_name) {
    return SilentGloo(Gloo::split(ranks, part_name));
  }
};

/// Many parameters, ragged and not.
struct Deep : torch::nn::Module {
  Deep() {
    for (int i = 0; i < 12; ++i)
      layers.push_back(
          register_module("layer" + std::to_string(i), torch::nn::Linear(i % 2 == 0 ? 16 : 7, i % 2 == 0 ? 7 : 16)));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (auto& layer : layers) x = torch::relu(layer(x));
    return x;
  }
  std::vector<torch::nn::Linear> layers;
};

/// What `step` allocates, once it is warm: the median, as heartbeats allocate now and then.
template <class Step>
std::int64_t allocations_of(Step&& step) {
  std::vector<std::int64_t> counts;
  for (int i = 0; i < 21; ++i) {
    const std::int64_t before = bench::allocations();
    step();
    if (i >= 10) counts.push_back(bench::allocations() - before);
  }
  std::sort(counts.begin(), counts.end());
  return counts[counts.size() / 2];
}

template <Backend B, class MakeOptimizer>
std::int64_t accel_step(const gradient::ReducerOptions& options, bool clears, MakeOptimizer make) {
  typename Accelerator<B, precision::Fp32>::Options all;
  all.gradient = options;
  Accelerator<B, precision::Fp32> accelerator(all);
  auto net = std::make_shared<Deep>();
  auto [model, optimizer] = accelerator.prepare(net, make(net->parameters()));
  const auto x = torch::ones({3, 16});
  return allocations_of([&] {
    optimizer.zero_grad(clears);
    accelerator.backward(model(x).sum());
    optimizer.step();
  });
}

template <class MakeOptimizer>
std::int64_t plain_step(bool clears, MakeOptimizer make) {
  Deep net;
  auto optimizer = make(net.parameters());
  const auto x = torch::ones({3, 16});
  return allocations_of([&] {
    optimizer.zero_grad(clears);
    net.forward(x).sum().backward();
    optimizer.step();
  });
}

torch::optim::SGD sgd(const std::vector<torch::Tensor>& parameters) {
  return torch::optim::SGD(parameters, 0.01);
}

}  // namespace

TEST_CASE("the reducer allocates nothing in a step", "[allocations]") {
  on_ranks({1, 2, 3}, [](Rank) {
    const std::int64_t plain = plain_step(true, sgd);
    for (const Bytes cap : {25_MiB, 256_B}) {
      const gradient::ReducerOptions options{.caps = {.bucket_cap = cap, .last_bucket_cap = cap}};
      REQUIRE(accel_step<SilentGloo>(options, true, sgd) <= plain);
    }
  });
}

TEST_CASE("gradients that are zeroed in place cost an allocation or two for all of them", "[allocations]") {
  on_ranks({1, 2}, [](Rank) {
    REQUIRE(accel_step<SilentGloo>({}, false, sgd) <= plain_step(false, sgd) + 8);  // there are 24
  });
}

TEST_CASE("a step allocates what the plain loop and one all_reduce per bucket do", "[allocations]") {
  on_ranks({2}, [](Rank) {
    const std::int64_t plain = plain_step(true, sgd);
    Accelerator<backend::Gloo, precision::Fp32> accelerator;
    at::Tensor bucket = accelerator.backend().allocate(4_KiB);
    const std::int64_t reduction =
        allocations_of([&] { accelerator.backend().all_reduce(bucket, ReduceOp::sum).wait(); });
    const std::int64_t step = accel_step<backend::Gloo>({}, true, sgd);
    REQUIRE(step <= plain + 2 * reduction);  // one bucket, and who used what
  });
}

TEST_CASE("the fused optimizers allocate less than those of LibTorch", "[allocations]") {
  on_ranks({1, 2}, [](Rank) {
    const auto fused = [](const std::vector<torch::Tensor>& parameters) { return optim::AdamW(parameters); };
    const auto theirs = [](const std::vector<torch::Tensor>& parameters) { return torch::optim::AdamW(parameters); };
    REQUIRE(accel_step<SilentGloo>({}, true, fused) < plain_step(true, theirs));
  });
}
