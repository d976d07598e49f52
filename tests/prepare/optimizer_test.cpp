#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <filesystem>
#include <sstream>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using torch::optim::SGD;

namespace {

const torch::Tensor one = torch::ones({1}, torch::kDouble);

}  // namespace

TEST_CASE("a plain loss.backward is an error at step that names accelerator.backward", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    model(one).sum().backward();
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("accelerator.backward"));
  });
  on_ranks({2}, [](Rank) {  // also after proper ones, where it would be noticed least
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    accelerator.backward(model(one).sum());
    optimizer.step();
    optimizer.zero_grad();
    model(one).sum().backward();
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("accelerator.backward") && ContainsSubstring("model 0"));
  });
}

TEST_CASE("a stray backward stays an error until zero_grad has cleared its gradients", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    model(one).sum().backward();
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("accelerator.backward"));
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("accelerator.backward"));  // not only once
    optimizer.zero_grad();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);

    optimizer.zero_grad();
    model(one).sum().backward();  // as for an adversarial example: its gradients are thrown away
    optimizer.zero_grad();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -2.0);
  });
}

TEST_CASE("a stray backward on one rank alone is found there, whatever ran before", "[optimizer]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    accelerator.backward(model(one).sum());
    optimizer.step();
    accelerator.backward(model(one).sum());
    if (rank.rank == 1) model(one).sum().backward();
    if (rank.rank == 1)
      REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("weight of model 0"));
    else
      optimizer.step();
  });
}

TEST_CASE("a stray backward of one model is nothing to the optimizer of another", "[optimizer]") {
  on_ranks({2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    auto [model, optimizer, second, second_optimizer] =
        accelerator.prepare(net, SGD(net->parameters(), 1.0), other, SGD(other->parameters(), 1.0));
    second(one).sum().backward();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);
    REQUIRE_THROWS_WITH(second_optimizer.step(), ContainsSubstring("weight of model 1"));
  });
}

TEST_CASE("gradients of another source are stepped by the wrapped optimizer", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    accelerator.backward(model(one).sum());
    optimizer.step();
    optimizer.zero_grad();
    net->weight.mutable_grad() = torch::ones({1}, torch::kDouble);
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("optimizer->step()"));
    optimizer->step();
    REQUIRE(net->weight.item<double>() == -2.0);
  });
}

TEST_CASE("a no_sync backward of one model leaves the optimizer of another free", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    auto [model, optimizer, second, second_optimizer] =
        accelerator.prepare(net, SGD(net->parameters(), 1.0), other, SGD(other->parameters(), 1.0));
    accelerator.backward(second(one).sum());
    {
      auto local = accelerator.no_sync();
      accelerator.backward(model(one).sum());
      second_optimizer.step();
      second_optimizer.zero_grad();
    }
    REQUIRE(other->weight.item<double>() == -1.0);
    REQUIRE_FALSE(other->weight.grad().defined());
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("backward of model 0 ran under no_sync"));
    optimizer.zero_grad();  // keeps what waits
    REQUIRE(net->weight.grad().defined());
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -2.0);
  });
}

TEST_CASE("a window is given up by the wrapped zero_grad", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    {
      auto local = accelerator.no_sync();
      accelerator.backward(100 * model(one).sum());
    }
    optimizer->zero_grad();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("a window that ends early is divided by its length, with two losses too", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 4});
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    auto [model, second, optimizer] =
        accelerator.prepare(net, other, SGD(std::vector<torch::Tensor>{net->weight, other->weight}, 1.0));
    auto long_loader = accelerator.prepare(data::DataLoader{Doubles{20 * accelerator.world_size()}, {.batch_size = 1}});
    auto short_loader = accelerator.prepare(data::DataLoader{Doubles{accelerator.world_size()}, {.batch_size = 1}});
    const auto train = [&](auto& batch) {
      auto micro_step = accelerator.accumulate(batch);
      accelerator.backward(model(one).sum(), /*retain_graph=*/false);
      accelerator.backward(2 * second(one).sum());
      optimizer.step();
      optimizer.zero_grad();
    };
    for (auto& batch : long_loader) {
      train(batch);
      break;
    }
    for (auto& batch : short_loader) train(batch);  // ends the window after two of four
    REQUIRE(net->weight.item<double>() == -1.0);
    REQUIRE(other->weight.item<double>() == -2.0);
  });
}

