// Variables: how a launcher's environment variables are read and refused.
#pragma once

#include <charconv>
#include <cstdlib>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::launch {

/// Name to value, nothing if unset. A function, so that a test passes its own.
using Variables = std::function<std::optional<std::string>(std::string_view)>;

/// The variables of this process.
[[nodiscard]] inline Variables process_environment() {
  return [](std::string_view name) -> std::optional<std::string> {
    const char* value = std::getenv(std::string(name).c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

/// Reads the variables of one launcher, notes what it read, and refuses what cannot be meant.
class Reader {
 public:
  using Read = std::vector<std::pair<std::string, std::string>>;

  /// `remedy` ends every message: what sets these variables properly. Borrows `variables`.
  Reader(const Variables& variables, std::string remedy) : variables_(&variables), remedy_(std::move(remedy)) {}

  /// Throws   ConfigError if set but empty.
  [[nodiscard]] std::optional<std::string> text(std::string_view name) {
    auto value = (*variables_)(name);
    if (!value) return std::nullopt;
    if (value->empty()) fail(name, " is set, but empty");
    read_.emplace_back(name, *value);
    return value;
  }

  /// Throws   ConfigError if set, but not a whole number from `least` to `most`.
  [[nodiscard]] std::optional<int> whole(std::string_view name, int least = 0,
                                         int most = std::numeric_limits<int>::max()) {
    const auto value = text(name);
    if (!value) return std::nullopt;
    int number = 0;
    const char* end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, number);
    if (stop != end || error == std::errc::invalid_argument) {
      fail(name, " = \"", *value, "\" is not a whole number");
    }
    if (error == std::errc::result_out_of_range || number < least || number > most) {
      fail(name, " = \"", *value, "\" is not from ", least, " to ", most);
    }
    return number;
  }

  /// Throws   ConfigError if set, but not a number of at least `least`; "inf" is one.
  [[nodiscard]] std::optional<double> real(std::string_view name, double least = 0) {
    const auto value = text(name);
    if (!value) return std::nullopt;
    double number = 0;
    const char* end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, number);
    if (stop != end || error != std::errc() || !(number >= least))
      fail(name, " = \"", *value, "\" is not a number of at least ", least);
    return number;
  }

  /// The value itself, of a variable that `because` makes necessary.
  ///
  /// Throws   ConfigError if there is none.
  template <class T>
  [[nodiscard]] T required(std::optional<T> value, std::string_view name, std::string_view because) const {
    if (!value) fail(quote(because), " is set, but ", name, " is not");
    return *std::move(value);
  }

  /// `RANK = "3"`, as it was read.
  [[nodiscard]] std::string quote(std::string_view name) const {
    for (const auto& [known, value] : read_) {
      if (known == name) return message(name, " = \"", value, "\"");
    }
    return std::string(name);
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw ConfigError(message(parts..., "; ", remedy_));
  }

  /// Names and values, in the order of reading.
  [[nodiscard]] const Read& read() const { return read_; }

 private:
  const Variables* variables_;
  std::string remedy_;
  Read read_;
};

}  // namespace accel::inline v0_1::launch
