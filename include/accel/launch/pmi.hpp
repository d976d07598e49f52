// PMI: the variables of MPICH's and Intel MPI's mpiexec.
#pragma once

#include <optional>

#include <accel/launch/detail/mpi_family.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless PMI_RANK is set. Several hosts need MASTER_ADDR. Under `srun --mpi=pmi2` the step's own
/// variables say the same and more, and are left to from_slurm.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   MPICH 4.0 (hydra), Intel MPI 2021.
[[nodiscard]] inline std::optional<Launch> from_pmi(const Variables& variables) {
  const auto rank = variables("PMI_RANK");
  if (variables("SLURM_STEP_ID") && rank == variables("SLURM_PROCID") &&
      variables("PMI_SIZE") == variables("SLURM_STEP_NUM_TASKS"))
    return std::nullopt;
  const VariableNames names{"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ""};
  return detail::read_mpi(variables, "PMI", names, "");
}

}  // namespace accel::inline v0_1::launch
