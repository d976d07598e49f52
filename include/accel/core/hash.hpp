// Hash: a short number for a long text, to compare it between ranks.
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

namespace accel::inline v0_1 {

/// FNV-1a with 64 bits: equal on every platform, unlike std::hash.
[[nodiscard]] constexpr std::uint64_t fnv1a(std::string_view bytes) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (const char byte : bytes) value = (value ^ static_cast<unsigned char>(byte)) * 0x100000001b3U;
  return value;
}

/// The same for a list of numbers, to tell lists apart that ranks or runs should have in common.
template <class Number>
  requires std::is_arithmetic_v<Number>
[[nodiscard]] std::uint64_t fnv1a(const std::vector<Number>& numbers) {
  return fnv1a({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)});
}

/// A number for a row of numbers: begin with any, and take in one after the other.
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t hash, std::uint64_t number) {
  hash = (hash ^ number) * 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
  return hash ^ (hash >> 32);
}

}  // namespace accel::inline v0_1
