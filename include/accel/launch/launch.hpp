// Launch: what a launcher told this process, everything the rendezvous needs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Where rank 0 listens, or the store of the launcher.
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

/// What a launcher calls the numbers of a topology; empty where it has none.
struct VariableNames {
  std::string rank = "RANK";
  std::string world_size = "WORLD_SIZE";
  std::string local_rank = "LOCAL_RANK";
  std::string local_world_size = "LOCAL_WORLD_SIZE";
  std::string node_rank = "NODE_RANK";
};

struct Launch {
  std::string family;  // "torchrun", "SLURM", "single process", ...
  Topology topology;   // rank and world_size always hold, the rest as far as `known` says
  KnownLocals known;
  std::optional<Endpoint> master;      // there whenever world_size > 1
  std::string run_id;                  // equal on all ranks; empty: rank 0 draws one
  bool agent_store = false;            // the launcher runs the server at `master`, all are clients
  Reader::Read variables;              // what was read, in that order
  std::vector<std::string> left_over;  // families whose variables are there, too, but were not read

  /// False where the rendezvous still has to ask who shares a host with whom.
  [[nodiscard]] bool local_known() const { return known.local_rank && known.local_world_size && known.node_rank; }
};

/// Refuses numbers that contradict each other. Families share it: they differ only in the names.
///
/// Throws   ConfigError that quotes both variables.
inline void check_consistent(const Launch& launch, const Reader& reader, const VariableNames& names) {
  const Topology& topology = launch.topology;
  const auto refuse_if = [&reader](bool wrong, std::string_view one, std::string_view is, std::string_view other) {
    if (wrong) reader.fail(reader.quote(one), " is ", is, " ", reader.quote(other));
  };
  refuse_if(topology.rank >= topology.world_size, names.rank, "not below", names.world_size);
  // Unknown locals contradict nothing: local_world_size is then 1, the others are 0.
  refuse_if(topology.local_world_size > topology.world_size, names.local_world_size, "more than", names.world_size);
  refuse_if(launch.known.local_world_size && topology.local_rank >= topology.local_world_size, names.local_rank,
            "not below", names.local_world_size);
  refuse_if(topology.local_rank > topology.rank, names.local_rank, "more than", names.rank);
  // Each host before this one runs at least one rank.
  refuse_if(topology.node_rank > topology.world_size - topology.local_world_size, names.node_rank, "too large for",
            launch.known.local_world_size ? names.local_world_size : names.world_size);
}

/// A port for a job whose launcher gives none: the same on all its ranks, most likely another for
/// another job, and below the ephemeral ports, of which any might be taken.
[[nodiscard]] inline int port_of_job(std::string_view job) {
  std::uint32_t hash = 0x811c9dc5U;  // FNV-1a
  for (const char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * 0x01000193U;
  return 20000 + static_cast<int>(hash % 12000U);
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
                    launch.agent_store ? ", a store of the launcher's" : ", where rank 0 listens");
  } else {
    text += "none, one process needs none";
  }
  text += "\nrun id: " + (launch.run_id.empty() ? "none given" : launch.run_id) + "\nread:";
  if (launch.variables.empty()) text += " no variables";
  for (const auto& [name, value] : launch.variables) text += message(" ", name, "=", value);
  if (!launch.left_over.empty()) text += "\nnot asked, though variables of theirs are set:";
  for (const auto& family : launch.left_over) text += " " + family;
  return text += "\n";
}

}  // namespace accel::inline v0_1::launch
