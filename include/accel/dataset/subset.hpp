// Subset: some rows of a dataset; random_split: a dataset in parts.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/data/access.hpp>
#include <accel/data/order.hpp>
#include <accel/dataset/detail/rows.hpp>

namespace accel::inline v0_1::dataset {

/// Row i is row `rows[i]` of a dataset. Gives rows and batches as that does.
///
/// Memory   copies and the parts of a split share the dataset, if a const one gives rows; otherwise each has its own,
///          as reading may change it.
/// Throws   InvalidArgument for rows that the dataset does not have.
template <class D>
class Subset {
 public:
  static_assert(data::Sized<D> && (data::GivesAnyRow<D> || data::GivesAnyBatch<D>),
                "Subset takes a dataset with size(), and get(std::size_t) or get_batch(rows)");

  /// The dataset, shared where it can be.
  using Held = std::conditional_t<data::SharedDataset<D>, std::shared_ptr<const D>, D>;

  Subset(D dataset, std::vector<std::int64_t> rows) : Subset(held(std::move(dataset)), std::move(rows), 0) {}

  /// Of a dataset that is held already.
  [[nodiscard]] static Subset of(Held dataset, std::vector<std::int64_t> rows) {
    return Subset(std::move(dataset), std::move(rows), 0);
  }
  [[nodiscard]] static Held held(D dataset) {
    if constexpr (data::SharedDataset<D>) {
      return std::make_shared<const D>(std::move(dataset));
    } else {
      return dataset;
    }
  }

  [[nodiscard]] const D& dataset() const {
    if constexpr (data::SharedDataset<D>) {
      return *held_;
    } else {
      return held_;
    }
  }

  [[nodiscard]] std::size_t size() const { return rows_.size(); }
  [[nodiscard]] const std::vector<std::int64_t>& rows() const { return rows_; }

  [[nodiscard]] auto get(std::size_t row) const
    requires data::GivesRow<const D>
  {
    return dataset().get(within(row));
  }
  [[nodiscard]] auto get(std::size_t row)
    requires(!data::SharedDataset<D>) && data::GivesRow<D>
  {
    return held_.get(within(row));
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random) const
    requires data::GivesRandomRow<const D>
  {
    return dataset().get(within(row), random);
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random)
    requires(!data::SharedDataset<D>) && data::GivesRandomRow<D>
  {
    return held_.get(within(row), random);
  }

  [[nodiscard]] auto get_batch(const std::vector<std::int64_t>& rows) const
    requires data::GivesBatch<const D>
  {
    return data::batch_with(dataset(), within(rows));
  }
  [[nodiscard]] auto get_batch(const std::vector<std::int64_t>& rows)
    requires(!data::SharedDataset<D>) && data::GivesBatch<D>
  {
    return data::batch_with(held_, within(rows));
  }
  [[nodiscard]] auto get_batch(const std::vector<std::int64_t>& rows, at::Generator& random) const
    requires data::GivesRandomBatch<const D>
  {
    return data::batch_with(dataset(), within(rows), random);
  }
  [[nodiscard]] auto get_batch(const std::vector<std::int64_t>& rows, at::Generator& random)
    requires(!data::SharedDataset<D>) && data::GivesRandomBatch<D>
  {
    return data::batch_with(held_, within(rows), random);
  }

 private:
  Subset(Held dataset, std::vector<std::int64_t> rows, int) : held_(std::move(dataset)), rows_(std::move(rows)) {
    const auto size = data::size_of(this->dataset());
    for (const auto row : rows_) detail::check_row(row, size);
  }

  [[nodiscard]] std::size_t within(std::size_t row) const {
    detail::check_row(static_cast<std::int64_t>(row), static_cast<std::int64_t>(rows_.size()));
    return static_cast<std::size_t>(rows_[row]);
  }
  [[nodiscard]] std::vector<std::int64_t> within(std::vector<std::int64_t> rows) const {
    for (auto& row : rows) row = static_cast<std::int64_t>(within(static_cast<std::size_t>(row)));
    return rows;
  }

  Held held_;
  std::vector<std::int64_t> rows_;
};

namespace detail {

template <class D, std::size_t n>
[[nodiscard]] std::array<Subset<D>, n> split(D dataset, const std::array<std::int64_t, n>& sizes, std::uint64_t seed) {
  const auto rows = data::size_of(dataset);
  std::int64_t sum = 0;
  for (const auto size : sizes) {
    ACCEL_CHECK(size >= 0 && !__builtin_add_overflow(sum, size, &sum), InvalidArgument,
                "random_split: expected sizes of 0 or more, found ", size);
  }
  ACCEL_CHECK(sum == rows, InvalidArgument, "random_split: expected sizes that add up to ", rows, " rows, found ", sum);
  const auto order = data::Order::shuffled(rows, seed).rows();
  const auto held = Subset<D>::held(std::move(dataset));
  std::int64_t begin = 0;
  const auto part = [&](std::int64_t size) {
    const auto first = order.begin() + begin;
    begin += size;
    return Subset<D>::of(held, {first, first + size});
  };
  return [&]<std::size_t... k>(std::index_sequence<k...>) {
    return std::array<Subset<D>, n>{part(sizes[k])...};
  }(std::make_index_sequence<n>());
}

}  // namespace detail

/// Parts of these sizes, in a random order that the seed decides:
///
///   auto [train, held_out] = dataset::random_split(digits, {1500, 297}, /*seed=*/1);
///
/// Throws   InvalidArgument if the sizes do not add up to the dataset's.
/// Source   torch.utils.data.random_split with torch.Generator().manual_seed(seed), row for row.
template <class D, std::size_t n>
// NOLINTNEXTLINE(modernize-avoid-c-arrays): braces tell how many there are to nothing else
[[nodiscard]] std::array<Subset<D>, n> random_split(D dataset, const std::int64_t (&sizes)[n], std::uint64_t seed) {
  return detail::split(std::move(dataset), std::to_array(sizes), seed);
}

/// Parts by fractions that add up to 1. What rounding down leaves goes to the first parts, a row each.
///
///   auto [train, held_out] = dataset::random_split_fractions(digits, {0.8, 0.2}, /*seed=*/1);
///
/// Source   torch.utils.data.random_split, likewise.
template <class D, std::size_t n>
// NOLINTNEXTLINE(modernize-avoid-c-arrays): as above
[[nodiscard]] std::array<Subset<D>, n> random_split_fractions(D dataset, const double (&fractions)[n],
                                                              std::uint64_t seed) {
  const auto rows = data::size_of(dataset);
  double sum = 0;
  std::int64_t given = 0;
  std::array<std::int64_t, n> sizes{};
  for (std::size_t k = 0; k < n; ++k) {
    ACCEL_CHECK(fractions[k] >= 0 && fractions[k] <= 1, InvalidArgument,
                "random_split_fractions: expected fractions from 0 to 1, found ", shortest(fractions[k]));
    sum += fractions[k];
    sizes[k] = static_cast<std::int64_t>(std::floor(static_cast<double>(rows) * fractions[k]));
    given += sizes[k];
  }
  ACCEL_CHECK(std::abs(sum - 1) <= 1e-9, InvalidArgument,  // math.isclose's default
              "random_split_fractions: expected fractions that add up to 1, found ", shortest(sum));
  for (std::size_t k = 0; given < rows; k = (k + 1) % n, ++given) ++sizes[k];
  return detail::split(std::move(dataset), sizes, seed);
}

}  // namespace accel::inline v0_1::dataset
