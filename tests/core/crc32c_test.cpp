// CRC-32C: the numbers of the standard, by the processor's instruction and without it.
#include <accel/core/crc32c.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

using accel::crc32c;
using accel::crc32c_joined;

namespace {

std::uint32_t crc_of(std::string_view text, std::uint32_t before = 0) {
  return crc32c(std::as_bytes(std::span(text)), before);
}

/// Bit by bit, as the standard has it.
std::uint32_t slowly(std::span<const std::byte> bytes) {
  std::uint32_t state = ~0U;
  for (const std::byte byte : bytes) {
    state ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state & 1U) != 0 ? state >> 1 ^ 0x82f63b78U : state >> 1;
  }
  return ~state;
}

}  // namespace

TEST_CASE("checksums are those of RFC 3720 and of the catalogue of CRCs", "[crc32c]") {
  CHECK(crc_of("") == 0);
  CHECK(crc_of("123456789") == 0xe3069283U);
  CHECK(crc_of(std::string(32, '\0')) == 0x8a9136aaU);
  CHECK(crc_of(std::string(32, '\xff')) == 0x62a8ab43U);
  std::string rising, falling;
  for (char k = 0; k < 32; ++k) rising += k, falling.insert(0, 1, k);
  CHECK(crc_of(rising) == 0x46dd794eU);
  CHECK(crc_of(falling) == 0x113fdb5cU);
}

TEST_CASE("any length at any place has the same checksum with the instruction, by tables, in pieces and joined",
          "[crc32c]") {
  std::mt19937_64 random(7);
  std::vector<std::byte> memory(40'000);
  for (auto& byte : memory) byte = static_cast<std::byte>(random());
  for (int i = 0; i < 400; ++i) {
    const std::size_t length = i < 100 ? static_cast<std::size_t>(i) : random() % 30'000;
    const std::size_t begin = random() % (memory.size() - length);
    const auto bytes = std::span<const std::byte>(memory).subspan(begin, length);
    INFO(length << " bytes at " << begin);
    const std::uint32_t expected = slowly(bytes);
    CHECK(crc32c(bytes) == expected);
    CHECK(~accel::detail::crc::by_tables(~0U, bytes.data(), bytes.size()) == expected);
    const std::size_t cut = length == 0 ? 0 : random() % length;
    const auto first = bytes.first(cut), second = bytes.subspan(cut);
    CHECK(crc32c(second, crc32c(first)) == expected);
    CHECK(crc32c_joined(crc32c(first), crc32c(second), second.size()) == expected);
  }
}
