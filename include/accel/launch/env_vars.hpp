// Plain variables: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as a shell loop sets them.
#pragma once

#include <optional>
#include <string>

#include <accel/launch/launch.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

namespace detail {

/// The plain family with `prefix` in front of every name.
[[nodiscard]] inline Launch read_plain(const Variables& variables, const std::string& family,
                                       const std::string& prefix) {
  const VariableNames names{prefix + "RANK", prefix + "WORLD_SIZE", prefix + "LOCAL_RANK", prefix + "LOCAL_WORLD_SIZE",
                            prefix + "NODE_RANK"};
  const std::string master_addr = prefix + "MASTER_ADDR";
  const std::string master_port = prefix + "MASTER_PORT";
  Reader reader(variables,
                message("set ", names.rank, ", ", names.world_size, ", ", master_addr, " and ", master_port,
                        " for every rank, or unset ", names.rank, " and ", names.world_size, " to run as one process"));
  Launch launch;
  launch.family = family;
  Topology& topology = launch.topology;

  const auto rank = reader.whole(names.rank);
  topology.world_size = reader.required(reader.whole(names.world_size, 1), names.world_size, names.rank);
  const bool alone = topology.world_size == 1;
  topology.rank = alone ? rank.value_or(0) : reader.required(rank, names.rank, names.world_size);

  const auto host = reader.text(master_addr);
  const auto port = reader.whole(master_port, 1, 65535);
  if (!alone || host || port) {
    launch.master = Endpoint{reader.required(host, master_addr, port ? master_port : names.world_size),
                             reader.required(port, master_port, host ? master_addr : names.world_size)};
  }

  const auto local_rank = reader.whole(names.local_rank);
  const auto local_world_size = reader.whole(names.local_world_size, 1);
  const auto node_rank = reader.whole(names.node_rank);
  const std::string group = prefix + "GROUP_RANK";
  const auto group_rank = reader.whole(group);
  if (node_rank && group_rank && *node_rank != *group_rank) {
    reader.fail(reader.quote(names.node_rank), " is not ", reader.quote(group), ", both number the host");
  }
  const auto node = node_rank ? node_rank : group_rank;
  topology.local_rank = local_rank.value_or(0);
  topology.local_world_size = local_world_size.value_or(1);
  topology.node_rank = node.value_or(0);

  launch.known.local_world_size = local_world_size || alone;
  const bool one_host = launch.known.local_world_size && topology.local_world_size == topology.world_size;
  launch.known.local_rank = local_rank || alone;
  launch.known.node_rank = node || one_host;

  launch.run_id = reader.text("ACCEL_RUN_ID").value_or("");
  VariableNames read = names;
  if (!node_rank) read.node_rank = group;
  check_consistent(launch, reader, read);
  launch.variables = reader.read();
  return launch;
}

}  // namespace detail

/// Nothing unless RANK or WORLD_SIZE is set; MASTER_ADDR and MASTER_PORT alone are leftovers.
///
/// LOCAL_RANK, LOCAL_WORLD_SIZE and NODE_RANK (or GROUP_RANK) are optional, each of them: what is
/// missing, the rendezvous finds out by host. Kubeflow's training operator sets no LOCAL_RANK.
/// ACCEL_RUN_ID, equal on all ranks, keeps two jobs apart that are given the same MASTER_ADDR and
/// MASTER_PORT by mistake; without it rank 0 draws one. WORLD_SIZE = 1 needs no other variable.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   PyTorch's env:// initialisation.
[[nodiscard]] inline std::optional<Launch> from_env_vars(const Variables& variables) {
  if (!variables("RANK") && !variables("WORLD_SIZE")) return std::nullopt;
  return detail::read_plain(variables, "environment variables", "");
}

/// The same with ACCEL_ in front of every name: ACCEL_RANK, ACCEL_WORLD_SIZE, ACCEL_MASTER_ADDR, ...
/// They go before every launcher's: for programs that are themselves part of another job.
[[nodiscard]] inline std::optional<Launch> from_accel_vars(const Variables& variables) {
  if (!variables("ACCEL_RANK") && !variables("ACCEL_WORLD_SIZE")) return std::nullopt;
  return detail::read_plain(variables, "ACCEL_ variables", "ACCEL_");
}

}  // namespace accel::inline v0_1::launch
