// Parameters that are used now and then, here and not there: what is waited for, what is sent, what arrives.
#include "support/counting.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>
#include <accel/gradient/forecast.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <random>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Counting = Accelerator<CountingGloo, precision::Fp32>;

namespace {

using UsedSet = gradient::Forecast::UsedSet;

const gradient::ReducerOptions one_by_one{.caps = {.bucket_cap = 1_B, .last_bucket_cap = 1_B}};

/// A chain of layers, of which a forward may leave out some.
struct Chain : torch::nn::Module {
  explicit Chain(std::int64_t length) {
    for (std::int64_t i = 0; i < length; ++i)
      layers.push_back(
          register_module("layer" + std::to_string(i), torch::nn::Linear(torch::nn::LinearOptions(4, 4).bias(false))));
  }

  torch::Tensor forward(torch::Tensor x, const std::vector<int>& without = {}) {
    for (std::size_t i = 0; i < layers.size(); ++i)
      if (std::find(without.begin(), without.end(), static_cast<int>(i)) == without.end())
        x = torch::tanh(layers[i](x));
    return x;
  }

  std::vector<torch::nn::Linear> layers;
};

torch::Tensor chain_input(int seed) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(seed));
  return torch::randn({3, 4}, generator);
}

/// A loss, and how many all_reduces had begun when backward reached its input.
struct Probe {
  explicit Probe(torch::Tensor x) : input(std::move(x)) {
    input.requires_grad_();
    input.register_hook([count = begun](const torch::Tensor&) { *count = CountingGloo::all_reduces; });
  }

  torch::Tensor input;
  std::shared_ptr<int> begun = std::make_shared<int>(-1);
};

}  // namespace

TEST_CASE("what nobody uses costs neither overlap nor bytes after the step that shows it", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    Counting accelerator(Counting::Options{.gradient = one_by_one});
    auto net = std::make_shared<Chain>(4);
    auto model = accelerator.prepare(net);
    for (int step = 0; step < 4; ++step) {
      if (step == 2) net->layers[0]->weight.requires_grad_(false);
      const std::vector<int> without{3};  // the first in backward's order: it would hold back all others
      Probe probe(chain_input(rank.rank));
      CountingGloo::all_reduces = 0;
      accelerator.backward(net->forward(probe.input, without).sum());
      if (step == 0) REQUIRE(*probe.begun == 0);
      if (step == 1) REQUIRE(*probe.begun == 2);  // the last layer's gradient comes after that of its input
      if (step == 3) REQUIRE(*probe.begun == 2);
      const int sent = step == 0 ? 4 : step == 3 ? 2 : 3;
      if (step != 2) REQUIRE(CountingGloo::all_reduces == sent + 1);
      REQUIRE_FALSE(net->layers[3]->weight.grad().defined());
      net->zero_grad();
    }
  });
}

TEST_CASE("what one rank alone uses costs the others no overlap", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    Counting accelerator(Counting::Options{.gradient = one_by_one});
    auto net = std::make_shared<Chain>(4);
    auto model = accelerator.prepare(net);
    for (int step = 0; step < 3; ++step) {
      Probe probe(chain_input(rank.rank));
      CountingGloo::all_reduces = 0;
      accelerator.backward(net->forward(probe.input, rank.rank == 0 ? std::vector<int>{} : std::vector<int>{3}).sum());
      if (step > 0) REQUIRE(*probe.begun == 3);
      REQUIRE(CountingGloo::all_reduces == 5);
      REQUIRE(net->layers[3]->weight.grad().defined());
      net->zero_grad();
    }
  });
}

