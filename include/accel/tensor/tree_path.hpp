// TreePath: where in a tree a tensor is: `[0].image`, `.target`, `["mask"]`.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <ATen/core/Tensor.h>

#include <accel/core/number.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::tensor {

namespace detail {

/// In quotes and on one line, whatever it holds.
[[nodiscard]] inline std::string in_quotes(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string result = "\"";
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7f) {
      result += {'\\', 'x', digits[byte / 16], digits[byte % 16]};
    } else {
      if (character == '"' || character == '\\') result += '\\';
      result += character;
    }
  }
  return result + "\"";
}

/// Two keys that differ have texts that differ.
template <class K>
[[nodiscard]] std::string key_text(const K& key) {
  if constexpr (std::convertible_to<const K&, std::string_view>) {
    return in_quotes(key);
  } else if constexpr (std::is_enum_v<K>) {
    return std::to_string(static_cast<std::underlying_type_t<K>>(key));
  } else if constexpr (std::is_integral_v<K>) {
    return std::to_string(key);
  } else if constexpr (std::is_floating_point_v<K> && sizeof(K) <= sizeof(double)) {
    return shortest(key);
  } else if constexpr (TupleLike<K>) {
    std::string text;
    for_each_part(key, [&](const auto&, const auto& part) { text += (text.empty() ? "" : ", ") + key_text(part); });
    return "(" + text + ")";
  } else {
    static_assert(unknown<K>,
                  "accel says by its key where in a map a tensor is: it takes texts, numbers, enums, and "
                  "pairs and tuples of these");
  }
}

}  // namespace detail

inline void append_step(std::string& /*path*/, Itself) {}
inline void append_step(std::string& path, Place step) {
  path += "[" + std::to_string(step.number) + "]";
}
inline void append_step(std::string& path, Member step) {
  path += "." + (step.name.empty() ? std::to_string(step.number) : std::string(step.name));
}
template <class K>
void append_step(std::string& path, Key<K> step) {
  path += "[" + detail::key_text(step.value) + "]";
}

/// Runs `body` with one step more at the end of `path`.
template <class Step, class Body>
void within_step(std::string& path, const Step& step, Body&& body) {
  const std::size_t size = path.size();
  append_step(path, step);
  std::forward<Body>(body)();
  path.resize(size);
}

/// Calls `visitor(path, leaf&)` for every tensor of `tree`, also for undefined ones, in the order of visit(); a visitor
/// that takes them is called for numbers, enums and texts as well. The path of the tree itself is empty.
///
/// Order    C++ does not say what the fields of a struct are called: they are `.0`, `.1`, unless it lists its fields().
template <class Tree, class Visitor>
void visit_paths(Tree& tree, std::string& path, Visitor&& visitor) {
  using T = std::remove_const_t<Tree>;
  if constexpr (std::derived_from<T, at::Tensor>) {
    visitor(std::as_const(path), tree);
  } else if constexpr (detail::Leaf<T>) {
    if constexpr (std::invocable<Visitor&, const std::string&, Tree&>) visitor(std::as_const(path), tree);
  } else {
    for_each_part(tree, [&](const auto& step, auto& part) {
      within_step(path, step, [&] { visit_paths(part, path, visitor); });
    });
  }
}
template <class Tree, class Visitor>
void visit_paths(Tree& tree, Visitor&& visitor) {
  std::string path;
  visit_paths(tree, path, visitor);
}

}  // namespace accel::inline v0_1::tensor