TEST_CASE("a model that moves after prepare is an error at the next step", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    net->to(torch::kFloat);
    accelerator.backward(model(torch::ones({1})).sum());
    REQUIRE_THROWS_WITH(optimizer.step(),
                        ContainsSubstring("weight was f64 on cpu") && ContainsSubstring("before accelerator.prepare"));
  });
  on_ranks({2}, [](Rank rank) {  // there and back again: nothing is lost
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    net->to(torch::kFloat);
    net->to(torch::kDouble);
    accelerator.backward(model(one).sum() * (rank.rank + 1));
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.5);
  });
}

TEST_CASE("a gradient of which nothing is heard any more is an error at the next step", "[optimizer]") {
  struct Other final : torch::autograd::PostAccumulateGradHook {
    void operator()(const torch::Tensor&) override {}
  };
  on_ranks({2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    torch::autograd::impl::set_post_acc_grad_hooks(net->weight, std::make_unique<Other>());
    accelerator.backward(model(one).sum());
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("no longer reports the gradient of weight"));
  });
}

TEST_CASE("a step that one rank alone leaves out is an error at the next backward", "[optimizer]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    accelerator.backward(model(one).sum());
    if (rank.rank != 1) optimizer.step();
    optimizer.zero_grad();
    const double before = net->weight.item<double>();
    REQUIRE_THROWS_WITH(accelerator.backward(model(one).sum()),
                        ContainsSubstring("not taken the same number of optimizer steps: this one ") &&
                            ContainsSubstring("others from 0 to 1"));
    REQUIRE(net->weight.item<double>() == before);
  });
}

TEST_CASE("zero_grad may stand before backward or after step", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    std::vector<double> results;
    for (const bool before : {true, false}) {
      Gloo accelerator({.accumulation_steps = 4});
      auto net = std::make_shared<Line>();
      auto [model, optimizer, loader] =
          accelerator.prepare(net, SGD(net->parameters(), 0.02),
                              data::DataLoader{Doubles{8}, {.batch_size = 2 / accelerator.world_size()}});
      for (auto& batch : loader) {
        auto micro_step = accelerator.accumulate(batch);
        if (before) optimizer.zero_grad();
        accelerator.backward(squared_error(model(batch.x), batch.y));
        optimizer.step();
        if (!before) optimizer.zero_grad();
      }
      results.push_back(net->weight.item<double>());
    }
    REQUIRE(std::abs(results[0] - 2.04) < 1e-12);  // Accelerate: 1.13 with zero_grad first
    REQUIRE(results[0] == results[1]);
  });
}

TEST_CASE("zero_grad clears gradients whose step was left out", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    accelerator.backward(model(one).sum() * std::numeric_limits<double>::quiet_NaN());  // ... `continue`
    optimizer.zero_grad();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("a step on gradients of this rank only is an error", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    {
      auto local = accelerator.no_sync();
      accelerator.backward(model(one).sum());
    }
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("no_sync"));
  });
}

TEST_CASE("step with a closure works, for LBFGS too", "[optimizer]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::LBFGS(net->parameters(), 1.0));
    const auto x = torch::tensor({1.0 + rank.rank}, torch::kDouble);
    for (int i = 0; i < 5; ++i)
      (void)optimizer.step([&] {
        optimizer.zero_grad();
        auto loss = squared_error(model(x), 2 * x);
        accelerator.backward(loss);
        return loss;
      });
    REQUIRE(std::abs(net->weight.item<double>() - 2.0) < 1e-6);
    const auto everywhere = accelerator.gather(net->weight.detach());
    for (int r = 1; r < rank.world_size; ++r)
      REQUIRE(std::abs(everywhere[r].item<double>() - everywhere[0].item<double>()) < 1e-6);
  });
}

TEST_CASE("an optimizer that judges by the loss decides alike on all ranks", "[optimizer]") {
  on_ranks({2, 3}, [](Rank rank) {
    // Each rank fits other data, with noise: by its own loss each would stop at another iteration.
    torch::manual_seed(static_cast<std::uint64_t>(10 + rank.rank));
    const auto x = torch::randn({8, 5});
    const auto y = torch::randn({8, 3}) * (rank.rank + 1);
    for (const bool line_search : {false, true}) {
      auto options = torch::optim::LBFGSOptions(0.5).max_iter(30).tolerance_change(1e-3);
      if (line_search) options.line_search_fn("strong_wolfe");
      Gloo accelerator;
      auto net = std::make_shared<Mlp>();
      auto [model, optimizer] = accelerator.prepare(net, torch::optim::LBFGS(net->parameters(), options));
      int calls = 0;
      for (int i = 0; i < 3; ++i)
        (void)optimizer.step([&] {
          ++calls;
          optimizer.zero_grad();
          auto loss = squared_error(model(x), y);
          accelerator.backward(loss);
          return loss;
        });
      const auto all_calls = accelerator.gather(torch::tensor(calls));
      for (int r = 0; r < rank.world_size; ++r) REQUIRE(all_calls[r].item<int>() == calls);
      for (const auto& parameter : net->parameters())
        REQUIRE(bits({accelerator.broadcast(parameter.detach().clone())}) == bits({parameter}));
    }
  });
}

