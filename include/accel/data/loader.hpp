// DataLoader: a dataset and how its rows become batches.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <accel/core/error.hpp>
#include <accel/data/batch_sampler.hpp>
#include <accel/data/position.hpp>
#include <accel/data/sampler.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::data {

struct DataLoaderOptions {
  std::int64_t batch_size = 1;  // rows of one rank's batch
  bool shuffle = false;         // a new order every epoch, the same on all ranks

  // What becomes of rows that do not fill the last round. Neither: they are split evenly, every row
  // counts once, and gradients are weighted by rows.
  bool drop_last = false;     // they are left out
  bool even_batches = false;  // the round is filled up with the first rows of the epoch again

  bool split_batches = false;           // batch_size is that of all ranks together
  std::optional<std::uint64_t> seed{};  // of the order; unset: LibTorch's seed on rank 0, for all

  [[nodiscard]] Tail tail() const {
    if (drop_last) return Tail::drop;  // where both are set, as in Accelerate
    return even_batches ? Tail::wrap_around : Tail::every_row;
  }
};

namespace detail {

template <class D>
concept ByIndices = requires(D& dataset, std::vector<std::size_t> indices) { dataset.get_batch(indices); };
template <class D>
concept BySignedIndices = requires(D& dataset, std::vector<std::int64_t> indices) { dataset.get_batch(indices); };
template <class D>
concept ByTensor = requires(D& dataset, at::Tensor indices) { dataset.get_batch(indices); };
template <class D>
concept ByRow = requires(D& dataset, std::size_t index) { dataset.get(index); };

template <class Value>
auto unwrapped(Value value) {
  if constexpr (tensor::is_a<Value, std::optional>) {
    ACCEL_CHECK(value.has_value(), InvalidArgument, "the dataset's get_batch returned nothing");
    return *std::move(value);
  } else {
    return value;
  }
}

/// Rows of equal shape, put on top of each other tensor by tensor.
template <class Row>
Row stacked(std::vector<Row> rows) {
  std::vector<std::vector<at::Tensor>> columns;
  for (auto& row : rows) {
    auto tensors = tensor::leaves(row);
    columns.resize(tensors.size());
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      columns[k].push_back(std::move(tensors[k]));
      const auto& first = columns[k].front();
      const auto& own = columns[k].back();
      ACCEL_CHECK(own.sizes() == first.sizes() && own.scalar_type() == first.scalar_type(), InvalidArgument,
                  "rows of one batch differ: ", tensor::spec(first), " and ", tensor::spec(own),
                  "; pad them, or give the dataset a get_batch(indices)");
    }
  }
  Row batch = std::move(rows.front());
  std::size_t k = 0;
  tensor::visit(batch, [&](at::Tensor& tensor) { tensor = at::stack(columns[k++]); });
  return batch;
}

/// torch::data's own get_batch returns a vector of rows; others return the batch.
template <class Value>
auto batch_of(Value value) {
  if constexpr (tensor::is_a<Value, std::vector> && !std::same_as<Value, std::vector<at::Tensor>>) {
    return stacked(std::move(value));
  } else {
    return value;
  }
}

template <class D>
auto fetch(D& dataset, const std::vector<std::int64_t>& rows) {
  if constexpr (ByIndices<D>) {
    return batch_of(unwrapped(dataset.get_batch(std::vector<std::size_t>(rows.begin(), rows.end()))));
  } else if constexpr (BySignedIndices<D>) {
    return batch_of(unwrapped(dataset.get_batch(rows)));
  } else if constexpr (ByTensor<D>) {
    return batch_of(unwrapped(dataset.get_batch(at::tensor(rows))));
  } else {
    std::vector<decltype(dataset.get(std::size_t{}))> examples;
    examples.reserve(rows.size());
    for (const auto row : rows) examples.push_back(dataset.get(static_cast<std::size_t>(row)));
    return stacked(std::move(examples));
  }
}

}  // namespace detail

/// What a DataLoader takes: size(), and get(i) for one row or get_batch(indices) for a whole batch.
/// Indices come as std::vector<std::size_t> (or ArrayRef, span), of std::int64_t, or as a tensor
/// i64[n]. Datasets of torch::data qualify, mapped ones included.
template <class D>
concept Dataset = requires(D& dataset) { dataset.size(); } &&
                  (detail::ByIndices<D> || detail::BySignedIndices<D> || detail::ByTensor<D> || detail::ByRow<D>);

/// A dataset and its options. `accelerator.prepare` makes it iterable, with this rank's batches.
///
/// A batch is what get_batch returns; rows of get(i) are stacked into one object of their own type:
/// a tensor, a pair or tuple of tensors, a struct of tensors, torch::data::Example.
template <class D>
class DataLoader {
 public:
  static_assert(Dataset<D>,
                "a dataset needs size(), and get(std::size_t index) or get_batch(std::vector<std::size_t> indices)");

  explicit DataLoader(D dataset, DataLoaderOptions options = {}) : dataset_(std::move(dataset)), options_(options) {}

  [[nodiscard]] D& dataset() { return dataset_; }
  [[nodiscard]] const DataLoaderOptions& options() const { return options_; }

  /// Rows of the dataset.
  ///
  /// Throws   InvalidArgument if the dataset does not know its size.
  [[nodiscard]] std::int64_t rows() const {
    const auto size = dataset_.size();
    if constexpr (tensor::is_a<std::remove_const_t<decltype(size)>, std::optional>) {
      ACCEL_CHECK(size.has_value(), InvalidArgument,
                  "the dataset does not know its size; accel shards only those that do");
      return static_cast<std::int64_t>(*size);
    } else {
      return static_cast<std::int64_t>(size);
    }
  }

  /// How its epochs are cut for `world_size` ranks.
  [[nodiscard]] BatchPlan plan(int world_size) const {
    return BatchPlan({.rows = rows(),
                      .batch_size = options_.batch_size,
                      .world_size = world_size,
                      .tail = options_.tail(),
                      .split_batches = options_.split_batches});
  }

  /// The batch of these rows of the dataset.
  [[nodiscard]] auto fetch(const std::vector<std::int64_t>& rows) { return detail::fetch(dataset_, rows); }

  using Batch = decltype(detail::fetch(std::declval<D&>(), std::vector<std::int64_t>()));

 private:
  D dataset_;
  DataLoaderOptions options_;
};

}  // namespace accel::inline v0_1::data
