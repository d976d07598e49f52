// Pad: tensors whose sizes differ between ranks get the largest of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <c10/core/Scalar.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

struct PadOptions {
  std::int64_t dim = 0;    // negative: counted from the last
  at::Scalar value = 0;    // of what is added
  bool pad_first = false;  // in front of what is there
};

namespace detail {

/// The number of that dimension of `tensor`, or -1 if it has none.
[[nodiscard]] inline std::int64_t existing_dim(const at::Tensor& tensor, std::int64_t dim) {
  if (dim < 0) dim += tensor.dim();
  return dim < tensor.dim() ? std::max<std::int64_t>(dim, -1) : -1;
}

/// Throws   InvalidArgument unless a tensor like `tensor` can hold `value`. Found out on every rank: some have nothing
///          to pad.
inline void check_pad_value(std::string_view path, const at::Tensor& tensor, const at::Scalar& value) {
  const auto holds = [&] {
    if (tensor.is_complex()) return true;
    if (value.isComplex()) return false;
    if (tensor.is_floating_point()) return true;
    const at::Scalar back = at::full({}, value, tensor.options().device(c10::DeviceType::CPU)).item();
    return back.toDouble() == value.toDouble();
  };
  bool is_held = false;
  try {
    is_held = holds();
  } catch (const std::exception&) {
    // LibTorch's word for what overflows.
  }
  ACCEL_CHECK(is_held, InvalidArgument, "pad_across_processes: ", tensor::spec(tensor), at_path(path),
              " cannot hold the value ", value);
}

}  // namespace detail

/// Every tensor of `tree` with `value` behind (or before) what it has along one dimension, up to the largest size that
/// a rank has there. Where nothing is to be added, or a tensor has no such dimension, it is the tensor that was given.
///
/// Shape    number of dimensions and dtypes equal on all ranks; other sizes may differ.
/// Cost     one round over the control plane, one copy of what is padded. No tensor is sent.
/// Throws   InvalidArgument on every rank, naming both and the path, if trees, dtypes, numbers of dimensions or options
///          differ; with the path if a dtype cannot hold `value`.
template <Backend B, class Tree>
[[nodiscard]] Tree pad_across_processes(B& backend, Tree tree, const PadOptions& options = {}) {
  const std::vector<Said> said =
      agree_on_trees(backend, "pad_across_processes", "give every rank tensors of one dtype, with as many dimensions",
                     message("dim ", options.dim, ", value ", options.value, options.pad_first ? ", first" : ""), tree,
                     [&](const std::string& path, const at::Tensor& tensor, std::vector<std::int64_t>& own) {
                       detail::check_pad_value(path, tensor, options.value);
                       const std::int64_t dim = detail::existing_dim(tensor, options.dim);
                       own.push_back(dim < 0 ? 0 : tensor.size(dim));
                       return message(tensor::dtype_name(tensor.scalar_type()), " with ", tensor.dim(), " dimensions");
                     });
  std::size_t number = 0;
  return tensor::map(std::move(tree), [&](const at::Tensor& tensor) {
    std::int64_t most = 0;
    for (const auto& of_rank : said) most = std::max(most, of_rank.sizes[number]);
    ++number;
    const std::int64_t dim = detail::existing_dim(tensor, options.dim);
    if (dim < 0 || tensor.size(dim) == most) return tensor;
    // Pairs of what comes before and behind, from the last dimension.
    std::vector<std::int64_t> added(2 * static_cast<std::size_t>(tensor.dim() - dim), 0);
    added[added.size() - (options.pad_first ? 2 : 1)] = most - tensor.size(dim);
    return at::constant_pad_nd(tensor, added, options.value);
  });
}

}  // namespace accel::inline v0_1::collective