TEST_CASE("gradients cleared behind the wrapper's back leave no stray", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
    model(one).sum().backward();
    net->zero_grad();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("a tied parameter that add_param_group lists again is stepped once", "[optimizer]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto net = std::make_shared<Line>();
  auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 1.0));
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({net->weight}));
  accelerator.backward(model(one).sum());
  optimizer.step();
  REQUIRE(net->weight.item<double>() == -1.0);
}

TEST_CASE("the wrapper keeps the interface of the optimizer", "[optimizer]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto net = std::make_shared<Mlp>();
  torch::optim::Adam adam(net->first->parameters(), torch::optim::AdamOptions(0.5));
  auto [model, optimizer] = accelerator.prepare(net, adam);

  REQUIRE(optimizer.param_groups().size() == 1);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup(net->second->parameters()));
  REQUIRE(adam.param_groups().size() == 2);  // borrowed, not copied
  REQUIRE_THROWS_WITH(optimizer.add_param_group(torch::optim::OptimizerParamGroup({torch::ones({2})})),
                      ContainsSubstring("belongs to no prepared model"));

  torch::optim::Optimizer& base = optimizer;
  REQUIRE(&base == &adam);
  torch::optim::StepLR schedule(optimizer, /*step_size=*/1, /*gamma=*/0.5);

  accelerator.backward(model(torch::ones({2, 5})).sum());
  optimizer.step();
  schedule.step();
  schedule.step();  // LibTorch's StepLR changes nothing at its first step
  REQUIRE(adam.param_groups()[0].options().get_lr() == 0.25);
  REQUIRE(optimizer.state().size() == 4);
  optimizer.zero_grad(/*set_to_none=*/false);
  REQUIRE(torch::equal(net->first->weight.grad(), torch::zeros({7, 5})));
  optimizer.zero_grad();
  REQUIRE_FALSE(net->first->weight.grad().defined());

  std::stringstream stream;
  torch::save(optimizer, stream);
  torch::optim::Adam restored({torch::optim::OptimizerParamGroup(net->first->parameters()),
                               torch::optim::OptimizerParamGroup(net->second->parameters())},
                              torch::optim::AdamOptions(0.1));
  auto prepared = accelerator.prepare(restored);
  torch::load(prepared, stream);
  REQUIRE(restored.state().size() == 4);
  REQUIRE(restored.param_groups()[0].options().get_lr() == 0.25);
}

namespace {

/// One of a user's own, with a state of its own kind.
struct Signs : torch::optim::Optimizer {
  explicit Signs(std::vector<torch::Tensor> of)
      : Optimizer({torch::optim::OptimizerParamGroup(std::move(of))},
                  std::make_unique<torch::optim::SGDOptions>(0.01)) {}
  torch::Tensor step(LossClosure /*closure*/ = nullptr) override {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : param_groups_[0].params())
      if (parameter.grad().defined()) parameter.sub_(parameter.grad().sign(), 0.01);
    return {};
  }
};

}  // namespace

