// A part of a mapped file as a tensor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>

namespace accel::inline v0_1::dataset::detail {

/// A tensor over the bytes from `offset` on, which the caller has made sure are there. It keeps the map alive.
/// `strides` are dense. Elements that are not aligned are copied: kernels may not read them where they are.
[[nodiscard]] inline at::Tensor mapped_tensor(std::shared_ptr<const MappedFile> file, std::uint64_t offset,
                                              c10::ScalarType dtype, const std::vector<std::int64_t>& shape,
                                              const std::vector<std::int64_t>& strides) {
  const bool is_empty = std::ranges::count(shape, 0) > 0;
  const auto element = c10::elementSize(dtype);
  if (is_empty || offset % element != 0) {
    at::Tensor tensor = at::empty_strided(shape, strides, at::TensorOptions(dtype));
    if (!is_empty) std::memcpy(tensor.mutable_data_ptr(), file->bytes(offset, tensor.nbytes()).data(), tensor.nbytes());
    return tensor;
  }
  auto* begin = const_cast<std::byte*>(file->bytes().data() + offset);  // LibTorch has no tensors of const
  return at::from_blob(begin, shape, strides, [file = std::move(file)](void*) {}, at::TensorOptions(dtype));
}

/// A bool that is neither 0 nor 1 is undefined behaviour in whatever kernel meets it.
inline void check_bools(const MappedFile& file, std::uint64_t begin, std::uint64_t end,
                        const ProgressOptions& options) {
  Progress progress("checking " + file.path().string(), static_cast<std::int64_t>(end - begin), Counted::bytes,
                    options);
  constexpr std::uint64_t piece = 1 << 20;
  for (std::uint64_t at = begin; at < end; at += piece) {
    const auto bytes = file.bytes(at, std::min(piece, end - at));
    const auto wrong = std::ranges::find_if(bytes, [](std::byte byte) { return byte > std::byte{1}; });
    ACCEL_CHECK(wrong == bytes.end(), DataError, file.path().string(), ": expected 0 or 1 for a bool at offset ",
                at + static_cast<std::uint64_t>(wrong - bytes.begin()), ", found ", std::to_integer<int>(*wrong));
    progress.reached(static_cast<std::int64_t>(at - begin));
  }
}

}  // namespace accel::inline v0_1::dataset::detail
