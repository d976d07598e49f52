// Open MPI: the variables of its mpirun.
#pragma once

#include <optional>

#include <accel/launch/detail/mpi_family.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless OMPI_COMM_WORLD_RANK is set. Several hosts need MASTER_ADDR: `mpirun -x MASTER_ADDR`.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   Open MPI 4.1 and 5.0, "Environment variables" of mpirun(1).
[[nodiscard]] inline std::optional<Launch> from_open_mpi(const Variables& variables) {
  const VariableNames names{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                            "OMPI_COMM_WORLD_LOCAL_SIZE", ""};
  return detail::read_mpi(variables, "Open MPI", names, "PMIX_NAMESPACE");
}

}  // namespace accel::inline v0_1::launch
