// Options by their fields, as named numbers to save and load.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::optim::detail {

template <class Options>
void save_options(const Options& options, const std::string& prefix, tensor::StateDict& dict) {
  for_each_field(options, [&]<class Value>(std::string_view name, const Value& value) {
    const std::string key = prefix + std::string(name);
    if constexpr (accel::detail::is_list<Value>) {
      for (std::size_t k = 0; k < value.size(); ++k) dict.add(message(key, ".", k), value[k]);
    } else if constexpr (std::is_enum_v<Value> || std::integral<Value>) {
      dict.add(key, static_cast<std::int64_t>(value));
    } else {
      dict.add(key, static_cast<double>(value));
    }
  });
}

/// `now` with the numbers that were saved, the learning rate as a number, too.
template <class Options>
[[nodiscard]] Options load_options(const Options& now, const std::string& prefix, const tensor::StateDict& dict) {
  Options loaded = now;
  for_each_field(loaded, [&]<class Value>(std::string_view name, Value& value) {
    const std::string key = prefix + std::string(name);
    if constexpr (accel::detail::is_list<Value>) {
      for (std::size_t k = 0; k < value.size(); ++k) value[k] = dict.number(message(key, ".", k));
    } else if constexpr (std::is_enum_v<Value> || std::integral<Value>) {
      value = static_cast<Value>(dict.integer(key));
    } else {
      value = dict.number(key);
    }
  });
  return loaded;
}

/// A learning rate that is a tensor stays that tensor, and is written to.
template <class Options>
void set_options(Options& options, Options loaded) {
  if (options.lr.is_tensor()) {
    options.lr.set(loaded.lr.value());
    loaded.lr = options.lr;
  }
  options = std::move(loaded);
}

}  // namespace accel::inline v0_1::optim::detail
