// PackedFormat: what packed bytes are made of.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace accel::inline v0_1::tensor::detail {

/// What the description of a tree is made of. A number says its kind and size, so that an i64 is not read as an f64.
enum class PackedTag : std::uint8_t { tensor = 1, undefined, text, numbers, parts, boolean, integer, natural, real };

template <class T>
concept PackedNumber = std::is_arithmetic_v<T> || std::is_enum_v<T>;
/// Vectors of these lie there as they do in memory.
template <class T>
inline constexpr bool is_number_list = false;
template <PackedNumber T>
inline constexpr bool is_number_list<std::vector<T>> = !std::same_as<T, bool>;

template <PackedNumber T>
consteval PackedTag tag_of() {
  if constexpr (std::is_enum_v<T>)
    return tag_of<std::underlying_type_t<T>>();
  else if constexpr (std::same_as<T, bool>)
    return PackedTag::boolean;
  else if constexpr (std::is_floating_point_v<T>)
    return PackedTag::real;
  else
    return std::is_signed_v<T> ? PackedTag::integer : PackedTag::natural;
}

/// At the begin of the bytes: the description of the tree follows, then the tensors.
struct PackedHeader {
  std::uint64_t magic = 0x31'4b'43'41'50'4c'43'41;  // "ACLPACK1" in memory
  std::uint64_t total_bytes = 0;
  std::uint64_t description_bytes = 0;
  std::uint64_t description_hash = 0;
};

inline constexpr std::uint64_t packed_alignment = 16;  // bytes: of the widest dtype

[[nodiscard]] inline std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + packed_alignment - 1) / packed_alignment * packed_alignment;
}

}  // namespace accel::inline v0_1::tensor::detail
