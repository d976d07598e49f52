// safetensors: the tensors of a file, read when they are touched.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>
#include <accel/dataset/detail/mapped_tensor.hpp>
#include <accel/tensor/safetensors.hpp>

namespace accel::inline v0_1::dataset {

namespace detail {

/// A file whose header is read and checked, and its map.
class OpenSafetensors {
 public:
  explicit OpenSafetensors(const std::filesystem::path& path)
      : header_(path), map_(std::make_shared<const MappedFile>(path)) {}

  [[nodiscard]] std::vector<std::string> names() const { return header_.names(); }

  [[nodiscard]] at::Tensor tensor(std::string_view name) const {
    const auto spec = header_.spec(name);
    const auto offset = header_.offset(name);
    auto bytes = static_cast<std::uint64_t>(c10::elementSize(spec.dtype));
    std::vector<std::int64_t> strides(spec.shape.size());
    std::int64_t stride = 1;
    for (std::size_t dim = strides.size(); dim-- > 0;) {
      strides[dim] = stride;
      stride *= std::max<std::int64_t>(spec.shape[dim], 1);
      bytes *= static_cast<std::uint64_t>(spec.shape[dim]);
    }
    (void)map_->bytes(offset, bytes);
    if (spec.dtype == at::kBool) check_bools(*map_, offset, offset + bytes, {});
    return mapped_tensor(map_, offset, spec.dtype, spec.shape, strides);
  }

 private:
  tensor::safetensors::File header_;
  std::shared_ptr<const MappedFile> map_;
};

/// A file of data is no checkpoint.
template <class Body>
auto as_data_error(Body&& body) {
  try {
    return body();
  } catch (const CheckpointError& error) {
    throw DataError(error.what());
  }
}

}  // namespace detail

/// All tensors of a `.safetensors` file by name. `Tensors` makes a dataset of them:
///
///   dataset::Tensors train{dataset::open_safetensors("train.safetensors")};                     // rows: maps
///   dataset::Tensors pairs{dataset::open_safetensors("train.safetensors", "image", "label")};  // rows: arrays
///
/// Shape    as in the file. Read-only: writing to one ends the program with SIGSEGV; clone() it first.
/// Memory   none: a page of the file is read when it is touched. Of a tensor that does not lie at a multiple of its
///          dtype's size, a copy in memory.
/// Cost     of bools one pass over them, to see that each is 0 or 1.
/// Throws   DataError with path, tensor and offset, as tensor::safetensors::File does.
[[nodiscard]] inline std::map<std::string, at::Tensor> open_safetensors(const std::filesystem::path& path) {
  return detail::as_data_error([&] {
    const detail::OpenSafetensors file(path);
    std::map<std::string, at::Tensor> tensors;
    for (const auto& name : file.names()) tensors.emplace(name, file.tensor(name));
    return tensors;
  });
}

/// Those of these names, in this order: `const auto [image, label] = ...`.
template <std::convertible_to<std::string_view>... Names>
  requires(sizeof...(Names) > 0)
[[nodiscard]] std::array<at::Tensor, sizeof...(Names)> open_safetensors(const std::filesystem::path& path,
                                                                        const Names&... names) {
  return detail::as_data_error([&] {
    const detail::OpenSafetensors file(path);
    return std::array<at::Tensor, sizeof...(Names)>{file.tensor(names)...};
  });
}

}  // namespace accel::inline v0_1::dataset
