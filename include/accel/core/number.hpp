// Number: as text that reads back as the same.
#pragma once

#include <array>
#include <charconv>
#include <string>

namespace accel::inline v0_1 {

/// The shortest text that reads back as the same number: `0.1`, not `0.10000000000000001`.
[[nodiscard]] inline std::string shortest(double number) {
  std::array<char, 32> buffer{};
  return {buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), number).ptr};
}

}  // namespace accel::inline v0_1