TEST_CASE("models that take turns overlap as if each were alone", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    Counting accelerator(Counting::Options{.gradient = one_by_one});
    auto critic = std::make_shared<Chain>(3);
    auto generator = std::make_shared<Chain>(3);
    auto [first, second] = accelerator.prepare(critic, generator);
    for (int step = 0; step < 60; ++step) {
      // Five steps of the one, one of the other; that goes through both.
      Probe probe(chain_input(step * 3 + rank.rank));
      const bool both = step % 6 == 5;
      CountingGloo::all_reduces = 0;
      accelerator.backward(both ? critic->forward(generator->forward(probe.input)).sum()
                                : critic->forward(probe.input).sum());
      if (step > 24) {
        REQUIRE(*probe.begun == (both ? 5 : 2));
        REQUIRE(CountingGloo::all_reduces == (both ? 7 : 4));
      }
      critic->zero_grad();
      generator->zero_grad();
    }
  });
}

TEST_CASE("layers left out at random, by rank and step, give the mean all the same", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    for (const bool clears : {true, false}) {
      Gloo accelerator({.gradient = one_by_one});
      auto net = std::make_shared<Chain>(5);
      auto model = accelerator.prepare(net);
      auto twin = std::make_shared<Chain>(5);
      for (std::size_t i = 0; i < 5; ++i) twin->layers[i]->weight.set_data(net->layers[i]->weight.detach().clone());
      std::mt19937 random(5);
      for (int step = 0; step < 40; ++step) {
        std::vector<std::vector<int>> without(static_cast<std::size_t>(rank.world_size));
        for (auto& list : without)
          for (int layer = 0; layer < 5; ++layer)
            if (random() % (step < 20 ? 8 : 3) == 0 && list.size() < 4) list.push_back(layer);
        accelerator.backward(
            net->forward(chain_input(step + rank.rank), without[static_cast<std::size_t>(rank.rank)]).sum());
        for (int r = 0; r < rank.world_size; ++r)
          (twin->forward(chain_input(step + r), without[static_cast<std::size_t>(r)]).sum() / rank.world_size)
              .backward();
        for (std::size_t i = 0; i < 5; ++i) {
          const auto& found = net->layers[i]->weight.grad();
          const auto& expected = twin->layers[i]->weight.grad();
          REQUIRE(found.defined() == expected.defined());
          if (found.defined()) REQUIRE(torch::allclose(found, expected, 1e-4, 1e-5));
        }
        if (clears || step % 7 == 6) {
          net->zero_grad();
          twin->zero_grad();
        }
      }
    }
  });
}

TEST_CASE("buckets are planned anew for the order in which gradients arrive", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    // Registered in the order of backward: by registration the bucket that is full first comes last.
    struct Backwards : torch::nn::Module {
      Backwards() {
        for (int i = 3; i >= 0; --i)
          layers.insert(layers.begin(), register_module("layer" + std::to_string(i),
                                                        torch::nn::Linear(torch::nn::LinearOptions(4, 4).bias(false))));
      }
      torch::Tensor forward(torch::Tensor x) {
        for (auto& layer : layers) x = torch::tanh(layer(x));
        return x;
      }
      std::vector<torch::nn::Linear> layers;
    };
    Counting accelerator(Counting::Options{.gradient = one_by_one});
    auto net = std::make_shared<Backwards>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 0.1));
    std::vector<torch::Tensor> handles;
    std::vector<std::string> seen;
    for (int step = 0; step < 3; ++step) {
      Probe probe(chain_input(rank.rank));
      CountingGloo::all_reduces = 0;
      accelerator.backward(net->forward(probe.input).sum());
      REQUIRE(*probe.begun == (step == 0 ? 0 : 3));
      REQUIRE(CountingGloo::all_reduces == 5);
      if (step == 0) {
        handles = gradients(net->parameters());
        seen = bits(handles);
      }
      optimizer.step();
      optimizer.zero_grad();
      REQUIRE(bits(handles) == seen);
    }
    for (const auto& parameter : net->parameters())
      REQUIRE(bits({accelerator.broadcast(parameter.detach().clone())}) == bits({parameter}));
  });
}

