// What stands in a file, fit for a message.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace accel::inline v0_1::dataset::detail {

/// In quotes, cut after 40 bytes, what is not printable ASCII as \xNN: a file can hold anything, a terminal not.
[[nodiscard]] inline std::string quoted(std::string_view text) {
  constexpr std::size_t most = 40;
  constexpr std::string_view digits = "0123456789ABCDEF";
  if (text.empty()) return "nothing";
  std::string result = "\"";
  for (const char c : text.substr(0, most)) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result.append({'\\', c});
    } else if (code >= ' ' && code <= '~') {
      result += c;
    } else {
      result.append({'\\', 'x', digits[code >> 4], digits[code & 15]});
    }
  }
  return result + (text.size() > most ? "\"..." : "\"");
}

}  // namespace accel::inline v0_1::dataset::detail
