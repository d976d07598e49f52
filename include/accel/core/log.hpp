// Log: one line per event, from the main rank by default.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>

namespace accel::inline v0_1 {

/// Writes whole lines `accel: [rank 1/4] text` to standard error. A value: whoever logs holds one.
///
/// Info comes from the main rank only; warnings come from every rank, since they concern it.
class Log {
 public:
  enum class Level { info, warning, off };

  Log() = default;
  Log(std::string label, bool is_main, Level level) : label_(std::move(label)), is_main_(is_main), level_(level) {}

  template <class... Parts>
  void info(const Parts&... parts) const {
    if (is_main_ && level_ <= Level::info) write("", message(parts...));
  }

  template <class... Parts>
  void warning(const Parts&... parts) const {
    if (level_ <= Level::warning) write("warning: ", message(parts...));
  }

  [[nodiscard]] static std::string_view name(Level level) {
    return level == Level::info ? "info" : level == Level::warning ? "warning" : "off";
  }

  /// Reads a level's name; ConfigError lists the known ones and names the origin.
  [[nodiscard]] static Level parse(std::string_view text, std::string_view origin) {
    if (text == "info") return Level::info;
    if (text == "warning") return Level::warning;
    if (text == "off") return Level::off;
    throw ConfigError(message(origin, " = \"", text, "\" is not one of: info, warning, off"));
  }

 private:
  void write(std::string_view severity, std::string_view text) const {
    // One insertion a line: lines of several ranks on one terminal do not interleave.
    std::string line = "accel: ";
    if (!label_.empty()) line.append(label_).append(" ");
    line.append(severity).append(text).append("\n");
    std::cerr << line << std::flush;
  }

  std::string label_;
  bool is_main_ = true;
  Level level_ = Level::warning;
};

}  // namespace accel::inline v0_1
