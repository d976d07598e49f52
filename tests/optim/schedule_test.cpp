// Schedules: worked numbers, what holds for all of them, and which options are refused.
#include <accel/optim/schedule.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <utility>
#include <vector>

using namespace accel;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using optim::Schedule;
namespace schedule = optim::schedule;

namespace {

std::vector<double> rates(const Schedule& schedule, double base_rate, std::int64_t steps) {
  std::vector<double> all;
  for (std::int64_t step = 0; step < steps; ++step) all.push_back(schedule.rate(step, base_rate));
  return all;
}

void check(const Schedule& schedule, double base_rate, const std::vector<double>& expected) {
  const auto found = rates(schedule, base_rate, static_cast<std::int64_t>(expected.size()));
  for (std::size_t step = 0; step < expected.size(); ++step) {
    CAPTURE(schedule.describe(), step);
    CHECK_THAT(found[step], WithinAbs(expected[step], 1e-12 * base_rate));
  }
}

/// All that begin with a warm-up from 0, of 5 steps, and have 25 steps, where they have an end.
std::vector<Schedule> with_warmup() {
  return {schedule::constant_with_warmup({.warmup_steps = 5}),
          schedule::linear({.warmup_steps = 5, .total_steps = 25}),
          schedule::cosine({.warmup_steps = 5, .total_steps = 25}),
          schedule::cosine({.warmup_steps = 5, .total_steps = 25, .num_cycles = 2}),
          schedule::cosine_with_restarts({.warmup_steps = 5, .total_steps = 25, .num_cycles = 4}),
          schedule::cosine_with_min_lr({.warmup_steps = 5, .total_steps = 25, .min_lr = 0.01}),
          schedule::cosine_with_min_lr({.warmup_steps = 5, .total_steps = 25, .min_lr_ratio = 0.25}),
          schedule::polynomial({.warmup_steps = 5, .total_steps = 25, .power = 2}),
          schedule::inverse_sqrt({.warmup_steps = 5}),
          schedule::warmup_stable_decay({.warmup_steps = 5, .decay_steps = 7, .total_steps = 25})};
}

}  // namespace

TEST_CASE("a warm-up is a straight line from 0 to the base rate", "[schedule]") {
  for (const auto& one : with_warmup()) {
    CAPTURE(one.describe());
    for (std::int64_t step = 0; step <= 5; ++step)
      CHECK_THAT(one.rate(step, 0.5), WithinAbs(0.1 * static_cast<double>(step), 1e-15));
  }
}

TEST_CASE("no rate is below 0 or above the base rate, also past the end", "[schedule]") {
  for (const auto& one : with_warmup()) {
    CAPTURE(one.describe());
    for (const double rate : rates(one, 0.5, 100)) CHECK((rate >= 0 && rate <= 0.5));
  }
}

