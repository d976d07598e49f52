// Threads: how many intra-op threads a rank gets when several share a host.
#pragma once

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string_view>

#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Cores this process may use; a launcher that pins ranks shows here.
[[nodiscard]] inline int usable_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(CPU_COUNT(&cores), 1) : 1;
}

/// Whether `current`, the threads of LibTorch, is not what it takes by itself: one per core, or one per
/// two where cores are halves of one (SMT). A choice that equals that cannot be told from none.
[[nodiscard]] inline bool threads_were_chosen(int current, int cores) {
  bool halves = false;
  std::ifstream("/sys/devices/system/cpu/smt/active") >> halves;
  return current != cores && !(halves && current == std::max(cores / 2, 1));
}

/// cores / local_world_size, at least 1; nothing if there is one rank on the host or the user set a
/// number, by a variable that LibTorch reads itself or, `chosen`, by torch::set_num_threads.
/// Source   torchrun sets OMP_NUM_THREADS=1 for the same reason: ranks that share cores get in each
///          other's way with one thread per core each.
[[nodiscard]] inline std::optional<int> intra_op_threads(int cores, int local_world_size, bool chosen,
                                                         const Variables& variables) {
  for (const std::string_view name : {"OMP_NUM_THREADS", "MKL_NUM_THREADS"})
    if (variables(name)) return std::nullopt;
  if (chosen || local_world_size <= 1) return std::nullopt;
  return std::max(cores / local_world_size, 1);
}

}  // namespace accel::inline v0_1::launch
