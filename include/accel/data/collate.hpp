// Collate: rows on top of each other make a batch.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::data {

namespace detail {

template <class T>
concept Text = std::convertible_to<const T&, std::string_view>;

/// The same field of every row.
template <class Row, class Get>
auto column(std::vector<Row>& rows, const Get& get) {
  std::vector<std::remove_cvref_t<decltype(get(rows.front()))>> values;
  values.reserve(rows.size());
  for (auto& row : rows) values.push_back(std::move(get(row)));
  return values;
}

[[noreturn]] inline void fail_rows(std::size_t row, const std::string& first, const std::string& own) {
  throw InvalidArgument(message("rows of one batch differ: row 0 of it has ", first, ", row ", row, " has ", own,
                                "; pad them (a loader takes data::Pad() behind its options), or give the loader a "
                                "function of the rows, or the dataset a get_batch(indices)"));
}

/// Numbers as PyTorch's default_collate: i64 of integers, f64 of double; here f32 of float.
template <class Number>
[[nodiscard]] at::Tensor numbers(const std::vector<Number>& values) {
  if constexpr (std::same_as<Number, bool>) {
    std::vector<std::uint8_t> bytes(values.begin(), values.end());
    return at::tensor(bytes, at::kByte).to(at::kBool);
  } else if constexpr (std::is_floating_point_v<Number>) {
    return at::tensor(values, std::same_as<Number, float> ? at::kFloat : at::kDouble);
  } else {
    std::vector<std::int64_t> whole;
    whole.reserve(values.size());
    for (const Number value : values) whole.push_back(static_cast<std::int64_t>(value));
    return at::tensor(whole, at::kLong);
  }
}

template <class T>
inline constexpr bool is_number = std::is_arithmetic_v<T> || std::is_enum_v<T>;

template <class T>
inline constexpr bool not_collated = false;

/// What rows of a kind become, tensor by tensor by way of `stack`.
template <class Stack>
struct Collated {
  const Stack& stack;

  template <class Row>
  auto operator()(std::vector<Row> rows) const {
    if constexpr (std::derived_from<Row, at::Tensor>) {
      return stack(std::vector<at::Tensor>(rows.begin(), rows.end()));
    } else if constexpr (is_number<Row>) {
      return numbers(rows);
    } else if constexpr (Text<Row>) {
      return std::vector<std::string>(rows.begin(), rows.end());
    } else if constexpr (tensor::is_a<Row, std::vector>) {
      return list(std::move(rows));
    } else if constexpr (tensor::is_a<Row, std::optional>) {
      return optional(std::move(rows));
    } else if constexpr (tensor::is_a<Row, std::map>) {
      return keyed(std::move(rows));
    } else if constexpr (tensor::is_a<Row, std::pair>) {
      return std::pair((*this)(column(rows, [](Row& row) -> auto& { return row.first; })),
                       (*this)(column(rows, [](Row& row) -> auto& { return row.second; })));
    } else if constexpr (tensor::is_a<Row, std::tuple>) {
      return tuple(rows, std::make_index_sequence<std::tuple_size_v<Row>>());
    } else {
      return structure(std::move(rows));
    }
  }

 private:
  template <class Row, std::size_t... i>
  auto tuple(std::vector<Row>& rows, std::index_sequence<i...>) const {
    return std::tuple((*this)(column(rows, [](Row& row) -> auto& { return std::get<i>(row); }))...);
  }

  /// A list of numbers is a sequence, [rows, length]; of anything else, as many batches as there are elements.
  template <class Row>
  auto list(std::vector<Row> rows) const {
    using Element = typename Row::value_type;
    if constexpr (is_number<Element>) {
      std::vector<at::Tensor> sequences;
      for (const auto& row : rows) sequences.push_back(numbers(row));
      return stack(std::move(sequences));
    } else {
      const std::size_t length = rows.front().size();
      for (std::size_t i = 1; i < rows.size(); ++i)
        if (rows[i].size() != length) fail_rows(i, message("a list of ", length), message("one of ", rows[i].size()));
      std::vector<decltype((*this)(std::declval<std::vector<Element>>()))> batch;
      for (std::size_t k = 0; k < length; ++k)
        batch.push_back((*this)(column(rows, [k](Row& row) -> auto& { return row[k]; })));
      return batch;
    }
  }

  template <class Row>
  auto optional(std::vector<Row> rows) const {
    using Batch = decltype((*this)(std::declval<std::vector<typename Row::value_type>>()));
    for (std::size_t i = 1; i < rows.size(); ++i)
      if (rows[i].has_value() != rows.front().has_value())
        fail_rows(i, rows.front() ? "a value" : "none", rows[i] ? "a value" : "none");
    std::optional<Batch> batch;
    if (rows.front()) batch.emplace((*this)(column(rows, [](Row& row) -> auto& { return *row; })));
    return batch;
  }

