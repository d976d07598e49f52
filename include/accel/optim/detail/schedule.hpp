// What the schedules have in common: their curves, their checks, and how they say their options.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>

namespace accel::inline v0_1::optim::schedule::detail {

[[nodiscard]] inline double ratio(std::int64_t part, std::int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<std::int64_t>(1, whole));
}

/// `after(step)`, once the rate has risen from 0 in a straight line.
template <class After>
[[nodiscard]] auto warmed_up(std::int64_t warmup_steps, After after) {
  return [warmup_steps, after](std::int64_t step) {
    return step < warmup_steps ? ratio(step, warmup_steps) : after(step);
  };
}

/// A schedule with its name and options as text, by which ranks compare what they train with.
template <class Rate>
struct Described : Rate {
  Described(std::string name_and_options, Rate rate) : Rate(std::move(rate)), text(std::move(name_and_options)) {}

  [[nodiscard]] const std::string& describe() const { return text; }

  std::string text;
};

/// Name and value of each: `warmup_steps = 10, total_steps = 100`.
template <class Value, class... Rest>
[[nodiscard]] std::string listed(std::string_view name, const Value& value, const Rest&... rest) {
  std::string text = message(name, " = ");
  if constexpr (std::is_same_v<Value, double>)
    text += shortest(value);
  else
    text += message(value);
  if constexpr (sizeof...(Rest) > 0) text += ", " + listed(rest...);
  return text;
}

/// `num_cycles` waves from 1 while `progress` goes from 0 to 1; half a wave ends at 0.
[[nodiscard]] inline double wave(double progress, double num_cycles) {
  return 0.5 * (1 + std::cos(std::numbers::pi * num_cycles * 2 * progress));
}

inline void check_steps(std::string_view name, std::string_view option, std::int64_t steps, std::int64_t least = 0) {
  ACCEL_CHECK(steps >= least, InvalidArgument, name, ": expected ", option, " of at least ", least, ", found ", steps);
}

inline void check_total(std::string_view name, std::int64_t warmup_steps, std::int64_t total_steps) {
  check_steps(name, "warmup_steps", warmup_steps);
  ACCEL_CHECK(total_steps >= 1, InvalidArgument, name, ": expected total_steps of at least 1, found ", total_steps,
              "; give the optimizer steps of the whole run");
  ACCEL_CHECK(warmup_steps <= total_steps, InvalidArgument, name,
              ": expected warmup_steps within total_steps = ", total_steps, ", found ", warmup_steps,
              "; shorten the warm-up, or count the optimizer steps again");
}

inline void check_range(std::string_view name, std::string_view option, double value, double least, double most) {
  ACCEL_CHECK(value >= least && value <= most, InvalidArgument, name, ": expected ", option, " in [", shortest(least),
              ", ", shortest(most), "], found ", shortest(value));
}

inline void check_at_least(std::string_view name, std::string_view option, double value, double least) {
  ACCEL_CHECK(value >= least && std::isfinite(value), InvalidArgument, name, ": expected ", option, " of at least ",
              shortest(least), ", found ", shortest(value));
}

}  // namespace accel::inline v0_1::optim::schedule::detail
