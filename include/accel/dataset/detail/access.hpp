// How the rows of any dataset are reached: what a dataset made of others asks of them.
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

namespace accel::inline v0_1::dataset::detail {

// D may be const: then these ask what a const dataset offers, which several threads may share.

template <class D>
concept Sized = requires(const D& dataset) { dataset.size(); };
template <class D>
concept GivesRow = requires(D& dataset, std::size_t row) { dataset.get(row); };
template <class D>
concept GivesRandomRow = requires(D& dataset, std::size_t row, at::Generator& random) { dataset.get(row, random); };
template <class D>
concept GivesAnyRow = GivesRow<D> || GivesRandomRow<D>;

/// The three ways to say which rows a batch has, as a DataLoader takes them.
template <class D, class... Random>
concept GivesBatchOf =
    requires(D& dataset, std::vector<std::size_t> rows, Random&... random) { dataset.get_batch(rows, random...); } ||
    requires(D& dataset, std::vector<std::int64_t> rows, Random&... random) { dataset.get_batch(rows, random...); } ||
    requires(D& dataset, at::Tensor rows, Random&... random) { dataset.get_batch(rows, random...); };
template <class D>
concept GivesBatch = GivesBatchOf<D>;
template <class D>
concept GivesRandomBatch = GivesBatchOf<D, at::Generator>;

/// Whether a const D gives rows, so that what is made of it may share one instead of having its own.
template <class D>
concept Shareable = GivesAnyRow<const D> || GivesBatch<const D> || GivesRandomBatch<const D>;

/// Rows of `dataset`; torch::data's may not know.
template <Sized D>
[[nodiscard]] std::int64_t size_of(const D& dataset) {
  const auto size = dataset.size();
  if constexpr (tensor::is_a<std::remove_const_t<decltype(size)>, std::optional>) {
    ACCEL_CHECK(size.has_value(), InvalidArgument, "expected a dataset that knows its size, found one that does not");
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
  if constexpr (requires(std::vector<std::size_t> sizes) { dataset.get_batch(sizes, random...); }) {
    return dataset.get_batch(std::vector<std::size_t>(rows.begin(), rows.end()), random...);
  } else if constexpr (requires { dataset.get_batch(rows, random...); }) {
    return dataset.get_batch(rows, random...);
  } else {
    return dataset.get_batch(at::tensor(rows, at::kLong), random...);
  }
}

}  // namespace accel::inline v0_1::dataset::detail
