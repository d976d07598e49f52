// Fields: the members of a struct of settings by name, to print, compare, save and load them.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include <accel/core/number.hpp>

namespace accel::inline v0_1 {

template <class Object, class Value>
struct Field {
  std::string_view name;
  Value Object::* member;
};
template <class Object, class Value>
Field(const char*, Value Object::*) -> Field<Object, Value>;

/// A struct that lists them: `static constexpr auto fields() { return std::tuple(Field{"lr", &Options::lr}); }`.
template <class T>
concept HasFields = requires { std::remove_cvref_t<T>::fields(); };

/// Calls `visitor(name, value)` for each, in the order of the list.
template <HasFields T, class Visitor>
void for_each_field(T&& object, Visitor&& visitor) {
  std::apply([&](const auto&... field) { (visitor(field.name, object.*field.member), ...); },
             std::remove_cvref_t<T>::fields());
}

namespace detail {

template <class T>
inline constexpr bool is_list = false;
template <std::size_t n>
inline constexpr bool is_list<std::array<double, n>> = true;

template <class Value>
[[nodiscard]] std::string text_of(const Value& value) {
  if constexpr (std::same_as<Value, bool>) {
    return value ? "true" : "false";
  } else if constexpr (is_list<Value>) {
    std::string text;
    for (const double one : value) text += (text.empty() ? "" : ", ") + shortest(one);
    return "(" + text + ")";
  } else if constexpr (std::is_enum_v<Value>) {
    return std::string(name_of(value));
  } else if constexpr (std::integral<Value>) {
    return std::to_string(value);
  } else {
    return shortest(static_cast<double>(value));
  }
}

}  // namespace detail

/// `lr = 0.001, betas = (0.9, 0.999), ...`
template <HasFields Options>
[[nodiscard]] std::string describe(const Options& options) {
  std::string text;
  for_each_field(options, [&](std::string_view name, const auto& value) {
    text += (text.empty() ? "" : ", ") + std::string(name) + " = " + detail::text_of(value);
  });
  return text;
}

}  // namespace accel::inline v0_1
