// Prepared schedulers: when they advance, and by which value.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using torch::optim::SGD;

namespace {

double rate(SGD& sgd) {
  return sgd.param_groups()[0].options().get_lr();
}
double rate(optim::SGD& sgd) {
  return optim::rate_of(sgd.param_groups()[0].options());
}

/// What a schedule of an optimizer with rate `base_rate` is at after each of `updates` optimizer steps.
struct Course {
  std::vector<double> rates;
  std::vector<std::int64_t> steps;
};

struct Setting {
  SchedulerStepping stepping = SchedulerStepping::PerUpdate;
  bool split_batches = false;
  int accumulation_steps = 1;
  double base_rate = 1;
};

Course course(Rank rank, const optim::Schedule& schedule, int updates, const Setting& setting) {
  Gloo accelerator({.accumulation_steps = setting.accumulation_steps, .scheduler_stepping = setting.stepping});
  auto net = std::make_shared<Line>();
  optim::SGD sgd(net->parameters(), {.lr = setting.base_rate});
  optim::Scheduler own(sgd, schedule);
  const std::int64_t rows = rank.world_size * updates * setting.accumulation_steps;
  auto [model, optimizer, scheduler, loader] = accelerator.prepare(
      net, sgd, own,
      data::DataLoader{
          Doubles{rows},
          {.batch_size = setting.split_batches ? rank.world_size : 1, .split_batches = setting.split_batches}});
  Course course;
  for (auto& batch : loader) {
    auto micro_step = accelerator.accumulate(batch);
    accelerator.backward(model(batch.x).mean() * 0);
    optimizer.step();
    const double before = rate(sgd);
    scheduler.step();
    if (!accelerator.sync_gradients()) {
      REQUIRE(rate(sgd) == before);
      continue;
    }
    course.rates.push_back(rate(sgd));
    course.steps.push_back(own.steps());
  }
  REQUIRE(course.rates.size() == static_cast<std::size_t>(updates));
  return course;
}

/// Of table 2.5 of how Accelerate steps: with one process more, the rate falls by a tenth more.
double falling(std::int64_t step) {
  return 1 - static_cast<double>(step) / 10;
}

}  // namespace

TEST_CASE("a scheduler advances with optimizer steps, not with micro-steps", "[scheduler]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 3});
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    torch::optim::StepLR halving(sgd, /*step_size=*/1, /*gamma=*/0.5);
    torch::optim::ReduceLROnPlateauScheduler plateau(sgd);
    auto [model, optimizer, scheduler, on_plateau, loader] = accelerator.prepare(
        net, sgd, halving, plateau, data::DataLoader{Doubles{14 * accelerator.world_size()}, {.batch_size = 2}});
    std::vector<double> rates;    // LibTorch's StepLR changes nothing at its first step
    for (auto& batch : loader) {  // 7 micro-steps: windows of 3, 3 and 1
      auto micro_step = accelerator.accumulate(batch);
      accelerator.backward(model(batch.x).mean() * 0);
      optimizer.step();
      scheduler.step();
      rates.push_back(sgd.param_groups()[0].options().get_lr());
    }
    on_plateau.step(1.0F);
    REQUIRE(rates == std::vector<double>{1, 1, 1, 1, 1, 0.5, 0.25});
  });
}

TEST_CASE("after the loop a scheduler advances at every call, wherever the window stands", "[scheduler]") {
  on_ranks({1, 2}, [](Rank) {
    for (const bool by_loader : {true, false}) {
      Gloo accelerator({.accumulation_steps = 4});
      auto net = std::make_shared<Line>();
      SGD sgd(net->parameters(), 1.0);
      torch::optim::StepLR halving(sgd, /*step_size=*/1, /*gamma=*/0.5);
      auto [model, optimizer, scheduler, loader] = accelerator.prepare(
          net, sgd, halving, data::DataLoader{Doubles{10 * accelerator.world_size()}, {.batch_size = 1}});
      std::vector<double> rates;
      for (int epoch = 0; epoch < 5; ++epoch) {
        for (auto& batch : loader) {
          auto micro_step = by_loader ? accelerator.accumulate(batch) : accelerator.accumulate();
          accelerator.backward(model(batch.x).mean() * 0);
          optimizer.step();
        }
        scheduler.step();  // once per epoch; LibTorch's StepLR changes nothing at its first step
        rates.push_back(rate(sgd));
      }
      REQUIRE(rates == std::vector<double>{1, 0.5, 0.25, 0.125, 0.0625});
    }
  });
}

