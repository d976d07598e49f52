// Range: a part of rows that are counted from 0; and how rows are split into parts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace accel::inline v0_1 {

/// From `begin` to before `end`.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[nodiscard]] constexpr std::int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

/// This rank's part of `length` rows: parts that follow each other, of which the first `length % world_size` have one
/// row more.
///
///     length 7, world_size 4:   0 1 | 2 3 | 4 5 | 6
///     length 2, world_size 3:   0 | 1 |
[[nodiscard]] constexpr Range split_range(std::int64_t length, int rank, int world_size) {
  const std::int64_t base = length / world_size;
  const std::int64_t extra = length % world_size;
  const std::int64_t begin = rank * base + std::min<std::int64_t>(rank, extra);
  return {begin, begin + base + (rank < extra ? 1 : 0)};
}

}  // namespace accel::inline v0_1
