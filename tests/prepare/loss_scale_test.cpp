// Loss scaling through a whole accelerator: who skips what, by which scale gradients are divided, and who is told.
#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <limits>
#include <random>

#include "support/models.hpp"
#include "support/ranks.hpp"

using namespace accel;
using namespace accel::testing;
using Half = Accelerator<backend::Gloo, precision::Fp16>;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Weights in f64, which autocast leaves alone: where scales are powers of two every number is that of a training
/// without a scale, to the last bit.
struct Exact : torch::nn::Module {
  explicit Exact(std::int64_t width = 3) {
    first = register_parameter("first", torch::linspace(-1, 1, width, torch::kDouble));
    second = register_parameter("second", torch::full({width}, 0.5, torch::kDouble));
    third = register_parameter("third", torch::full({1}, -0.25, torch::kDouble));
  }
  torch::Tensor forward(const torch::Tensor& x) { return (torch::tanh(x * first) * second).sum(1) + third; }

  torch::Tensor first, second, third;
};

torch::Tensor rows_of(Rank rank, int step, std::int64_t rows = 4) {
  return torch::arange(rows * 3, torch::kDouble).view({rows, 3}) * 0.1 + step * 0.3 - rank.rank;
}

torch::Tensor loss_of(const torch::Tensor& output) {
  return output.square().mean();
}

/// Everything but a gradient of `parameter` that is not finite, when told to.
struct Injection {
  Injection(const torch::Tensor& parameter, float value) {
    parameter.register_hook([this, value](const torch::Tensor& gradient) {
      if (!on) return gradient;
      auto bad = gradient.clone();
      bad.view({-1})[bad.numel() - 1] = value;
      return bad;
    });
  }
  Injection(const Injection&) = delete;
  Injection& operator=(const Injection&) = delete;

  bool on = false;
};

/// Fails unless all ranks have these tensors alike, bit for bit.
template <class A>
void require_alike(A& accelerator, const std::vector<torch::Tensor>& tensors) {
  for (const auto& tensor : tensors) {
    const auto all = accelerator.gather(tensor.detach().reshape({1, -1}).contiguous());
    for (std::int64_t r = 0; r < all.size(0); ++r) REQUIRE(bits({all[r]}) == bits({all[0]}));
  }
}

template <class Make>
void overflow_skips_everywhere(Make make) {
  on_ranks({1, 2, 3}, [&](Rank rank) {
    std::mt19937 random(5);
    for (int run = 0; run < 6; ++run) {
      const auto bad_rank = static_cast<int>(random() % static_cast<unsigned>(rank.world_size));
      const auto bad_step = static_cast<int>(random() % 4);
      const auto bad_parameter = random() % 3;
      const float value = run % 2 == 0 ? infinity : std::numeric_limits<float>::quiet_NaN();
      Half accelerator({.precision = {.init_scale = 1024, .growth_interval = 3}});
      auto net = std::make_shared<Exact>();
      auto [model, optimizer] = accelerator.prepare(net, make(net->parameters()));
      Injection injection(net->parameters()[bad_parameter], value);
      double scale = 1024;
      int good = 0;
      for (int step = 0; step < 8; ++step) {
        const auto before = bits(net->parameters());
        injection.on = step == bad_step && rank.rank == bad_rank;
        accelerator.backward(loss_of(model(rows_of(rank, step))));
        if (run % 3 == 1) accelerator.clip_grad_norm_(model, 0.1);
        if (run % 3 == 2) accelerator.unscale_gradients();
        optimizer.step();
        optimizer.zero_grad();
        REQUIRE(optimizer.step_was_skipped() == (step == bad_step));
        REQUIRE((bits(net->parameters()) == before) == (step == bad_step));
        good = step == bad_step ? 0 : good + 1;
        if (step == bad_step) scale /= 2;
        if (good == 3) {
          scale *= 2;
          good = 0;
        }
        REQUIRE(accelerator.loss_scale() == scale);
        require_alike(accelerator, net->parameters());
      }
    }
  });
}

}  // namespace

