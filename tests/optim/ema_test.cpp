// EMA: PyTorch's average, in the model's place and out of it.
#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <limits>

#include "support/models.hpp"
#include "support/ranks.hpp"

using namespace accel;
using namespace accel::testing;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

void move_weights(const std::vector<torch::Tensor>& parameters, int step) {
  torch::NoGradGuard no_grad;
  for (const auto& parameter : parameters) parameter.mul_(0.9).add_(0.01 * step);
}

}  // namespace

TEST_CASE("an average takes the weights first, then a part of each", "[ema]") {
  Mlp net;
  for (const bool warm_up : {false, true}) {
    optim::EMA ema(net.parameters(), {.decay = 0.8, .warm_up = warm_up});
    std::vector<torch::Tensor> expected;
    for (int step = 0; step < 9; ++step) {
      move_weights(net.parameters(), step);
      ema.update();
      const double decay = warm_up ? std::min(0.8, (1.0 + step) / (10 + step)) : 0.8;
      for (std::size_t i = 0; i < net.parameters().size(); ++i) {
        const auto weight = net.parameters()[i].detach();
        if (step == 0)
          expected.push_back(weight.clone());
        else
          expected[i].lerp_(weight, 1 - decay);
      }
      REQUIRE(bits(ema.averages()) == bits(expected));
    }
    REQUIRE(ema.updates() == 9);
  }
}

TEST_CASE("the average is in the model's place until the guard ends, then the weights are back", "[ema]") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    Mlp net;
    for (auto& parameter : net.parameters()) parameter.set_data(parameter.detach().to(dtype));
    optim::EMA ema(net.parameters(), {.decay = 0.999});
    const auto refuses = [](const char* text) { return MessageMatches(ContainsSubstring(text)); };
    REQUIRE_THROWS_MATCHES(ema.swap_in(), InvalidArgument, refuses("before the first update"));
    ema.update();
    const auto first = copies(ema.averages());
    for (int step = 0; step < 20; ++step) {
      move_weights(net.parameters(), step);
      ema.update();
    }
    REQUIRE(ema.averages()[0].scalar_type() == torch::kFloat);  // in bf16 0.1 % of it would be nothing
    REQUIRE(distance(ema.averages(), first) > 0);
    const auto weights = bits(net.parameters());
    {
      const auto averaged = ema.swap_in();
      for (std::size_t i = 0; i < net.parameters().size(); ++i)
        REQUIRE(torch::equal(net.parameters()[i].detach(), ema.averages()[i].to(dtype)));
      REQUIRE_THROWS_MATCHES(ema.update(), InvalidArgument, refuses("average the average"));
      REQUIRE_THROWS_MATCHES(ema.swap_in(), InvalidArgument, refuses("already"));
    }
    REQUIRE(bits(net.parameters()) == weights);
    ema.update();
  }
  REQUIRE_THROWS_AS(optim::EMA({.decay = 1.5}), InvalidArgument);
}

TEST_CASE("a prepared average follows the steps: none for a micro-step, nor for one that was skipped", "[ema]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Accelerator<backend::Gloo, precision::Fp16> accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Mlp>();
    auto other = std::make_shared<Mlp>();
    auto [other_model, other_optimizer] = accelerator.prepare(other, optim::SGD{{.lr = 0.1}});
    auto [model, optimizer, ema] = accelerator.prepare(net, optim::AdamW{{.lr = 0.1}}, optim::EMA{{.decay = 0.5}});
    std::vector<std::int64_t> updates;
    for (int step = 0; step < 6; ++step) {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(model(torch::full({2, 5}, 0.1F * static_cast<float>(step + rank.rank))).square().mean());
      accelerator.backward(other_model(torch::ones({2, 5})).square().mean());
      if (step == 3 && rank.rank == 0) net->second->bias.mutable_grad().fill_(std::numeric_limits<float>::infinity());
      if (step == 1 && rank.rank == 0) other->second->bias.mutable_grad().fill_(std::numeric_limits<float>::infinity());
      optimizer.step();
      other_optimizer.step();
      ema.update();
      optimizer.zero_grad();
      other_optimizer.zero_grad();
      updates.push_back(ema->updates());
    }
    REQUIRE(updates == std::vector<std::int64_t>{0, 1, 1, 1, 1, 2});
    const auto averages = ema->state_dict();
    REQUIRE(averages.has("average.first.weight"));
    optim::EMA again(net->parameters());
    std::vector<tensor::NamedTensor> named;
    for (const auto& item : net->named_parameters()) named.push_back({item.key(), item.value()});
    again.name_parameters(named);
    again.load_state_dict(averages);
    REQUIRE(bits(again.averages()) == bits(ema->averages()));
    for (const auto& average : ema->averages()) {
      const auto all = accelerator.gather(average.reshape({1, -1}).contiguous());
      for (std::int64_t r = 0; r < all.size(0); ++r) REQUIRE(bits({all[r]}) == bits({all[0]}));
    }
  });
}

TEST_CASE("the average of tied weights is one, and of nothing none", "[ema]") {
  torch::nn::Linear inner(2, 2);
  torch::nn::Sequential net(inner, inner);
  optim::EMA ema(net->parameters());
  REQUIRE(ema.parameters().size() == 2);
  ema.update();
  (void)ema.state_dict();
  optim::EMA unbound;
  REQUIRE_THROWS_WITH(unbound.update(), Catch::Matchers::ContainsSubstring("made without parameters"));
}
