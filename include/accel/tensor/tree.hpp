// Tree: visit and map every tensor in a tensor, pair, tuple, vector, array, optional, map or struct.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>

namespace accel::inline v0_1::tensor {

/// Whether T is an instance of a template of types: `is_a<T, std::vector>`.
template <class T, template <class...> class Template>
inline constexpr bool is_a = false;
template <template <class...> class Template, class... Args>
inline constexpr bool is_a<Template<Args...>, Template> = true;

namespace detail {

template <class T>
inline constexpr bool is_array = false;
template <class T, std::size_t n>
inline constexpr bool is_array<std::array<T, n>> = true;

template <class T>
concept TupleLike = is_a<T, std::pair> || is_a<T, std::tuple> || is_array<T>;

template <class T>
concept MapLike = is_a<T, std::map> || is_a<T, std::unordered_map>;

/// `torch::data::Example` and what looks like it: not an aggregate, but public data and, unless it is
/// a TensorExample, target.
template <class T>
concept ExampleLike = !std::is_aggregate_v<T> && requires(T& example) { example.data; };

struct Anything {
  template <class T>
  operator T() const;  // never defined: only asked whether it would fit
};

/// The number of fields of an aggregate: the most initialisers it takes.
template <class T, class... Fields>
consteval std::size_t field_count() {
  if constexpr (requires { T{Fields{}..., Anything{}}; }) return field_count<T, Fields..., Anything>();
  return sizeof...(Fields);
}

/// Whether the list of its fields is whole, as far as that can be told.
template <HasFields T>
consteval bool lists_all_fields() {
  if constexpr (std::is_aggregate_v<T>) return std::tuple_size_v<decltype(T::fields())> >= field_count<T>();
  return true;
}

/// The fields of an aggregate, as a tuple of references.
template <class T>
auto fields(T& object) {
  constexpr std::size_t count = field_count<std::remove_const_t<T>>();
  static_assert(count <= 8, "accel takes batches with at most 8 fields; nest some of them in a struct");
  if constexpr (count == 0) {
    return std::tie();
  } else if constexpr (count == 1) {
    auto& [a] = object;
    return std::tie(a);
  } else if constexpr (count == 2) {
    auto& [a, b] = object;
    return std::tie(a, b);
  } else if constexpr (count == 3) {
    auto& [a, b, c] = object;
    return std::tie(a, b, c);
  } else if constexpr (count == 4) {
    auto& [a, b, c, d] = object;
    return std::tie(a, b, c, d);
  } else if constexpr (count == 5) {
    auto& [a, b, c, d, e] = object;
    return std::tie(a, b, c, d, e);
  } else if constexpr (count == 6) {
    auto& [a, b, c, d, e, f] = object;
    return std::tie(a, b, c, d, e, f);
  } else if constexpr (count == 7) {
    auto& [a, b, c, d, e, f, g] = object;
    return std::tie(a, b, c, d, e, f, g);
  } else {
    auto& [a, b, c, d, e, f, g, h] = object;
    return std::tie(a, b, c, d, e, f, g, h);
  }
}

/// Holds no tensor and is passed over: numbers, texts, flags. A vector of flags has none that could be referred to.
template <class T>
concept Leaf = std::is_arithmetic_v<T> || std::is_enum_v<T> || std::convertible_to<const T&, std::string_view> ||
               std::same_as<T, std::vector<bool>>;

template <class T>
inline constexpr bool unknown = false;

}  // namespace detail

/// Whether visit() takes a T, not asking what is inside of structs.
template <class T>
consteval bool is_tree() {
  if constexpr (std::derived_from<T, at::Tensor> || detail::Leaf<T> || detail::TupleLike<T> || is_a<T, std::vector> ||
                is_a<T, std::optional> || detail::MapLike<T>)
    return true;
  else
    return HasFields<T> || detail::ExampleLike<T> || (std::is_aggregate_v<T> && !std::is_array_v<T>);
}

// How a part is called within its tree.

struct Itself {};  // what an optional holds
struct Place {     // in a list
  std::size_t number;
};
struct Member {           // of a struct
  std::string_view name;  // empty where C++ does not say it
  std::size_t number;
};
template <class K>
struct Key {  // of a map
  const K& value;
};

namespace detail {

/// In the order of their keys. That of an unordered_map depends on its history, and so on the rank.
template <class Map>
[[nodiscard]] auto sorted_entries(Map& map) {
  static_assert(
      requires(const typename Map::key_type& a, const typename Map::key_type& b) { a < b; },
      "accel visits an unordered_map in the order of its keys, as its own differs between ranks: they need operator<");
  std::vector<decltype(std::addressof(*map.begin()))> entries;
  entries.reserve(map.size());
  for (auto& entry : map) entries.push_back(std::addressof(entry));
  std::sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
  return entries;
}

template <class Tuple, class Function>
void for_each_member(Tuple&& members, Function&& function) {
  std::size_t number = 0;
  std::apply([&](auto&... member) { (function(Member{{}, number++}, member), ...); }, members);
}

}  // namespace detail

/// Calls `function(step, part&)` for what `tree` consists of, one level deep, in an order that all ranks share: that of
/// declaration, of places, of keys. `step` is how the part is called: Itself, Place, Member or Key. What has no parts,
/// such as a tensor, is not taken.
template <class Tree, class Function>
void for_each_part(Tree& tree, Function&& function) {
  using T = std::remove_const_t<Tree>;
  if constexpr (is_a<T, std::pair>) {
    function(Member{"first", 0}, tree.first);
    function(Member{"second", 1}, tree.second);
  } else if constexpr (is_a<T, std::tuple>) {
    detail::for_each_member(tree, function);
  } else if constexpr (is_a<T, std::vector> || detail::is_array<T>) {
    std::size_t place = 0;
    for (auto& part : tree) function(Place{place++}, part);
  } else if constexpr (is_a<T, std::optional>) {
    if (tree) function(Itself{}, *tree);
  } else if constexpr (is_a<T, std::map>) {
    for (auto& [key, part] : tree) function(Key<typename T::key_type>{key}, part);
  } else if constexpr (is_a<T, std::unordered_map>) {
    for (auto* const entry : detail::sorted_entries(tree))
      function(Key<typename T::key_type>{entry->first}, entry->second);
  } else if constexpr (HasFields<T>) {
    static_assert(detail::lists_all_fields<T>(),
                  "fields() of this struct leaves out some that accel would then not see");
    std::size_t number = 0;
    for_each_field(tree, [&](std::string_view name, auto& part) { function(Member{name, number++}, part); });
  } else if constexpr (detail::ExampleLike<T>) {
    function(Member{"data", 0}, tree.data);
    if constexpr (requires { tree.target; }) function(Member{"target", 1}, tree.target);
  } else if constexpr (std::is_aggregate_v<T> && !std::is_array_v<T>) {
    detail::for_each_member(detail::fields(tree), function);
  } else {
    static_assert(detail::unknown<T>,
                  "accel cannot look for tensors in this type: it takes tensors, pair, tuple, array, vector, "
                  "optional, map, torch::data::Example, and structs without constructors that hold these");
  }
}

/// Calls `visitor(tensor&)` for every tensor of `tree`, in the order of for_each_part. Numbers, strings
/// and undefined tensors are passed over.
///
/// Takes    at::Tensor, pair, tuple, array, vector, optional, map, torch::data::Example, aggregates of up
///          to 8 such fields, and structs that list theirs in fields(), all of them.
template <class Tree, class Visitor>
void visit(Tree& tree, Visitor&& visitor) {
  using T = std::remove_const_t<Tree>;
  if constexpr (std::derived_from<T, at::Tensor>) {
    if (tree.defined()) visitor(tree);
  } else if constexpr (!detail::Leaf<T>) {
    for_each_part(tree, [&](const auto&, auto& part) { visit(part, visitor); });
  }
}

/// The same tree with `function(tensor)` in place of every tensor. The shape of the tree stays.
template <class Tree, class Function>
[[nodiscard]] std::remove_cvref_t<Tree> map(Tree&& tree, Function&& function) {
  std::remove_cvref_t<Tree> mapped = std::forward<Tree>(tree);
  visit(mapped, [&](at::Tensor& tensor) { tensor = function(std::as_const(tensor)); });
  return mapped;
}

/// All tensors of `tree`, in order.
template <class Tree>
[[nodiscard]] std::vector<at::Tensor> leaves(const Tree& tree) {
  std::vector<at::Tensor> tensors;
  visit(tree, [&](const at::Tensor& tensor) { tensors.push_back(tensor); });
  return tensors;
}

/// Rows of the first tensor: its dimension 0. The size of a batch.
///
/// Throws   InvalidArgument if there is no tensor, or if it has no dimension.
template <class Tree>
[[nodiscard]] std::int64_t rows(const Tree& tree) {
  const auto tensors = leaves(tree);
  ACCEL_CHECK(!tensors.empty() && tensors.front().dim() > 0, InvalidArgument,
              "expected a batch whose first tensor has rows, found ",
              tensors.empty() ? "no tensor" : "a scalar tensor");
  return tensors.front().size(0);
}

}  // namespace accel::inline v0_1::tensor