TEST_CASE("an overflow on any rank, at any step and parameter: all skip that step, and keep one scale",
          "[loss_scale]") {
  SECTION("an optimizer of ours") {
    overflow_skips_everywhere([](auto parameters) { return optim::AdamW(parameters, {.lr = 0.1}); });
  }
  SECTION("one of LibTorch's") {
    overflow_skips_everywhere([](const auto& parameters) {
      return torch::optim::SGD(parameters, torch::optim::SGDOptions(0.1).momentum(0.9));
    });
  }
}

namespace {

/// The weights after 12 steps, of which some are skipped if the loss is scaled; `left_out` are not taken at all.
template <class P, class Make>
std::vector<std::string> trained(Rank rank, const typename P::Options& precision, Make make, bool clips,
                                 int accumulation_steps, const std::vector<int>& skipped, bool leaves_out) {
  Accelerator<backend::Gloo, P> accelerator({.accumulation_steps = accumulation_steps, .precision = precision});
  auto net = std::make_shared<Exact>();
  auto [model, optimizer] = accelerator.prepare(net, make(net->parameters()));
  Injection injection(net->second, infinity);
  for (int step = 0; step < 12; ++step) {
    const bool skips = std::find(skipped.begin(), skipped.end(), step) != skipped.end();
    if (skips && leaves_out) continue;
    for (int i = 0; i < accumulation_steps; ++i) {
      auto micro_step = accelerator.accumulate();
      injection.on = skips && i == 0 && rank.rank == rank.world_size - 1;
      accelerator.backward(loss_of(model(rows_of(rank, 5 * step + i))));
      if (clips) accelerator.clip_grad_norm_(model, 0.3);
      optimizer.step();
      optimizer.zero_grad();
    }
  }
  return bits(net->parameters());
}

}  // namespace

TEST_CASE("a scale that is a power of two changes no bit, and a skipped step is as if it had never been",
          "[loss_scale]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const precision::LossScalerOptions scale{.init_scale = 256, .growth_interval = 2};
    const auto check = [&](auto make) {
      for (const bool clips : {false, true})
        for (const int steps : {1, 2}) {
          const std::vector<int> skipped{1, 2, 7};
          REQUIRE((trained<precision::Fp16>(rank, scale, make, clips, steps, skipped, false) ==
                   trained<precision::Fp32>(rank, {}, make, clips, steps, skipped, true)));
        }
    };
    check([](auto parameters) { return optim::AdamW(parameters, {.lr = 0.05}); });
    check([](auto parameters) { return optim::SGD(parameters, {.lr = 0.05, .momentum = 0.9, .dampening = 0.1}); });
    check([](const auto& parameters) { return torch::optim::AdamW(parameters, 0.05); });
  });
}

TEST_CASE("gradients are divided by the scale of their backward, once, whoever asks and how often", "[loss_scale]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const auto gradients_after = [&](auto&& work) {
      Half accelerator({.precision = {.init_scale = 4096}});
      auto net = std::make_shared<Exact>();
      auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 1.0}});
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      work(accelerator, model);
      return gradients(net->parameters());
    };
    const auto scaled = gradients_after([](auto&, auto&) {});
    const auto once = gradients_after([](auto& accelerator, auto& model) { accelerator.unscale_gradients(model); });
    const auto twice = gradients_after([](auto& accelerator, auto& model) {
      accelerator.unscale_gradients();
      accelerator.unscale_gradients(model);
      accelerator.unscale_gradients();
    });
    for (std::size_t i = 0; i < scaled.size(); ++i) REQUIRE(torch::equal(scaled[i], once[i] * 4096));
    REQUIRE(bits(once) == bits(twice));
    const auto clipped = gradients_after([](auto& accelerator, auto& model) {
      accelerator.clip_grad_norm_(model, 0.01);
      accelerator.unscale_gradients();
    });
    const auto unscaled_then_clipped = gradients_after([](auto& accelerator, auto& model) {
      accelerator.unscale_gradients();
      accelerator.clip_grad_norm_(model, 0.01);
      accelerator.clip_grad_norm_(model, 1.0);
    });
    REQUIRE(bits(clipped) == bits(unscaled_then_clipped));
  });
}