TEST_CASE("a plateau is judged by the mean over the ranks, so that all have one rate", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    Plateau plateau(sgd, Plateau::min, /*factor=*/0.5F, /*patience=*/0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    // The last rank's own losses get better, those of the others do not; the mean falls once.
    const std::vector<float> own =
        rank.rank == rank.world_size - 1 ? std::vector<float>{9, 6, 3, 1} : std::vector<float>{3, 3, 6, 9};
    const auto expected = rank.world_size == 1 ? std::vector<double>{1, 1, 1, 1} : std::vector<double>{1, 1, 0.5, 0.25};
    std::vector<double> rates;
    for (const float loss : own) {
      scheduler.step(loss);
      rates.push_back(rate(sgd));
    }
    REQUIRE(rates == expected);
    const auto everywhere = accelerator.gather(torch::tensor(rate(sgd)));
    for (int r = 0; r < rank.world_size; ++r) REQUIRE(everywhere[r].item<double>() == rate(sgd));
  });
}

TEST_CASE("a value that all ranks share is judged as it is", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    // Not better by one bit is not better.
    Plateau plateau(sgd, Plateau::min, 0.5F, 0, 0.0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    scheduler.step(0.1F);
    scheduler.step(std::nextafter(0.1F, 0.0F));
    REQUIRE(rate(sgd) == 1);
    scheduler.step(std::nextafter(0.1F, 0.0F));
    REQUIRE(rate(sgd) == 0.5);
  });
}

TEST_CASE("whole numbers are averaged, too", "[scheduler]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    Plateau plateau(sgd, Plateau::max, 0.5F, /*patience=*/0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    for (int right : {10, 20, 30}) scheduler.step(rank.rank == 0 ? right : 10 * rank.world_size);
    scheduler.step(std::int64_t{1});
    REQUIRE(rate(sgd) == 0.5);
    const auto everywhere = accelerator.gather(torch::tensor(rate(sgd)));
    for (int r = 0; r < rank.world_size; ++r) REQUIRE(everywhere[r].item<double>() == rate(sgd));

    // Ours takes doubles, in which such numbers are still told apart.
    optim::ReduceLROnPlateau own(sgd, {.factor = 0.5, .patience = 0, .threshold = 0});
    auto judge = accelerator.prepare(own);
    for (const std::int64_t wrong : {16'777'219, 16'777'218, 16'777'217}) judge.step(wrong);
    REQUIRE(own.best() == 16'777'217);
  });
}

TEST_CASE("a schedule of ours advances by one for each optimizer step", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const int accumulation_steps : {1, 3}) {
      const auto found = course(rank, optim::schedule::linear({.warmup_steps = 1, .total_steps = 5}), 6,
                                {.accumulation_steps = accumulation_steps, .base_rate = 8});
      REQUIRE(found.rates == std::vector<double>{8, 6, 4, 2, 0, 0});
      REQUIRE(found.steps == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6});
    }
  });
}

TEST_CASE("PerProcess advances by one for each process, as Accelerate does, and by one with split_batches",
          "[scheduler][parity]") {
  constexpr auto per_process = SchedulerStepping::PerProcess;
  on_ranks({1, 2, 3, 4}, [](Rank rank) {
    const double world = rank.world_size;
    const auto all = course(rank, falling, 2, {.stepping = per_process});
    REQUIRE_THAT(all.rates[0], WithinAbs(1 - world / 10, 1e-15));
    REQUIRE_THAT(all.rates[1], WithinAbs(1 - 2 * world / 10, 1e-15));
    for (const Setting& one : {Setting{.stepping = per_process, .split_batches = true}, Setting{}}) {
      const auto found = course(rank, falling, 2, one);
      REQUIRE_THAT(found.rates[0], WithinAbs(0.9, 1e-15));
      REQUIRE_THAT(found.rates[1], WithinAbs(0.8, 1e-15));
    }

    const auto root = [](std::int64_t step) { return std::pow(static_cast<double>(step), 0.65); };
    const std::vector<double> powers{0,        1,        1.569168, 2.042344, 2.462289, 2.846627, 3.204781,
                                     3.542532, 3.863745, 4.171168, 4.466836, 4.752315, 5.02884};
    const auto found = course(rank, root, 3, {.stepping = per_process});
    for (std::size_t i = 0; i < 3; ++i)
      REQUIRE_THAT(found.rates[i], WithinAbs(powers[static_cast<std::size_t>(rank.world_size) * (i + 1)], 1e-6));
  });
}

