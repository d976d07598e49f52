// Scaled: what the gradients of one model are multiplied by, from the backward that made them to the step.
#pragma once

#include <cstdint>
#include <optional>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <c10/core/Device.h>

#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::gradient {

/// `.grad` is scale() times the gradient, always: a backward multiplies by the loss scale of its time, which this
/// remembers; unscaling, clipping and steps divide by it. What adds to gradients of another scale finds them
/// brought to its own.
///
/// Also remembers whether they were found finite, and that nothing has changed them since.
class Scaled {
 public:
  Scaled() = default;
  explicit Scaled(c10::Device device)
      : scale_(at::full({}, 1.0, at::TensorOptions(at::kFloat).device(device))),
        found_inf_(scale_.clone()),
        clip_found_(scale_.clone()) {}

  /// f32[] on the device
  [[nodiscard]] const at::Tensor& scale() const { return scale_; }

  /// It may be another number than 1.
  [[nodiscard]] bool is_scaled() const { return is_scaled_; }

  /// If is_exact(), it is the loss scale after this many updates.
  [[nodiscard]] std::int64_t update() const { return update_; }
  [[nodiscard]] bool is_exact() const { return is_exact_; }

  /// A backward begins on a loss times `loss_scale`, which is what it is after that many updates. Gives what the
  /// gradients that are there, if any, must be multiplied by first.
  [[nodiscard]] std::optional<at::Tensor> begin(const at::Tensor& loss_scale, std::int64_t update, bool has_gradients) {
    std::optional<at::Tensor> factor;
    const bool is_same = is_scaled_ && is_exact_ && update == update_;
    if (has_gradients && !is_same) factor = loss_scale / scale_;
    if (!is_same) scale_.copy_(loss_scale);
    is_scaled_ = is_exact_ = true;
    update_ = update;
    known_.reset();
    was_clipped_ = false;
    return factor;
  }

  /// The gradients were divided by scale().
  void divided() {
    if (is_scaled_) scale_.fill_(1.0);
    is_scaled_ = false;
  }

  /// An optimizer has divided them, unless `found_inf` (f32[]) kept it from its step.
  void divided_unless(const at::Tensor& found_inf) {
    if (!is_scaled_) return;
    if (scale_.is_cpu()) {
      if (*found_inf.const_data_ptr<float>() == 0) divided();
      return;
    }
    scale_.copy_(at::where(found_inf == 0, 1.0, scale_));
    is_exact_ = false;
  }

  /// What gradients that wait are multiplied by. `updates` are those of the loss scale so far.
  [[nodiscard]] tensor::StateDict state_dict(std::int64_t updates) const {
    tensor::StateDict state;
    if (!is_scaled_) return state;
    state.add("scale", scale_);
    state.add("is_exact", is_exact_);
    state.add("updates_since", updates - update_);
    return state;
  }
  void load_state_dict(const tensor::StateDict& state, std::int64_t updates) {
    is_scaled_ = !state.empty();
    if (is_scaled_) {
      scale_.copy_(state.tensor("scale"));
      is_exact_ = state.integer("is_exact") != 0;
      update_ = updates - state.integer("updates_since");
    } else {
      scale_.fill_(1.0);
    }
    known_.reset();
    was_clipped_ = false;
  }

  /// Clipping has looked at them. If their norm was not finite it has left them, and until the next backward none of
  /// this model's parameters is to be stepped, whoever's they are.
  void note_clipped() {
    clip_found_.copy_(found_inf_);
    was_clipped_ = true;
  }
  /// f32[]; null if they were not clipped.
  [[nodiscard]] const at::Tensor* clip_found() const { return was_clipped_ ? &clip_found_ : nullptr; }

  /// f32[]: whether they are finite, for who looks at them to write, and then to note their mark: Ledger::mark().
  [[nodiscard]] const at::Tensor& found_inf() const { return found_inf_; }
  void note_found(std::uint64_t mark) { known_ = mark; }
  /// Nobody has changed them since.
  [[nodiscard]] bool is_found(std::uint64_t mark) const { return known_ == mark; }

 private:
  at::Tensor scale_;       // f32[]
  at::Tensor found_inf_;   // f32[]
  at::Tensor clip_found_;  // f32[]
  bool is_scaled_ = false;
  bool is_exact_ = true;
  bool was_clipped_ = false;
  std::int64_t update_ = 0;
  std::optional<std::uint64_t> known_;
};

}  // namespace accel::inline v0_1::gradient
