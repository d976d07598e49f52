// Accumulation: which micro-step reduces, and by what the loss is divided.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/data/position.hpp>

namespace accel::inline v0_1::gradient {

/// What the losses of an accumulation window are divided by.
enum class LossNormalization {
  window_length,  // the micro-batches the window really has: a short last one counts in full
  fixed_steps,    // accumulation_steps, always: Accelerate's rule, which under-weights a short window
};

[[nodiscard]] inline std::string_view name_of(LossNormalization normalization) {
  return normalization == LossNormalization::window_length ? "window_length" : "fixed_steps";
}

/// Counts micro-steps. A window is accumulation_steps micro-batches, or what is left of the epoch;
/// its last micro-step reduces, the others add up on their rank.
class Accumulation {
 public:
  Accumulation(int steps, LossNormalization normalization) : steps_(steps), normalization_(normalization) {
    ACCEL_CHECK(steps >= 1, ConfigError, "accumulation_steps = ", steps, " must be at least 1");
  }

  [[nodiscard]] int steps() const { return steps_; }
  [[nodiscard]] LossNormalization normalization() const { return normalization_; }

  /// A micro-step begins. `position` is known if its batch came from a prepared loader. A window
  /// that `break` left open goes on with the next batch, wherever that comes from.
  ///
  /// Throws   InvalidArgument inside of another one, whose end would be taken for its own.
  void begin(const std::optional<data::Position>& position) {
    ACCEL_CHECK(!in_scope_, InvalidArgument, "accumulate: it is called inside of another micro-step; ",
                "one `auto micro_step = accelerator.accumulate(batch);` is enough for all models of a step");
    position_ = position;
    ran_ = false;
    if (count_ == window_) {
      count_ = 0;
      broken_ = false;
    }
    if (count_ == 0) {
      window_ = steps_;
      if (position) window_ = std::min<std::int64_t>(steps_, position->length - position->index);
    }
    ++count_;
    in_scope_ = true;
    synchronises_ = count_ == window_ || (position && position->is_last());
    length_ = synchronises_ ? count_ : window_;
    // Earlier micro-steps were divided by the length the window was begun for.
    correction_ = static_cast<double>(window_) / static_cast<double>(length_);
    if (normalization_ == LossNormalization::fixed_steps) {
      length_ = steps_;
      correction_ = 1.0;
    }
  }

  void end() { in_scope_ = false; }

  /// Whether the current micro-step reduces and steps. Keeps its value until the next one begins.
  [[nodiscard]] bool synchronises() const { return synchronises_ && no_sync_ == 0; }

  /// A backward may run: inside of a micro-step, or where there is nothing to accumulate.
  [[nodiscard]] bool admits_backward() const { return in_scope_ || steps_ == 1; }

  /// Inside of a micro-step that adds up and does nothing more: steps and clipping have to wait.
  [[nodiscard]] bool only_adds_up() const { return in_scope_ && !synchronises_ && no_sync_ == 0; }

  /// Throws   InvalidArgument after a loop that has ended in mid-window.
  void check_window_is_over() const {
    ACCEL_CHECK(
        in_scope_ || synchronises_ || count_ == 0 || no_sync_ > 0, InvalidArgument, "step: ", count_, " of ", window_,
        " micro-steps of this window are done, and none is under way, so there is nothing to step ",
        "yet; call step() while micro_step lives, as at every micro-step; after the last batch run the missing ",
        "micro-steps, or give the window up with accelerator.give_up_window()");
  }

  /// Throws   InvalidArgument if a backward of this window threw: a micro-batch is missing in its mean.
  void check_window_is_whole() const {
    ACCEL_CHECK(!broken_, InvalidArgument, "backward: an earlier backward of this accumulation window threw, so its ",
                "mean would lack a micro-batch; give the window up, on every rank: accelerator.give_up_window()");
  }

  /// The window's last micro-step is over and ran no backward: nothing was reduced.
  [[nodiscard]] bool ended_without_backward() const { return !in_scope_ && synchronises_ && !ran_ && count_ > 0; }

  /// The next micro-step begins a window.
  void give_up() {
    count_ = window_ = 0;
    broken_ = false;
    if (!in_scope_) synchronises_ = true;
  }

  void backward_threw() { broken_ = in_scope_ && steps_ > 1; }

  void enter_no_sync() { ++no_sync_; }
  void leave_no_sync() { --no_sync_; }
  [[nodiscard]] bool in_no_sync() const { return no_sync_ > 0; }

  /// The factor of the loss of this micro-step, without the ranks' share.
  [[nodiscard]] double loss_factor() const { return in_scope_ ? 1.0 / static_cast<double>(length_) : 1.0; }

  /// By what the gradients that wait for a reduction must be multiplied, because their window ends
  /// earlier than it was begun for; once, then 1. Not 1 only after a `break` into a shorter epoch.
  [[nodiscard]] double take_correction() { return in_scope_ ? std::exchange(correction_, 1.0) : 1.0; }

  /// The position that accumulate() was given, during its scope.
  [[nodiscard]] std::optional<data::Position> position() const { return in_scope_ ? position_ : std::nullopt; }

  /// Backward is only right inside accumulate() if there is something to accumulate.
  void check_scope() const {
    ACCEL_CHECK(admits_backward(), InvalidArgument, "accumulation_steps = ", steps_,
                ", but backward was called outside of accumulate(batch); write `auto micro_step = ",
                "accelerator.accumulate(batch);` first in the loop");
  }

  /// A backward has run to its end.
  void after_backward() {
    if (in_scope_ && synchronises_) count_ = window_;
    ran_ = true;
    ++backwards_;
  }

  [[nodiscard]] std::int64_t backwards() const { return backwards_; }

 private:
  int steps_;
  LossNormalization normalization_;
  std::int64_t window_ = 0;  // micro-steps the current window was begun for
  std::int64_t count_ = 0;   // of those, begun; all of them once it has ended early
  std::int64_t length_ = 1;  // by what the loss of this micro-step is divided
  double correction_ = 1.0;
  int no_sync_ = 0;  // guards alive
  bool in_scope_ = false;
  bool synchronises_ = true;
  bool ran_ = true;      // a backward, in this micro-step
  bool broken_ = false;  // a backward of this window threw
  std::int64_t backwards_ = 0;
  std::optional<data::Position> position_;
};

}  // namespace accel::inline v0_1::gradient
