// Clip: the global norm of the gradients, and its bound, without a host sync.
#pragma once

#include <cmath>
#include <optional>
#include <span>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/gradient/finite.hpp>
#include <accel/gradient/gradients.hpp>

namespace accel::inline v0_1::gradient {

/// The norm of `gradients` taken as one vector; none is without an element. Scalar tensor on their device, or
/// on the host if there are none.
///
/// Order    pieces that hold several gradients are summed as one: another order of sums than a norm per
///          parameter, equal within rounding.
[[nodiscard]] inline at::Tensor norm_of(std::span<const at::Tensor> gradients, double norm_type = 2.0,
                                        std::optional<at::ScalarType> computed_in = std::nullopt) {
  const c10::AutoGradMode no_grad(false);
  if (gradients.empty()) return at::zeros({});
  if (gradients.size() == 1)
    return at::linalg_vector_norm(gradients.front(), norm_type, at::OptionalIntArrayRef(), false, computed_in);
  return at::linalg_vector_norm(
      at::stack(at::_foreach_norm(at::TensorList(gradients.data(), gradients.size()), norm_type, computed_in)),
      norm_type);
}

namespace detail {

/// A norm of this kind is finite only if every element is.
[[nodiscard]] inline bool shows_inf(double norm_type) {
  return norm_type >= 1;
}

[[nodiscard]] inline at::Tensor coefficient_for(const at::Tensor& norm, double max_norm) {
  return at::clamp(max_norm / (norm + 1e-6), std::nullopt, 1.0);
}

}  // namespace detail

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
  const at::Tensor coefficient = detail::coefficient_for(norm, max_norm);
  if (gradients.empty() || (coefficient.is_cpu() && coefficient.item<double>() == 1.0)) return norm;
  at::_foreach_mul_(at::TensorList(gradients.data(), gradients.size()), coefficient);
  return norm;
}

namespace detail {

/// clip_scaled_to_norm_() by the device alone: the host waits for nothing.
inline at::Tensor clip_scaled_on_device(at::TensorList gradients, const at::Tensor& scale, const at::Tensor& found_inf,
                                        double max_norm, double norm_type) {
  if (gradients.empty()) {
    found_inf.zero_();
    return at::zeros_like(scale);
  }
  // In f64 the squares of f32 do not overflow: then this norm is the check, too.
  const bool shows = norm_type == 2.0;
  const std::span<const at::Tensor> all(gradients.data(), gradients.size());
  const at::Tensor norm = norm_of(all, norm_type, shows ? std::optional(at::kDouble) : std::nullopt) / scale;
  if (shows)
    found_inf.copy_(at::isfinite(norm).logical_not());
  else
    find_inf_on_device(gradients, found_inf);
  const at::Tensor factor = (coefficient_for(norm, max_norm) / scale).to(at::kFloat);
  at::_foreach_mul_(gradients, at::where(found_inf == 0, factor, 1.0F));
  return norm.to(at::kFloat);
}

}  // namespace detail

/// The same of `gradients` that are `scale` (f32[]) times what they should be: divides them in the same pass, and
/// writes to `found_inf` (f32[]) whether an element is not finite, as find_inf() does. Then they stay as they are.
///
/// Cost     as clip_to_norm_, whose pass is the check; where the norm is not finite one more, as that of finite
///          elements need not be. On a GPU nothing is waited for.
/// Differs  GradScaler.unscale_ and then torch.nn.utils.clip_grad_norm_ are two passes more, and equal this bit for
///          bit where the scale is a power of two.
inline at::Tensor clip_scaled_to_norm_(std::span<const at::Tensor> gradients, const at::Tensor& scale,
                                       const at::Tensor& found_inf, double max_norm, double norm_type = 2.0) {
  ACCEL_CHECK(max_norm > 0, InvalidArgument, "clip_grad_norm_: max_norm = ", max_norm, " must be above 0");
  const c10::AutoGradMode no_grad(false);
  const at::TensorList list(gradients.data(), gradients.size());
  if (!found_inf.is_cpu()) return detail::clip_scaled_on_device(list, scale, found_inf, max_norm, norm_type);
  found_inf.zero_();
  if (list.empty()) return at::zeros({});
  const at::Tensor scaled_norm = norm_of(gradients, norm_type);
  if (!detail::shows_inf(norm_type) || !std::isfinite(scaled_norm.item<double>())) {
    find_inf(gradients, found_inf);
    if (found_inf.item<float>() != 0) return scaled_norm / scale;
    at::_foreach_mul_(list, scale.reciprocal());
    return clip_to_norm_(gradients, max_norm, norm_type);
  }
  const at::Tensor norm = scaled_norm / scale;
  const at::Tensor factor = detail::coefficient_for(norm, max_norm) / scale;
  if (factor.item<double>() != 1.0) at::_foreach_mul_(list, factor);
  return norm;
}

/// The same of what gradients `parameters` have.
inline at::Tensor clip_grad_norm_(std::span<const at::Tensor> parameters, double max_norm, double norm_type = 2.0) {
  return clip_to_norm_(gradients_of(parameters), max_norm, norm_type);
}

}  // namespace accel::inline v0_1::gradient
