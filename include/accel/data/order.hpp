// Order: which row of the dataset stands at which position of an epoch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

#include <accel/core/error.hpp>
#include <accel/data/permutation.hpp>

namespace accel::inline v0_1::data {

/// The rows of an epoch in the order in which they are visited: `order[position]`. Copies share what they hold.
class Order {
 public:
  /// 0, 1, 2, ...
  [[nodiscard]] static Order sequential(std::int64_t rows) { return {rows, Sequential()}; }

  /// torch.randperm(rows) of a generator seeded with `seed`.
  ///
  /// Memory   4 bytes per row, from 2^31 rows on 8.
  [[nodiscard]] static Order shuffled(std::int64_t rows, std::uint64_t seed) {
    ACCEL_CHECK(rows >= 0, InvalidArgument, "rows: expected 0 or more, found ", rows);
    // Both kinds draw the same numbers.
    const auto kind = rows <= std::numeric_limits<std::int32_t>::max() ? at::kInt : at::kLong;
    return of(at::randperm(rows, at::detail::createCPUGenerator(seed), at::TensorOptions(kind).device(at::kCPU)));
  }

  [[nodiscard]] static Order permuted(const Permutation& permutation) { return {permutation.size(), permutation}; }

  /// `indices`: i32[rows] or i64[rows], on the CPU.
  [[nodiscard]] static Order of(const at::Tensor& indices) {
    const at::Tensor list = indices.contiguous();
    if (list.scalar_type() == at::kInt) return {list.numel(), Narrow{list, list.const_data_ptr<std::int32_t>()}};
    return {list.numel(), Wide{list, list.const_data_ptr<std::int64_t>()}};
  }
  [[nodiscard]] static Order of(std::vector<std::int64_t> rows) {
    const auto size = static_cast<std::int64_t>(rows.size());
    return {size, std::make_shared<const std::vector<std::int64_t>>(std::move(rows))};
  }

  /// `row_at(position)` for as many positions; called by one thread at a time.
  [[nodiscard]] static Order computed(std::int64_t size, std::function<std::int64_t(std::int64_t)> row_at) {
    return {size, std::move(row_at)};
  }

  [[nodiscard]] std::int64_t size() const { return size_; }

  /// All of it, as a list.
  [[nodiscard]] std::vector<std::int64_t> rows() const {
    std::vector<std::int64_t> list(static_cast<std::size_t>(size_));
    for (std::int64_t i = 0; i < size_; ++i) list[static_cast<std::size_t>(i)] = (*this)[i];
    return list;
  }

  [[nodiscard]] std::int64_t operator[](std::int64_t position) const {
    ACCEL_CHECK(position >= 0 && position < size_, InvalidArgument, "order: expected a position from 0 to ", size_ - 1,
                ", found ", position);
    return std::visit([&](const auto& rows) { return row(rows, position); }, rows_);
  }

 private:
  struct Sequential {};
  struct Narrow {
    at::Tensor owner;
    const std::int32_t* first;
  };
  struct Wide {
    at::Tensor owner;
    const std::int64_t* first;
  };
  using List = std::shared_ptr<const std::vector<std::int64_t>>;
  using Function = std::function<std::int64_t(std::int64_t)>;

  template <class Rows>
  Order(std::int64_t size, Rows rows) : size_(size), rows_(std::move(rows)) {
    ACCEL_CHECK(size >= 0, InvalidArgument, "order: expected 0 or more rows, found ", size);
  }

  static std::int64_t row(Sequential, std::int64_t position) { return position; }
  static std::int64_t row(const Narrow& list, std::int64_t position) { return list.first[position]; }
  static std::int64_t row(const Wide& list, std::int64_t position) { return list.first[position]; }
  static std::int64_t row(const List& list, std::int64_t position) {
    return (*list)[static_cast<std::size_t>(position)];
  }
  static std::int64_t row(const Permutation& permutation, std::int64_t position) { return permutation[position]; }
  static std::int64_t row(const Function& function, std::int64_t position) { return function(position); }

  std::int64_t size_;
  std::variant<Sequential, Narrow, Wide, List, Permutation, Function> rows_;
};

}  // namespace accel::inline v0_1::data