TEST_CASE("the step looks not again at what clipping has looked at, unless it was written to since", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator;
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 1.0}});
    const auto& prepared = model.prepared();
    accelerator.backward(loss_of(model(rows_of(rank, 1))));
    REQUIRE_FALSE(prepared.scaled.is_found(prepared.ledger.mark()));
    accelerator.clip_grad_norm_(model, 1.0);
    REQUIRE(prepared.scaled.is_found(prepared.ledger.mark()));
    net->third.mutable_grad().mul_(1);
    REQUIRE_FALSE(prepared.scaled.is_found(prepared.ledger.mark()));
    accelerator.clip_grad_norm_(model, 1.0);
    if (rank.rank == 0) net->third.mutable_grad().fill_(infinity);
    const auto before = bits(net->parameters());
    optimizer.step();
    REQUIRE(optimizer.step_was_skipped());
    REQUIRE(bits(net->parameters()) == before);
  });
}

TEST_CASE("gradients that stay while the scale changes keep their size", "[loss_scale]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const auto weights = [&]<class P>(std::type_identity<P>, const typename P::Options& options) {
      Accelerator<backend::Gloo, P> accelerator({.precision = options});
      auto net = std::make_shared<Exact>();
      auto other = std::make_shared<Exact>();
      auto [model, optimizer, other_model, other_optimizer] = accelerator.prepare(
          net, optim::SGD(net->parameters(), {.lr = 0.01}), other, torch::optim::SGD(other->parameters(), 0.01));
      for (int step = 0; step < 9; ++step) {
        accelerator.backward(loss_of(model(rows_of(rank, step))));  // its gradients are never cleared ...
        if (step % 3 == 1) accelerator.unscale_gradients(model);
        optimizer.step();
        {
          auto no_sync = accelerator.no_sync();  // ... and here a part of them waits
          accelerator.backward(loss_of(other_model(rows_of(rank, 7 * step))));
        }
        accelerator.backward(loss_of(model(rows_of(rank, step + 1))));
        optimizer.step();
        accelerator.backward(loss_of(other_model(rows_of(rank, 3 * step))));
        other_optimizer.step();
        other_optimizer.zero_grad();
      }
      auto all = bits(net->parameters());
      for (auto& one : bits(other->parameters())) all.push_back(one);
      return all;
    };
    const auto expected = weights(std::type_identity<precision::Fp32>{}, {});
    REQUIRE((weights(std::type_identity<precision::Fp16>{}, {.init_scale = 2, .growth_interval = 1}) == expected));
  });
}

