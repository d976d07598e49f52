// Steps inside of backward: the weights of a step after it, earlier; beside a save; and what is refused.
#include "support/folder.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"
#include "support/tower.hpp"

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

Gloo::Options small_buckets(int accumulation_steps = 1) {
  Gloo::Options options{.accumulation_steps = accumulation_steps};
  options.gradient.caps = {.bucket_cap = 64_B, .last_bucket_cap = 32_B};
  return options;
}

template <class MakeOptimizer>
std::vector<std::string> tower_weights(Rank rank, bool in_backward, int steps_per_window, bool overlap,
                                       MakeOptimizer make) {
  torch::manual_seed(11);
  auto options = small_buckets(steps_per_window);
  options.gradient.overlap = overlap;
  Gloo accelerator(options);
  auto net = std::make_shared<Tower>();
  auto [model, optimizer] = accelerator.prepare(net, make(net->parameters()));
  if (in_backward) optimizer.step_in_backward();
  for (int step = 0; step < 12; ++step) {
    const auto before = bits(net->parameters());
    for (int i = 0; i < steps_per_window; ++i) {
      auto micro_step = accelerator.accumulate();
      // Everything in the first steps; then a layer that one rank leaves out, or all of them.
      const int without = step < 5 ? -1 : step < 8 && rank.rank != 0 ? 3 : step == 9 ? 2 : -1;
      const auto x = torch::full({2, 6}, 0.1 * step + rank.rank - i);
      accelerator.backward(net->forward(x, without).square().mean());
      if (i + 1 < steps_per_window) REQUIRE((bits(net->parameters()) == before));
      optimizer.step();
      optimizer.zero_grad();
    }
    REQUIRE((bits(net->parameters()) != before));
  }
  return bits(net->parameters());
}

}  // namespace

TEST_CASE("steps inside of backward give the weights of steps after it, bit for bit", "[in_backward]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const auto adamw = [](const std::vector<torch::Tensor>& all) { return optim::AdamW(all, {.lr = 1e-2}); };
    const auto sgd = [](const std::vector<torch::Tensor>& all) {
      return optim::SGD(all, {.lr = 1e-1, .momentum = 0.9});
    };
    for (const int window : {1, 3})
      for (const bool overlap : {true, false}) {
        const auto same = [&](auto make) {
          return tower_weights(rank, true, window, overlap, make) == tower_weights(rank, false, window, overlap, make);
        };
        REQUIRE(same(adamw));
        REQUIRE(same(sgd));
      }
  });
}

TEST_CASE("later layers have stepped while backward still runs through earlier ones", "[in_backward]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator(small_buckets());
    auto net = std::make_shared<Tower>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD(net->parameters(), {.lr = 1e-1}));
    optimizer.step_in_backward();
    for (int step = 0; step < 4; ++step) {
      const auto last = net->layers[3]->bias;
      const auto before = bits({last});
      bool has_stepped = false;
      accelerator.backward(
          net->watched_loss(torch::full({2, 6}, 0.3 + rank.rank), [&] { has_stepped = bits({last}) != before; }));
      if (step > 1) REQUIRE(has_stepped);  // the first steps show that nobody lacks anything
      optimizer.step();
      optimizer.zero_grad();
    }
  });
}

TEST_CASE("what is saved while layer after layer is stepped is what was there before", "[in_backward]") {
  const SharedFolder folder;
  for (const bool with_masters : {false, true}) {
    on_ranks({1, 2, 3}, [&](Rank rank) {
      auto options = small_buckets();
      options.checkpoint = {.folder = folder / message("base", with_masters), .keep = {.total_limit = 1}};
      options.log = Log::Level::warning;
      Gloo accelerator(options);
      auto net = std::make_shared<Tower>(192);
      if (with_masters) net->to(torch::kBFloat16);
      auto [model, optimizer] = accelerator.prepare(net, optim::AdamW(net->parameters(), {.lr = 1e-2}));
      optimizer.step_in_backward();
      const auto step = [&, &own = optimizer](int number) {
        const auto x = torch::full({2, 192}, 0.1 * number + rank.rank).to(net->layers[0]->weight.scalar_type());
        accelerator.backward(net->forward(x).square().mean());
        own.step();
        own.zero_grad();
      };
      for (int number = 0; number < 12; ++number) {
        step(number);
        std::vector<std::pair<std::string, torch::Tensor>> expected;
        for (const auto& weight : net->named_parameters())
          expected.emplace_back(weight.key(), weight->detach().clone());
        const auto state = optimizer->state_dict();
        for (const auto& [name, tensor] : state.entries())
          if (tensor.dim() > 0) expected.emplace_back(name, tensor.clone());
        CHECK(expected.size() == (with_masters ? 32U : 24U));
        const auto place = accelerator.save_state();
        step(number);
        accelerator.wait_for_save();
        const checkpoint::Reader reader(place);
        reader.verify();
        for (const auto& [name, tensor] : expected) {
          const auto part = reader.part(name.starts_with("state.") ? "optimizer" : "model", rank.rank);
          CHECK(torch::equal(part->own().tensor(name), tensor));
        }
        accelerator.wait_for_everyone();  // the next save removes it
      }
    });
  }
}

TEST_CASE("what cannot be right with steps inside of backward is refused", "[in_backward]") {
  const auto refused = [](auto what, const std::string& words) {
    on_ranks({1, 2}, [&](Rank) {
      Gloo accelerator;
      auto net = std::make_shared<Tower>();
      auto [model, optimizer] = accelerator.prepare(net, optim::SGD(net->parameters(), {.lr = 1e-1}));
      optimizer.step_in_backward();
      const auto loss = [&] { return net->forward(torch::ones({2, 6})).square().mean(); };
      accelerator.backward(loss());
      accelerator.wait_for_everyone();
      REQUIRE_THROWS_WITH(what(accelerator, model, optimizer, loss), ContainsSubstring(words));
    });
  };
  refused([](auto& accelerator, auto&, auto&, auto loss) { accelerator.backward(loss()); }, "a step is one backward");
  refused(
      [](auto& accelerator, auto&, auto& optimizer, auto loss) {
        optimizer.step();
        accelerator.wait_for_everyone();
        accelerator.backward(loss(), /*retain_graph=*/true);
      },
      "retain_graph");
  refused([](auto& accelerator, auto& model, auto&, auto) { accelerator.clip_grad_norm_(model, 1.0); },
          "before the norm of all gradients is known");
  refused(
      [](auto&, auto&, auto& optimizer, auto) {
        optimizer.step();
        optimizer.step();
      },
      "no backward has run since");
}

TEST_CASE("a graph whose weights were stepped cannot be gone through again", "[optim]") {
  Tower net;
  optim::SGD optimizer(net.parameters());
  const auto loss = net.forward(torch::ones({2, 6})).square().mean();
  for (const auto& parameter : net.parameters()) parameter.mutable_grad() = torch::ones_like(parameter);
  optimizer.step();
  REQUIRE_THROWS_WITH(loss.backward(), ContainsSubstring("modified by an inplace operation"));
}
