// Concat: the rows of several datasets, one dataset behind the other.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>

#include <accel/core/error.hpp>
#include <accel/data/access.hpp>
#include <accel/dataset/detail/parts.hpp>

namespace accel::inline v0_1::dataset {

namespace detail {

/// Calls `function` with the source of that number.
template <class Sources, class Function>
decltype(auto) with_source(std::vector<Sources>& sources, std::size_t number, Function&& function) {
  return function(sources[number]);
}
template <class Sources, class Function>
decltype(auto) with_source(const std::vector<Sources>& sources, std::size_t number, Function&& function) {
  return function(sources[number]);
}
template <std::size_t at = 0, class Tuple, class Function>
  requires requires { std::tuple_size<std::remove_const_t<Tuple>>::value; }
auto with_source(Tuple& sources, std::size_t number, Function&& function) {
  if constexpr (at + 1 < std::tuple_size_v<std::remove_const_t<Tuple>>)
    if (number != at) return with_source<at + 1>(sources, number, std::forward<Function>(function));
  return function(std::get<at>(sources));
}

template <class Function>
void for_each_source(const auto& sources, Function&& function) {
  if constexpr (requires { sources.begin(); }) {
    for (const auto& source : sources) function(source);
  } else {
    std::apply([&](const auto&... source) { (function(source), ...); }, sources);
  }
}

/// Whether all of a vector's or a tuple's datasets are what `Asks<D>::value` says.
template <template <class> class Asks, class Sources>
inline constexpr bool all_sources = false;
template <template <class> class Asks, class D>
inline constexpr bool all_sources<Asks, std::vector<D>> = Asks<D>::value;
template <template <class> class Asks, class... Ds>
inline constexpr bool all_sources<Asks, std::tuple<Ds...>> = (Asks<Ds>::value && ...);

template <class D>
using AsksAnyRow = std::bool_constant<data::GivesAnyRow<D>>;
template <class D>
using AsksNoRandom = std::bool_constant<!data::GivesRandomRow<D>>;
template <class D>
using AsksShared = std::bool_constant<data::SharedRows<D>>;
template <class D>
using AsksSize = std::bool_constant<data::Sized<D>>;

}  // namespace detail

/// Rows 0 to n - 1 are those of the first dataset, then come those of the second, and so on.
///
///   dataset::Concat all{first, second};        // of different types, whose rows are of one
///   dataset::Concat shards{std::vector{...}};  // of one type, however many
///
/// Cost     finding a row O(log datasets). A row at a time: batches cross datasets.
/// Throws   InvalidArgument for a row that is not there. The sizes are asked for once.
template <class Sources>
class Concat {
 public:
  static_assert(detail::all_sources<detail::AsksSize, Sources> && detail::all_sources<detail::AsksAnyRow, Sources>,
                "Concat takes several datasets or a std::vector of them, with size(), and get(std::size_t) or "
                "get(std::size_t, at::Generator&)");

  /// Whether a row needs a random stream: if one of the datasets takes one.
  static constexpr bool draws = !detail::all_sources<detail::AsksNoRandom, Sources>;

  /// Whether const datasets will do, by the calls that are made of them otherwise.
  static constexpr bool shares = detail::all_sources<detail::AsksShared, Sources>;

  explicit Concat(Sources sources) : sources_(std::move(sources)) {
    detail::for_each_source(sources_, [this](const auto& source) { parts_.add(data::size_of(source)); });
  }
  template <class First, class... More>
    requires(sizeof...(More) > 0) && std::same_as<Sources, std::tuple<First, More...>>
  explicit Concat(First first, More... more) : Concat(Sources(std::move(first), std::move(more)...)) {}

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(parts_.size()); }

  [[nodiscard]] auto get(std::size_t row) const
    requires(shares && !draws)
  {
    return row_of(sources_, row);
  }
  [[nodiscard]] auto get(std::size_t row)
    requires(!shares && !draws)
  {
    return row_of(sources_, row);
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random) const
    requires(shares && draws)
  {
    return row_of(sources_, row, random);
  }
  [[nodiscard]] auto get(std::size_t row, at::Generator& random)
    requires(!shares && draws)
  {
    return row_of(sources_, row, random);
  }

 private:
  template <class S, class... Random>
  [[nodiscard]] auto row_of(S& sources, std::size_t row, Random&... random) const {
    const auto [part, within] = parts_.find(static_cast<std::int64_t>(row));
    return detail::with_source(sources, part, [&, at = static_cast<std::size_t>(within)](auto& source) {
      if constexpr (sizeof...(Random) == 0) {
        return source.get(at);
      } else {
        return data::row_with(source, at, random...);
      }
    });
  }

  Sources sources_;
  detail::Parts parts_;
};

template <class D>
Concat(std::vector<D>) -> Concat<std::vector<D>>;
template <class First, class Second, class... More>
Concat(First, Second, More...) -> Concat<std::tuple<First, Second, More...>>;

}  // namespace accel::inline v0_1::dataset