TEST_CASE("a generator and a discriminator: one update for both, each skips by its own gradients", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    for (const bool clips : {false, true})
      for (const bool together : {false, true}) {
        Half accelerator({.precision = {.init_scale = 512, .growth_interval = 2}});
        auto d_net = std::make_shared<Exact>();
        auto g_net = std::make_shared<Exact>();
        auto [d, g, d_optimizer, g_optimizer] = accelerator.prepare(
            d_net, g_net, optim::AdamW(d_net->parameters(), {.lr = 0.1}), torch::optim::SGD(g_net->parameters(), 0.1));
        Injection d_injection(d_net->first, infinity);
        Injection g_injection(g_net->second, infinity);
        std::vector<double> scales;
        for (int step = 0; step < 8; ++step) {
          const bool d_skips = step == 1 || step == 5;
          const bool g_skips = step == 2 || step == 5;
          d_injection.on = d_skips && rank.rank == 0;
          g_injection.on = g_skips && rank.rank + 1 == rank.world_size;
          const auto d_before = bits(d_net->parameters());
          const auto g_before = bits(g_net->parameters());
          const auto backward_d = [&] {
            d_optimizer.zero_grad();
            accelerator.backward(loss_of(d(rows_of(rank, step))));
          };
          const auto step_d = [&] {
            if (clips) accelerator.clip_grad_norm_(d, 0.2);
            d_optimizer.step();
          };
          const auto backward_g = [&] {
            g_optimizer.zero_grad();
            accelerator.backward(loss_of(g(rows_of(rank, step + 2))));
          };
          const auto step_g = [&] {
            if (clips) accelerator.clip_grad_norm_(g, 0.2);
            g_optimizer.step();
          };
          const double scale = accelerator.loss_scale();
          backward_d();
          if (together) backward_g();
          step_d();
          REQUIRE(accelerator.loss_scale() == scale);  // not before the other has stepped
          if (!together) backward_g();
          step_g();
          REQUIRE(d_optimizer.step_was_skipped() == d_skips);
          REQUIRE(g_optimizer.step_was_skipped() == g_skips);
          REQUIRE((bits(d_net->parameters()) == d_before) == d_skips);
          REQUIRE((bits(g_net->parameters()) == g_before) == g_skips);
          scales.push_back(accelerator.loss_scale());
        }
        // GradScaler's, updated once in an iteration, as PyTorch's guide says.
        REQUIRE(scales == std::vector<double>{512, 256, 128, 128, 256, 128, 128, 256});
        // And as if nothing had been scaled, and nobody had taken the steps that were skipped.
        const auto without = [&](auto made, const std::vector<int>& skipped, int shift) {
          Accelerator<backend::Gloo, precision::Fp32> plain;
          auto net = std::make_shared<Exact>();
          auto [model, optimizer] = plain.prepare(net, made(net->parameters()));
          for (int step = 0; step < 8; ++step) {
            if (std::find(skipped.begin(), skipped.end(), step) != skipped.end()) continue;
            plain.backward(loss_of(model(rows_of(rank, step + shift))));
            if (clips) plain.clip_grad_norm_(model, 0.2);
            optimizer.step();
            optimizer.zero_grad();
          }
          return bits(net->parameters());
        };
        REQUIRE(bits(d_net->parameters()) == without([](auto of) { return optim::AdamW(of, {.lr = 0.1}); }, {1, 5}, 0));
        REQUIRE(bits(g_net->parameters()) ==
                without([](const auto& of) { return torch::optim::SGD(of, 0.1); }, {2, 5}, 2));
      }
  });
}

TEST_CASE("two optimizers of one model skip each by its own part", "[loss_scale]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Half accelerator({.precision = {.init_scale = 512}});
    auto net = std::make_shared<Exact>();
    auto [model, one, two] =
        accelerator.prepare(net, optim::AdamW(std::vector<torch::Tensor>{net->first}, {.lr = 0.1}),
                            optim::SGD(std::vector<torch::Tensor>{net->second, net->third}, {.lr = 0.1}));
    Injection injection(net->first, infinity);
    for (int step = 0; step < 3; ++step) {
      injection.on = step == 1 && rank.rank == 0;
      const auto before = copies(net->parameters());
      accelerator.backward(loss_of(model(rows_of(rank, step))));
      const auto expected = before[1] - 0.1 * net->second.grad() / accelerator.loss_scale();
      one.step();
      two.step();
      REQUIRE(one.step_was_skipped() == (step == 1));
      REQUIRE_FALSE(two.step_was_skipped());
      REQUIRE(torch::equal(net->first, before[0]) == (step == 1));
      REQUIRE(torch::equal(net->second.detach(), expected));
      one.zero_grad();
      two.zero_grad();
    }
    REQUIRE(accelerator.loss_scale() == 256);
  });
}

