// Schedules: the learning rate as a plain function of the step.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/detail/schedule.hpp>
#include <accel/optim/one_cycle.hpp>

namespace accel::inline v0_1::optim {

/// A schedule as a factor on the base rate. Steps are those of the optimizer, counted from 0: what it gives for
/// `step` is for the step that is taken after that many.
template <class S>
concept GivesFactor = requires(const S& schedule, std::int64_t step) {
  { schedule(step) } -> std::convertible_to<double>;
};

/// A schedule as the rate itself: a factor cannot say at which rate it ends.
template <class S>
concept GivesRate = requires(const S& schedule, std::int64_t step, double base_rate) {
  { schedule(step, base_rate) } -> std::convertible_to<double>;
};

/// Any of them, as one type.
class Schedule {
 public:
  template <class S>
    requires(!std::same_as<S, Schedule> && (GivesFactor<S> || GivesRate<S>))
  Schedule(S schedule) {
    if constexpr (requires { std::string(schedule.describe()); }) text_ = schedule.describe();
    if constexpr (requires { std::optional<std::int64_t>(schedule.total_steps()); })
      total_steps_ = schedule.total_steps();
    if constexpr (requires(std::int64_t step) { std::optional<double>(schedule.momentum(step)); })
      momentum_ = [schedule](std::int64_t step) { return std::optional<double>(schedule.momentum(step)); };
    if constexpr (GivesRate<S>)
      rate_ = std::move(schedule);
    else
      rate_ = [schedule = std::move(schedule)](std::int64_t step, double base_rate) {
        return base_rate * schedule(step);
      };
  }

  [[nodiscard]] double rate(std::int64_t step, double base_rate) const { return rate_(step, base_rate); }

  /// Where the schedule moves it, too.
  [[nodiscard]] std::optional<double> momentum(std::int64_t step) const {
    return momentum_ ? momentum_(step) : std::nullopt;
  }

  /// The last step that there is a rate for, where there is a last one.
  [[nodiscard]] std::optional<std::int64_t> total_steps() const { return total_steps_; }

  /// Its name and options: `linear, warmup_steps = 10, total_steps = 100`.
  [[nodiscard]] const std::string& describe() const { return text_; }

 private:
  std::string text_ = "a function of its own";
  std::function<double(std::int64_t, double)> rate_;
  std::function<std::optional<double>(std::int64_t)> momentum_;  // empty: it stays as it is
  std::optional<std::int64_t> total_steps_;
};

}  // namespace accel::inline v0_1::optim

/// Schedules by the names of transformers.get_scheduler and torch.optim.lr_scheduler. Past total_steps they go on as
/// those do: cosine rises again, linear stays at 0.
///
/// Throws   InvalidArgument for options that make no sense, from the function that takes them.
/// Source   transformers 5.23 (Apache-2.0), PyTorch 2.11 (BSD-3-Clause).
/// Differs  PyTorch multiplies step, multi_step and exponential up from step to step; here they are closed forms,
///          equal within 1e-12. A warm-up, with its decay, that is longer than total_steps is refused.
namespace accel::inline v0_1::optim::schedule {

[[nodiscard]] inline auto constant() {
  return detail::Described("constant", [](std::int64_t) { return 1.0; });
}

struct WarmupOptions {
  std::int64_t warmup_steps = 0;
};

[[nodiscard]] inline auto constant_with_warmup(const WarmupOptions& options) {
  detail::check_steps("constant_with_warmup", "warmup_steps", options.warmup_steps);
  auto rate = detail::warmed_up(options.warmup_steps, [](std::int64_t) { return 1.0; });
  return detail::Described("constant_with_warmup, " + detail::listed("warmup_steps", options.warmup_steps), rate);
}

struct LinearOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 0;  // warm-up included
};

/// Down to 0 at total_steps.
[[nodiscard]] inline auto linear(const LinearOptions& options) {
  detail::check_total("linear", options.warmup_steps, options.total_steps);
  auto rate = detail::warmed_up(options.warmup_steps, [options](std::int64_t step) {
    return std::max(0.0, detail::ratio(options.total_steps - step, options.total_steps - options.warmup_steps));
  });
  return detail::Described(
      "linear, " + detail::listed("warmup_steps", options.warmup_steps, "total_steps", options.total_steps), rate);
}

