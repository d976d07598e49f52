// Options: every setting of an accelerator and its default, and what all ranks must have alike.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <accel/checkpoint/saver.hpp>
#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/core/hash.hpp>
#include <accel/core/log.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/gradient/accumulation.hpp>
#include <accel/gradient/reducer.hpp>
#include <accel/prepare/session.hpp>

namespace accel::inline v0_1 {

/// Every default in force, and where it comes from.
template <class B, class P>
struct AcceleratorOptions {
  int accumulation_steps = 1;  // micro-batches per optimizer step, with accumulate()
  gradient::LossNormalization loss_normalization =
      gradient::LossNormalization::window_length;  // of a short last window
  SchedulerStepping scheduler_stepping =
      SchedulerStepping::PerUpdate;     // one step of a schedule for one of the optimizer
  gradient::ReducerOptions gradient{};  // buckets of an eighth, 1 to 25 MiB, the last 1 MiB
  checkpoint::Options checkpoint{};     // folder, which ones stay, in the background or not
  typename B::Options backend{};        // timeout of collectives, interface, device
  typename P::Options precision{};      // fp16: the loss scale; fp32: tf32
  // Unset: ACCEL_RENDEZVOUS_TIMEOUT_S or 300, ACCEL_HEARTBEAT_S or 1.5; see launch::Timeouts.
  std::optional<double> rendezvous_timeout_s{};  // until all ranks are there
  std::optional<double> heartbeat_s{};           // a rank is given up after three of silence; 0: never
  std::optional<int> threads{};                  // intra-op; unset: cores / local_world_size, or the user's own
  Log::Level log = Log::Level::info;             // to standard error
};

namespace prepare {

/// A line for each setting that, where ranks have it differently, ends in wrong sums or in a hang.
template <class B, class P>
[[nodiscard]] std::vector<std::string> common_settings(const gradient::Accumulation& accumulation,
                                                       SchedulerStepping stepping,
                                                       const gradient::ReducerOptions& gradient,
                                                       const typename P::Options& precision) {
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  return {message("accel ", ACCEL_VERSION, ", backend ", B::name, ", precision ", P::name),
          message("precision: ", describe(precision)),
          message("accumulation_steps = ", accumulation.steps()),
          message("loss_normalization = ", name_of(accumulation.normalization())),
          message("scheduler_stepping = ", name_of(stepping)),
          message("buckets of ", gradient.caps.bucket_cap, ", the last of ", gradient.caps.last_bucket_cap),
          message("plan ", gradient.plan.empty() ? "of its own" : message("with hash ", fnv1a(gradient.plan))),
          message("overlap = ", flag(gradient.overlap)),
          message("broadcast_buffers = ", flag(gradient.broadcast_buffers))};
}

}  // namespace prepare
}  // namespace accel::inline v0_1