TEST_CASE("the rank and the parameter of an overflow are named on request, on every rank alike", "[loss_scale]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Half accelerator({.precision = {.name_overflow = true}, .log = Log::Level::off});
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 0.1}});
    Injection injection(net->second, infinity), later(net->first, infinity);
    const int last = rank.world_size - 1;
    const int first_bad = std::max(0, last - 1);  // of two ranks that have an overflow, each at two parameters
    for (int step = 0; step < 3; ++step) {
      injection.on = step == 1 && rank.rank >= first_bad;
      later.on = injection.on;
      accelerator.backward(loss_of(model(rows_of(rank, step))));
      if (step == 2 && rank.rank == last) net->third.mutable_grad().fill_(infinity);  // after the reduction
      optimizer.step();
      optimizer.zero_grad();
      if (step == 0) REQUIRE_FALSE(accelerator.overflow());
      if (step == 0) continue;
      REQUIRE(accelerator.overflow()->rank == (step == 1 ? first_bad : last));
      REQUIRE(accelerator.overflow()->parameter == (step == 1 ? "second of model 0" : "third of model 0"));
    }
  });
}

TEST_CASE("whether a step was skipped is known until the next is taken", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 0.1}});
    Injection injection(net->second, std::numeric_limits<float>::quiet_NaN());
    bool skipped = false;
    for (const bool overflows : {true, true, false, false, true}) {
      for (int i = 0; i < 2; ++i) {
        auto micro_step = accelerator.accumulate();
        injection.on = overflows && i == 0 && rank.rank == 0;
        accelerator.backward(loss_of(model(rows_of(rank, i))));
        optimizer.step();
        optimizer.zero_grad();
        if (i == 1) skipped = overflows;
        REQUIRE(optimizer.step_was_skipped() == skipped);
      }
    }
    REQUIRE(accelerator.loss_scale() == 65536.0 / 8);
  });
}

TEST_CASE("a schedule that goes by the number of processes stays, too, where a step is skipped", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator({.scheduler_stepping = SchedulerStepping::PerProcess});
    auto net = std::make_shared<Exact>();
    optim::SGD sgd(net->parameters(), {.lr = 1.0});
    const auto falling = [](std::int64_t step) { return 1 - static_cast<double>(step) / 10; };
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, optim::Scheduler(sgd, falling));
    Injection injection(net->first, infinity);
    for (const bool overflows : {false, true}) {
      injection.on = overflows && rank.rank == 0;
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      optimizer.step();
      optimizer.zero_grad();
      scheduler.step();
      REQUIRE(std::abs(optim::rate_of(sgd.param_groups()[0].options()) - (1 - 0.1 * rank.world_size)) < 1e-15);
    }
  });
}

TEST_CASE("training that overflows at any scale ends on every rank, with a word", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator({.precision = {.max_skipped = 4}});
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 0.1));
    Injection injection(net->second, infinity);
    injection.on = rank.rank == 0;
    const auto step = [&, &model = model, &optimizer = optimizer] {
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      optimizer.step();
      optimizer.zero_grad();
    };
    for (int i = 0; i < 3; ++i) step();
    REQUIRE_THROWS_MATCHES(step(), OverflowError, MessageMatches(ContainsSubstring("4 steps in a row were skipped")));
  });
}

TEST_CASE("what cannot be right in fp16 is refused on every rank, by name", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank) {
    Half accelerator;
    auto net = std::make_shared<Mlp>();
    for (auto& parameter : {net->second->weight, net->second->bias})
      parameter.set_data(parameter.detach().to(torch::kHalf));
    const auto refused = [](const char* text) { return MessageMatches(ContainsSubstring(text)); };
    REQUIRE_THROWS_MATCHES(accelerator.prepare(net), InvalidArgument, refused("second.weight of model 0 is f16"));
    for (auto& parameter : {net->second->weight, net->second->bias}) parameter.set_requires_grad(false);  // may be
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 0.1}});
    REQUIRE_THROWS_MATCHES(optimizer.step_in_backward(), InvalidArgument, refused("the loss is scaled"));
    torch::optim::LBFGS lbfgs(std::vector<torch::Tensor>{net->first->weight});
    auto closing = accelerator.prepare(lbfgs);
    REQUIRE_THROWS_MATCHES(closing.step([] { return torch::zeros({}); }), InvalidArgument, refused("closure"));
    using Tf32 = Accelerator<backend::Gloo, precision::Fp32>;
    REQUIRE_THROWS_MATCHES(Tf32({.precision = {.tf32 = true}}), ConfigError, refused("tf32 is for CUDA"));
  });
}

