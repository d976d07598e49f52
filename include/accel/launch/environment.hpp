// Environment: asks each launcher's variables in turn who this process is.
#pragma once

#include <string_view>

#include <accel/core/error.hpp>
#include <accel/launch/env_vars.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/torchrun.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// No launcher: this process is the whole job.
///
/// Throws   ConfigError if only local variables are set: ranks of one job would each run alone.
[[nodiscard]] inline Launch single_process(const Variables& variables) {
  Reader reader(variables, "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT too, or unset it to run as one process");
  for (const std::string_view name : {"LOCAL_RANK", "LOCAL_WORLD_SIZE"}) {
    if (reader.text(name)) reader.fail(reader.quote(name), " is set, but RANK and WORLD_SIZE are not");
  }
  Launch launch;
  launch.family = "single process";
  launch.known = {.local_rank = true, .local_world_size = true, .node_rank = true};
  launch.run_id = "default";
  return launch;
}

/// Who this process is. The first launcher that recognises its variables decides.
///
/// Throws   ConfigError if that launcher's variables are incomplete or contradict each other.
[[nodiscard]] inline Launch detect(const Variables& variables = process_environment()) {
  // The most specific first: torchrun sets the plain variables too.
  for (const auto family : {from_torchrun, from_env_vars}) {
    if (auto launch = family(variables)) return *launch;
  }
  return single_process(variables);
}

}  // namespace accel::inline v0_1::launch
