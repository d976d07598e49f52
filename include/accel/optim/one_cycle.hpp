// OneCycle: up to a high rate and down to nearly nothing, with the momentum going the other way.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/detail/schedule.hpp>

namespace accel::inline v0_1::optim::schedule {

enum class Anneal { cosine, linear };

struct OneCycleOptions {
  double max_lr = 0;
  std::int64_t total_steps = 0;
  double pct_start = 0.3;  // the part of the cycle in which the rate rises; this and the others: PyTorch's defaults
  Anneal anneal_strategy = Anneal::cosine;
  bool cycle_momentum = true;  // it falls while the rate rises; beta1 of the optimizers that have betas
  double base_momentum = 0.85;
  double max_momentum = 0.95;
  double div_factor = 25;         // max_lr / the first rate
  double final_div_factor = 1e4;  // the first rate / the last
  bool three_phase = false;       // down to the first rate before it goes down to the last
};

/// OneCycleLR: up to max_lr and down to nearly nothing. Rates are its own: the base rate plays no part.
///
/// Throws   InvalidArgument, as PyTorch does, for a step past total_steps.
/// Source   Smith & Topin 2018, Super-Convergence.
class OneCycle {
 public:
  explicit OneCycle(const OneCycleOptions& options) : options_(options) {
    constexpr std::string_view name = "one_cycle";
    detail::check_total(name, 0, options.total_steps);
    const auto check_positive = [&](std::string_view option, double value) {
      ACCEL_CHECK(value > 0 && std::isfinite(value), InvalidArgument, name, ": expected ", option, " above 0, found ",
                  shortest(value));
    };
    check_positive("max_lr", options.max_lr);
    check_positive("div_factor", options.div_factor);
    check_positive("final_div_factor", options.final_div_factor);
    detail::check_range(name, "pct_start", options.pct_start, 0, 1);
    detail::check_range(name, "base_momentum", options.base_momentum, 0, 1);
    detail::check_range(name, "max_momentum", options.max_momentum, 0, 1);
    const double rising = options.pct_start * static_cast<double>(options.total_steps);
    const double first_lr = options.max_lr / options.div_factor;
    const Point low{first_lr, options.max_momentum};
    const Point high{options.max_lr, options.base_momentum};
    const Point last{first_lr / options.final_div_factor, options.max_momentum};
    phases_.push_back({rising - 1, low, high});
    if (options.three_phase) phases_.push_back({2 * rising - 2, high, low});
    phases_.push_back({static_cast<double>(options.total_steps - 1), options.three_phase ? low : high, last});
  }

  [[nodiscard]] double operator()(std::int64_t step, double /*base_rate*/) const { return at(step).rate; }

  [[nodiscard]] std::optional<double> momentum(std::int64_t step) const {
    return options_.cycle_momentum ? std::optional(at(step).momentum) : std::nullopt;
  }

  [[nodiscard]] std::int64_t total_steps() const { return options_.total_steps; }

  [[nodiscard]] std::string describe() const {
    const auto& [max_lr, total_steps, pct_start, anneal, cycles, base, max, div, final_div, three_phase] = options_;
    return message("one_cycle, ",
                   detail::listed("max_lr", max_lr, "total_steps", total_steps, "pct_start", pct_start, "div_factor",
                                  div, "final_div_factor", final_div),
                   anneal == Anneal::linear ? ", linear" : ", cosine", three_phase ? ", three_phase" : "",
                   cycles ? ", " + detail::listed("base_momentum", base, "max_momentum", max) : "");
  }

 private:
  struct Point {
    double rate = 0;
    double momentum = 0;
  };
  struct Phase {
    double end_step = 0;  // need not be whole
    Point from, to;
  };

  [[nodiscard]] Point at(std::int64_t step) const {
    ACCEL_CHECK(step <= options_.total_steps, InvalidArgument,
                "one_cycle: expected a step of at most total_steps = ", options_.total_steps, ", found ", step,
                "; count the optimizer steps of the whole run again");
    const auto now = static_cast<double>(step);
    double begin = 0;
    std::size_t phase = 0;
    while (phase + 1 < phases_.size() && now > phases_[phase].end_step) begin = phases_[phase++].end_step;
    const auto& [end, from, to] = phases_[phase];
    const double progress = end == begin ? 1 : (now - begin) / (end - begin);  // a phase may have no length
    return {between(from.rate, to.rate, progress), between(from.momentum, to.momentum, progress)};
  }

  // The operations are OneCycleLR's, one by one: the last rates are small differences of large numbers, and equal
  // its own in 12 digits only if they are rounded alike.
  [[nodiscard]] double between(double from, double to, double progress) const {
    if (options_.anneal_strategy == Anneal::linear) return (to - from) * progress + from;
    return to + (from - to) / 2 * (std::cos(std::numbers::pi * progress) + 1);
  }

  OneCycleOptions options_;
  std::vector<Phase> phases_;
};

[[nodiscard]] inline OneCycle one_cycle(const OneCycleOptions& options) {
  return OneCycle(options);
}

}  // namespace accel::inline v0_1::optim::schedule
