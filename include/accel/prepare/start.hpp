// Start: from options and what the launcher said to an engine that is connected to the other ranks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/core/log.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/environment.hpp>
#include <accel/launch/rendezvous.hpp>
#include <accel/launch/threads.hpp>
#include <accel/launch/timeouts.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/engine.hpp>
#include <accel/prepare/options.hpp>

namespace accel::inline v0_1::prepare {

/// The options, then the variables, then the defaults.
template <Backend B, Precision P>
[[nodiscard]] launch::MeetOptions meet_options(const AcceleratorOptions<B, P>& options) {
  const auto variables = launch::timeouts_from();
  launch::MeetOptions result;
  const auto choose = [](Seconds& value, std::optional<double> option, std::optional<double> variable) {
    if (option || variable) value = Seconds(option ? *option : *variable);
  };
  choose(result.timeout, options.rendezvous_timeout_s, variables.rendezvous_s);
  choose(result.beat, options.heartbeat_s, variables.heartbeat_s);
  choose(result.collective_timeout, std::nullopt, variables.collective_s);
  result.port = variables.heartbeat_port.value_or(0);
  ACCEL_CHECK(result.timeout.count() > 0, ConfigError, "rendezvous_timeout_s = ", result.timeout.count(),
              " must be above 0");
  return result;
}

/// Meets the other ranks and connects to them.
///
/// Throws   ConfigError for options or variables that cannot be; CommError if ranks do not come.
template <Backend B, Precision P>
[[nodiscard]] std::shared_ptr<Engine<B, P>> connect(const AcceleratorOptions<B, P>& options,
                                                    const launch::Launch& launch) {
  auto engine = labelled(launch.topology.label(), [&] {
    gradient::Accumulation accumulation(options.accumulation_steps, options.loss_normalization);
    if constexpr (requires { B::check_launch(launch.family, launch.topology.world_size); })
      B::check_launch(launch.family, launch.topology.world_size);
    const auto meeting = launch::meet(launch, launch::next_creation(), meet_options(options));
    B backend(meeting, options.backend);
    Log log(meeting.topology.label(), meeting.topology.is_main(), options.log);
    return std::make_shared<Engine<B, P>>(std::move(backend), meeting.topology, std::move(log), std::move(accumulation),
                                          options.gradient, options.precision);
  });
  engine->at_rank([&] { engine->keep_own_parts(options.checkpoint); });
  engine->scheduler_stepping = options.scheduler_stepping;
  for (const auto& family : launch.left_over)
    engine->log.info("launched by ", launch.family, "; variables of ", family, " are set, too, and were not asked");
  return engine;
}

/// Sets the intra-op threads of this process; returns their number and why.
[[nodiscard]] inline std::string set_threads(std::optional<int> option, int local_world_size) {
  const int cores = launch::usable_cores();
  const auto environment = launch::process_environment();
  // An earlier accelerator of this process chose as this one does.
  const bool chosen = launch::threads_were_chosen(at::get_num_threads(), cores) &&
                      launch::intra_op_threads(cores, local_world_size, false, environment) != at::get_num_threads();
  const auto share = launch::intra_op_threads(cores, local_world_size, chosen, environment);
  if (option || share) at::set_num_threads(option ? *option : *share);
  return message(at::get_num_threads(), option   ? " (option)"
                                        : share  ? " (cores / local world size)"
                                        : chosen ? " (as the program set them)"
                                                 : " (LibTorch's own choice, or the user's variable)");
}

/// What was detected, from where, and every setting in force.
template <Backend B, Precision P>
[[nodiscard]] std::string description(const Engine<B, P>& engine, const AcceleratorOptions<B, P>& options,
                                      const launch::Launch& launch, const std::string& threads) {
  const launch::Topology& own = engine.topology;
  const launch::MeetOptions waits = meet_options(options);
  const bool by_length = options.loss_normalization == gradient::LossNormalization::window_length;
  return message("accel ", ACCEL_VERSION, " on LibTorch ", TORCH_VERSION, "\n", launch::describe(launch),
                 "\nlocal: rank ", own.local_rank, " of ", own.local_world_size, " on host ", own.node_rank,
                 "\nbackend: ", backend::description(engine.backend), "\nprecision: ", P::name,
                 describe(options.precision).empty() ? "" : ", " + describe(options.precision),
                 "\naccumulation_steps: ", options.accumulation_steps, ", a short window is divided by ",
                 by_length ? "its length" : "accumulation_steps",
                 "\nscheduler_stepping: ", name_of(options.scheduler_stepping), "\ngradient: buckets of ",
                 options.gradient.caps.bucket_cap, ", the last of ", options.gradient.caps.last_bucket_cap,
                 options.gradient.overlap ? ", overlapped with backward" : ", after backward", "\nbuffers: ",
                 options.gradient.broadcast_buffers ? "rank 0's after each reduction" : "each rank's own",
                 "\ncheckpoints: ", options.checkpoint.folder.string(),
                 options.checkpoint.asynchronous ? ", written in the background" : ", waited for",
                 "\nrendezvous timeout: ", waits.timeout.count(), " s\nheartbeat: ", waits.beat.count(),
                 " s\nintra-op threads: ", threads, "\nlog: ", Log::name(options.log), "\n");
}

}  // namespace accel::inline v0_1::prepare
