// Reduce: one value out of everybody's, on every rank.
#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/view_as_real.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

enum class Reduction { sum, mean, max, min };

[[nodiscard]] inline std::string_view name_of(Reduction reduction) {
  return reduction == Reduction::sum   ? "sum"
         : reduction == Reduction::max ? "max"
         : reduction == Reduction::min ? "min"
                                       : "mean";
}

namespace detail {

[[nodiscard]] inline bool adds(Reduction reduction) {
  return reduction == Reduction::sum || reduction == Reduction::mean;
}

/// The dtype in which such tensors are sent and reduced: half numbers are added up in f32 and rounded once, so that
/// their mean does not overflow where it is finite; i16, which engines do not know, goes as i32.
[[nodiscard]] inline c10::ScalarType wire_dtype(c10::ScalarType dtype, Reduction reduction) {
  using enum c10::ScalarType;
  if (dtype == Short) return Int;
  if (dtype == ComplexHalf) return ComplexFloat;
  return (dtype == Half || dtype == BFloat16) && adds(reduction) ? Float : dtype;
}

/// Throws   InvalidArgument for what has no such value.
inline void check_reduction(std::string_view path, const at::Tensor& tensor, Reduction reduction) {
  using enum c10::ScalarType;
  const auto dtype = wire_dtype(tensor.scalar_type(), reduction);
  const auto found = [&] { return tensor::spec(tensor) + at_path(path); };
  const bool is_inexact = tensor.is_floating_point() || tensor.is_complex();
  ACCEL_CHECK(dtype != Bool || !adds(reduction), InvalidArgument, "reduce: the ", name_of(reduction), " of flags, ",
              found(), ", would be no flag; take max for any, min for all, or convert it to i64 to count them");
  ACCEL_CHECK(is_inexact || reduction != Reduction::mean, InvalidArgument, "reduce: the mean of ", found(),
              " is not whole; convert it to a floating dtype first");
  ACCEL_CHECK(!tensor.is_complex() || adds(reduction), InvalidArgument, "reduce: ", found(),
              ": complex numbers have no ", name_of(reduction), "; take that of their abs()");
  bool is_known = false;
  for (const auto one : {Float, Double, Half, BFloat16, Long, Int, Char, Byte, Bool, ComplexFloat, ComplexDouble})
    is_known = is_known || dtype == one;
  ACCEL_CHECK(is_known, InvalidArgument, "reduce: ", found(),
              " is of a dtype that is not reduced between ranks; convert it to f32 or i64 first");
}

}  // namespace detail

/// Every tensor of `tree` reduced over the ranks, in new memory, without history. Numbers and texts stay this rank's.
///
/// Shape    equal on all ranks; the result has it too, and the dtype. Whole numbers wrap around, as LibTorch's own do.
///          Of f16 and bf16 sum and mean are added up in f32 and rounded once. Of bool max is any, min is all. A NaN on
///          any rank is the result, as LibTorch's max and min have it.
/// Cost     one round over the control plane, one copy per tensor, and one all_reduce of all of them; for max and
///          min of floating numbers of a byte more per element.
/// Throws   InvalidArgument on every rank, naming both and the path, if trees, dtypes, shapes or reductions differ, or
///          if a rank holds a tensor on another device; for the mean of integers, which would not be one, the sum of
///          flags, and max and min of complex numbers.
/// Differs  Accelerate's mean of integers fails without a reason, and it adds up half numbers as such.
template <Backend B, class Tree>
[[nodiscard]] Tree reduce(B& backend, Tree tree, Reduction reduction) {
  const c10::AutoGradMode no_grad(false);
  agree_on_trees(backend, "reduce", "give every rank tensors of equal shape and dtype", name_of(reduction), tree,
                 [&](const std::string& path, const at::Tensor& tensor, auto&) {
                   detail::check_reduction(path, tensor, reduction);
                   return tensor::spec(tensor);
                 });
  const ReduceOp op = reduction == Reduction::max   ? ReduceOp::max
                      : reduction == Reduction::min ? ReduceOp::min
                                                    : ReduceOp::sum;
  struct Reduced {
    at::Tensor values;
    at::Tensor marks{};  // bool: for max where a NaN is, for min where none is; else undefined
  };
  std::vector<Reduced> all;
  std::vector<at::Tensor> sent;
  tensor::visit(tree, [&](const at::Tensor& tensor) {
    const auto dtype = detail::wire_dtype(tensor.scalar_type(), reduction);
    Reduced own{at::empty(tensor.sizes(), tensor.options().dtype(dtype).requires_grad(false)).copy_(tensor)};
    sent.push_back(tensor::real_parts(own.values));
    if (!detail::adds(reduction) && tensor.is_floating_point()) {
      // Which is the larger of a number and a NaN depends on the engine, and on their order.
      own.marks = at::isnan(own.values);
      if (op == ReduceOp::min) own.marks.logical_not_();
      sent.push_back(own.marks);
    }
    all.push_back(std::move(own));
  });
  if (!sent.empty()) {
    auto work = backend.all_reduce(std::span<at::Tensor>(sent), op);
    backend::wait_on_host(backend, work);
  }
  std::size_t number = 0;
  return tensor::map(std::move(tree), [&](const at::Tensor& tensor) {
    const Reduced& reduced = all[number++];
    if (reduction == Reduction::mean) reduced.values.div_(backend.world_size());
    if (reduced.marks.defined())
      reduced.values.masked_fill_(op == ReduceOp::min ? reduced.marks.logical_not() : reduced.marks,
                                  std::numeric_limits<double>::quiet_NaN());
    return reduced.values.to(tensor.scalar_type());
  });
}

}  // namespace accel::inline v0_1::collective
