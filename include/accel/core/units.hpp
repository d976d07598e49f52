// Units: sizes in bytes, and points in time until which something may wait.
#pragma once

#include <algorithm>
#include <chrono>
#include <compare>
#include <cstdint>
#include <ostream>

namespace accel::inline v0_1 {

/// A size in bytes. Written `25_MiB`, printed `25 MiB`.
struct Bytes {
  std::int64_t count = 0;

  auto operator<=>(const Bytes&) const = default;

  friend std::ostream& operator<<(std::ostream& out, Bytes bytes) {
    constexpr std::int64_t kib = 1024;
    constexpr std::int64_t mib = kib * kib;
    if (bytes.count >= mib && bytes.count % mib == 0) return out << bytes.count / mib << " MiB";
    if (bytes.count >= kib && bytes.count % kib == 0) return out << bytes.count / kib << " KiB";
    return out << bytes.count << " B";
  }
};

inline namespace literals {
constexpr Bytes operator""_B(unsigned long long n) {
  return {static_cast<std::int64_t>(n)};
}
constexpr Bytes operator""_KiB(unsigned long long n) {
  return {static_cast<std::int64_t>(n) << 10};
}
constexpr Bytes operator""_MiB(unsigned long long n) {
  return {static_cast<std::int64_t>(n) << 20};
}
}  // namespace literals

/// Settings write durations as `timeout_s`: plain seconds, fractions allowed.
using Seconds = std::chrono::duration<double>;

/// The point in time after which a wait gives up. Every wait has one.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  /// A span may be infinite: twenty days are longer than any wait here, and in milliseconds still an int.
  [[nodiscard]] static Deadline in(Seconds span) {
    constexpr Seconds longest = std::chrono::hours(20 * 24);
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::min(span, longest)), span);
  }

  /// Never negative, rounded up, and at least 1 ms: LibTorch reads 0 as "for ever".
  [[nodiscard]] std::chrono::milliseconds remaining() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now());
    return std::max(left, std::chrono::milliseconds(1));
  }

  [[nodiscard]] bool passed() const { return Clock::now() >= end_; }

  /// The whole span that was granted, for messages.
  [[nodiscard]] double span_s() const { return span_.count(); }

 private:
  Deadline(Clock::time_point end, Seconds span) : end_(end), span_(span) {}

  Clock::time_point end_;
  Seconds span_;
};

}  // namespace accel::inline v0_1