TEST_CASE("PerProcess is for LibTorch's schedulers, too, and for every step that counts", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator({.scheduler_stepping = SchedulerStepping::PerProcess});
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    torch::optim::StepLR halving(sgd, /*step_size=*/1, /*gamma=*/0.5);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, halving);
    for (int epoch = 1; epoch <= 3; ++epoch) {
      scheduler.step();
      REQUIRE(rate(sgd) == std::pow(0.5, epoch * rank.world_size - 1));  // nothing changes at StepLR's first step
    }
  });
}

TEST_CASE("PerProcess stops at the last step of one cycle", "[scheduler][parity]") {
  constexpr auto per_process = SchedulerStepping::PerProcess;
  on_ranks({1, 2, 3, 4}, [](Rank rank) {
    const std::int64_t world = rank.world_size;
    const auto two = optim::schedule::one_cycle({.max_lr = 1, .total_steps = 2});
    const auto ten = optim::schedule::one_cycle({.max_lr = 1, .total_steps = 10});
    REQUIRE(course(rank, two, 1, {.stepping = per_process}).steps[0] == std::min<std::int64_t>(world, 2));
    const auto found = course(rank, ten, 5, {.stepping = per_process}).steps;
    for (std::int64_t update = 1; update <= 5; ++update)
      REQUIRE(found[static_cast<std::size_t>(update - 1)] == std::min<std::int64_t>(world * update, 10));
    // By itself it is stepped as often as one asks, and refuses a step too many.
    REQUIRE_THROWS_WITH(course(rank, two, 3, {}), ContainsSubstring("at most total_steps = 2, found 3"));
  });
}

TEST_CASE("a schedule over 10 steps of 2 processes is at 0 after the last micro-step, not before",
          "[scheduler][parity]") {
  on_ranks({2}, [](Rank rank) {
    const auto linear = optim::schedule::linear({.total_steps = 20});
    for (const int accumulation_steps : {1, 2, 4}) {
      const auto found = course(
          rank, linear, 10,
          {.stepping = SchedulerStepping::PerProcess, .accumulation_steps = accumulation_steps, .base_rate = 10});
      REQUIRE_THAT(found.rates[8], WithinAbs(1, 1e-12));
      REQUIRE(found.rates[9] == 0);
    }
  });
}

TEST_CASE("the wrapped scheduler's own step is one step, whatever the optimizer does", "[scheduler][parity]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 4, .scheduler_stepping = SchedulerStepping::PerProcess});
    auto net = std::make_shared<Line>();
    optim::SGD sgd(net->parameters(), {.lr = 1});
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, optim::Scheduler(sgd, falling));
    auto micro_step = accelerator.accumulate();
    scheduler.step();
    REQUIRE(rate(sgd) == 1);
    scheduler->step();
    REQUIRE_THAT(rate(sgd), WithinRel(0.9, 1e-15));
    scheduler->step();
    REQUIRE_THAT(rate(sgd), WithinRel(0.8, 1e-15));
  });
}

TEST_CASE("a scheduler may be made for a prepared optimizer", "[scheduler]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 1.0));
    optim::Scheduler own(optimizer, optim::schedule::linear({.total_steps = 4}));
    REQUIRE(&own.optimizer() == &optimizer.unwrap());
    auto scheduler = accelerator.prepare(own);
    scheduler.step();
    REQUIRE(rate(optimizer.unwrap()) == 0.75);
    optim::ReduceLROnPlateau plateau(optimizer, {.factor = 0.5, .patience = 0});
    plateau.step(1);
    plateau.step(1);
    REQUIRE(rate(optimizer.unwrap()) == 0.375);
  });
}

