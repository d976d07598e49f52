// MVAPICH: the variables of its mpirun_rsh.
#pragma once

#include <optional>

#include <accel/launch/detail/mpi_family.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless MV2_COMM_WORLD_RANK is set. Several hosts need MASTER_ADDR.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   MVAPICH2 2.3 user guide.
[[nodiscard]] inline std::optional<Launch> from_mvapich(const Variables& variables) {
  const VariableNames names{"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
                            "MV2_COMM_WORLD_LOCAL_SIZE", ""};
  return detail::read_mpi(variables, "MVAPICH", names, "");
}

}  // namespace accel::inline v0_1::launch
