// Mapped: a dataset with a function over each row.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include <ATen/core/Generator.h>

#include <accel/data/access.hpp>
#include <accel/dataset/detail/decoded.hpp>

namespace accel::inline v0_1::dataset {

/// Row i is `function(row i of dataset)`, or `function(row, random)` for augmentation.
///
///   dataset::Mapped train{dataset::Tensors{std::pair{images, labels}}, [](auto row, at::Generator& random) {
///     row.first = flipped(row.first, random);
///     return row;
///   }};
///
/// Cost     a row at a time: what a dataset could do for a whole batch is not used.
/// Order    the function is called by several threads at once where the dataset may be shared by them.
template <class D, class Function>
class Mapped {
 public:
  static_assert(data::Sized<D> && data::GivesAnyRow<D>,
                "Mapped maps rows: the dataset needs size(), and get(std::size_t) or get(std::size_t, at::Generator&)");

  /// Whether a row needs a random stream.
  template <class Dataset>
  static constexpr bool draws =
      data::GivesRandomRow<Dataset> ||
      detail::TakesRandom<const Function,
                          decltype(data::row_with(std::declval<Dataset&>(), 0, std::declval<at::Generator&>()))>;

  Mapped(D dataset, Function function) : dataset_(std::move(dataset)), function_(std::move(function)) {}

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(data::size_of(dataset_)); }

  [[nodiscard]] auto get(std::size_t row) const
    requires data::SharedRows<D> && (!draws<D>)
  {
    return function_(dataset_.get(row));
  }
  [[nodiscard]] auto get(std::size_t row)
    requires(!data::SharedRows<D>) && (!draws<D>)
  {
    return function_(dataset_.get(row));
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random) const
    requires data::SharedRows<D> && draws<D>
  {
    return applied(data::row_with(dataset_, row, random), random);
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random)
    requires(!data::SharedRows<D>) && draws<D>
  {
    return applied(data::row_with(dataset_, row, random), random);
  }

 private:
  template <class Row>
  [[nodiscard]] auto applied(Row&& row, at::Generator& random) const {
    if constexpr (detail::TakesRandom<const Function, Row>) {
      return function_(std::forward<Row>(row), random);
    } else {
      return function_(std::forward<Row>(row));
    }
  }

  D dataset_;
  Function function_;
};

}  // namespace accel::inline v0_1::dataset
