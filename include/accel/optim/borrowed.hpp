// Borrowed: gradients as memory that a step uses and does not keep alive.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Storage.h>

namespace accel::inline v0_1::optim::detail {

/// Where a tensor lies; null only if it is undefined.
[[nodiscard]] inline const void* address(const at::Tensor& tensor) {
  static constexpr char nowhere = 0;
  if (!tensor.defined()) return nullptr;
  return tensor.layout() == at::kStrided && tensor.numel() > 0 ? tensor.const_data_ptr() : &nowhere;
}

/// Nothing else lies where `gradient` does.
[[nodiscard]] inline bool is_alone(const at::Tensor& gradient, const at::Tensor& parameter) {
  return gradient.defined() && gradient.layout() == at::kStrided && gradient.numel() > 0 &&
         gradient.storage().nbytes() == gradient.nbytes() && gradient.device() == parameter.device();
}

/// Does not count as holding it.
[[nodiscard]] inline c10::DataPtr pointer_to(const at::Tensor& gradient) {
  return {gradient.mutable_data_ptr(), gradient.device()};
}

/// From where `gradient` begins. It is used only as long as the gradient is found at this very place.
[[nodiscard]] inline at::Tensor memory_of(const at::Tensor& gradient, at::IntArrayRef sizes, at::IntArrayRef strides) {
  auto bytes = static_cast<std::size_t>(gradient.element_size());
  for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
  const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, pointer_to(gradient));
  return at::empty({0}, gradient.options().requires_grad(false)).set_(storage, 0, sizes, strides);
}

}  // namespace accel::inline v0_1::optim::detail