struct CosineOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 0;
  double num_cycles = 0.5;  // waves: half of one goes down to 0
};

[[nodiscard]] inline auto cosine(const CosineOptions& options) {
  detail::check_total("cosine", options.warmup_steps, options.total_steps);
  detail::check_at_least("cosine", "num_cycles", options.num_cycles, 0);
  auto rate = detail::warmed_up(options.warmup_steps, [options](std::int64_t step) {
    const double progress = detail::ratio(step - options.warmup_steps, options.total_steps - options.warmup_steps);
    return std::max(0.0, detail::wave(progress, options.num_cycles));
  });
  return detail::Described("cosine, " + detail::listed("warmup_steps", options.warmup_steps, "total_steps",
                                                       options.total_steps, "num_cycles", options.num_cycles),
                           rate);
}

struct RestartsOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 0;
  std::int64_t num_cycles = 1;  // descents, each from the base rate
};

/// Source   Loshchilov & Hutter 2017, SGDR.
[[nodiscard]] inline auto cosine_with_restarts(const RestartsOptions& options) {
  detail::check_total("cosine_with_restarts", options.warmup_steps, options.total_steps);
  detail::check_steps("cosine_with_restarts", "num_cycles", options.num_cycles, 1);
  auto rate = detail::warmed_up(options.warmup_steps, [options](std::int64_t step) {
    const double progress = detail::ratio(step - options.warmup_steps, options.total_steps - options.warmup_steps);
    if (progress >= 1) return 0.0;
    return std::max(0.0, detail::wave(std::fmod(static_cast<double>(options.num_cycles) * progress, 1.0), 0.5));
  });
  return detail::Described(
      "cosine_with_restarts, " + detail::listed("warmup_steps", options.warmup_steps, "total_steps",
                                                options.total_steps, "num_cycles", options.num_cycles),
      rate);
}

struct MinLrOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 0;
  double num_cycles = 0.5;
  std::optional<double> min_lr{};        // where the wave ends: this rate, ...
  std::optional<double> min_lr_ratio{};  // ... or this part of the base rate; one of the two
};

/// The warm-up starts at 0 all the same.
///
/// Differs  as polynomial: transformers measures min_lr against the optimizer's default rate.
[[nodiscard]] inline auto cosine_with_min_lr(const MinLrOptions& options) {
  constexpr std::string_view name = "cosine_with_min_lr";
  detail::check_total(name, options.warmup_steps, options.total_steps);
  detail::check_at_least(name, "num_cycles", options.num_cycles, 0);
  ACCEL_CHECK(options.min_lr.has_value() != options.min_lr_ratio.has_value(), InvalidArgument, name,
              ": expected one of min_lr and min_lr_ratio, found ", options.min_lr ? "both" : "none");
  detail::check_at_least(name, "min_lr", options.min_lr.value_or(0), 0);
  detail::check_at_least(name, "min_lr_ratio", options.min_lr_ratio.value_or(0), 0);
  auto rate = [options](std::int64_t step, double base_rate) {
    if (step < options.warmup_steps) return base_rate * detail::ratio(step, options.warmup_steps);
    const double progress = detail::ratio(step - options.warmup_steps, options.total_steps - options.warmup_steps);
    const double least = options.min_lr ? *options.min_lr : base_rate * *options.min_lr_ratio;
    return std::max(0.0, detail::wave(progress, options.num_cycles) * (base_rate - least) + least);
  };
  std::string text = message(name, ", ",
                             detail::listed("warmup_steps", options.warmup_steps, "total_steps", options.total_steps,
                                            "num_cycles", options.num_cycles));
  if (options.min_lr) text += ", " + detail::listed("min_lr", *options.min_lr);
  if (options.min_lr_ratio) text += ", " + detail::listed("min_lr_ratio", *options.min_lr_ratio);
  return detail::Described(std::move(text), rate);
}

struct PolynomialOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 0;
  double lr_end = 1e-7;  // transformers' default; must be below the base rate
  double power = 1;
};

