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

/// The norm of `gradients` taken as one vector; none is without an element. Scalar tensor on their device, or
/// on the host if there are none.
///
/// Order    pieces that hold several gradients are summed as one: another order of sums than a norm per
///          parameter, equal within rounding.
[[nodiscard]] inline at::Tensor norm_of(std::span<const at::Tensor> gradients, double norm_type = 2.0) {
  const c10::AutoGradMode no_grad(false);
  if (gradients.empty()) return at::zeros({});
  if (gradients.size() == 1) return at::linalg_vector_norm(gradients.front(), norm_type);
  return at::linalg_vector_norm(
      at::stack(at::_foreach_norm(at::TensorList(gradients.data(), gradients.size()), norm_type)), norm_type);
}

/// Scales `gradients` so that their norm is at most `max_norm`, in place, and returns the norm they had.
/// The coefficient stays on a GPU; on the CPU one of 1 saves the pass.
///
/// Throws   InvalidArgument unless max_norm > 0.
/// Source   torch.nn.utils.clip_grad_norm_, foreach path: min(1, max_norm / (norm + 1e-6)).
/// Differs  torch::nn::utils::clip_grad_norm_ of LibTorch syncs with the host at every call.
inline at::Tensor clip_to_norm_(std::span<const at::Tensor> gradients, double max_norm, double norm_type = 2.0) {
  ACCEL_CHECK(max_norm > 0, InvalidArgument, "clip_grad_norm_: max_norm = ", max_norm, " must be above 0");
  const c10::AutoGradMode no_grad(false);
  const at::Tensor norm = norm_of(gradients, norm_type);
  const at::Tensor coefficient = at::clamp(max_norm / (norm + 1e-6), std::nullopt, 1.0);
  if (gradients.empty() || (coefficient.is_cpu() && coefficient.item<double>() == 1.0)) return norm;
  at::_foreach_mul_(at::TensorList(gradients.data(), gradients.size()), coefficient);
  return norm;
}

/// The same of what gradients `parameters` have.
inline at::Tensor clip_grad_norm_(std::span<const at::Tensor> parameters, double max_norm, double norm_type = 2.0) {
  return clip_to_norm_(gradients_of(parameters), max_norm, norm_type);
}

}  // namespace accel::inline v0_1::gradient
