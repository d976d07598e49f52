// Group: the ranks of a test as a connected backend.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <type_traits>

#include <accel/backend/backend.hpp>
#include <accel/launch/environment.hpp>
#include <accel/launch/rendezvous.hpp>

#include "ranks.hpp"

namespace accel::testing {

/// Seconds since it was made.
class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return Seconds(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

/// Keeps this rank where it is: late for the others, or there to be spoken over, as rank 0.
inline void stay_for(double seconds) {
  std::this_thread::sleep_for(Seconds(seconds * pace));
}

/// Meets the other ranks that the environment describes.
[[nodiscard]] inline launch::Meeting meet(Seconds timeout = Seconds(30)) {
  return launch::meet(launch::detect(), launch::next_creation(), {.timeout = timeout});
}

/// What `body` throws, as text; empty if it returns. Lets through what is no `Expected`.
template <class Expected, class Body>
[[nodiscard]] std::string thrown_by(Body&& body) {
  try {
    std::forward<Body>(body)();
  } catch (const Expected& error) {
    return error.what();
  }
  return {};
}

/// A backend over the ranks of a test. Like an accelerator it says farewell at its end, so that rank
/// 0's star outlives what the others say over it.
template <Backend B>
class Group {
 public:
  explicit Group(typename B::Options options = patient()) : backend_(meet(), options) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() { backend_.control().farewell(); }

  [[nodiscard]] B& operator*() { return backend_; }
  [[nodiscard]] B* operator->() { return &backend_; }

  /// A deadline well below that of on_ranks: what hangs then says where.
  [[nodiscard]] static typename B::Options patient() {
    typename B::Options options{};
    if constexpr (requires { options.timeout_s; }) options.timeout_s = 20;
    return options;
  }

 private:
  B backend_;
};

}  // namespace accel::testing
