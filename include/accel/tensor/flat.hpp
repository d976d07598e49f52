// Flat: many tensors as views of one buffer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/view_as_real.h>

#include <accel/core/units.hpp>

namespace accel::inline v0_1::tensor {

/// A view of `flat` from its element `offset` on with the shape of `like`, and with its strides where
/// they are dense: autograd then adds into the view in place instead of making a copy.
/// Source   the layout contract of LibTorch's AccumulateGrad.
[[nodiscard]] inline at::Tensor view_like(const at::Tensor& flat, std::int64_t offset, const at::Tensor& like) {
  // as_strided counts from the begin of the storage, in which `flat` may be a part.
  if (like.is_non_overlapping_and_dense())
    return flat.as_strided(like.sizes(), like.strides(), flat.storage_offset() + offset);
  return flat.narrow(0, offset, like.numel()).view(like.sizes());
}

/// Calls `visitor(group)` with runs of `tensors` that share dtype and device and stay under `cap`
/// together; one tensor may exceed it. Order is kept within a dtype.
template <class Visitor>
void for_each_group(std::span<const at::Tensor> tensors, Bytes cap, Visitor&& visitor) {
  std::vector<bool> taken(tensors.size(), false);
  for (std::size_t first = 0; first < tensors.size(); ++first) {
    if (taken[first]) continue;
    std::vector<at::Tensor> group;
    std::int64_t bytes = 0;
    for (std::size_t i = first; i < tensors.size(); ++i) {
      const auto& tensor = tensors[i];
      if (taken[i] || tensor.scalar_type() != tensors[first].scalar_type() ||
          tensor.device() != tensors[first].device())
        continue;
      const auto more = static_cast<std::int64_t>(tensor.nbytes());
      if (!group.empty() && bytes + more > cap.count) break;
      group.push_back(tensor);
      bytes += more;
      taken[i] = true;
    }
    visitor(group);
  }
}

/// The elements of `tensor` that have memory of their own: where it is expanded, the first along that
/// dimension stands for all. Whoever writes to them writes to all of `tensor`.
[[nodiscard]] inline at::Tensor without_expansion(at::Tensor tensor) {
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim)
    if (tensor.stride(dim) == 0 && tensor.size(dim) > 1) tensor = tensor.narrow(dim, 0, 1);
  return tensor;
}

/// What is summed element by element: of complex numbers their parts, of others themselves.
[[nodiscard]] inline at::Tensor real_parts(const at::Tensor& tensor) {
  return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
}

/// One buffer with room for all of `tensors`, which share dtype and device. Not filled.
[[nodiscard]] inline at::Tensor flat_buffer(std::span<const at::Tensor> tensors) {
  std::int64_t numel = 0;
  for (const auto& tensor : tensors) numel += tensor.numel();
  return at::empty({numel}, tensors.front().options().requires_grad(false));
}

}  // namespace accel::inline v0_1::tensor
