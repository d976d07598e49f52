// Progress: lets people see that a long operation goes on.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1 {

struct ProgressOptions {
  Seconds every{2};  // silent before that, and between two lines

  /// Gets each line, `indexing shards/000.tar: 1.2 of 4.0 GB`. Empty: standard error, as `accel: ...`.
  std::function<void(const std::string& line)> show{};

  std::function<std::chrono::steady_clock::time_point()> now{};  // empty: the system's clock
};

/// What is counted.
enum class Counted { bytes, rows };

namespace detail {

/// `1.2 of 4.0 GB`: both in the unit that suits the second.
[[nodiscard]] inline std::string share_of(std::int64_t done, std::int64_t total, Counted counted) {
  if (counted == Counted::rows) return message(done, " of ", total, " rows");
  constexpr std::array<const char*, 5> units{"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  double size = 1;
  while (unit + 1 < units.size() && static_cast<double>(total) >= 1000 * size) {
    size *= 1000;
    ++unit;
  }
  const auto number = [&](std::int64_t bytes) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.*f", unit == 0 ? 0 : 1, static_cast<double>(bytes) / size);
    return std::string(text.data());
  };
  return message(number(done), " of ", number(total), " ", units[unit]);
}

}  // namespace detail

/// The progress of one operation of known size. One that ends within two seconds says nothing.
///
/// Cost     reached() looks at the clock: some tens of nanoseconds.
class Progress {
 public:
  Progress(std::string what, std::int64_t total, Counted counted, ProgressOptions options = {})
      : what_(std::move(what)), total_(total), counted_(counted), options_(std::move(options)), shown_(now()) {}

  /// From now on it is this that is done, "indexing shards/001.tar"; what is counted goes on.
  void rename(std::string what) { what_ = std::move(what); }

  void reached(std::int64_t done) {
    const auto at = now();
    if (at - shown_ < options_.every) return;
    shown_ = at;
    const std::string line = message(what_, ": ", detail::share_of(done, total_, counted_));
    if (options_.show) {
      options_.show(line);
    } else {
      std::cerr << message("accel: ", line, "\n") << std::flush;  // one insertion: lines of ranks do not interleave
    }
  }

 private:
  [[nodiscard]] std::chrono::steady_clock::time_point now() const {
    return options_.now ? options_.now() : std::chrono::steady_clock::now();
  }

  std::string what_;
  std::int64_t total_;
  Counted counted_;
  ProgressOptions options_;
  std::chrono::steady_clock::time_point shown_;  // when the last line was, or the beginning
};

}  // namespace accel::inline v0_1
