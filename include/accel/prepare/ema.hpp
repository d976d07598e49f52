// Ema: the average of a prepared model's weights, that follows the steps of its optimizers.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/session.hpp>
#include <accel/prepare/steps_seen.hpp>

namespace accel::inline v0_1::prepare {

/// optim::EMA, or what looks like it.
template <class E>
concept EmaLike = requires(E& ema) {
  ema.update();
  ema.swap_in();
  ema.averages();
};

/// A prepared average. update() may stand behind optimizer.step() in the inner loop: it does nothing in a micro-step
/// that only accumulates, nor where the step was skipped for an overflow.
template <class E>
class Ema {
 public:
  Ema(std::shared_ptr<E> ema, std::shared_ptr<Session> session)
      : ema_(std::move(ema)),
        session_(std::move(session)),
        models_(session_->models_of(ema_->parameters())),
        seen_(session_->step_counts_of(models_)) {
    session_->checkpointing->add("ema", ema_, average_part(ema_));
  }

  void update() {
    if (!session_->accumulation.follows_steps()) return;
    session_->at_rank([&] {
      session_->checkpointing->settle();
      if (!seen_.only_skipped(session_->step_counts_of(models_))) ema_->update();
    });
  }

  /// A guard: until its end the model has the averages for weights.
  [[nodiscard]] auto swap_in() {
    return session_->at_rank([&] {
      session_->checkpointing->settle();
      return ema_->swap_in();
    });
  }

  [[nodiscard]] E* operator->() { return ema_.get(); }
  [[nodiscard]] E& unwrap() { return *ema_; }

 private:
  std::shared_ptr<E> ema_;
  std::shared_ptr<Session> session_;
  std::vector<std::shared_ptr<PreparedModel>> models_;  // whose weights they are
  StepsSeen seen_;
};

}  // namespace accel::inline v0_1::prepare
