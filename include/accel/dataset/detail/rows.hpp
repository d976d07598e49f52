// Rows of a tensor, copied out of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::dataset::detail {

inline void check_row(std::int64_t row, std::int64_t rows) {
  ACCEL_CHECK(row >= 0 && row < rows, InvalidArgument, "row: expected 0 to ", rows - 1, " (", rows, " rows), found ",
              row);
}

/// Whether each row is one piece of host memory that can be copied as bytes.
[[nodiscard]] inline bool has_plain_rows(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.device().is_cpu() && !tensor.requires_grad() && !tensor.is_conj() &&
         !tensor.is_neg() && !tensor.is_quantized() && (tensor.size(0) == 0 || tensor.select(0, 0).is_contiguous());
}

/// One row, a copy: what is done to it in place does not reach the tensor.
[[nodiscard]] inline at::Tensor row_of(const at::Tensor& tensor, std::int64_t row) {
  check_row(row, tensor.size(0));
  return tensor.select(0, row).clone();
}

/// Rows one below the other, a copy. What takes long here is memory, so that it is one thread's work: a loader has
/// several at it.
[[nodiscard]] inline at::Tensor rows_of(const at::Tensor& tensor, const std::vector<std::int64_t>& rows) {
  for (const auto row : rows) check_row(row, tensor.size(0));
  if (!has_plain_rows(tensor)) return at::index_select(tensor, 0, at::tensor(rows, at::kLong).to(tensor.device()));
  auto shape = tensor.sizes().vec();
  shape.front() = static_cast<std::int64_t>(rows.size());
  at::Tensor result = at::empty(shape, tensor.options());
  const auto* from = static_cast<const char*>(tensor.const_data_ptr());
  auto* to = static_cast<char*>(result.mutable_data_ptr());
  const auto element = static_cast<std::int64_t>(tensor.itemsize());
  const auto bytes = rows.empty() ? 0 : result.nbytes() / rows.size();
  if (bytes == 0) return result;
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::memcpy(to + i * bytes, from + rows[i] * tensor.stride(0) * element, bytes);
  return result;
}

}  // namespace accel::inline v0_1::dataset::detail
