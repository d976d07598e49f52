// Reduce: one value out of everybody's, on every rank.
#pragma once

#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

enum class Reduction { sum, mean, max, min };

/// Every tensor of `tree` reduced over the ranks. The caller's tensors stay as they are.
///
/// Shape    equal on all ranks; the result has it too.
/// Cost     one all_reduce and one copy per tensor.
/// Throws   InvalidArgument for the mean of integers, which would not be one.
template <Backend B, class Tree>
[[nodiscard]] Tree reduce(B& backend, Tree tree, Reduction reduction) {
  const c10::AutoGradMode no_grad(false);
  const ReduceOp op = reduction == Reduction::max   ? ReduceOp::max
                      : reduction == Reduction::min ? ReduceOp::min
                                                    : ReduceOp::sum;
  // Before anything is sent: what fails on one rank fails on all, since their trees are alike.
  tensor::visit(tree, [&](const at::Tensor& tensor) {
    ACCEL_CHECK(reduction != Reduction::mean || tensor.is_floating_point() || tensor.is_complex(), InvalidArgument,
                "reduce: the mean of ", tensor::spec(tensor), " is not whole; convert it to a floating dtype first");
  });
  return tensor::map(std::move(tree), [&](const at::Tensor& tensor) {
    at::Tensor reduced = tensor.detach().clone(c10::MemoryFormat::Contiguous);
    auto work = backend.all_reduce(reduced, op);
    backend::wait_on_host(backend, work);
    if (reduction == Reduction::mean) reduced.div_(backend.world_size());
    return reduced;
  });
}

}  // namespace accel::inline v0_1::collective
