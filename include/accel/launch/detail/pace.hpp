// Pace: how far this rank is.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Counted where steps and collectives are: two relaxed stores for each. Those may be called by any thread beside the
/// rest, which is one at a time.
class Pace {
 public:
  /// `operation` is a literal: only its address is kept.
  void began(const char* operation, std::int64_t number) noexcept {
    operation_.store(operation, std::memory_order_relaxed);
    collectives_.store(number, std::memory_order_relaxed);
  }
  void stepped() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

  void began_round(std::string_view purpose, std::int64_t number) {
    round_ = purpose;
    rounds_ = number;
    operation_.store(nullptr, std::memory_order_relaxed);
  }

  [[nodiscard]] Progress now() const {
    const char* const operation = operation_.load(std::memory_order_relaxed);
    return {steps_.load(std::memory_order_relaxed), collectives_.load(std::memory_order_relaxed), rounds_,
            operation != nullptr ? operation : round_};
  }

 private:
  std::atomic<const char*> operation_{nullptr};  // null: see round_
  std::atomic<std::int64_t> collectives_{0};
  std::atomic<std::int64_t> steps_{0};
  std::string round_;
  std::int64_t rounds_ = 0;
};

}  // namespace accel::inline v0_1::launch::detail