TEST_CASE("rates are those of the formulas", "[schedule]") {
  using namespace schedule;
  const double third = 0.5 * (1 + std::cos(std::numbers::pi / 3));  // of half a wave
  const double two_thirds = 1 - third;
  check(constant(), 2, {2, 2, 2});
  check(constant_with_warmup({}), 2, {2, 2, 2});
  check(linear({.warmup_steps = 2, .total_steps = 6}), 4, {0, 2, 4, 3, 2, 1, 0, 0, 0});
  check(cosine({.total_steps = 3}), 1, {1, third, two_thirds, 0, two_thirds, third, 1});  // and up again
  check(cosine({.total_steps = 4, .num_cycles = 1}), 1, {1, 0.5, 0, 0.5, 1});
  check(cosine_with_restarts({.total_steps = 4, .num_cycles = 2}), 1, {1, 0.5, 1, 0.5, 0, 0});
  check(cosine_with_min_lr({.total_steps = 2, .min_lr = 1}), 5, {5, 3, 1, 3, 5});
  check(cosine_with_min_lr({.total_steps = 2, .min_lr_ratio = 0.2}), 5, {5, 3, 1, 3, 5});
  check(polynomial({.warmup_steps = 1, .total_steps = 5, .lr_end = 1, .power = 2}), 17, {0, 17, 10, 5, 2, 1, 1, 1});
  check(inverse_sqrt({.warmup_steps = 4}), 1, {0, 0.25, 0.5, 0.75, 1, 2 / std::sqrt(5), 2 / std::sqrt(6)});
  check(inverse_sqrt({.timescale = 1}), 1, {1, std::sqrt(1.0 / 2), std::sqrt(1.0 / 3), 0.5});
  CHECK_THAT(Schedule(inverse_sqrt({})).rate(30'000, 1), WithinRel(0.5, 1e-12));  // a time scale of 10'000
  check(warmup_stable_decay({.warmup_steps = 2, .decay_steps = 2, .total_steps = 6}), 1, {0, 0.5, 1, 1, 1, 0.5, 0, 0});
  check(warmup_stable_decay({.warmup_steps = 2,
                             .decay_steps = 4,
                             .stable_steps = 1,
                             .warmup_type = Ramp::one_minus_sqrt,
                             .decay_type = Ramp::one_minus_sqrt,
                             .min_lr_ratio = 0.5}),
        2, {1, 2 - std::sqrt(0.5), 2, 2, 1.5, 2 - std::sqrt(0.5), 2 - std::sqrt(0.75), 1, 1});
  check(warmup_stable_decay({.warmup_steps = 4,
                             .decay_steps = 2,
                             .stable_steps = 0,
                             .warmup_type = Ramp::cosine,
                             .decay_type = Ramp::linear}),
        1, {0, 0.5 * (1 - std::sqrt(0.5)), 0.5, 0.5 * (1 + std::sqrt(0.5)), 1, 0.5, 0, 0});
  check(step({.step_size = 2, .gamma = 0.5}), 8, {8, 8, 4, 4, 2, 2, 1});
  check(multi_step({.milestones = {4, 1, 4}, .gamma = 0.5}), 8, {8, 4, 4, 4, 1, 1});
  check(exponential({.gamma = 0.5}), 8, {8, 4, 2, 1});
}

TEST_CASE("closed forms equal PyTorch's products over 2000 steps", "[schedule]") {
  const double gamma = 0.997;
  const Schedule step = schedule::step({.step_size = 7, .gamma = gamma});
  const Schedule multi_step = schedule::multi_step({.milestones = {3, 50, 50, 700}, .gamma = gamma});
  const Schedule exponential = schedule::exponential({.gamma = gamma});
  double by_step = 0.3;
  double by_milestone = 0.3;
  double by_all = 0.3;
  for (std::int64_t i = 0; i < 2000; ++i) {
    if (i > 0) by_all *= gamma;
    if (i > 0 && i % 7 == 0) by_step *= gamma;
    if (i == 3 || i == 700) by_milestone *= gamma;
    if (i == 50) by_milestone *= gamma * gamma;
    REQUIRE_THAT(step.rate(i, 0.3), WithinRel(by_step, 1e-12));
    REQUIRE_THAT(multi_step.rate(i, 0.3), WithinRel(by_milestone, 1e-12));
    REQUIRE_THAT(exponential.rate(i, 0.3), WithinRel(by_all, 1e-12));
  }
}

TEST_CASE("one cycle goes up and down, and the momentum against it", "[schedule]") {
  const Schedule one = schedule::one_cycle({.max_lr = 1,
                                            .total_steps = 11,
                                            .pct_start = 5.0 / 11,
                                            .anneal_strategy = schedule::Anneal::linear,
                                            .base_momentum = 0.5,
                                            .max_momentum = 0.9,
                                            .div_factor = 5,
                                            .final_div_factor = 10});
  check(one, 123, {0.2, 0.4, 0.6, 0.8, 1, 1 - 0.98 / 6, 1 - 0.98 / 3, 1 - 0.98 / 2});
  CHECK_THAT(one.rate(10, 123), WithinRel(0.02, 1e-12));
  for (std::int64_t step = 0; step <= 4; ++step)
    CHECK_THAT(*one.momentum(step), WithinRel(0.9 - 0.1 * static_cast<double>(step), 1e-12));
  CHECK_THAT(*one.momentum(7), WithinRel(0.7, 1e-12));
  CHECK_THAT(*one.momentum(10), WithinRel(0.9, 1e-12));
  CHECK(one.total_steps() == 11);
  CHECK_THROWS_MATCHES(one.rate(12, 1), InvalidArgument,
                       MessageMatches(ContainsSubstring("at most total_steps = 11, found 12")));
}

TEST_CASE("in three phases one cycle comes back to its first rate before it ends", "[schedule]") {
  const Schedule one = schedule::one_cycle({.max_lr = 1,
                                            .total_steps = 20,
                                            .pct_start = 0.25,
                                            .cycle_momentum = false,
                                            .div_factor = 4,
                                            .final_div_factor = 10,
                                            .three_phase = true});
  CHECK_THAT(one.rate(0, 1), WithinRel(0.25, 1e-12));
  CHECK_THAT(one.rate(4, 1), WithinRel(1.0, 1e-12));
  CHECK_THAT(one.rate(8, 1), WithinRel(0.25, 1e-12));
  CHECK_THAT(one.rate(19, 1), WithinRel(0.025, 1e-12));
  CHECK(!one.momentum(3));
}

TEST_CASE("one cycle with a phase of no length is all numbers", "[schedule]") {
  for (const double pct_start : {0.0, 0.5, 1.0}) {
    for (const std::int64_t total : {1, 2, 4}) {
      const Schedule one = schedule::one_cycle({.max_lr = 1, .total_steps = total, .pct_start = pct_start});
      for (std::int64_t step = 0; step <= total; ++step) {
        CAPTURE(pct_start, total, step);
        CHECK((one.rate(step, 1) >= 0 && one.rate(step, 1) <= 1));
      }
    }
  }
}

TEST_CASE("any function of the step is a schedule, and of the base rate, too", "[schedule]") {
  const Schedule factor = [](std::int64_t step) { return 1 - static_cast<double>(step) / 10; };
  CHECK(factor.rate(5, 3.0) == 1.5);
  CHECK(!factor.total_steps());
  CHECK(!factor.momentum(0));
  const Schedule rate = [](std::int64_t step, double base) { return base + static_cast<double>(step); };
  CHECK(rate.rate(5, 3.0) == 8);
  const std::function<double(std::int64_t)> stored = schedule::linear({.total_steps = 2});
  CHECK(Schedule(stored).rate(1, 1) == 0.5);
}

TEST_CASE("a schedule says its name and its options", "[schedule]") {
  CHECK(Schedule(schedule::linear({.warmup_steps = 10, .total_steps = 100})).describe() ==
        "linear, warmup_steps = 10, total_steps = 100");
  std::vector<std::string> texts;
  for (const auto& one : with_warmup()) texts.push_back(one.describe());
  std::sort(texts.begin(), texts.end());
  CHECK(std::adjacent_find(texts.begin(), texts.end()) == texts.end());
}

TEST_CASE("options that make no sense are refused with what was expected and what was found", "[schedule]") {
  using namespace schedule;
  const std::vector<std::pair<std::function<void()>, std::string>> mistakes{
      {[] { (void)linear({}); }, "linear: expected total_steps of at least 1, found 0; give the optimizer steps"},
      {[] { (void)linear({.warmup_steps = 11, .total_steps = 10}); }, "within total_steps = 10, found 11; shorten"},
      {[] { (void)cosine({.warmup_steps = -1, .total_steps = 10}); }, "cosine: expected warmup_steps of at least 0"},
      {[] { (void)cosine({.total_steps = 10, .num_cycles = -1}); }, "num_cycles of at least 0, found -1"},
      {[] { (void)cosine({.total_steps = 10, .num_cycles = NAN}); }, "num_cycles of at least 0, found nan"},
      {[] { (void)cosine_with_restarts({.total_steps = 10, .num_cycles = 0}); }, "num_cycles of at least 1, found 0"},
      {[] { (void)cosine_with_min_lr({.total_steps = 10}); }, "one of min_lr and min_lr_ratio, found none"},
      {[] { (void)cosine_with_min_lr({.total_steps = 10, .min_lr = 1, .min_lr_ratio = 1}); }, "found both"},
      {[] { (void)cosine_with_min_lr({.total_steps = 10, .min_lr = -1}); }, "min_lr of at least 0, found -1"},
      {[] { (void)polynomial({.total_steps = 10, .power = -1}); }, "power of at least 0, found -1"},
      {[] { (void)polynomial({.total_steps = 10, .lr_end = 0.1})(0, 0.1); },
       "polynomial: expected lr_end below the base rate 0.1, found 0.1"},
      {[] { (void)constant_with_warmup({.warmup_steps = -3}); }, "warmup_steps of at least 0, found -3"},
      {[] { (void)inverse_sqrt({.timescale = 0}); }, "timescale of at least 1, found 0"},
      {[] { (void)warmup_stable_decay({.warmup_steps = 5, .decay_steps = 6, .total_steps = 10}); },
       "warmup_steps and decay_steps within total_steps = 10, found 5 and 6; shorten one"},
      {[] { (void)warmup_stable_decay({.decay_steps = 6}); }, "total_steps of at least 1, found 0"},
      {[] { (void)warmup_stable_decay({.total_steps = 10, .stable_steps = 3}); }, "stable_steps and total_steps"},
      {[] { (void)warmup_stable_decay({.total_steps = 10, .min_lr_ratio = 2}); }, "min_lr_ratio in [0, 1], found 2"},
      {[] { (void)step({}); }, "step: expected step_size of at least 1, found 0"},
      {[] { (void)step({.step_size = 1, .gamma = -1}); }, "gamma of at least 0, found -1"},
      {[] { (void)multi_step({.milestones = {3, -1}}); }, "milestones of at least 0, found -1"},
      {[] { (void)exponential({}); }, "exponential: expected gamma above 0, found 0"},
      {[] { (void)one_cycle({.total_steps = 10}); }, "one_cycle: expected max_lr above 0, found 0"},
      {[] { (void)one_cycle({.max_lr = 1}); }, "one_cycle: expected total_steps of at least 1, found 0"},
      {[] { (void)one_cycle({.max_lr = 1, .total_steps = 9, .pct_start = 1.5}); }, "pct_start in [0, 1], found 1.5"},
      {[] { (void)one_cycle({.max_lr = 1, .total_steps = 9, .div_factor = 0}); }, "div_factor above 0, found 0"},
      {[] { (void)one_cycle({.max_lr = 1, .total_steps = 9, .max_momentum = 2}); }, "max_momentum in [0, 1], found 2"},
  };
  for (const auto& [make, text] : mistakes)
    CHECK_THROWS_MATCHES(make(), InvalidArgument, MessageMatches(ContainsSubstring(text)));
}
