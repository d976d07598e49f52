// Launch: what a launcher told this process, everything the rendezvous needs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Where the store listens.
struct Endpoint {
  std::string host;
  int port = 0;

  bool operator==(const Endpoint&) const = default;
};

/// Which local fields of a topology are settled; the others hold their defaults until the
/// rendezvous finds them out by host.
struct KnownLocals {
  bool local_rank = false;
  bool local_world_size = false;
  bool node_rank = false;
};

struct Launch {
  std::string family;  // "torchrun", "environment variables" or "single process"
  Topology topology;   // rank and world_size always hold, the rest as far as `known` says
  KnownLocals known;
  std::optional<Endpoint> master;  // there whenever world_size > 1
  std::string run_id;              // equal on all ranks: begins every key in the store
  bool agent_store = false;        // the launcher runs the server at `master`, all are clients
  Reader::Read variables;          // what was read, in that order

  /// False where the rendezvous still has to ask who shares a host with whom.
  [[nodiscard]] bool local_known() const { return known.local_rank && known.local_world_size && known.node_rank; }
};

/// Refuses numbers that contradict each other. Families share it: they differ only in the name of
/// the variable that numbers the hosts.
///
/// Throws   ConfigError that quotes both variables.
inline void check_consistent(const Launch& launch, const Reader& reader, std::string_view node_rank_name) {
  const Topology& topology = launch.topology;
  const auto refuse_if = [&reader](bool wrong, std::string_view one, std::string_view is, std::string_view other) {
    if (wrong) reader.fail(reader.quote(one), " is ", is, " ", reader.quote(other));
  };
  refuse_if(topology.rank >= topology.world_size, "RANK", "not below", "WORLD_SIZE");
  // Unknown locals contradict nothing: local_world_size is then 1, the others are 0.
  refuse_if(topology.local_world_size > topology.world_size, "LOCAL_WORLD_SIZE", "more than", "WORLD_SIZE");
  refuse_if(launch.known.local_world_size && topology.local_rank >= topology.local_world_size, "LOCAL_RANK",
            "not below", "LOCAL_WORLD_SIZE");
  refuse_if(topology.local_rank > topology.rank, "LOCAL_RANK", "more than", "RANK");
  // Each host before this one runs at least one rank.
  refuse_if(topology.node_rank > topology.world_size - topology.local_world_size, node_rank_name, "too large for",
            launch.known.local_world_size ? "LOCAL_WORLD_SIZE" : "WORLD_SIZE");
}

/// A few lines for people: what was detected, and from which variables.
[[nodiscard]] inline std::string describe(const Launch& launch) {
  const auto& [rank, world_size, local_rank, local_world_size, node_rank] = launch.topology;
  const auto or_unknown = [](bool known, int value) { return known ? std::to_string(value) : std::string("?"); };
  std::string text = message("launched by: ", launch.family, "\nrank: ", rank, " of ", world_size,
                             "\nlocal rank: ", or_unknown(launch.known.local_rank, local_rank), " of ",
                             or_unknown(launch.known.local_world_size, local_world_size),
                             ", node: ", or_unknown(launch.known.node_rank, node_rank));
  if (!launch.local_known()) text += " (? is found out by host, at the rendezvous)";
  text += "\nmaster: ";
  if (launch.master) {
    text += message(launch.master->host, ":", launch.master->port,
                    launch.agent_store ? ", store run by the launcher" : ", store run by rank 0");
  } else {
    text += "none, one process needs none";
  }
  text += "\nrun id: " + launch.run_id + "\nread:";
  if (launch.variables.empty()) text += " no variables";
  for (const auto& [name, value] : launch.variables) text += message(" ", name, "=", value);
  return text += "\n";
}

}  // namespace accel::inline v0_1::launch
