// npy: a NumPy file as a tensor that is read when it is touched.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>
#include <accel/dataset/detail/mapped_tensor.hpp>
#include <accel/dataset/detail/npy_header.hpp>

namespace accel::inline v0_1::dataset {

namespace detail {

/// The numbers of a file of the other byte order, in memory.
[[nodiscard]] inline at::Tensor swapped(const MappedFile& file, const NpyHeader& header,
                                        const ProgressOptions& progress) {
  at::Tensor tensor = at::empty({header.count}, at::TensorOptions(header.dtype));
  const auto size = tensor.itemsize() / (tensor.is_complex() ? 2 : 1);  // of a number: a complex one is two
  const auto from = file.bytes().subspan(header.data_begin);
  auto* to = static_cast<std::byte*>(tensor.mutable_data_ptr());
  Progress shown("reading " + file.path().string(), static_cast<std::int64_t>(from.size()), Counted::bytes, progress);
  constexpr std::size_t between = 1 << 20;  // bytes, so that the clock costs nothing
  for (std::size_t at = 0; at < from.size(); at += size) {
    std::reverse_copy(from.begin() + static_cast<std::ptrdiff_t>(at),
                      from.begin() + static_cast<std::ptrdiff_t>(at + size), to + at);
    if (at % between == 0) shown.reached(static_cast<std::int64_t>(at));
  }
  return tensor;
}

}  // namespace detail

/// The array of a `.npy` file, as numpy.save writes it. `Tensors` makes a dataset of one or more of them:
///
///   dataset::Tensors train{std::pair{dataset::open_npy("images.npy"), dataset::open_npy("labels.npy")}};
///
/// Shape    the file's. dtype bool, u8 to u64, i8 to i64, f16, f32, f64, c64 or c128; a Fortran-ordered array has the
///          strides of one. The tensor is read-only: writing to it ends the program with SIGSEGV; clone() it first.
/// Memory   none: a page of the file is read when it is touched. Of big-endian numbers, and of data that do not
///          lie at a multiple of their size, a copy in memory.
/// Cost     of bool one pass over the file, to see that each is 0 or 1.
/// Throws   DataError, with path and offset, for what is no such file, for other dtypes, and for a file that is cut
///          short or goes on behind the array.
/// Source   numpy.lib.format, versions 1.0, 2.0 and 3.0.
[[nodiscard]] inline at::Tensor open_npy(const std::filesystem::path& path, const ProgressOptions& progress = {}) {
  static_assert(std::endian::native == std::endian::little, "the other byte order is taken for the foreign one");
  auto file = std::make_shared<const MappedFile>(path);
  const auto header = detail::NpyHeaderReader(*file).read();
  std::vector<std::int64_t> strides(header.shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = 0; i < strides.size(); ++i) {
    const std::size_t dim = header.fortran_order ? i : strides.size() - 1 - i;
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(header.shape[dim], 1);
  }
  if (header.big_endian && c10::elementSize(header.dtype) > 1)
    return detail::swapped(*file, header, progress).as_strided(header.shape, strides);
  if (header.dtype == at::kBool) detail::check_bools(*file, header.data_begin, file->size(), progress);
  return detail::mapped_tensor(std::move(file), header.data_begin, header.dtype, header.shape, strides);
}

}  // namespace accel::inline v0_1::dataset
