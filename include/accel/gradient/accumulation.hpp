// Accumulation: which micro-step reduces, and by what the loss is divided.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/data/position.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::gradient {

/// What the losses of an accumulation window are divided by.
enum class LossNormalization {
  window_length,  // the micro-batches the window really has: a short last one counts in full
  fixed_steps,    // accumulation_steps, always: Accelerate's rule, which under-weights a short window
};

[[nodiscard]] inline std::string_view name_of(LossNormalization normalization) {
  return normalization == LossNormalization::window_length ? "window_length" : "fixed_steps";
}

/// What one backward is of its accumulation window: all that it needs to know of it.
struct MicroStep {
  std::int64_t index = 0;    // in its window
  std::int64_t length = 1;   // by what its loss is divided
  bool synchronises = true;  // the last of its window: gradients are reduced, and the optimizer steps
  double share = 1.0;        // this rank's of the mean over the rows of all
  double correction = 1.0;   // by what the sum of the earlier ones is multiplied before it is added to

  /// By what the loss is multiplied.
  [[nodiscard]] double factor() const { return share / static_cast<double>(length); }
};

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
    ACCEL_CHECK(!under_way_, InvalidArgument, "accumulate: it is called inside of another micro-step; ",
                "one `auto micro_step = accelerator.accumulate(batch);` is enough for all models of a step");
    if (window_.is_over()) {
      const std::int64_t left = position ? position->left(steps_) : steps_;
      window_ = {.length = std::min<std::int64_t>(steps_, left)};
    }
    current_ = {.index = window_.begun++};
    current_.synchronises = window_.is_over() || (position && position->is_last());
    current_.length = steps_;
    if (normalization_ == LossNormalization::window_length) {
      current_.length = current_.synchronises ? window_.begun : window_.length;
      // Earlier micro-steps were divided by the length the window was begun for.
      current_.correction = static_cast<double>(window_.length) / static_cast<double>(current_.length);
    }
    position_ = position;
    under_way_ = true;
    ran_ = false;
  }

  void end() { under_way_ = false; }

  /// Where the current micro-step stands in its window, and how many that was begun for.
  [[nodiscard]] std::int64_t window_position() const { return current_.index; }
  [[nodiscard]] std::int64_t window_length() const { return window_.length; }

  /// Whether the current micro-step reduces and steps. Keeps its value until the next one begins.
  [[nodiscard]] bool synchronises() const { return current_.synchronises && no_sync_ == 0; }

  /// A backward may run: inside of a micro-step, or where there is nothing to accumulate.
  [[nodiscard]] bool admits_backward() const { return under_way_ || steps_ == 1; }

  /// Inside of a micro-step that adds up and does nothing more: steps and clipping have to wait.
  [[nodiscard]] bool only_adds_up() const { return under_way_ && !current_.synchronises && no_sync_ == 0; }

  /// What follows the steps of optimizers, as schedules do, is due: in the last micro-step of a window, and outside.
  [[nodiscard]] bool follows_steps() const { return !only_adds_up() && no_sync_ == 0; }

  /// What a backward is that runs now. Of rows that no prepared loader has counted for this micro-step the
  /// `in_flight` ones tell the share, or it is `even`.
  ///
  /// Throws   InvalidArgument outside of a micro-step if there is something to accumulate; in a window in
  ///          which a backward threw: a micro-batch would be missing in its mean.
  [[nodiscard]] MicroStep micro_step(const data::InFlight& in_flight, double even) const {
    ACCEL_CHECK(admits_backward(), InvalidArgument, "accumulation_steps = ", steps_,
                ", but backward was called outside of accumulate(batch); write `auto micro_step = ",
                "accelerator.accumulate(batch);` first in the loop");
    ACCEL_CHECK(!window_.is_broken, InvalidArgument, "backward: an earlier backward of this accumulation window ",
                "threw, so its mean would lack a micro-batch; give the window up, on every rank: ",
                "accelerator.give_up_window()");
    MicroStep step = under_way_ ? current_ : MicroStep{};
    step.synchronises = synchronises();
    step.share = under_way_ && position_ ? position_->share() : in_flight.share(even);
    if (ran_) step.correction = 1.0;
    return step;
  }

  /// A backward has run to its end.
  void after_backward() {
    if (under_way_ && current_.synchronises) window_.begun = window_.length;
    ran_ = true;
    ++backwards_;
  }

  void backward_threw() { window_.is_broken = under_way_ && steps_ > 1; }

  [[nodiscard]] std::int64_t backwards() const { return backwards_; }

  /// Throws   InvalidArgument after a loop that has ended in mid-window.
  void check_window_is_over() const {
    ACCEL_CHECK(under_way_ || current_.synchronises || window_.begun == 0 || no_sync_ > 0, InvalidArgument,
                "step: ", window_.begun, " of ", window_.length, " micro-steps of this window are done, and none is ",
                "under way, so there is nothing to step yet; call step() while micro_step lives, as at every ",
                "micro-step; after the last batch run the missing micro-steps, or give the window up with ",
                "accelerator.give_up_window()");
  }

  /// The window's last micro-step is over and ran no backward: nothing was reduced.
  [[nodiscard]] bool ended_without_backward() const {
    return !under_way_ && current_.synchronises && !ran_ && window_.begun > 0;
  }

  /// The next micro-step begins a window.
  void give_up() {
    window_ = {};
    if (!under_way_) current_ = {};
  }

  /// Where in its window training stands, as if the micro-step under way were over.
  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("window.length", window_.length);
    state.add("window.begun", window_.begun);
    state.add("window.is_broken", window_.is_broken);
    state.add("last.index", current_.index);
    state.add("last.length", current_.length);
    state.add("last.synchronises", current_.synchronises);
    state.add("last.ran", ran_);
    return state;
  }

  /// Throws   CheckpointError for what cannot be.
  void load_state_dict(const tensor::StateDict& state) {
    const Window window{state.integer("window.length"), state.integer("window.begun"),
                        state.integer("window.is_broken") != 0};
    ACCEL_CHECK(window.begun >= 0 && window.begun <= window.length, CheckpointError, "accumulation: ", window.begun,
                " of ", window.length, " micro-steps cannot be done");
    ACCEL_CHECK(window.begun == window.length || window.length <= steps_, CheckpointError,
                "accumulation: it was saved in a window of ", window.length, " micro-steps, and accumulation_steps is ",
                steps_, " now; take the same, or a checkpoint from the end of a window");
    window_ = window;
    current_ = {.index = state.integer("last.index"),
                .length = state.integer("last.length"),
                .synchronises = state.integer("last.synchronises") != 0};
    ran_ = state.integer("last.ran") != 0;
    under_way_ = false;
    position_.reset();
  }

  void enter_no_sync() { ++no_sync_; }
  void leave_no_sync() { --no_sync_; }

 private:
  struct Window {
    std::int64_t length = 0;  // micro-steps that it was begun for
    std::int64_t begun = 0;   // of those; all of them once it has ended early
    bool is_broken = false;   // a backward in it threw

    [[nodiscard]] bool is_over() const { return begun == length; }
  };

  int steps_;
  LossNormalization normalization_;
  Window window_;
  MicroStep current_;                       // the one under way, or the last
  std::optional<data::Position> position_;  // of its batch
  bool under_way_ = false;
  bool ran_ = true;  // a backward, in it
  int no_sync_ = 0;  // guards alive
  std::int64_t backwards_ = 0;
};

}  // namespace accel::inline v0_1::gradient
