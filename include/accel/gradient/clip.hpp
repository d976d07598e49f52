// Clip: the global norm of the gradients, and its bound, without a host sync.
#pragma once

#include <optional>
#include <span>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/gradient/gradients.hpp>

namespace accel::inline v0_1::gradient {

/// The norm of all gradients of `parameters` taken as one vector. Scalar tensor on their device; 0 if
/// there are none.
[[nodiscard]] inline at::Tensor grad_norm(std::span<const at::Tensor> parameters, double norm_type = 2.0) {
  const c10::AutoGradMode no_grad(false);
  const auto gradients = gradients_of(parameters);
  if (gradients.empty()) return at::zeros({}, parameters.empty() ? at::TensorOptions() : parameters.front().options());
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, norm_type)), norm_type);
}

/// Scales the gradients so that their norm is at most `max_norm`, in place, and returns the norm they
/// had. The coefficient stays on the device.
///
/// Throws   InvalidArgument unless max_norm > 0.
/// Source   torch.nn.utils.clip_grad_norm_, foreach path: min(1, max_norm / (norm + 1e-6)).
/// Differs  torch::nn::utils::clip_grad_norm_ of LibTorch syncs with the host at every call.
inline at::Tensor clip_grad_norm_(std::span<const at::Tensor> parameters, double max_norm, double norm_type = 2.0) {
  ACCEL_CHECK(max_norm > 0, InvalidArgument, "clip_grad_norm_: max_norm = ", max_norm, " must be above 0");
  const c10::AutoGradMode no_grad(false);
  const at::Tensor norm = grad_norm(parameters, norm_type);
  const at::Tensor coefficient = at::clamp(max_norm / (norm + 1e-6), std::nullopt, 1.0);
  const auto gradients = gradients_of(parameters);
  if (!gradients.empty()) at::_foreach_mul_(gradients, coefficient);
  return norm;
}

}  // namespace accel::inline v0_1::gradient