TEST_CASE("our plateau, too, is judged by the mean over the ranks, and goes on where it stopped", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const bool is_last = rank.rank == rank.world_size - 1;
    // The last rank's own losses get better, those of the others do not; the mean falls once.
    const std::vector<double> own = is_last ? std::vector<double>{9, 6, 3, 1} : std::vector<double>{3, 3, 6, 9};
    const auto expected = rank.world_size == 1 ? std::vector<double>{1, 1, 1, 1} : std::vector<double>{1, 1, 0.5, 0.25};
    tensor::StateDict saved;
    for (std::size_t first = 0; first < 4; first += 2) {
      Gloo accelerator;
      auto net = std::make_shared<Line>();
      optim::SGD sgd(net->parameters(), {.lr = 1});
      auto [model, optimizer, plateau] =
          accelerator.prepare(net, sgd, optim::ReduceLROnPlateau(sgd, {.factor = 0.5, .patience = 0}));
      if (first > 0) plateau->load_state_dict(saved);
      for (std::size_t i = first; i < first + 2; ++i) {
        plateau.step(own[i]);
        REQUIRE(rate(sgd) == expected[i]);
        const auto everywhere = accelerator.gather(torch::tensor(rate(sgd)));
        for (int r = 0; r < rank.world_size; ++r) REQUIRE(everywhere[r].item<double>() == rate(sgd));
      }
      saved = plateau->state_dict();
    }
  });
}

TEST_CASE("a training that is stopped, saved, loaded and continued has the rates of one that was not", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    constexpr int updates = 6;
    const auto cosine = optim::schedule::cosine({.warmup_steps = 2, .total_steps = updates});
    const auto train = [&](int steps, const tensor::StateDict* from, std::vector<double>& rates) {
      Gloo accelerator({.accumulation_steps = 2});
      auto net = std::make_shared<Line>();
      optim::AdamW adamw(net->parameters(), {.lr = 0.3});
      auto [model, optimizer, scheduler, loader] =
          accelerator.prepare(net, adamw, optim::Scheduler(adamw, cosine),
                              data::DataLoader{Doubles{2 * steps * rank.world_size}, {.batch_size = 1}});
      if (from != nullptr) scheduler->load_state_dict(*from);
      for (auto& batch : loader) {
        auto micro_step = accelerator.accumulate(batch);
        accelerator.backward(model(batch.x).mean());
        optimizer.step();
        scheduler.step();
        optimizer.zero_grad();
        rates.push_back(optim::rate_of(adamw.param_groups()[0].options()));
      }
      return scheduler->state_dict();
    };
    std::vector<double> whole;
    (void)train(updates, nullptr, whole);
    for (int stop = 1; stop < updates; ++stop) {
      std::vector<double> parts;
      const auto saved = train(stop, nullptr, parts);
      (void)train(updates - stop, &saved, parts);
      REQUIRE(parts == whole);
    }
  });
}

TEST_CASE("schedules and their stepping that differ between ranks are refused by prepare", "[scheduler]") {
  on_ranks({2, 3}, [](Rank rank) {
    const bool is_last = rank.rank == rank.world_size - 1;
    {
      Gloo accelerator({.scheduler_stepping = is_last ? SchedulerStepping::PerProcess : SchedulerStepping::PerUpdate});
      REQUIRE_THROWS_WITH(accelerator.prepare(std::make_shared<Line>()),
                          ContainsSubstring("rank 0 has scheduler_stepping = PerUpdate") &&
                              ContainsSubstring("has scheduler_stepping = PerProcess"));
    }
    const auto refuse = [&](auto make, const std::string& first, const std::string& last) {
      Gloo accelerator;
      auto net = std::make_shared<Line>();
      optim::SGD sgd(net->parameters(), {.lr = 1});
      REQUIRE_THROWS_WITH(accelerator.prepare(net, sgd, make(sgd)),
                          ContainsSubstring("scheduler 0: ") && ContainsSubstring(first) && ContainsSubstring(last));
    };
    refuse([&](auto& sgd) { return optim::Scheduler(sgd, optim::schedule::linear({.total_steps = is_last ? 9 : 8})); },
           "total_steps = 8", "total_steps = 9");
    refuse(
        [&](auto& sgd) {
          optim::Scheduler scheduler(sgd, [](std::int64_t) { return 1.0; });
          if (is_last) scheduler.step();
          return scheduler;
        },
        "after 0 steps", "after 1 steps");
    refuse([&](auto& sgd) { return optim::ReduceLROnPlateau(sgd, {.patience = is_last ? 2 : 1}); }, "patience = 1",
           "patience = 2");
  });
}
