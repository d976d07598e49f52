// Stepper: an optimizer that steps inside of backward, as soon as gradients have arrived.
#pragma once

#include <span>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::gradient {

struct Stepper {
  /// Steps those of `some` that are its own; their gradients are means over the ranks.
  virtual void step(std::span<const at::Tensor> some) = 0;

  Stepper() = default;
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;
  virtual ~Stepper() = default;

  bool has_stepped = false;  // in a backward whose step() the user has not called yet
};

}  // namespace accel::inline v0_1::gradient
