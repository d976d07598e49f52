// Limits: open files for the connections of a large job.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <cstddef>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::launch::detail {

/// Raises the soft limit of open files, as far as it may, to what this rank can come to need: a connection to each
/// other rank, as Gloo's, and on rank 0 those of the star.
///
/// Throws   ConfigError on rank 0 if even what the ranks need to meet is more than the hard limit.
inline void raise_limits(int rank, int world_size) {
  constexpr rlim_t others = 256;  // what a program has open besides
  const auto ranks = static_cast<rlim_t>(world_size);
  const rlim_t least = rank == 0 ? ranks + others : others;
  const rlim_t wanted = ranks + least;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  ACCEL_CHECK(rank != 0 || limit.rlim_max >= least, ConfigError, "rendezvous: with ", world_size,
              " ranks, rank 0 needs ", least, " open files, and its hard limit is ", limit.rlim_max,
              "; raise it (ulimit -Hn, or LimitNOFILE of the service that starts the job)");
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  (void)::setrlimit(RLIMIT_NOFILE, &limit);  // it fails for nothing that the checks above have left
}

}  // namespace accel::inline v0_1::launch::detail
