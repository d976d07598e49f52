// Permutation: a shuffle that is computed where it is looked at, and so takes no memory.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <accel/core/error.hpp>
#include <accel/data/random.hpp>

namespace accel::inline v0_1::data {

/// A permutation of 0 .. n - 1, chosen by `key`: a Feistel network over the next power of four, walked until it comes
/// back below n, at most four times in the mean.
///
/// Memory   100 bytes, whatever n is; a list of 100 million rows takes 400 MB.
/// Cost     about 20 ns for a row, where the list is a look-up; to make one, nothing.
/// Source   Black & Rogaway 2002, Ciphers with arbitrary finite domains (cycle walking).
/// Differs  not the order of torch.randperm.
class Permutation {
 public:
  Permutation(std::int64_t n, std::uint64_t key) : n_(static_cast<std::uint64_t>(n)) {
    ACCEL_CHECK(n >= 0, InvalidArgument, "permutation: expected 0 or more rows, found ", n);
    const auto bits = static_cast<int>(std::bit_width(n_ == 0 ? 0 : n_ - 1));
    half_ = std::max(1, (bits + 1) / 2);
    mask_ = (std::uint64_t{1} << half_) - 1;
    for (std::size_t i = 0; i < keys_.size(); ++i) keys_[i] = scrambled(key + i * 0x9e3779b97f4a7c15);
  }

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(n_); }

  [[nodiscard]] std::int64_t operator[](std::int64_t position) const {
    auto value = static_cast<std::uint64_t>(position);
    do value = encrypted(value);
    while (value >= n_);
    return static_cast<std::int64_t>(value);
  }

 private:
  [[nodiscard]] std::uint64_t encrypted(std::uint64_t value) const {
    std::uint64_t left = value >> half_;
    std::uint64_t right = value & mask_;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (scrambled(right ^ key) & mask_);
      left = right;
      right = next;
    }
    return left << half_ | right;
  }

  std::uint64_t n_;
  int half_ = 1;            // bits of either half
  std::uint64_t mask_ = 1;  // of them
  std::array<std::uint64_t, 8> keys_{};
};

}  // namespace accel::inline v0_1::data
