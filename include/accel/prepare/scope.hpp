// Scope: the guards of accumulate() and no_sync().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include <accel/prepare/session.hpp>

namespace accel::inline v0_1::prepare {

/// One micro-step, from accumulate() to the end of the scope.
///
/// Throws   InvalidArgument inside of another one, and if the last of the window before ran no backward.
class [[nodiscard]] MicroStepScope {
 public:
  MicroStepScope(std::shared_ptr<Session> session, const std::optional<data::Position>& position)
      : session_(std::move(session)) {
    session_->check_last_window();
    session_->accumulation.begin(position);
  }
  MicroStepScope(const MicroStepScope&) = delete;
  MicroStepScope& operator=(const MicroStepScope&) = delete;
  ~MicroStepScope() { session_->accumulation.end(); }

  /// Whether this micro-step reduces the gradients, and the optimizer steps.
  [[nodiscard]] bool synchronises() const { return session_->accumulation.synchronises(); }
  /// Its number in the accumulation window, from 0, and how many micro-steps that has; less where a stream ends in it.
  [[nodiscard]] std::int64_t window_position() const { return session_->accumulation.window_position(); }
  [[nodiscard]] std::int64_t window_length() const { return session_->accumulation.window_length(); }

 private:
  std::shared_ptr<Session> session_;
};

/// While it lives, backward adds up gradients on this rank and reduces nothing.
class [[nodiscard]] NoSync {
 public:
  explicit NoSync(std::shared_ptr<Session> session) : session_(std::move(session)) {
    session_->accumulation.enter_no_sync();
  }
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;
  ~NoSync() { session_->accumulation.leave_no_sync(); }

 private:
  std::shared_ptr<Session> session_;
};

}  // namespace accel::inline v0_1::prepare
