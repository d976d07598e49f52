// The edges of accumulation windows: what may stand where, and what is refused.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using torch::optim::SGD;

namespace {

torch::Tensor a_one() {
  return torch::ones({1}, torch::kDouble);
}

}  // namespace

TEST_CASE("clipping gradients of this rank only is an error", "[window]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, other] = accelerator.prepare(net, std::make_shared<Line>());
    {
      auto local = accelerator.no_sync();
      accelerator.backward((model(a_one()) * 30.0 * (rank.rank + 1)).sum());
      REQUIRE_THROWS_WITH(accelerator.clip_grad_norm_(model, 1.0), ContainsSubstring("under no_sync"));
    }
    REQUIRE_THROWS_WITH(accelerator.clip_grad_norm_(model, 1.0), ContainsSubstring("under no_sync"));
    REQUIRE(accelerator.clip_grad_norm_(other, 1.0).item<double>() == 0);
    accelerator.backward((model(a_one()) * 0).sum());
    const double mean = 30.0 * (rank.world_size + 1) / 2;
    REQUIRE(std::abs(accelerator.clip_grad_norm_(model, 1.0).item<double>() - mean) < 1e-12);
  });
}

TEST_CASE("a step after the loop, in mid-window, is an error that says how to end the window", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 4});
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    const auto micro = [&] {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(model(a_one()).sum());
      optimizer.step();
      optimizer.zero_grad();
      return micro_step.synchronises();
    };
    for (int i = 0; i < 6; ++i) REQUIRE(micro() == (i == 3));
    REQUIRE(net->weight.item<double>() == -1.0);
    REQUIRE_THROWS_WITH(optimizer.step(),
                        ContainsSubstring("2 of 4 micro-steps") && ContainsSubstring("give_up_window()"));
    REQUIRE_THROWS_WITH(optimizer.step([&] { return model(a_one()).sum(); }), ContainsSubstring("2 of 4 micro-steps"));
    REQUIRE_FALSE(micro());
    REQUIRE(micro());  // the window goes on, and ends
    REQUIRE(net->weight.item<double>() == -2.0);
    optimizer.step();  // of a finished window, as in plain LibTorch
  });
}

TEST_CASE("accumulate inside of accumulate is an error, and the outer one goes on", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Line>();
    auto [model, optimizer, loader] = accelerator.prepare(
        net, SGD(net->parameters(), 1.0), data::DataLoader{Doubles{4 * accelerator.world_size()}, {.batch_size = 1}});
    for (auto& batch : loader) {
      auto micro_step = accelerator.accumulate(batch);
      REQUIRE_THROWS_WITH(accelerator.accumulate(), ContainsSubstring("inside of another"));
      REQUIRE_THROWS_WITH(accelerator.accumulate(batch), ContainsSubstring("inside of another"));
      accelerator.backward(model(a_one()).sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    REQUIRE(net->weight.item<double>() == -2.0);
  });
}

TEST_CASE("accelerator.backward inside of a backward is an error that names both", "[window]") {
  on_ranks({1}, [](Rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    auto loss = model(a_one()).sum();
    std::string inner;
    loss.register_hook([&](const torch::Tensor&) {
      try {
        accelerator.backward(model(a_one()).sum());
      } catch (const InvalidArgument& error) {
        inner = error.what();
      }
    });
    accelerator.backward(loss);
    REQUIRE_THAT(inner, ContainsSubstring("inside of another accelerator.backward"));
    REQUIRE(model->weight.grad().item<double>() == 1.0);
    model->zero_grad();
    accelerator.backward(model(a_one()).sum());  // and the next is a first one again
    REQUIRE(model->weight.grad().item<double>() == 1.0);
  });
  on_ranks({2, 3}, [](Rank rank) {
    // Caught on every rank, where the outer backward has works in flight.
    Gloo accelerator({.gradient = {.caps = {.bucket_cap = 64_B, .last_bucket_cap = 32_B}}});
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    const auto x = torch::full({2, 5}, rank.rank + 1.0);
    const auto hidden = net->first(x);
    int refused = 0;
    hidden.register_hook([&](const torch::Tensor&) {
      try {
        accelerator.backward(model(x).sum());
      } catch (const InvalidArgument&) {
        ++refused;
      }
    });
    accelerator.backward(net->second(hidden).sum());
    REQUIRE(refused == 1);
    const auto ours = copies(gradients(net->parameters()));
    net->zero_grad();
    accelerator.backward(net->second(net->first(x)).sum());
    REQUIRE(bits(ours) == bits(gradients(net->parameters())));
  });
}