/// From the base rate to lr_end, and there it stays.
///
/// Differs  transformers measures lr_end against the optimizer's default rate, so that groups with another rate end
///          elsewhere; here each group ends at lr_end, and must begin above it.
[[nodiscard]] inline auto polynomial(const PolynomialOptions& options) {
  detail::check_total("polynomial", options.warmup_steps, options.total_steps);
  detail::check_at_least("polynomial", "lr_end", options.lr_end, 0);
  detail::check_at_least("polynomial", "power", options.power, 0);
  auto rate = [options](std::int64_t step, double base_rate) {
    ACCEL_CHECK(base_rate > options.lr_end, InvalidArgument, "polynomial: expected lr_end below the base rate ",
                shortest(base_rate), ", found ", shortest(options.lr_end));
    if (step < options.warmup_steps) return base_rate * detail::ratio(step, options.warmup_steps);
    if (step > options.total_steps) return options.lr_end;
    const double left = 1 - detail::ratio(step - options.warmup_steps, options.total_steps - options.warmup_steps);
    return (base_rate - options.lr_end) * std::pow(left, options.power) + options.lr_end;
  };
  return detail::Described(
      "polynomial, " + detail::listed("warmup_steps", options.warmup_steps, "total_steps", options.total_steps,
                                      "lr_end", options.lr_end, "power", options.power),
      rate);
}

struct InverseSqrtOptions {
  std::int64_t warmup_steps = 0;
  std::optional<std::int64_t> timescale{};  // unset: warmup_steps, or 10'000 without a warm-up, as in transformers
};

