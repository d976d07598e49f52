// Scheduler: the user's learning-rate schedule, advancing with optimizer steps.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <accel/prepare/optimizer.hpp>
#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/session.hpp>
#include <accel/prepare/steps_seen.hpp>

namespace accel::inline v0_1::prepare {

/// optim::Scheduler and ReduceLROnPlateau, LibTorch's schedulers, or what looks like them.
template <class S>
concept SchedulerLike =
    !OptimizerLike<S> &&
    (requires(S& scheduler) { scheduler.step(); } || requires(S& scheduler) { scheduler.step(0.0F); });

/// A prepared scheduler. Inside of a micro-step step() counts optimizer steps, so it may stand in the
/// inner loop; outside of one, as after an epoch, every call counts, wherever the window stands. Under
/// no_sync none does, nor one before which every optimizer step was skipped for an overflow.
///
/// What one optimizer step advances it by, the option scheduler_stepping says: by one, or as in Accelerate:
///
///   scheduler_stepping    loaders          steps of the wrapped scheduler
///   PerUpdate             any              1
///   PerProcess            split_batches    1
///   PerProcess            others           world_size, but none past total_steps where the scheduler has them
///
/// step(loss) takes each rank's own: the mean over the ranks is judged, so that all have one rate.
///
/// Cost     of step(loss) one round over the control plane, which the host waits for.
/// Order    step(loss) is collective.
/// Differs  Accelerate's default is PerProcess, and it leaves each rank to its own loss.
template <class S>
class Scheduler {
 public:
  Scheduler(std::shared_ptr<S> scheduler, std::shared_ptr<Session> session)
      : scheduler_(std::move(scheduler)), session_(std::move(session)), seen_(step_counts()) {
    session_->checkpointing->add("scheduler", scheduler_, scheduler_part(scheduler_, told_));
  }

  template <class... Args>
  void step(Args&&... args) {
    if (!session_->accumulation.follows_steps() || was_skipped()) return;
    session_->at_rank([&] {
      if constexpr (judges_values && sizeof...(Args) == 1)
        advance(mean(std::forward<Args>(args)...));
      else
        advance(args...);
    });
  }

  [[nodiscard]] S* operator->() { return scheduler_.get(); }
  [[nodiscard]] S& unwrap() { return *scheduler_; }

 private:
  /// It wants to know how training goes, and not only that a step is over.
  static constexpr bool judges_values = !requires(S& scheduler) { scheduler.step(); };

  /// Of each rank's own, in a type that the scheduler takes as it took the rank's.
  template <class Value>
  [[nodiscard]] auto mean(Value value) const {
    static_assert(std::is_arithmetic_v<Value>, "step(value) of a prepared scheduler takes a number");
    // LibTorch's takes a float, to which braces refuse to narrow.
    constexpr bool takes_double = requires(S& scheduler, double number) { scheduler.step({number}); };
    using OfIntegers = std::conditional_t<takes_double, double, float>;
    using Mean = std::conditional_t<std::is_floating_point_v<Value>, Value, OfIntegers>;
    return static_cast<Mean>(session_->mean(static_cast<double>(value)));
  }

  /// All steps since the last call were left out, of the optimizer that the scheduler was made for; where it does not
  /// tell which that is, as LibTorch's do not, of any.
  [[nodiscard]] bool was_skipped() { return seen_.only_skipped(step_counts()); }
  [[nodiscard]] std::vector<std::shared_ptr<StepCount>> step_counts() const {
    const void* optimizer = nullptr;
    if constexpr (requires { std::addressof(scheduler_->optimizer()); }) optimizer = &scheduler_->optimizer();
    return session_->step_counts(optimizer);
  }

  template <class... Args>
  void advance(const Args&... args) {
    if (session_->scheduler_stepping == SchedulerStepping::PerUpdate || session_->split_batches) {
      tell(args...);
      return;
    }
    for (int process = 0; process < session_->topology.world_size && !is_over(); ++process) tell(args...);
  }

  template <class... Args>
  void tell(const Args&... args) {
    scheduler_->step(args...);
    if constexpr (!tensor::Stateful<S>) {
      ++told_->steps;
      if constexpr (judges_values && sizeof...(Args) == 1) (told_->values.push_back(static_cast<double>(args)), ...);
    }
  }

  /// At the last step there is: what all ranks together count seldom ends there.
  [[nodiscard]] bool is_over() const {
    if constexpr (requires(const S& scheduler) { scheduler.steps() >= *scheduler.total_steps(); }) {
      const auto total = scheduler_->total_steps();
      return total && scheduler_->steps() >= *total;
    } else {
      return false;
    }
  }

  std::shared_ptr<S> scheduler_;
  std::shared_ptr<Session> session_;
  StepsSeen seen_;
  std::shared_ptr<Told> told_ = std::make_shared<Told>();
};

}  // namespace accel::inline v0_1::prepare
