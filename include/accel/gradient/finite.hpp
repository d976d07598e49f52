// Finite: whether every element of some gradients is a number, in one pass that writes nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <accel/tensor/flat.hpp>

namespace accel::inline v0_1::gradient {

namespace detail {

/// Inf and NaN are the numbers whose exponent is all ones: adding its last bit carries into the sign's place, from
/// which `magnitude` has taken the sign. Numbers of 16 and 32 bits are looked at eight bytes at a time.
///
/// Source   IEEE 754-2019, 3.4.
struct ExponentMask {
  std::uint64_t magnitude, one, carry;
};

[[nodiscard]] inline const ExponentMask* exponent_mask(at::ScalarType dtype) {
  static constexpr ExponentMask f64{0x7fffffffffffffffU, 0x0010000000000000U, 0x8000000000000000U};
  static constexpr ExponentMask f32{0x7fffffff7fffffffU, 0x0080000000800000U, 0x8000000080000000U};
  static constexpr ExponentMask bf16{0x7fff7fff7fff7fffU, 0x0080008000800080U, 0x8000800080008000U};
  static constexpr ExponentMask f16{0x7fff7fff7fff7fffU, 0x0400040004000400U, 0x8000800080008000U};
  if (dtype == at::kDouble) return &f64;
  if (dtype == at::kFloat) return &f32;
  if (dtype == at::kBFloat16) return &bf16;
  return dtype == at::kHalf ? &f16 : nullptr;
}

[[nodiscard]] inline bool has_inf(const char* bytes, std::size_t size, const ExponentMask& mask) {
  std::uint64_t carries = 0;
  const auto look = [&](std::uint64_t word) { carries |= (word & mask.magnitude) + mask.one; };
  std::size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + at, 8);
    look(word);
  }
  std::uint64_t rest = 0;
  std::memcpy(&rest, bytes + at, size - at);
  look(rest);
  return (carries & mask.carry) != 0;
}

}  // namespace detail

/// Whether all elements are finite. The host waits for a GPU.
[[nodiscard]] inline bool is_finite(const at::Tensor& gradient) {
  const c10::AutoGradMode no_grad(false);
  if (gradient.numel() == 0) return true;
  const at::Tensor parts = tensor::real_parts(gradient.is_sparse() ? gradient._values() : gradient.detach());
  const auto* const mask = detail::exponent_mask(parts.scalar_type());
  if (!parts.is_cpu() || mask == nullptr || !parts.is_non_overlapping_and_dense())
    return at::isfinite(parts).all().item<bool>();
  const auto* const bytes = static_cast<const char*>(parts.const_data_ptr());
  std::atomic<bool> found = false;
  constexpr std::int64_t grain = 1 << 18;  // bytes for a thread: some 20 us
  at::parallel_for(0, static_cast<std::int64_t>((parts.nbytes() + 7) / 8), grain / 8, [&](auto begin, auto end) {
    const auto first = static_cast<std::size_t>(begin) * 8;
    const auto last = std::min(static_cast<std::size_t>(end) * 8, parts.nbytes());
    if (detail::has_inf(bytes + first, last - first, *mask)) found = true;
  });
  return !found;
}

namespace detail {

/// find_inf() by the device alone: the host does not wait.
inline void find_inf_on_device(at::TensorList gradients, const at::Tensor& flag) {
  if (gradients.empty()) {
    flag.zero_();
    return;
  }
  // Of f32 squares and their sums are finite in f64, so that this norm is finite exactly if every element is.
  const auto norms = at::_foreach_norm(gradients, 2, at::kDouble);
  flag.copy_(at::isfinite(at::stack(norms)).all().logical_not());
}

}  // namespace detail

/// Writes to `flag` (f32[], where the gradients are) 1 if an element of one of `gradients` is not finite, else 0.
///
/// Cost     reads each gradient once. On a GPU the host does not wait.
inline void find_inf(std::span<const at::Tensor> gradients, const at::Tensor& flag) {
  const c10::AutoGradMode no_grad(false);
  if (!flag.is_cpu()) return detail::find_inf_on_device({gradients.data(), gradients.size()}, flag);
  const bool found = !std::all_of(gradients.begin(), gradients.end(), is_finite);
  *flag.mutable_data_ptr<float>() = found ? 1.0F : 0.0F;
}

}  // namespace accel::inline v0_1::gradient
