// Scheduler: sets the rates of an optimizer's groups by schedules, step by step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/rate.hpp>
#include <accel/optim/schedule.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::optim {

/// The rates of `optimizer`, ours or LibTorch's, by one schedule for all groups, or by one for each:
///
///   optim::Scheduler scheduler(optimizer, optim::schedule::cosine({.warmup_steps = 100, .total_steps = 10'000}));
///
/// Each group's rate is taken as its base rate, and set to that of step 0 at once, as PyTorch does. The optimizer
/// is borrowed, and must outlive the scheduler. A schedule may be any callable: see GivesFactor and GivesRate.
///
/// Throws   InvalidArgument from the constructor and step(): what the schedules throw, then nothing has changed; for
///          another number of schedules than groups, or a group that was added later.
/// State    the count of steps, and of each group the base rate and the rate in force.
template <class Optimizer>
class Scheduler {
 public:
  Scheduler(Optimizer& optimizer, Schedule schedule)
      : Scheduler(optimizer, std::vector<Schedule>(optimizer.param_groups().size(), std::move(schedule))) {}

  Scheduler(Optimizer& optimizer, std::vector<Schedule> schedules)
      : optimizer_(&optimizer), schedules_(std::move(schedules)) {
    for (auto& group : optimizer.param_groups()) base_rates_.push_back(rate_of(group.options()));
    ACCEL_CHECK(schedules_.size() == base_rates_.size(), InvalidArgument, "Scheduler: expected ", base_rates_.size(),
                " schedules, one for each group of the optimizer, found ", schedules_.size());
    go_to(0);
  }

  /// Call it once after each step of the optimizer; a prepared one sees to that itself.
  void step() { go_to(steps_ + 1); }

  /// Taken so far.
  [[nodiscard]] std::int64_t steps() const { return steps_; }

  /// The last step for which all schedules have a rate, where there is a last one.
  [[nodiscard]] std::optional<std::int64_t> total_steps() const {
    std::optional<std::int64_t> least;
    for (const auto& schedule : schedules_)
      if (const auto total = schedule.total_steps(); total && total < least.value_or(*total + 1)) least = total;
    return least;
  }

  /// By group: as the optimizer was made.
  [[nodiscard]] const std::vector<double>& base_rates() const { return base_rates_; }
  /// By group: as they were set last.
  [[nodiscard]] const std::vector<double>& last_lr() const { return rates_; }

  [[nodiscard]] Optimizer& optimizer() const { return *optimizer_; }

  /// Where it stands, and by which schedules it goes on.
  [[nodiscard]] std::string describe() const {
    std::string text = message("after ", steps_, " steps");
    for (std::size_t g = 0; g < base_rates_.size(); ++g)
      text += message("; base rate ", shortest(base_rates_[g]), ", ", schedules_[g].describe());
    return text;
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("step", steps_);
    auto& groups = optimizer_->param_groups();
    for (std::size_t g = 0; g < base_rates_.size(); ++g) {
      state.add("base_lr." + std::to_string(g), base_rates_[g]);
      state.add("lr." + std::to_string(g), rate_of(groups.at(g).options()));
    }
    return state;
  }

  /// Throws   CheckpointError for the state of another number of groups; then nothing has changed.
  void load_state_dict(const tensor::StateDict& state) {
    const auto bases = state.below("base_lr.").entries().size();
    ACCEL_CHECK(bases == base_rates_.size(), CheckpointError, "Scheduler: expected the state of ", base_rates_.size(),
                " groups, found that of ", bases);
    const std::int64_t steps = state.integer("step");
    std::vector<double> base_rates;
    std::vector<double> rates;
    for (std::size_t g = 0; g < bases; ++g) {
      base_rates.push_back(state.number("base_lr." + std::to_string(g)));
      rates.push_back(state.number("lr." + std::to_string(g)));
    }
    set(rates, momenta(steps));
    steps_ = steps;
    base_rates_ = std::move(base_rates);
  }

 private:
  using Momenta = std::vector<std::optional<double>>;

  void go_to(std::int64_t step) {
    std::vector<double> rates;
    for (std::size_t g = 0; g < base_rates_.size(); ++g) rates.push_back(schedules_[g].rate(step, base_rates_[g]));
    set(rates, momenta(step));
    steps_ = step;
  }

  [[nodiscard]] Momenta momenta(std::int64_t step) const {
    Momenta momenta;
    for (const auto& schedule : schedules_) momenta.push_back(schedule.momentum(step));
    return momenta;
  }

  void set(const std::vector<double>& rates, const Momenta& momenta) {
    auto& groups = optimizer_->param_groups();
    ACCEL_CHECK(groups.size() == rates.size(), InvalidArgument, "Scheduler: the optimizer has ", groups.size(),
                " groups, and had ", rates.size(), " when this was made; make it after the groups are added, ",
                "and for the optimizer that is stepped");
    check_rates(groups, rates);
    for (std::size_t g = 0; g < rates.size(); ++g)
      if (momenta[g]) set_momentum<Optimizer>(groups[g], *momenta[g]);
    for (std::size_t g = 0; g < rates.size(); ++g) set_rate(groups[g].options(), rates[g]);
    rates_ = rates;
  }

  Optimizer* optimizer_;
  std::vector<Schedule> schedules_;  // by group, as are the rates
  std::vector<double> base_rates_;
  std::vector<double> rates_;
  std::int64_t steps_ = 0;
};

namespace detail {

template <class Optimizer>
struct Unwrapped {
  using Type = Optimizer;
};
template <class Optimizer>
  requires requires(Optimizer& optimizer) { optimizer.unwrap(); }
struct Unwrapped<Optimizer> {
  using Type = std::remove_reference_t<decltype(std::declval<Optimizer&>().unwrap())>;
};

}  // namespace detail

// Of a prepared optimizer: for the one that it wraps, which it converts to.
template <class Optimizer>
Scheduler(Optimizer&, Schedule) -> Scheduler<typename detail::Unwrapped<Optimizer>::Type>;
template <class Optimizer>
Scheduler(Optimizer&, std::vector<Schedule>) -> Scheduler<typename detail::Unwrapped<Optimizer>::Type>;

static_assert(tensor::Stateful<Scheduler<torch::optim::SGD>>);

}  // namespace accel::inline v0_1::optim
