// TorchStream: rows of torch::data's stateful and stream datasets. Those by number go into a DataLoader as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::dataset {

namespace detail {

/// What torch::data calls a StatefulDataset or a StreamDataset: it is asked for so many rows, not for which.
template <class D>
concept GivesSomeRows = requires(D& dataset, std::size_t count) { dataset.get_batch(count); } &&
                        !requires(D& dataset, std::vector<std::size_t> rows) { dataset.get_batch(rows); };

/// A batch of rows as rows: a vector is them, anything else is taken apart along dimension 0.
template <class Batch>
auto rows_in(Batch batch) {
  if constexpr (tensor::is_a<Batch, std::vector> && !std::is_same_v<Batch, std::vector<at::Tensor>>) {
    return batch;
  } else {
    std::vector<Batch> rows;
    const auto count = tensor::rows(batch);
    for (std::int64_t row = 0; row < count; ++row)
      rows.push_back(tensor::map(batch, [&](const at::Tensor& one) {
        ACCEL_CHECK(one.dim() > 0 && one.size(0) == count, DataError, "get_batch: expected ", count,
                    " rows in each tensor of a batch, found ", tensor::spec(one));
        return one.select(0, row);
      }));
    return rows;
  }
}

template <class Value>
auto optional_of(Value value) {
  if constexpr (tensor::is_a<Value, std::optional>) {
    return value;
  } else {
    return std::optional<Value>(std::move(value));
  }
}

}  // namespace detail

struct TorchStreamOptions {
  std::size_t batch_size = 64;         // rows that the dataset is asked for at once
  std::optional<std::int64_t> rows{};  // of an epoch, for a dataset that has no end
};

/// A torch::data dataset with get_batch(std::size_t) as a stream of rows: stateful ones, which say by nothing that they
/// are at their end and begin again at reset(), and streams, which have none.
///
///   dataset::TorchStream rows{MyStatefulDataset(), {.batch_size = 64}};
///
/// Order    one thread. The dataset sees the calls that torch::data's loader makes: reset() once an epoch, get_batch().
/// State    none: torch::data has no way to ask for a place; what went before is skipped by reading it.
/// Throws   what the dataset throws; DataError for a batch without rows.
template <class D>
class TorchStream {
 public:
  static_assert(detail::GivesSomeRows<D>,
                "TorchStream takes a dataset with get_batch(std::size_t count); one that is "
                "asked for rows by their number goes into a DataLoader as it is");

  explicit TorchStream(D dataset, TorchStreamOptions options = {}) : dataset_(std::move(dataset)), options_(options) {
    ACCEL_CHECK(options.batch_size >= 1, InvalidArgument, "batch_size: expected at least 1, found 0");
    ACCEL_CHECK(options.rows.value_or(0) >= 0, InvalidArgument, "rows: expected 0 or more, found ", *options.rows);
  }

  /// Begins a pass. The dataset knows of no epochs: it gives what it gives after reset().
  void start(std::int64_t) {
    if constexpr (requires { dataset_.reset(); }) dataset_.reset();
    ahead_.clear();
    next_ = 0;
    given_ = 0;
    started_ = true;
  }

  [[nodiscard]] auto next() -> std::optional<typename decltype(detail::rows_in(
      *detail::optional_of(std::declval<D&>().get_batch(std::size_t{}))))::value_type> {
    if (!started_) start(0);
    if (options_.rows && given_ >= *options_.rows) return std::nullopt;
    if (next_ == ahead_.size()) {
      auto batch = detail::optional_of(dataset_.get_batch(options_.batch_size));
      if (!batch) return std::nullopt;
      ahead_ = detail::rows_in(*std::move(batch));
      next_ = 0;
      ACCEL_CHECK(!ahead_.empty(), DataError, "get_batch(", options_.batch_size, "): expected rows, or nothing at the ",
                  "end, found a batch without rows");
    }
    ++given_;
    return std::move(ahead_[next_++]);
  }

 private:
  using Rows = decltype(detail::rows_in(*detail::optional_of(std::declval<D&>().get_batch(std::size_t{}))));

  D dataset_;
  TorchStreamOptions options_;
  Rows ahead_;
  std::size_t next_ = 0;  // in ahead_
  std::int64_t given_ = 0;
  bool started_ = false;
};

}  // namespace accel::inline v0_1::dataset
