// PMIx: a rank, and a size that somebody else has to give.
#pragma once

#include <optional>

#include <accel/launch/detail/mpi_family.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless PMIX_RANK is set. PMIx itself puts no size into the environment: WORLD_SIZE must be set,
/// as by `prterun -x WORLD_SIZE`. Without it a rank would take itself for the whole job.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   PMIx standard 4.1, "Client environment".
[[nodiscard]] inline std::optional<Launch> from_pmix(const Variables& variables) {
  const VariableNames names{"PMIX_RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", ""};
  return detail::read_mpi(variables, "PMIx", names, "PMIX_NAMESPACE");
}

}  // namespace accel::inline v0_1::launch