  template <class Row>
  auto keyed(std::vector<Row> rows) const {
    std::map<typename Row::key_type, decltype((*this)(std::declval<std::vector<typename Row::mapped_type>>()))> batch;
    for (std::size_t i = 1; i < rows.size(); ++i)
      if (rows[i].size() != rows.front().size())
        fail_rows(i, message(rows.front().size(), " keys"), message(rows[i].size(), " keys"));
    for (const auto& [key, value] : rows.front()) {
      for (std::size_t i = 1; i < rows.size(); ++i)
        if (!rows[i].contains(key)) fail_rows(i, message("the key ", key), "no such key");
    }
    const Row keys = rows.front();
    for (const auto& [key, value] : keys)
      batch.emplace(key, (*this)(column(rows, [&, name = key](Row& row) -> auto& { return row.at(name); })));
    return batch;
  }

  /// A struct of tensors stays what it is. Its fields have to have room for a batch.
  template <class Row>
  Row structure(std::vector<Row> rows) const {
    if constexpr (tensor::detail::ExampleLike<Row>) {
      Row batch = rows.front();
      batch.data = (*this)(column(rows, [](Row& row) -> auto& { return row.data; }));
      if constexpr (requires { batch.target; })
        batch.target = (*this)(column(rows, [](Row& row) -> auto& { return row.target; }));
      return batch;
    } else if constexpr (std::is_aggregate_v<Row>) {
      Row batch = rows.front();
      fields(batch, rows,
             std::make_index_sequence<std::tuple_size_v<decltype(tensor::detail::fields(rows.front()))>>());
      return batch;
    } else {
      static_assert(not_collated<Row>,
                    "accel makes batches of rows that are tensors, numbers, texts, pair, tuple, vector, optional, map, "
                    "torch::data::Example, and structs of these; give the loader a function of the rows, or the "
                    "dataset a get_batch(indices)");
    }
  }

  template <class Row, std::size_t... i>
  void fields(Row& batch, std::vector<Row>& rows, std::index_sequence<i...>) const {
    const auto place = [&]<std::size_t k>() {
      auto& to = std::get<k>(tensor::detail::fields(batch));
      using Field = std::remove_cvref_t<decltype(to)>;
      const auto values = [](Row& row) -> auto& { return std::get<k>(tensor::detail::fields(row)); };
      using Batch = decltype((*this)(column(rows, values)));
      static_assert(std::same_as<Field, Batch>,
                    "a field of the struct that a dataset gives for a row has no room for a batch: make it a tensor "
                    "in place of a number or a text, use a tuple, or give the loader a function of the rows");
      if constexpr (std::same_as<Field, Batch>) to = (*this)(column(rows, values));
    };
    (place.template operator()<i>(), ...);
  }
};

}  // namespace detail

/// Puts rows on top of each other. A tensor gets a dimension 0 in front, numbers become i64, f32 or f64 [rows], texts a
/// vector; pairs, tuples, maps and structs of these become the same of batches.
///
/// Throws   InvalidArgument if rows differ in shape, dtype, length or keys.
/// Source   torch.utils.data.default_collate 2.11.
struct Stack {
  template <class Row>
  [[nodiscard]] auto operator()(std::vector<Row> rows) const {
    return detail::Collated<Stack>{*this}(std::move(rows));
  }

  /// [..] of every row -> [rows, ..]
  [[nodiscard]] at::Tensor operator()(std::vector<at::Tensor> rows) const {
    for (std::size_t i = 1; i < rows.size(); ++i)
      if (rows[i].sizes() != rows.front().sizes() || rows[i].scalar_type() != rows.front().scalar_type())
        detail::fail_rows(i, tensor::spec(rows.front()), tensor::spec(rows[i]));
    return at::stack(rows);
  }
};

/// The same, with tensors and lists of numbers padded along their first dimension to the longest of the batch.
///
/// Differs  Its length is not kept: give it as a number of the row, where it is needed.
struct Pad {
  double value = 0;              // behind the end
  std::int64_t multiple_of = 1;  // the padded length is one

  template <class Row>
  [[nodiscard]] auto operator()(std::vector<Row> rows) const {
    return detail::Collated<Pad>{*this}(std::move(rows));
  }

  /// [length, ..] of every row -> [rows, longest, ..]
  [[nodiscard]] at::Tensor operator()(std::vector<at::Tensor> rows) const {
    ACCEL_CHECK(multiple_of >= 1, InvalidArgument, "pad: expected multiple_of >= 1, found ", multiple_of);
    const at::Tensor& first = rows.front();
    if (first.dim() == 0) return Stack()(std::move(rows));
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const bool fits = rows[i].dim() == first.dim() && rows[i].scalar_type() == first.scalar_type() &&
                        rows[i].sizes().slice(1) == first.sizes().slice(1);
      if (!fits) detail::fail_rows(i, tensor::spec(first), tensor::spec(rows[i]));
      longest = std::max(longest, rows[i].size(0));
    }
    auto shape = first.sizes().vec();
    shape[0] = (longest + multiple_of - 1) / multiple_of * multiple_of;
    shape.insert(shape.begin(), static_cast<std::int64_t>(rows.size()));
    at::Tensor batch = at::full(shape, value, first.options());
    for (std::size_t i = 0; i < rows.size(); ++i)
      batch[static_cast<std::int64_t>(i)].narrow(0, 0, rows[i].size(0)).copy_(rows[i]);
    return batch;
  }
};

}  // namespace accel::inline v0_1::data
