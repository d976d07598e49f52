// Calls the user's function for a row, and says which row it was if that fails.
#pragma once

#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include <ATen/core/Generator.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::dataset::detail {

/// A function from an item to a row: `function(item)`, or `function(item, random)` for augmentation.
template <class Function, class Item>
concept TakesRandom = std::is_invocable_v<Function&, Item, at::Generator&>;
template <class Function, class Item>
concept Decodes = std::is_invocable_v<Function&, Item> || TakesRandom<Function, Item>;

/// Runs `body`. What it throws becomes a DataError, or stays the accel::Error it is, with `where()` in front.
template <class Where, class Body>
decltype(auto) located(Where&& where, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const DataError& error) {
    throw DataError(where() + ": " + error.what());
  } catch (Error& error) {
    error.add_label(where() + ":");
    throw;
  } catch (const std::exception& error) {
    throw DataError(where() + ": " + first_line(error));
  }
}

}  // namespace accel::inline v0_1::dataset::detail
