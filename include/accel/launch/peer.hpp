// Peer: a process as the others know it, and how far it has come.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace accel::inline v0_1::launch {

/// A process of the job.
struct Peer {
  int rank = 0;
  std::string host;
  std::string network;  // boot and network namespace: equal where loopback reaches
  std::int64_t pid = 0;
  int world_size = 0;  // what that process believes
};

inline std::ostream& operator<<(std::ostream& out, const Peer& peer) {
  return out << "rank " << peer.rank << " (host " << peer.host << ", process " << peer.pid << ")";
}

/// Names in a sentence: the first eight, and how many more there are.
[[nodiscard]] inline std::string listed(const std::vector<std::string>& names) {
  constexpr std::size_t most = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(most, names.size()); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

/// How far a process has come: what the others say of it should it fail.
struct Progress {
  std::int64_t steps = 0;        // optimizer steps it has finished
  std::int64_t collectives = 0;  // collectives it has begun
  std::int64_t rounds = 0;       // exchanges over the control plane it has begun
  std::string operation;         // the last of either; empty before the first
};

inline std::ostream& operator<<(std::ostream& out, const Progress& progress) {
  out << "after " << progress.steps << (progress.steps == 1 ? " step" : " steps");
  if (!progress.operation.empty())
    out << " and " << progress.collectives << (progress.collectives == 1 ? " collective" : " collectives")
        << ", the last operation " << progress.operation;
  return out;
}

}  // namespace accel::inline v0_1::launch
