// Tensors: a dataset of tensors in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/dataset/detail/rows.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::dataset {

/// A dataset of tensors that are there already: row i is the i-th row of each, and looks as the whole does.
///
///   dataset::Tensors train{std::pair{images, labels}};    // rows: pairs; batches: pairs
///   dataset::Tensors test{Digits{images, labels}};        // a struct of your own
///   dataset::Tensors mapped{std::pair{dataset::open_npy("x.npy"), dataset::open_npy("y.npy")}};
///
/// Takes    any tree of tensors (tensor/tree.hpp). What is no tensor in it, a name or a number, goes with every row.
/// Shape    dimension 0 is the rows, as many in each tensor. Any device.
/// Cost     one copy of the rows that are asked for; the tensors themselves are shared, not copied.
/// Throws   InvalidArgument if they are no rows, or not as many; for a row that is not there.
/// Differs  from torch.utils.data.TensorDataset: a row is a copy, so that a transform in place does not change what
///          the next epoch sees.
template <class Tree>
class Tensors {
 public:
  explicit Tensors(Tree tensors) : tensors_(std::move(tensors)) {
    const auto all = tensor::leaves(tensors_);
    ACCEL_CHECK(!all.empty(), InvalidArgument, "Tensors: expected a tensor, found none that is defined");
    for (const auto& one : all) {
      ACCEL_CHECK(one.dim() > 0, InvalidArgument, "Tensors: expected rows along dimension 0, found ", tensor::spec(one),
                  "; unsqueeze(0) makes it one row");
      ACCEL_CHECK(one.size(0) == all.front().size(0), InvalidArgument,
                  "Tensors: expected as many rows in each tensor, found ", tensor::spec(all.front()), " and ",
                  tensor::spec(one));
    }
    rows_ = all.front().size(0);
  }

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows_); }

  [[nodiscard]] Tree get(std::size_t row) const {
    return tensor::map(tensors_,
                       [&](const at::Tensor& one) { return detail::row_of(one, static_cast<std::int64_t>(row)); });
  }

  [[nodiscard]] Tree get_batch(const std::vector<std::int64_t>& rows) const {
    return tensor::map(tensors_, [&](const at::Tensor& one) { return detail::rows_of(one, rows); });
  }

  /// The tensors themselves, whole.
  [[nodiscard]] const Tree& tensors() const { return tensors_; }

 private:
  Tree tensors_;
  std::int64_t rows_ = 0;
};

}  // namespace accel::inline v0_1::dataset
