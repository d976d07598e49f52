// GradScale: what stands between `.grad` and the gradient, for an optimizer to take into account while it reads.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::gradient {

/// `.grad` is `scale` times the gradient, and `found_inf` says whether any element of it is not finite, or never came
/// from another rank: then no parameter, state or count of steps may change. Both are f32[] where the gradients are.
struct GradScale {
  at::Tensor scale;        // undefined: 1
  at::Tensor found_inf;    // 1 or 0; undefined: 0
  bool on_device = false;  // found_inf is for the device to read: the host does not wait for it

  // As LibTorch's fused operators take them.
  [[nodiscard]] std::optional<at::Tensor> divisor() const {
    return scale.defined() ? std::optional(scale) : std::nullopt;
  }
  [[nodiscard]] std::optional<at::Tensor> device_flag() const {
    return on_device ? std::optional(found_inf) : std::nullopt;
  }

  /// The host knows that the step is not to be taken.
  [[nodiscard]] bool is_skipped() const {
    return found_inf.defined() && !on_device && *found_inf.const_data_ptr<float>() != 0;
  }
};

}  // namespace accel::inline v0_1::gradient
