// Reductions of the ranks' data where it lies, in the order of the ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <c10/core/ScalarType.h>

#include <accel/backend/backend.hpp>

namespace accel::inline v0_1::backend::detail {

/// Reduces element by element: ((rank 0 + rank 1) + rank 2) + ... in the dtype itself. So a result does
/// not depend on how a message was cut, nor on who reduced which part of it.
class RankOrder {
 public:
  /// What the others hold stands in `parts`, by rank; `out` may be one of them.
  void reduce(c10::ScalarType dtype, ReduceOp op, std::byte* out, std::span<const std::byte* const> parts,
              std::size_t bytes) {
    const std::size_t count = bytes / c10::elementSize(dtype);
    if (op == ReduceOp::sum && count <= few && dtype == c10::ScalarType::Float)
      return sum_few(reinterpret_cast<float*>(out), parts, count);
    if (op == ReduceOp::sum && count <= few && dtype == c10::ScalarType::Double)
      return sum_few(reinterpret_cast<double*>(out), parts, count);
    // Beyond two ranks in pieces that stay in the cache: what is not the last sum is not written to memory.
    const std::size_t piece = parts.size() == 2 ? bytes : cached * static_cast<std::size_t>(at::get_num_threads());
    for (std::size_t begin = 0; begin < bytes; begin += piece)
      reduce_piece(dtype, op, out, parts, begin, std::min(piece, bytes - begin));
  }

 private:
  static constexpr std::size_t few = 1024;             // below it LibTorch's way costs more than the sum
  static constexpr std::size_t cached = 128UL * 1024;  // of each thread

  template <class T>
  static void sum_few(T* out, std::span<const std::byte* const> parts, std::size_t count) {
    const auto part = [&](std::size_t rank) { return reinterpret_cast<const T*>(parts[rank]); };
    if (parts.size() == 2) {
      const T* const first = part(0);
      const T* const second = part(1);
      for (std::size_t i = 0; i < count; ++i) out[i] = first[i] + second[i];
      return;
    }
    for (std::size_t i = 0; i < count; ++i) {
      T sum = part(0)[i];
      for (std::size_t rank = 1; rank < parts.size(); ++rank) sum += part(rank)[i];
      out[i] = sum;
    }
  }

  void reduce_piece(c10::ScalarType dtype, ReduceOp op, std::byte* out, std::span<const std::byte* const> parts,
                    std::size_t begin, std::size_t bytes) {
    const auto count = static_cast<std::int64_t>(bytes / c10::elementSize(dtype));
    const auto tensor = [&](const std::byte* at) {
      return at::from_blob(const_cast<std::byte*>(at), {count}, at::TensorOptions(dtype));  // only `out` is written
    };
    at::Tensor target = tensor(out + begin);
    // `out` may be what a later rank holds: until that is read the sum lies elsewhere.
    if (parts.size() > 2 && sums_.nbytes() < bytes) sums_ = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
    at::Tensor sum = parts.size() > 2 ? tensor(static_cast<std::byte*>(sums_.data_ptr())) : at::Tensor();
    for (std::size_t rank = 1; rank < parts.size(); ++rank) {
      const at::Tensor left = rank == 1 ? tensor(parts[0] + begin) : sum;
      const at::Tensor right = tensor(parts[rank] + begin);
      at::Tensor& result = rank + 1 == parts.size() ? target : sum;
      if (op == ReduceOp::sum) at::add_out(result, left, right);
      if (op == ReduceOp::max) at::maximum_out(result, left, right);
      if (op == ReduceOp::min) at::minimum_out(result, left, right);
    }
  }

  at::Tensor sums_ = at::empty({0}, at::kByte);
};

}  // namespace accel::inline v0_1::backend::detail
