// Peer: a process as the others know it, and how far it has come.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

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
