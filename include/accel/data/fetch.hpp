// Fetch: how a dataset is asked for rows, and what it answers made a batch.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/data/access.hpp>
#include <accel/data/random.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::data {

namespace detail {

template <class Value>
auto unwrapped(Value value) {
  if constexpr (tensor::is_a<Value, std::optional>) {
    ACCEL_CHECK(value.has_value(), InvalidArgument, "the dataset's get_batch returned nothing");
    return *std::move(value);
  } else {
    return value;
  }
}

/// torch::data's own get_batch returns a vector of rows; others return the batch.
template <class Collate, class Value>
auto batch_of(Value value, const Collate& collate) {
  if constexpr (tensor::is_a<Value, std::vector> && !std::same_as<Value, std::vector<at::Tensor>>) {
    ACCEL_CHECK(!value.empty(), InvalidArgument, "the dataset's get_batch returned no rows");
    return collate(std::move(value));
  } else {
    return value;
  }
}

/// "row 17", or "rows 4, 8, 15, ... (64 of them)"
[[nodiscard]] inline std::string text_of(const std::vector<std::int64_t>& rows) {
  std::string text = rows.size() == 1 ? "row " : "rows ";
  for (std::size_t i = 0; i < std::min<std::size_t>(rows.size(), 8); ++i) text += message(i == 0 ? "" : ", ", rows[i]);
  return rows.size() > 8 ? text + message(", ... (", rows.size(), " of them)") : text;
}

/// Runs `ask`, which asks the dataset for `rows`. What it throws is told with the rows; memory that is short is said
/// as such.
template <class Ask>
decltype(auto) asked(const std::vector<std::int64_t>& rows, const Ask& ask) {
  try {
    return ask();
  } catch (const std::exception& error) {
    std::throw_with_nested(DataError(message("the dataset could not give ", text_of(rows), ": ", first_line(error))));
  }
}

}  // namespace detail

/// The batch of these rows of the dataset; `positions` are where they stand in the epoch.
///
/// Throws   DataError that names the rows, with what the dataset threw nested in it; InvalidArgument where rows make no
///          batch.
template <class D, class Collate>
auto fetch(D& dataset, const std::vector<std::int64_t>& rows, const std::vector<std::int64_t>& positions,
           SampleRandom& random, const Collate& collate) {
  const auto whole = [&](const auto& ask) { return detail::batch_of(detail::asked(rows, ask), collate); };
  if constexpr (GivesRandomBatch<D>) {
    return whole([&] { return detail::unwrapped(batch_with(dataset, rows, random.at(positions.front()))); });
  } else if constexpr (GivesBatch<D>) {
    return whole([&] { return detail::unwrapped(batch_with(dataset, rows)); });
  } else {
    const auto get = [&](std::size_t i) {
      const auto row = static_cast<std::size_t>(rows[i]);
      return detail::asked({rows[i]}, [&] {
        if constexpr (GivesRandomRow<D>)
          return dataset.get(row, random.at(positions[i]));
        else
          return dataset.get(row);
      });
    };
    std::vector<decltype(get(0))> examples;
    examples.reserve(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) examples.push_back(get(i));
    return collate(std::move(examples));
  }
}

}  // namespace accel::inline v0_1::data
