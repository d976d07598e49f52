// Scheduler: the user's learning-rate schedule, advancing with optimizer steps.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include <accel/prepare/optimizer.hpp>
#include <accel/prepare/session.hpp>

namespace accel::inline v0_1::prepare {

/// torch::optim::LRScheduler and ReduceLROnPlateauScheduler, or what looks like them.
template <class S>
concept SchedulerLike =
    !OptimizerLike<S> &&
    (requires(S& scheduler) { scheduler.step(); } || requires(S& scheduler) { scheduler.step(0.0F); });

/// A prepared scheduler: step() counts optimizer steps, so it may stand in the inner loop.
///
/// Differs  Accelerate advances world_size times a step.
template <class S>
class Scheduler {
 public:
  Scheduler(std::shared_ptr<S> scheduler, std::shared_ptr<Session> session)
      : scheduler_(std::move(scheduler)), session_(std::move(session)) {}

  template <class... Args>
  void step(Args&&... args) {
    if (session_->accumulation.synchronises()) scheduler_->step(std::forward<Args>(args)...);
  }

  [[nodiscard]] S* operator->() { return scheduler_.get(); }
  [[nodiscard]] S& unwrap() { return *scheduler_; }

 private:
  std::shared_ptr<S> scheduler_;
  std::shared_ptr<Session> session_;
};

}  // namespace accel::inline v0_1::prepare
