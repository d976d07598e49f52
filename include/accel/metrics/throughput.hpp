// Throughput: samples per second of all ranks together, and what a step takes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <c10/core/Device.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::metrics {

struct ThroughputResult {
  std::int64_t samples = 0;  // of all ranks
  double seconds = 0;        // of the slowest rank
  double samples_per_s = 0;
  double step_time_ms = 0;  // of the slowest rank, the mean over its steps
};

/// The clock runs from construction, reset() or start(), and update() ends a step.
///
/// Cost     of update() two small writes on the host. A GPU works behind the host, by a few steps at most: measure over
///          many.
/// Order    update() is of this rank alone.
/// State    samples, steps and seconds so far; the time in which the program did not run does not count.
class Throughput : public Tally {
 public:
  Throughput() : Tally("throughput", 1, 2) {}

  /// What was since the last update does not count, as an evaluation or a checkpoint.
  void start() { last_ = Clock::now(); }

  /// A step with `rows` samples has ended.
  void update(std::int64_t rows) {
    const auto now = Clock::now();
    update(rows, now - last_);
    last_ = now;
  }
  /// The same for who has measured the time.
  void update(std::int64_t rows, Seconds spent) {
    ACCEL_CHECK(rows >= 0 && spent.count() >= 0, InvalidArgument,
                "throughput: expected rows and seconds of at least 0, found ", rows, " and ", spent.count());
    const Unrecorded guard;
    use_device(c10::Device(c10::DeviceType::CPU));
    *counts_.mutable_data_ptr<std::int64_t>() += rows;
    auto* numbers = numbers_.mutable_data_ptr<double>();
    numbers[0] += spent.count();
    numbers[1] += 1;  // steps
  }

  void reset() {
    Tally::reset();
    start();
  }
  void load_state_dict(const tensor::StateDict& state) {
    Tally::load_state_dict(state);
    start();
  }

  /// Rates are NaN before the first step.
  template <class Ranks>
  [[nodiscard]] ThroughputResult compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] ThroughputResult result(const Totals& totals) const {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    ThroughputResult result{.samples = totals.counts[0], .samples_per_s = nan, .step_time_ms = nan};
    double step = 0;
    bool is_measured = false;
    for (const auto& own : totals.numbers) {
      if (own[1] == 0) continue;
      is_measured = true;
      result.seconds = std::max(result.seconds, own[0]);
      step = std::max(step, own[0] / own[1]);
    }
    if (!is_measured) return result;
    result.samples_per_s = static_cast<double>(result.samples) / result.seconds;
    result.step_time_ms = 1e3 * step;
    return result;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

static_assert(Metric<Throughput>);

}  // namespace accel::inline v0_1::metrics