TEST_CASE("ranks with other scales are refused", "[loss_scale]") {
  on_ranks({2}, [](Rank rank) {
    Half accelerator({.precision = {.init_scale = rank.rank == 0 ? 1024.0 : 2048.0}});
    auto net = std::make_shared<Exact>();
    REQUIRE_THROWS_MATCHES(accelerator.prepare(net), InvalidArgument,
                           MessageMatches(ContainsSubstring("init_scale = 1024") && ContainsSubstring("2048")));
  });
}

TEST_CASE("a training goes on from the state of scaler and optimizer as if it had never stopped", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    const auto run = [&](bool stops) {
      auto net = std::make_shared<Exact>();
      const auto steps = [&](auto& accelerator, auto& model, auto& optimizer, Injection& injection, int from, int to) {
        for (int step = from; step < to; ++step) {
          injection.on = step == 2 || step == 6;
          accelerator.backward(loss_of(model(rows_of(rank, step))));
          optimizer.step();
          optimizer.zero_grad();
        }
      };
      const Half::Options options{.precision = {.growth_interval = 3}};
      auto first = std::make_unique<Half>(options);
      auto prepared = first->prepare(net, optim::AdamW{{.lr = 0.1}});
      Injection injection(net->first, infinity);
      steps(*first, std::get<0>(prepared), std::get<1>(prepared), injection, 0, stops ? 4 : 9);
      if (stops) {
        auto again = std::make_shared<Exact>();
        for (std::size_t i = 0; i < 3; ++i) again->parameters()[i].set_data(net->parameters()[i].detach().clone());
        Half second(options);
        auto [model, optimizer] = second.prepare(again, optim::AdamW{{.lr = 0.7}});
        optimizer->load_state_dict(std::get<1>(prepared)->state_dict());
        second.precision().load_state_dict(first->precision().state_dict());
        Injection other(again->first, infinity);
        steps(second, model, optimizer, other, 4, 9);
        return std::pair(bits(again->parameters()), second.loss_scale());
      }
      return std::pair(bits(net->parameters()), first->loss_scale());
    };
    REQUIRE((run(true) == run(false)));
  });
}

TEST_CASE("a schedule advances with the steps that are taken, and not for those that are skipped", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator;
    auto net = std::make_shared<Exact>();
    auto other = std::make_shared<Exact>();
    optim::AdamW adamw(net->parameters(), {.lr = 1.0});
    torch::optim::SGD sgd(other->parameters(), 1.0);
    const auto halving = optim::schedule::exponential({.gamma = 0.5});
    auto [model, other_model, optimizer, other_optimizer, scheduler, other_scheduler, libtorch_scheduler] =
        accelerator.prepare(net, other, adamw, sgd, optim::Scheduler(adamw, halving), optim::Scheduler(sgd, halving),
                            torch::optim::StepLR(sgd, /*step_size=*/1000));
    Injection injection(net->first, infinity);
    const auto step = [&, &model = model, &optimizer = optimizer](bool overflows) {
      injection.on = overflows && rank.rank == 0;
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      optimizer.step();
      optimizer.zero_grad();
    };
    std::vector<std::int64_t> steps;
    for (const bool overflows : {false, true, true, false}) {
      step(overflows);
      scheduler.step();
      steps.push_back(scheduler->steps());
    }
    REQUIRE(steps == std::vector<std::int64_t>{1, 1, 1, 2});
    // Once an epoch: its last step does not count for all.
    for (const bool overflows : {false, true}) step(overflows);
    scheduler.step();
    REQUIRE(scheduler->steps() == 3);
    scheduler.step();  // by itself
    REQUIRE(scheduler->steps() == 4);
    // Another optimizer's is its own.
    step(true);
    accelerator.backward(loss_of(other_model(rows_of(rank, 1))));
    other_optimizer.step();
    scheduler.step();
    other_scheduler.step();
    REQUIRE(scheduler->steps() == 4);
    REQUIRE(other_scheduler->steps() == 1);
  });
}

