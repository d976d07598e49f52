// Access: how the rows of any dataset are reached, by a loader or by a dataset that is made of others.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::data {

// D may be const: then these ask what a const dataset offers, which several threads may share.

template <class D>
concept Sized = requires(const D& dataset) { dataset.size(); };
template <class D>
concept GivesRow = requires(D& dataset, std::size_t row) { dataset.get(row); };
template <class D>
concept GivesRandomRow = requires(D& dataset, std::size_t row, at::Generator& random) { dataset.get(row, random); };
template <class D>
concept GivesAnyRow = GivesRow<D> || GivesRandomRow<D>;

/// The ways to say which rows a batch has; the first that a dataset takes is the one it is asked by.
enum class RowsAs { none, unsigned_numbers, signed_numbers, tensor };

template <class D, class... Random>
consteval RowsAs batch_rows_as() {
  if constexpr (requires(D& d, std::vector<std::size_t> rows, Random&... random) { d.get_batch(rows, random...); })
    return RowsAs::unsigned_numbers;
  else if constexpr (requires(D& d, std::vector<std::int64_t> rows, Random&... random) {
                       d.get_batch(rows, random...);
                     })
    return RowsAs::signed_numbers;
  else if constexpr (requires(D& d, at::Tensor rows, Random&... random) { d.get_batch(rows, random...); })
    return RowsAs::tensor;
  else
    return RowsAs::none;
}
template <class D, class... Random>
concept GivesBatchOf = batch_rows_as<D, Random...>() != RowsAs::none;
template <class D>
concept GivesBatch = GivesBatchOf<D>;
template <class D>
concept GivesRandomBatch = GivesBatchOf<D, at::Generator>;

template <class D>
concept GivesAnyBatch = GivesBatch<D> || GivesRandomBatch<D>;

/// What a DataLoader takes: size(), and get(row) for one row or get_batch(rows) for a whole batch.
///
/// Rows come as std::vector<std::size_t> (or ArrayRef, span), of std::int64_t, or as a tensor i64[n]. Either call may
/// take an at::Generator& behind them: a random stream that belongs to the sample, or to the first one of the batch.
/// Datasets of torch::data qualify, mapped ones included.
template <class D>
concept Dataset = requires(D& dataset) { dataset.size(); } && (GivesAnyRow<D> || GivesAnyBatch<D>);

/// Whether a const D will do, by the same call, so that several threads may ask one and the same: as a dataset is asked
/// for rows, with the random stream where it takes one,
template <class D>
concept SharedRows = GivesAnyRow<const D> && GivesRandomRow<const D> == GivesRandomRow<D>;
/// and for batches rather than rows, likewise.
template <class D>
concept SharedDataset = Dataset<D> && batch_rows_as<const D, at::Generator>() == batch_rows_as<D, at::Generator>() &&
                        batch_rows_as<const D>() == batch_rows_as<D>() && (GivesAnyBatch<D> || SharedRows<D>);

/// Rows of `dataset`.
///
/// Throws   InvalidArgument if it does not know its size, as those of torch::data may not.
template <Sized D>
[[nodiscard]] std::int64_t size_of(const D& dataset) {
  const auto size = dataset.size();
  if constexpr (tensor::is_a<std::remove_const_t<decltype(size)>, std::optional>) {
    ACCEL_CHECK(size.has_value(), InvalidArgument,
                "the dataset does not know its size; a data::StreamLoader takes such a one");
    return static_cast<std::int64_t>(*size);
  } else {
    return static_cast<std::int64_t>(size);
  }
}

/// The row, with the random stream where the dataset takes one.
template <class D>
[[nodiscard]] decltype(auto) row_with(D& dataset, std::size_t row, at::Generator& random) {
  if constexpr (GivesRandomRow<D>) {
    return dataset.get(row, random);
  } else {
    return dataset.get(row);
  }
}

template <class D, class... Random>
[[nodiscard]] decltype(auto) batch_with(D& dataset, const std::vector<std::int64_t>& rows, Random&... random) {
  constexpr RowsAs as = batch_rows_as<D, Random...>();
  if constexpr (as == RowsAs::unsigned_numbers) {
    return dataset.get_batch(std::vector<std::size_t>(rows.begin(), rows.end()), random...);
  } else if constexpr (as == RowsAs::signed_numbers) {
    return dataset.get_batch(rows, random...);
  } else {
    return dataset.get_batch(at::tensor(rows, at::kLong), random...);
  }
}

}  // namespace accel::inline v0_1::data