TEST_CASE("every optimizer of LibTorch, and one of a user's, steps as in a plain loop, with a loss scale as without",
          "[optimizer]") {
  const auto rows = [](int step) { return torch::arange(10, torch::kFloat).view({2, 5}) * 0.1 - 0.2 * step; };
  const auto check = [&](const char* name, auto make) {
    INFO(name);
    const auto trained = [&]<class P>(std::type_identity<P>, const typename P::Options& options) {
      Accelerator<backend::Single, P> accelerator({.precision = options});
      torch::manual_seed(1);
      auto net = std::make_shared<Mlp>();
      net->to(torch::kDouble);  // which autocast leaves alone
      auto [model, optimizer] = accelerator.prepare(net, make(net->parameters()));
      for (int step = 0; step < 6; ++step) {
        optimizer.zero_grad();
        accelerator.backward(model(rows(step).to(torch::kDouble)).square().mean());
        optimizer.step();
        REQUIRE_FALSE(optimizer.step_was_skipped());
      }
      return bits(net->parameters());
    };
    torch::manual_seed(1);
    Mlp plain;
    plain.to(torch::kDouble);
    auto optimizer = make(plain.parameters());
    for (int step = 0; step < 6; ++step) {
      optimizer.zero_grad();
      plain.forward(rows(step).to(torch::kDouble)).square().mean().backward();
      optimizer.step();
    }
    REQUIRE((trained(std::type_identity<precision::Fp32>{}, {}) == bits(plain.parameters())));
    REQUIRE((trained(std::type_identity<precision::Fp16>{}, {.init_scale = 64, .growth_interval = 2}) ==
             bits(plain.parameters())));
  };
  using Tensors = std::vector<torch::Tensor>;
  check("SGD", [](const Tensors& of) { return SGD(of, torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true)); });
  check("Adam", [](const Tensors& of) { return torch::optim::Adam(of, torch::optim::AdamOptions(0.1).amsgrad(true)); });
  check("AdamW", [](const Tensors& of) { return torch::optim::AdamW(of, 0.1); });
  check("Adagrad", [](const Tensors& of) { return torch::optim::Adagrad(of, 0.1); });
  check("RMSprop", [](const Tensors& of) { return torch::optim::RMSprop(of, torch::optim::RMSpropOptions(0.01)); });
  check("a user's", [](const Tensors& of) { return Signs(of); });
}

TEST_CASE("an optimizer that is moved in is owned", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto prepare = [&] { return accelerator.prepare(net, std::make_shared<Line>(), SGD(net->parameters(), 1.0)); };
    auto [model, other, optimizer] = prepare();
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -1.0);
  });
}

TEST_CASE("an optimizer of a model that is not prepared is refused", "[optimizer]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    REQUIRE_THROWS_WITH(accelerator.prepare(net, SGD(other->parameters(), 0.1)),
                        ContainsSubstring("f64[1] that belongs to no prepared model"));
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));  // nothing is half prepared
    accelerator.backward(model(one).sum());
    optimizer.step();
  });
}

TEST_CASE("state made before prepare is kept where nothing moves, and must be alike on all ranks", "[optimizer]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator({.log = Log::Level::off});
    auto net = std::make_shared<Line>();
    torch::optim::Adam adam(net->parameters(), 0.1);
    const auto step = [&] {
      net->forward(one).sum().backward();
      adam.step();
      adam.zero_grad();
    };
    step();
    auto [model, optimizer] = accelerator.prepare(net, adam);
    accelerator.backward(model(one).sum());
    optimizer.step();
    REQUIRE(static_cast<torch::optim::AdamParamState&>(*adam.state().begin()->second).step() == 2);

    auto uneven = std::make_shared<Line>();
    torch::optim::Adam late(uneven->parameters(), 0.1);
    if (rank.rank == 1) {
      uneven->forward(one).sum().backward();
      late.step();
    }
    if (rank.world_size > 1)
      REQUIRE_THROWS_WITH(accelerator.prepare(uneven, late), ContainsSubstring("optimizer 0: state of 0 parameters") &&
                                                                 ContainsSubstring("state of 1 parameters"));
  });
}

TEST_CASE("state that a move would leave behind is refused", "[optimizer]") {
  // Every machine has a second device without memory. What goes there does not come back, so this model stays.
  struct Parked : Line {
    using Line::to;
    void to(torch::Device, bool = false) override {}
  };
  Accelerator<backend::Single, precision::Fp32> accelerator({.backend = {.device = "meta"}});
  const auto prepare_after = [&](int steps) {
    auto net = std::make_shared<Parked>();
    torch::optim::Adam adam(net->parameters(), 0.1);
    for (int step = 0; step < steps; ++step) {
      net->forward(one).sum().backward();
      adam.step();
    }
    (void)accelerator.prepare(net, adam);
  };
  REQUIRE_NOTHROW(prepare_after(0));
  REQUIRE_THROWS_WITH(prepare_after(1),
                      ContainsSubstring("has state from earlier steps") && ContainsSubstring("moved to meta"));
}