TEST_CASE("a step that is refused on one rank is taken on none, and nobody waits", "[loss_scale]") {
  on_ranks({2, 3}, [](Rank rank) {
    for (const bool ours : {true, false}) {
      Half accelerator;
      auto net = std::make_shared<Exact>();
      const auto check = [&](auto made) {
        auto [model, optimizer] = accelerator.prepare(net, std::move(made));
        accelerator.backward(loss_of(model(rows_of(rank, 1))));
        const auto before = bits(net->parameters());
        const auto become = [&](torch::ScalarType dtype) { net->third.set_data(net->third.detach().to(dtype)); };
        if (rank.rank == 1) become(torch::kFloat);
        REQUIRE_THROWS_MATCHES(
            optimizer.step(), InvalidArgument,
            MessageMatches(ContainsSubstring(rank.rank == 1 ? "third was f64" : "another rank has")));
        if (rank.rank == 1) become(torch::kDouble);
        REQUIRE(bits(net->parameters()) == before);
        optimizer.zero_grad();
        accelerator.backward(loss_of(model(rows_of(rank, 2))));
        optimizer.step();
        REQUIRE(bits(net->parameters()) != before);
        require_alike(accelerator, net->parameters());
      };
      if (ours)
        check(optim::AdamW(net->parameters(), {.lr = 0.1}));
      else
        check(torch::optim::SGD(net->parameters(), 0.1));
    }
  });
}

TEST_CASE("a rank whose gradients are gone does not keep the others waiting", "[loss_scale]") {
  on_ranks({2}, [](Rank rank) {
    Half accelerator;
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 0.1}});
    accelerator.backward(loss_of(model(rows_of(rank, 1))));
    if (rank.rank == 1) net->zero_grad();
    optimizer.step();
    REQUIRE_FALSE(optimizer.step_was_skipped());
    REQUIRE_THROWS_MATCHES(accelerator.backward(loss_of(model(rows_of(rank, 1)))), InvalidArgument,
                           MessageMatches(ContainsSubstring("have taken other optimizer steps")));
  });
}

TEST_CASE("a step without gradients says nothing of the scale", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator({.precision = {.init_scale = 1024, .growth_interval = 2}});
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 0.1}});
    for (int i = 0; i < 5; ++i) optimizer.step();
    REQUIRE(accelerator.loss_scale() == 1024);
    for (int i = 0; i < 2; ++i) {
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      optimizer.step();
    }
    REQUIRE(accelerator.loss_scale() == 2048);
  });
}

TEST_CASE("what cannot be clipped is stepped by none of a model's optimizers", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    for (const bool unscales : {false, true}) {
      Half accelerator({.precision = {.init_scale = 1024}});
      auto net = std::make_shared<Exact>();
      auto [model, one, two] =
          accelerator.prepare(net, optim::SGD(std::vector<torch::Tensor>{net->first}, {.lr = 1.0}),
                              torch::optim::SGD(std::vector<torch::Tensor>{net->second, net->third}, 1.0));
      Injection injection(net->first, infinity);
      for (const bool overflows : {true, false}) {
        injection.on = overflows && rank.rank == 0;
        const auto before = bits(net->parameters());
        accelerator.backward(loss_of(model(rows_of(rank, 1))) * 1000);
        if (unscales) accelerator.unscale_gradients();
        accelerator.clip_grad_norm_(model, 1.0);
        one.step();
        one.zero_grad();
        two.step();
        two.zero_grad();
        REQUIRE(one.step_was_skipped() == overflows);
        REQUIRE(two.step_was_skipped() == overflows);
        REQUIRE((bits(net->parameters()) == before) == overflows);
      }
    }
  });
}

