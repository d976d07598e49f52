// Fields: the members of a struct of settings by name, to print, compare, save and load them.
#pragma once

#include <string_view>
#include <tuple>
#include <type_traits>

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

}  // namespace accel::inline v0_1