TEST_CASE("the plan in force is described, and a measured cap is the same on every rank", "[unused]") {
  on_ranks({2, 3}, [](Rank) {
    Gloo accelerator({.gradient = {.caps = {.bucket_cap = gradient::Caps::automatic()}}});
    REQUIRE(accelerator.describe().find("buckets: none") != std::string::npos);
    auto net = std::make_shared<torch::nn::LinearImpl>(600, 600);  // 1.4 MB
    auto model = accelerator.prepare(net);
    const auto text = accelerator.describe();
    const auto plan = text.substr(text.find("buckets: "));
    REQUIRE(plan.find("parameter") != std::string::npos);
    const auto bytes = torch::full({1}, static_cast<std::int64_t>(std::hash<std::string>()(plan) >> 2));
    REQUIRE(torch::equal(accelerator.reduce(bytes, Reduction::max), accelerator.reduce(bytes, Reduction::min)));
    accelerator.backward(model(torch::ones({2, 600})).sum());
  });
}

TEST_CASE("a plan can be saved and installed, and one of another model is refused by name", "[unused]") {
  on_ranks({2, 3}, [](Rank rank) {
    std::string plan;
    std::vector<std::string> weights;
    const gradient::ReducerOptions few{.caps = {.bucket_cap = 200_B, .last_bucket_cap = 64_B}};
    for (int run = 0; run < 2; ++run) {
      Counting::Options options{.gradient = few};
      if (run == 1) options.gradient = {.plan = plan};
      Counting accelerator(options);
      torch::manual_seed(2);
      auto net = std::make_shared<Chain>(5);
      auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 0.1));
      for (int step = 0; step < 4; ++step) {
        CountingGloo::all_reduces = 0;
        accelerator.backward(net->forward(chain_input(step * 3 + rank.rank)).sum());
        REQUIRE(CountingGloo::all_reduces == 4);  // three buckets, and who used what
        optimizer.step();
        optimizer.zero_grad();
      }
      if (run == 0) {
        plan = accelerator.bucket_plan();
        weights = bits(net->parameters());
      }
      REQUIRE(accelerator.bucket_plan() == plan);
      REQUIRE((bits(net->parameters()) == weights));
    }
    REQUIRE(std::count(plan.begin(), plan.end(), '\n') == 3);
    REQUIRE(plan.find("0/layer4.weight 0/layer3.weight 0/layer2.weight\n") == 0);
    Gloo other({.gradient = {.plan = plan}});
    REQUIRE_THROWS_WITH(other.prepare(std::make_shared<Mlp>()),
                        Catch::Matchers::ContainsSubstring("0/first.weight of a prepared model does not stand in it"));
  });
}

TEST_CASE("a forecast expects everything, then what came last, then what came in this order", "[forecast]") {
  gradient::Forecast forecast(3);
  const UsedSet all{1, 1, 1}, left{1, 0, 0}, right{0, 0, 1};
  REQUIRE(forecast.set(forecast.next()) == all);
  forecast.learn(left);
  REQUIRE(forecast.set(forecast.next()) == left);
  for (int round = 0; round < 2; ++round) {
    forecast.learn(right);
    forecast.learn(left);
  }
  REQUIRE(forecast.set(forecast.next()) == right);
  for (int step = 0; step < 60; ++step) {  // left, left, right
    const UsedSet& now = step % 3 == 2 ? right : left;
    if (step > 20) REQUIRE(forecast.set(forecast.next()) == now);
    forecast.learn(now);
  }
}

TEST_CASE("a forecast gives up where nothing can be told, forgets what is too much, and comes back", "[forecast]") {
  gradient::Forecast forecast(8);
  std::mt19937 random(1);
  for (int step = 0; step < 2000; ++step) {
    UsedSet set(8);
    for (auto& one : set) one = random() % 2;
    forecast.learn(set);
    REQUIRE(forecast.size() <= 64);
  }
  REQUIRE(forecast.next() == 0);
  const UsedSet set(8, 1);
  UsedSet some(8, 0);
  some[3] = 1;
  for (int step = 0; step < 100; ++step) forecast.learn(some);
  REQUIRE(forecast.set(forecast.next()) == some);
}
