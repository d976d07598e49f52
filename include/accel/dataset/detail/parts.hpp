// Parts: rows of several sources, counted through.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/dataset/detail/rows.hpp>

namespace accel::inline v0_1::dataset::detail {

/// Row 0 to n - 1 of part 0, then the rows of part 1, and so on. Parts may be empty.
class Parts {
 public:
  struct Place {
    std::size_t part;
    std::int64_t row;  // of that part
  };

  void add(std::int64_t rows) {
    std::int64_t end = 0;
    ACCEL_CHECK(!__builtin_add_overflow(size(), rows, &end), InvalidArgument,
                "rows: expected fewer than 2^63 in all, found more");
    ends_.push_back(end);
  }

  [[nodiscard]] std::int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  /// Cost     O(log parts).
  /// Throws   InvalidArgument if there is no such row.
  [[nodiscard]] Place find(std::int64_t row) const {
    check_row(row, size());
    const auto part = std::ranges::upper_bound(ends_, row);
    return {static_cast<std::size_t>(part - ends_.begin()), part == ends_.begin() ? row : row - *(part - 1)};
  }

 private:
  std::vector<std::int64_t> ends_;
};

}  // namespace accel::inline v0_1::dataset::detail