/// Source   Vaswani et al. 2017, Attention Is All You Need, section 5.3.
[[nodiscard]] inline auto inverse_sqrt(const InverseSqrtOptions& options) {
  detail::check_steps("inverse_sqrt", "warmup_steps", options.warmup_steps);
  const auto timescale = options.timescale.value_or(options.warmup_steps > 0 ? options.warmup_steps : 10'000);
  detail::check_steps("inverse_sqrt", "timescale", timescale, 1);
  auto rate =
      detail::warmed_up(options.warmup_steps, [warmup_steps = options.warmup_steps, timescale](std::int64_t step) {
        return 1 / std::sqrt(detail::ratio(step - warmup_steps + timescale, timescale));
      });
  return detail::Described(
      "inverse_sqrt, " + detail::listed("warmup_steps", options.warmup_steps, "timescale", timescale), rate);
}

/// How warmup_stable_decay gets from one rate to the other.
enum class Ramp {
  linear,
  cosine,
  one_minus_sqrt,  // "1-sqrt" of transformers: Hägele et al. 2024, Scaling Laws and Compute-Optimal Training
};

[[nodiscard]] inline std::string_view name_of(Ramp ramp) {
  return ramp == Ramp::linear ? "linear" : ramp == Ramp::cosine ? "cosine" : "1-sqrt";
}

struct WarmupStableDecayOptions {
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;
  std::int64_t total_steps = 0;                // warm-up and decay included; or ...
  std::optional<std::int64_t> stable_steps{};  // ... how long the rate stays, in place of total_steps
  Ramp warmup_type = Ramp::linear;
  Ramp decay_type = Ramp::cosine;
  double min_lr_ratio = 0;  // of the base rate: where the warm-up begins and the decay ends
  double num_cycles = 0.5;  // waves of a decay by cosine
};

/// Source   Hu et al. 2024, MiniCPM.
[[nodiscard]] inline auto warmup_stable_decay(const WarmupStableDecayOptions& options) {
  constexpr std::string_view name = "warmup_stable_decay";
  detail::check_steps(name, "warmup_steps", options.warmup_steps);
  detail::check_steps(name, "decay_steps", options.decay_steps);
  detail::check_range(name, "min_lr_ratio", options.min_lr_ratio, 0, 1);
  detail::check_at_least(name, "num_cycles", options.num_cycles, 0);
  if (options.stable_steps) {
    detail::check_steps(name, "stable_steps", *options.stable_steps);
    ACCEL_CHECK(options.total_steps == 0, InvalidArgument, name, ": expected one of stable_steps and total_steps, ",
                "found both; leave one out");
  } else {
    detail::check_total(name, options.warmup_steps, options.total_steps);
    ACCEL_CHECK(options.warmup_steps + options.decay_steps <= options.total_steps, InvalidArgument, name,
                ": expected warmup_steps and decay_steps within total_steps = ", options.total_steps, ", found ",
                options.warmup_steps, " and ", options.decay_steps, "; shorten one of them");
  }
  const std::int64_t decay_begin =
      options.stable_steps ? options.warmup_steps + *options.stable_steps : options.total_steps - options.decay_steps;
  auto rate = [options, decay_begin](std::int64_t step) {
    const auto above_least = [&](double factor) {
      return std::max(0.0, factor * (1 - options.min_lr_ratio) + options.min_lr_ratio);
    };
    if (step < options.warmup_steps) {
      const double progress = detail::ratio(step, options.warmup_steps);
      switch (options.warmup_type) {
        case Ramp::linear:
          return above_least(progress);
        case Ramp::cosine:
          return above_least(0.5 * (1 - std::cos(std::numbers::pi * progress)));
        case Ramp::one_minus_sqrt:
          return above_least(1 - std::sqrt(1 - progress));
      }
    }
    if (step < decay_begin) return 1.0;
    if (step < decay_begin + options.decay_steps) {
      const double progress = detail::ratio(step - decay_begin, options.decay_steps);
      switch (options.decay_type) {
        case Ramp::linear:
          return above_least(1 - progress);
        case Ramp::cosine:
          return above_least(detail::wave(progress, options.num_cycles));
        case Ramp::one_minus_sqrt:
          return above_least(1 - std::sqrt(progress));
      }
    }
    return options.min_lr_ratio;
  };
  return detail::Described(
      "warmup_stable_decay, " + detail::listed("warmup_steps", options.warmup_steps, "decay_begin", decay_begin,
                                               "decay_steps", options.decay_steps, "warmup_type",
                                               name_of(options.warmup_type), "decay_type", name_of(options.decay_type),
                                               "min_lr_ratio", options.min_lr_ratio, "num_cycles", options.num_cycles),
      rate);
}

struct StepOptions {
  std::int64_t step_size = 0;
  double gamma = 0.1;  // PyTorch's default
};

/// times gamma every step_size steps
[[nodiscard]] inline auto step(const StepOptions& options) {
  detail::check_steps("step", "step_size", options.step_size, 1);
  detail::check_at_least("step", "gamma", options.gamma, 0);
  auto rate = [options](std::int64_t step) {
    const std::int64_t falls = step / options.step_size;
    return std::pow(options.gamma, static_cast<double>(falls));
  };
  return detail::Described("step, " + detail::listed("step_size", options.step_size, "gamma", options.gamma), rate);
}

struct MultiStepOptions {
  std::vector<std::int64_t> milestones{};  // in any order; one that is there twice counts twice
  double gamma = 0.1;                      // PyTorch's default
};

/// times gamma at each milestone
[[nodiscard]] inline auto multi_step(MultiStepOptions options) {
  detail::check_at_least("multi_step", "gamma", options.gamma, 0);
  for (const auto milestone : options.milestones) detail::check_steps("multi_step", "milestones", milestone);
  std::sort(options.milestones.begin(), options.milestones.end());
  std::string text = "multi_step, " + detail::listed("gamma", options.gamma) + ", milestones =";
  for (const auto milestone : options.milestones) text += message(" ", milestone);
  auto rate = [options = std::move(options)](std::int64_t step) {
    const auto& milestones = options.milestones;
    const auto passed = std::upper_bound(milestones.begin(), milestones.end(), step) - milestones.begin();
    return std::pow(options.gamma, static_cast<double>(passed));
  };
  return detail::Described(std::move(text), std::move(rate));
}

struct ExponentialOptions {
  double gamma = 0;
};

/// times gamma at every step
[[nodiscard]] inline auto exponential(const ExponentialOptions& options) {
  ACCEL_CHECK(options.gamma > 0 && std::isfinite(options.gamma), InvalidArgument,
              "exponential: expected gamma above 0, found ", shortest(options.gamma));
  auto rate = [options](std::int64_t step) { return std::pow(options.gamma, static_cast<double>(step)); };
  return detail::Described("exponential, " + detail::listed("gamma", options.gamma), rate);
}

}  // namespace accel::inline v0_1::optim::schedule
