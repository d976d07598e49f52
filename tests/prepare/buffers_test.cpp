// Buffers during training: rank 0's on every rank once a backward has reduced.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;

namespace {

/// Statistics in f32 and i64, and a buffer of a dtype and size that leaves odd bytes.
struct Normed : torch::nn::Module {
  Normed() {
    register_buffer("flags", flags);
    register_buffer("wide", wide);
  }
  torch::Tensor forward(const torch::Tensor& x) {
    flags.logical_xor_(x.sum().gt(0));
    narrow.add_(x.sum());
    return out(norm(x));
  }

  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(5))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(5, 2))};
  torch::Tensor flags = torch::zeros({3}, torch::kBool);
  torch::Tensor narrow = torch::zeros({2, 1}, torch::kDouble);
  torch::Tensor wide = narrow.expand({2, 3});
};

torch::Tensor rows(int seed) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(seed));
  return torch::randn({6, 5}, generator) + seed;
}

std::vector<std::string> statistics(const Normed& net) {
  return bits(net.buffers());
}

/// The buffers of rank `rank`, on every rank.
template <class Accelerator>
std::vector<std::string> of_rank(Accelerator& accelerator, const Normed& net, int rank) {
  auto buffers = copies(net.buffers());
  for (auto& buffer : buffers) buffer = accelerator.broadcast(buffer.contiguous(), rank);
  return bits(buffers);
}

}  // namespace

TEST_CASE("after a step every rank has rank 0's statistics, those that a run of rank 0 alone would have", "[buffers]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const bool several : {false, true}) {
      Gloo accelerator;
      auto net = std::make_shared<Normed>();
      auto other = std::make_shared<Normed>();
      Normed alone;
      auto model = accelerator.prepare(net);
      if (several) (void)accelerator.prepare(other);
      for (int step = 0; step < 4; ++step) {
        accelerator.backward(model(rows(step * 7 + rank.rank)).square().sum());
        (void)alone.forward(rows(step * 7));
        REQUIRE(statistics(*net) == statistics(alone));
      }
      REQUIRE(net->norm->num_batches_tracked.item<int>() == 4);
      REQUIRE(statistics(*other) == statistics(Normed()));
    }
  });
}

TEST_CASE("a backward that only adds up leaves the statistics of a rank its own", "[buffers]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Normed>();
    auto model = accelerator.prepare(net);
    for (int i = 0; i < 2; ++i) {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(model(rows(rank.rank + 3 * i)).square().sum());
      const bool same = of_rank(accelerator, *net, 0) == of_rank(accelerator, *net, 1);
      REQUIRE(same == micro_step.synchronises());
    }
  });
}

TEST_CASE("a forward sends nothing: a rank may evaluate alone, in any mode", "[buffers]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Normed>();
    auto model = accelerator.prepare(net);
    accelerator.backward(model(rows(rank.rank)).square().sum());
    if (rank.rank == 0) {
      (void)model(rows(1));
      model.eval();
      (void)model(rows(2));
      torch::NoGradGuard no_grad;
      (void)model(rows(3));
    }
    accelerator.backward(net->out(rows(rank.rank)).sum());
    REQUIRE(statistics(*net) == of_rank(accelerator, *net, 0));
  });
}

TEST_CASE("with broadcast_buffers = false every rank keeps its own statistics", "[buffers]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator({.gradient = {.broadcast_buffers = false}});
    auto net = std::make_shared<Normed>();
    Normed alone;
    auto model = accelerator.prepare(net);
    for (int step = 0; step < 2; ++step) {
      accelerator.backward(model(rows(step * 7 + rank.rank)).square().sum());
      (void)alone.forward(rows(step * 7 + rank.rank));
      REQUIRE(statistics(*net) == statistics(alone));
    }
  });
}

TEST_CASE("a graph that is kept can be gone through again after the statistics have arrived", "[buffers]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Normed>();
    auto model = accelerator.prepare(net);
    const auto loss = model(rows(rank.rank)).square().sum();
    accelerator.backward(loss, /*retain_graph=*/true);
    const auto once = copies(gradients(net->parameters()));
    net->zero_grad();
    accelerator.backward(loss);
    REQUIRE(bits(once) == bits(gradients(net->parameters())));
  });
}
