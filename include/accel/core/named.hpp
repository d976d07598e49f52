// Named: the opt-in of every policy, and at once its word in configuration, log and checkpoint.
#pragma once

#include <concepts>
#include <string_view>

namespace accel::inline v0_1 {

/// A type that says its own name: `static constexpr std::string_view name = "gloo";`.
template <class T>
concept Named = requires {
  { T::name } -> std::convertible_to<std::string_view>;
};

}  // namespace accel::inline v0_1
