// Topology: who this process is among all processes, and where it sits on its host.
#pragma once

#include <string>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::launch {

struct Topology {
  int rank = 0;              // [0, world_size)
  int world_size = 1;        // all processes of the job
  int local_rank = 0;        // [0, local_world_size), among the processes of this host
  int local_world_size = 1;  // processes of this host
  int node_rank = 0;         // which host

  [[nodiscard]] bool is_main() const { return rank == 0; }
  [[nodiscard]] bool is_local_main() const { return local_rank == 0; }
  [[nodiscard]] bool is_last() const { return rank == world_size - 1; }

  /// `[rank 1/4]`, or nothing where there is only one: what log lines and errors start with.
  [[nodiscard]] std::string label() const {
    return world_size == 1 ? std::string() : message("[rank ", rank, "/", world_size, "]");
  }

  bool operator==(const Topology&) const = default;
};

}  // namespace accel::inline v0_1::launch