TEST_CASE("a window that is cut short keeps the mean that stood before it", "[window]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 4});
    auto net = std::make_shared<Line>();
    auto [model, long_loader, short_loader] =
        accelerator.prepare(net, data::DataLoader{Doubles{20 * accelerator.world_size()}, {.batch_size = 1}},
                            data::DataLoader{Doubles{accelerator.world_size()}, {.batch_size = 1}});
    const auto train = [&](auto& batch) {
      auto micro_step = accelerator.accumulate(batch);
      accelerator.backward(model(a_one()).sum());
    };
    for (auto& batch : short_loader) train(batch);
    REQUIRE(std::abs(net->weight.grad().item<double>() - 1) < 1e-12);
    for (auto& batch : long_loader) {
      train(batch);
      break;
    }
    for (auto& batch : short_loader) train(batch);                     // ends the window after two of four
    REQUIRE(std::abs(net->weight.grad().item<double>() - 2) < 1e-12);  // nobody has cleared the first mean
  });
}

TEST_CASE("a window that is given up leaves nothing behind, and the next one is whole", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 4});
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    const auto micro = [&](double factor) {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(factor * model(a_one()).sum());
      optimizer.step();
      optimizer.zero_grad();
      return micro_step.synchronises();
    };
    for (int i = 0; i < 2; ++i) REQUIRE_FALSE(micro(100));
    accelerator.give_up_window();
    optimizer.step();  // of nothing
    for (int i = 0; i < 4; ++i) REQUIRE(micro(1) == (i == 3));
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("a window in which a backward threw is given up before it goes on", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    const auto micro = [&](bool throws) {
      auto micro_step = accelerator.accumulate();
      auto loss = model(a_one()).sum();
      if (throws) loss.register_hook([](const torch::Tensor&) { throw std::runtime_error("a user's hook"); });
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
    };
    REQUIRE_THROWS_WITH(micro(true), ContainsSubstring("a user's hook"));
    if (accelerator.world_size() == 1)  // with others it would end the group
      REQUIRE_THROWS_WITH(micro(false),
                          ContainsSubstring("lack a micro-batch") && ContainsSubstring("give_up_window()"));
    accelerator.give_up_window();
    micro(false);
    micro(false);
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("a window whose last micro-step runs no backward is not carried into the next", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    for (const bool skips : {false, true}) {
      auto micro_step = accelerator.accumulate();
      if (skips) continue;  // a batch of nothing but padding, say
      accelerator.backward(model(a_one()).sum());
    }
    REQUIRE_THROWS_WITH(accelerator.accumulate(), ContainsSubstring("ran no backward"));
    accelerator.give_up_window();
    auto micro_step = accelerator.accumulate();
    REQUIRE_FALSE(micro_step.synchronises());
  });
}

TEST_CASE("a backward outside of accumulate on one rank ends the group: its windows would drift", "[window]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto model = accelerator.prepare(std::make_shared<Line>());
    if (rank.rank == 1)
      REQUIRE_THROWS_WITH(accelerator.backward(model(a_one()).sum()), ContainsSubstring("outside of accumulate"));
    const auto train = [&] {
      for (int i = 0; i < 2; ++i) {
        auto micro_step = accelerator.accumulate();
        accelerator.backward(model(a_one()).sum());
      }
    };
    REQUIRE_THROWS_AS(train(), CommError);
  });
}

TEST_CASE("a closure that is evaluated again cannot see a whole window, and is refused", "[window]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    auto [model, sgd, second, lbfgs] =
        accelerator.prepare(net, SGD(net->parameters(), 1.0), other, torch::optim::LBFGS(other->parameters(), 1.0));
    const auto step = [&](auto& trained, auto& optimizer) {
      for (int i = 0; i < 2; ++i) {
        auto micro_step = accelerator.accumulate();
        (void)optimizer.step([&] {
          auto loss = squared_error(trained(a_one()), 2 * a_one());
          accelerator.backward(loss);
          return loss;
        });
      }
    };
    step(model, sgd);
    REQUIRE(net->weight.item<double>() == 4.0);
    REQUIRE_THROWS_WITH(step(second, lbfgs), ContainsSubstring("evaluates its closure again"));
  });
}