TEST_CASE("a gradient that no backward of the accelerator has multiplied is divided by nobody", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator;
    auto net = std::make_shared<Exact>();
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 1.0}});
    accelerator.backward(loss_of(model(rows_of(rank, 1))));
    (10 * net->second.sum()).backward();
    const auto is_refused = [](const char* text) { return MessageMatches(ContainsSubstring(text)); };
    REQUIRE_THROWS_MATCHES(optimizer.step(), InvalidArgument, is_refused("step: the gradient of second of model 0"));
    REQUIRE_THROWS_MATCHES(accelerator.clip_grad_norm_(model, 1.0), InvalidArgument,
                           is_refused("clip_grad_norm_: the gradient of second of model 0"));
    REQUIRE_THROWS_MATCHES(accelerator.unscale_gradients(), InvalidArgument,
                           is_refused("unscale_gradients: the gradient of second of model 0"));
    optimizer.zero_grad();
    accelerator.backward(loss_of(model(rows_of(rank, 1))));
    accelerator.clip_grad_norm_(model, 1.0);
    optimizer.step();
  });
}

TEST_CASE("a caught OverflowError is thrown once, and a loaded scale is in force at once", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank rank) {
    Half accelerator({.precision = {.init_scale = 1024, .max_skipped = 2}});
    auto net = std::make_shared<Exact>();
    auto other = std::make_shared<Exact>();
    auto [model, other_model, optimizer, other_optimizer] = accelerator.prepare(
        net, other, optim::SGD(net->parameters(), {.lr = 0.1}), optim::SGD(other->parameters(), {.lr = 0.1}));
    Injection injection(net->first, infinity);
    const auto state = accelerator.precision().state_dict();
    const auto step = [&, &model = model, &optimizer = optimizer](bool overflows) {
      injection.on = overflows && rank.rank == 0;
      accelerator.backward(loss_of(model(rows_of(rank, 1))));
      optimizer.step();
      optimizer.zero_grad();
    };
    step(true);  // a round is open: the other has not stepped
    accelerator.precision().load_state_dict(state);
    step(false);
    accelerator.backward(loss_of(other_model(rows_of(rank, 1))));
    other_optimizer.step();
    other_optimizer.zero_grad();
    REQUIRE(accelerator.loss_scale() == 1024);
    const auto overflows_for_long = [&] {
      for (int i = 0; i < 4; ++i) step(true);
    };
    REQUIRE_THROWS_AS(overflows_for_long(), OverflowError);
    optimizer.zero_grad();
    for (int i = 0; i < 3; ++i) step(false);
    REQUIRE_FALSE(optimizer.step_was_skipped());
  });
}

TEST_CASE("sparse gradients are clipped at one rank as at two", "[loss_scale]") {
  on_ranks({1, 2}, [](Rank) {
    const auto clipped = []<class P>(std::type_identity<P>) {
      torch::manual_seed(2);
      Accelerator<backend::Gloo, P> accelerator;
      auto net = std::make_shared<torch::nn::EmbeddingImpl>(torch::nn::EmbeddingOptions(5, 3).sparse(true));
      auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 1.0}});
      accelerator.backward(model(torch::tensor({0, 2, 2})).sum());
      accelerator.clip_grad_norm_(model, 1.0);
      optimizer.step();
      return bits(net->parameters());
    };
    REQUIRE((clipped(std::type_identity<precision::Fp16>{}) == clipped(std::type_identity<precision::Fp32>{})));
  });
}
