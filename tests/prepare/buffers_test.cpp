// Buffers during training: rank 0's on every rank once a backward has reduced.
#include "support/counting.hpp"
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

/// As the next forward finds them.
std::vector<std::string> statistics(const prepare::Model<Normed, precision::Fp32>& model) {
  return bits(model->buffers());
}

/// Those of rank `rank`, on every rank.
template <class Accelerator>
std::vector<std::string> of_rank(Accelerator& accelerator, const prepare::Model<Normed, precision::Fp32>& model,
                                 int rank) {
  auto buffers = copies(model->buffers());
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
        REQUIRE(statistics(model) == bits(alone.buffers()));
      }
      REQUIRE(net->norm->num_batches_tracked.item<int>() == 4);
      REQUIRE(bits(other->buffers()) == bits(Normed().buffers()));
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
      const bool same = of_rank(accelerator, model, 0) == of_rank(accelerator, model, 1);
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
    REQUIRE(statistics(model) == of_rank(accelerator, model, 0));
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
      REQUIRE(statistics(model) == bits(alone.buffers()));
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

TEST_CASE("a graph that is kept finds the buffers it was made with", "[buffers]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    struct Scaled : torch::nn::Module {
      torch::Tensor weight = register_parameter("weight", torch::zeros({1}));
      torch::Tensor scale = register_buffer("scale", torch::zeros({1}));
    };
    Gloo accelerator;
    auto net = std::make_shared<Scaled>();
    auto model = accelerator.prepare(net);
    net->scale.fill_(rank.rank + 1.0);  // each rank's own, until the next forward after a reduction
    const auto loss = (model->weight * model->scale).sum();
    for (const bool keeps : {true, false}) {
      accelerator.backward(loss, keeps);
      REQUIRE(std::abs(net->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-6);
      net->zero_grad();
    }
    REQUIRE(model->scale.item<double>() == 1);
  });
}

TEST_CASE("models that the backward does not touch have rank 0's statistics, too", "[buffers]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto frozen = std::make_shared<Normed>();
    for (auto& parameter : frozen->parameters()) parameter.requires_grad_(false);
    auto [trained, judge, teacher] =
        accelerator.prepare(std::make_shared<Normed>(), std::make_shared<Normed>(), frozen);
    Normed alone;
    // As in the generator's step of a GAN: forward goes through the others, backward does not.
    accelerator.backward(trained(rows(rank.rank)).square().sum());
    for (int step = 1; step < 3; ++step) {
      (void)judge(rows(step * 7 + rank.rank));
      (void)teacher(rows(step * 7 + rank.rank));
      (void)alone.forward(rows(step * 7));
      accelerator.backward(trained(rows(rank.rank)).square().sum());
      REQUIRE(statistics(judge) == bits(alone.buffers()));
      REQUIRE(statistics(teacher) == bits(alone.buffers()));
    }
  });
}

TEST_CASE("all buffers of a step are one broadcast, and where there are none there is none", "[buffers]") {
  on_ranks({2}, [](Rank) {
    for (const bool with_buffers : {true, false}) {
      Accelerator<CountingGloo, precision::Fp32> accelerator;
      auto plain = accelerator.prepare(std::make_shared<Mlp>());
      if (with_buffers) (void)accelerator.prepare(std::make_shared<Normed>(), std::make_shared<Normed>());
      accelerator.backward(plain(rows(1)).sum());  // once, the order of arrival is told, too
      CountingGloo::broadcasts = 0;
      for (int step = 0; step < 3; ++step) accelerator.backward(plain(rows(1)).sum());
      REQUIRE(CountingGloo::broadcasts == (with_buffers ? 3 : 0));
    }
  });
}
