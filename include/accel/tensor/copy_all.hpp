// copy_all: many tensors into many, as fast as memory allows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/tensor/all_threads.hpp>

namespace accel::inline v0_1::tensor {

/// Of the same shape.
struct Copy {
  at::Tensor to;
  at::Tensor from;
};

/// `to.copy_(from)` for each, those on the CPU that are bytes behind bytes by all threads at once.
///
/// Order    without autograd; the memory of no `to` is another's.
inline void copy_all(std::span<const Copy> copies) {
  struct Piece {
    std::byte* to;
    const std::byte* from;
    std::size_t bytes;
  };
  constexpr std::size_t most = 4 << 20;
  std::vector<Piece> pieces;
  for (const auto& [to, from] : copies) {
    const bool is_plain = to.is_cpu() && from.is_cpu() && to.scalar_type() == from.scalar_type() &&
                          to.sizes() == from.sizes() && to.is_contiguous() && from.is_contiguous() && !to.is_conj() &&
                          !from.is_conj() && !to.is_neg() && !from.is_neg();
    if (!is_plain) {
      to.copy_(from);
      continue;
    }
    auto* const begin = static_cast<std::byte*>(to.mutable_data_ptr());
    const auto* const source = static_cast<const std::byte*>(from.const_data_ptr());
    for (std::size_t at = 0; at < to.nbytes(); at += most)
      pieces.push_back({begin + at, source + at, std::min(most, to.nbytes() - at)});
    to.unsafeGetTensorImpl()->bump_version();  // as copy_() would
  }
  by_all_threads(pieces.size(), [&](std::size_t i) { std::memcpy(pieces[i].to, pieces[i].from, pieces[i].bytes); });
}

}  // namespace accel::inline v0_1::tensor
