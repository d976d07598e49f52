// What the families of MPI have in common: numbers in variables, and no address of rank 0.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <accel/launch/launch.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch::detail {

/// MASTER_ADDR and MASTER_PORT if they are set; else loopback where all ranks share this host, and a
/// port of the job.
///
/// Throws   ConfigError if there are several hosts and no MASTER_ADDR.
inline void choose_master(Launch& launch, Reader& reader, std::string_view job) {
  const Topology& topology = launch.topology;
  if (topology.world_size == 1) return;
  auto host = reader.text("MASTER_ADDR");
  const auto port = reader.whole("MASTER_PORT", 1, 65535);
  const bool one_host = launch.known.local_world_size && topology.local_world_size == topology.world_size;
  if (!host && !one_host)
    reader.fail("MASTER_ADDR is not set, and ", launch.family, " does not say on which host rank 0 is");
  launch.master = Endpoint{host.value_or("127.0.0.1"), port.value_or(port_of_job(job))};
}

/// One family: nothing unless its rank is set. `job` names a variable that is the same on all ranks
/// and differs between jobs, or nothing.
[[nodiscard]] inline std::optional<Launch> read_mpi(const Variables& variables, const std::string& family,
                                                    const VariableNames& names, const std::string& job) {
  if (!variables(names.rank)) return std::nullopt;
  Reader reader(variables, message(family, " sets ", names.rank, " and ", names.world_size,
                                   "; give every rank MASTER_ADDR, the host of rank 0, and MASTER_PORT where there "
                                   "are several hosts, or unset ",
                                   names.rank));
  Launch launch;
  launch.family = family;
  Topology& topology = launch.topology;
  topology.rank = reader.required(reader.whole(names.rank), names.rank, family);
  topology.world_size = reader.required(reader.whole(names.world_size, 1), names.world_size, names.rank);
  const bool alone = topology.world_size == 1;

  const auto optional = [&](const std::string& name, int least) {
    return name.empty() ? std::nullopt : reader.whole(name, least);
  };
  const auto local_rank = optional(names.local_rank, 0);
  const auto local_world_size = optional(names.local_world_size, 1);
  topology.local_rank = local_rank.value_or(0);
  topology.local_world_size = local_world_size.value_or(1);
  launch.known.local_rank = local_rank || alone;
  launch.known.local_world_size = local_world_size || alone;
  launch.known.node_rank = launch.known.local_world_size && topology.local_world_size == topology.world_size;

  const auto given = reader.text("ACCEL_RUN_ID");
  const auto own = given || job.empty() ? std::nullopt : reader.text(job);
  launch.run_id = given.value_or(own.value_or(""));
  check_consistent(launch, reader, names);
  choose_master(launch, reader, launch.run_id);
  launch.variables = reader.read();
  return launch;
}

}  // namespace accel::inline v0_1::launch::detail
