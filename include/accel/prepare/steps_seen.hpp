// StepsSeen: whether an optimizer has moved since somebody looked last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <accel/prepare/session.hpp>

namespace accel::inline v0_1::prepare {

/// For what follows the steps of optimizers, as schedules and averages do: a step that was skipped for an overflow is
/// none to follow. Where there was no step at all the call stands for itself, as after an epoch.
class StepsSeen {
 public:
  /// What was stepped before is nothing to follow.
  explicit StepsSeen(std::span<const std::shared_ptr<StepCount>> counts) { (void)only_skipped(counts); }

  /// All steps that one of these optimizers was to take since the last call were skipped.
  ///
  /// Cost     none where the loss is not scaled; else the host waits for a GPU.
  [[nodiscard]] bool only_skipped(std::span<const std::shared_ptr<StepCount>> counts) {
    bool skipped = false;
    for (const auto& count : counts) {
      const auto known = std::find_if(seen_.begin(), seen_.end(), [&](const auto& one) { return one.of == count; });
      Seen& seen = known == seen_.end() ? seen_.emplace_back(Seen{count, 0, 0}) : *known;
      const std::int64_t taken = count->taken();
      skipped |= count->attempts > seen.attempts && taken == seen.taken;
      seen = {count, count->attempts, taken};
    }
    return skipped;
  }

 private:
  struct Seen {
    std::shared_ptr<StepCount> of;
    std::int64_t attempts, taken;
  };

  std::vector<Seen> seen_;
};

}  // namespace accel::inline v0_1::prepare