TEST_CASE("what is added to the wrapped optimizer behind the wrapper's back is found at the next step", "[optimizer]") {
  on_ranks({1, 2}, [](Rank rank) {
    Accelerator<backend::Gloo, precision::Fp16> accelerator({.precision = {.init_scale = 1024}});
    auto first = std::make_shared<Line>();
    auto second = std::make_shared<Line>();
    optim::SGD sgd(first->parameters(), {.lr = 0.5});
    auto [model, other, optimizer] = accelerator.prepare(first, second, sgd);
    sgd.add_param_group(optim::SGD::Group(second->parameters()));
    accelerator.backward(model(one).sum() + other(one).sum());
    optimizer.step();
    REQUIRE(first->weight.item<double>() == -0.5);
    REQUIRE(second->weight.item<double>() == -0.5);
    const auto stranger = torch::ones({1}).requires_grad_();
    if (rank.rank == 0) optimizer.param_groups()[0].params().push_back(stranger);
    optimizer.zero_grad();
    accelerator.backward(model(one).sum());
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring(rank.rank == 0 ? "f32[1] belongs to no prepared model"
                                                                           : "another rank has refused this step"));
  });
}

TEST_CASE("ranks that step otherwise are told so at the next backward", "[optimizer]") {
  const auto differs = [](auto make_differ) {
    on_ranks({2, 3}, [&](Rank rank) {
      Accelerator<backend::Gloo, precision::Fp16> accelerator({.precision = {.init_scale = 1024}});
      auto first = std::make_shared<Line>();
      auto second = std::make_shared<Line>();
      auto [model, other, one_of_two, other_of_two] = accelerator.prepare(
          first, second, optim::SGD(first->parameters(), {.lr = 0.5}), torch::optim::SGD(second->parameters(), 0.5));
      const auto backward = [&, &model = model, &other = other] {
        accelerator.backward(model(one).sum() + other(one).sum());
      };
      backward();
      one_of_two.step();
      other_of_two.step();
      backward();
      make_differ(rank.rank == 1, accelerator, one_of_two, other_of_two);
      REQUIRE_THROWS_WITH(backward(), ContainsSubstring("have taken other optimizer steps"));
    });
  };
  SECTION("of another optimizer") {
    differs([](bool is_other, auto&, auto& first, auto& second) { is_other ? second.step() : first.step(); });
  }
  SECTION("with another rate") {
    differs([](bool is_other, auto&, auto& first, auto& second) {
      if (is_other) second.param_groups()[0].options().set_lr(0.25);
      first.step();
      second.step();
    });
  }
  SECTION("divided by another loss scale") {
    differs([](bool is_other, auto& accelerator, auto& first, auto& second) {
      precision::LossScaler scaler({.init_scale = 4096}, c10::Device(c10::DeviceType::CPU));
      if (is_other) accelerator.precision().load_state_dict(scaler.state_dict());
      first.step();
      second.step();
    });
  }
}

TEST_CASE("optimizers that go on from other states are refused by prepare", "[optimizer]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    optim::SGD sgd(net->parameters(), {.lr = 0.5, .momentum = 0.9});
    net->weight.mutable_grad() = torch::full({1}, rank.rank == 1 ? 2.0 : 1.0, torch::kDouble);
    sgd.step();
    REQUIRE_THROWS_WITH(accelerator.prepare(net, sgd), ContainsSubstring("state of 1 parameters, with hash "));
  });
}

TEST_CASE("a region of the user's around the loop sees the weights of each step, and an average's", "[optimizer]") {
  struct Cached : torch::nn::Module {
    torch::Tensor forward(const torch::Tensor& x) { return torch::linear(x, weight); }
    torch::Tensor weight{register_parameter("weight", torch::full({1, 4}, 2.0))};
  };
  on_ranks({1, 2}, [](Rank) {
    Accelerator<backend::Gloo, precision::Bf16> accelerator;
    auto net = std::make_shared<Cached>();
    auto [model, optimizer, average] = accelerator.prepare(net, optim::SGD{{.lr = 1.0}}, optim::EMA{{.decay = 0.5}});
    const auto x = torch::ones({1, 4});
    const auto region = accelerator.autocast();
    average.update();  // 2
    for (const double expected : {8.0, 4.0, 0.0}) {
      const auto output = model(x);
      REQUIRE(output.item<float>() == static_cast<float>(expected));
      optimizer.zero_grad();
      accelerator.backward(output.sum());
      optimizer.step();
    }
    {
      const auto averaged = average.swap_in();
      REQUIRE(model(x).item<float>() == 8);
    }
    REQUIRE(model(x).item<float>() == -4);
  });
}
