// PackedMemory: one block for many tensors that come and go together.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <accel/core/pages.hpp>

namespace accel::inline v0_1::tensor {

/// Memory of such layouts, not filled: dense ones on the CPU share a block of large pages.
class PackedMemory {
 public:
  /// Order    before the first give().
  void plan(const at::Tensor& layout, at::Device device) {
    if (is_shared(layout, device)) bytes_ += room(layout);
  }

  [[nodiscard]] at::Tensor give(const at::Tensor& layout, at::Device device) {
    const auto options = layout.options().device(device);
    if (!is_shared(layout, device)) return at::empty_strided(layout.sizes(), layout.strides(), options);
    if (!block_.defined()) {
      block_ = at::empty({bytes_}, options.dtype(at::kByte));
      prefer_huge_pages({static_cast<std::byte*>(block_.mutable_data_ptr()), block_.nbytes()});
    }
    // Not a view of it: each counts its own versions.
    at::Tensor given = at::empty({0}, options)
                           .set_(block_.storage(), given_ / layout.element_size(), layout.sizes(), layout.strides());
    given_ += room(layout);
    return given;
  }

 private:
  [[nodiscard]] static bool is_shared(const at::Tensor& layout, at::Device device) {
    return device.is_cpu() && layout.is_non_overlapping_and_dense();
  }
  [[nodiscard]] static std::int64_t room(const at::Tensor& layout) {
    return (layout.numel() * static_cast<std::int64_t>(layout.element_size()) + alignment - 1) / alignment * alignment;
  }

  static constexpr std::int64_t alignment = 64;

  at::Tensor block_;
  std::int64_t bytes_ = 0;
  std::int64_t given_ = 0;
};

}  // namespace accel::inline v0_1::tensor
