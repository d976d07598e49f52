// Plain variables: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as a shell loop sets them.
#pragma once

#include <optional>
#include <string>

#include <accel/launch/launch.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless RANK or WORLD_SIZE is set; MASTER_ADDR and MASTER_PORT alone are leftovers.
///
/// LOCAL_RANK, LOCAL_WORLD_SIZE and NODE_RANK (or GROUP_RANK) are optional, each of them: what is
/// missing, the rendezvous finds out by host. ACCEL_RUN_ID, equal on all ranks, keeps two jobs
/// apart that are given the same MASTER_ADDR and MASTER_PORT by mistake; without it: "default".
/// WORLD_SIZE = 1 needs no other variable.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   PyTorch's env:// initialisation.
[[nodiscard]] inline std::optional<Launch> from_env_vars(const Variables& variables) {
  if (!variables("RANK") && !variables("WORLD_SIZE")) return std::nullopt;
  Reader reader(variables,
                "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every rank, or unset RANK "
                "and WORLD_SIZE to run as one process");
  Launch launch;
  launch.family = "environment variables";
  Topology& topology = launch.topology;

  const auto rank = reader.whole("RANK");
  topology.world_size = reader.required(reader.whole("WORLD_SIZE", 1), "WORLD_SIZE", "RANK");
  const bool alone = topology.world_size == 1;
  topology.rank = alone ? rank.value_or(0) : reader.required(rank, "RANK", "WORLD_SIZE");

  const auto host = reader.text("MASTER_ADDR");
  const auto port = reader.whole("MASTER_PORT", 1, 65535);
  if (!alone || host || port) {
    launch.master = Endpoint{reader.required(host, "MASTER_ADDR", port ? "MASTER_PORT" : "WORLD_SIZE"),
                             reader.required(port, "MASTER_PORT", host ? "MASTER_ADDR" : "WORLD_SIZE")};
  }

  const auto local_rank = reader.whole("LOCAL_RANK");
  const auto local_world_size = reader.whole("LOCAL_WORLD_SIZE", 1);
  const auto node_rank = reader.whole("NODE_RANK");
  const auto group_rank = reader.whole("GROUP_RANK");
  if (node_rank && group_rank && *node_rank != *group_rank) {
    reader.fail(reader.quote("NODE_RANK"), " is not ", reader.quote("GROUP_RANK"), ", both number the host");
  }
  const auto node = node_rank ? node_rank : group_rank;
  topology.local_rank = local_rank.value_or(0);
  topology.local_world_size = local_world_size.value_or(1);
  topology.node_rank = node.value_or(0);

  launch.known.local_world_size = local_world_size || alone;
  const bool one_host = launch.known.local_world_size && topology.local_world_size == topology.world_size;
  launch.known.local_rank = local_rank || alone;
  launch.known.node_rank = node || one_host;

  launch.run_id = reader.text("ACCEL_RUN_ID").value_or("default");
  check_consistent(launch, reader, node_rank ? "NODE_RANK" : "GROUP_RANK");
  launch.variables = reader.read();
  return launch;
}

}  // namespace accel::inline v0_1::launch
