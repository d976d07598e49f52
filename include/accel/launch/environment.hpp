// Environment: asks each launcher's variables in turn who this process is.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/launch/env_vars.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/mvapich.hpp>
#include <accel/launch/open_mpi.hpp>
#include <accel/launch/pmi.hpp>
#include <accel/launch/pmix.hpp>
#include <accel/launch/slurm.hpp>
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
  return launch;
}

/// A launcher: the variable by which it is known, and who reads the rest.
struct Family {
  std::string_view name;
  std::string_view marker;
  std::optional<Launch> (*read)(const Variables&);
  std::string_view sets_too{};  // other families' markers that this launcher sets by itself
};

/// All launchers, in the order in which they are asked. What a user sets by hand goes first, then the
/// launcher nearest to the process: torchrun and mpirun may themselves run inside a SLURM step.
inline constexpr auto families = std::to_array<Family>({
    {"ACCEL_ variables", "ACCEL_RANK", from_accel_vars},
    {"torchrun", "TORCHELASTIC_RUN_ID", from_torchrun, "RANK"},
    {"environment variables", "RANK", from_env_vars},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", from_open_mpi, "PMIX_RANK"},
    {"MVAPICH", "MV2_COMM_WORLD_RANK", from_mvapich, "PMI_RANK"},
    {"PMI", "PMI_RANK", from_pmi},
    {"SLURM", "SLURM_STEP_ID", from_slurm, "PMIX_RANK PMI_RANK"},
    {"PMIx", "PMIX_RANK", from_pmix},
});

/// Who this process is. The first launcher that recognises its variables decides; what others have left
/// in the environment is noted, and contradicts nothing.
///
/// Throws   ConfigError if that launcher's variables are incomplete or contradict each other.
[[nodiscard]] inline Launch detect(const Variables& variables = process_environment()) {
  for (const Family& family : families) {
    if (!variables(family.marker)) continue;
    auto launch = family.read(variables);
    if (!launch) continue;
    for (const Family& other : families)
      if (&other != &family && family.sets_too.find(other.marker) == std::string_view::npos && variables(other.marker))
        launch->left_over.emplace_back(other.name);
    return *std::move(launch);
  }
  // WORLD_SIZE without RANK: half of the plain variables, or a job of one.
  for (const auto read : {from_accel_vars, from_env_vars})
    if (auto launch = read(variables)) return *std::move(launch);
  return single_process(variables);
}

}  // namespace accel::inline v0_1::launch
