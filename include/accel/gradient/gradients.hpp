// Gradients: those that a list of parameters has.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::gradient {

/// The `.grad` of each of `parameters` that has one, and an element in it; in their order.
[[nodiscard]] inline std::vector<at::Tensor> gradients_of(std::span<const at::Tensor> parameters) {
  std::vector<at::Tensor> gradients;
  for (const auto& parameter : parameters) {
    const at::Tensor& gradient = parameter.grad();
    if (gradient.defined() && gradient.numel() > 0) gradients.push_back(gradient);
  }
  return gradients;
}

/// One of `parameters` has a gradient.
[[nodiscard]] inline bool has_any(std::span<const at::Tensor> parameters) {
  return std::any_of(parameters.begin(), parameters.end(), [](const auto& one) { return one.grad().defined(); });
}

}  // namespace accel::inline v0_1::gradient
