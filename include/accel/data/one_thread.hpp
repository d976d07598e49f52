// OneThread: a thread that reads data computes by itself.
#pragma once

#include <ATen/Parallel.h>

#include <dlfcn.h>

namespace accel::inline v0_1::data {

/// From now on LibTorch's operations on the calling thread do not spread over others, as in the worker processes of
/// PyTorch's DataLoader: several workers, each with a team of threads, would take the cores from the training.
///
/// at::set_num_threads would do so for every thread that comes later. OpenMP's own call does it for this one; the
/// library that LibTorch has loaded is asked for it, so that nobody has to link one.
inline void compute_in_one_thread() {
  // These set the number when a thread first asks, this program's copy and LibTorch's own: now, and not later.
  at::internal::lazy_init_num_threads();
  (void)at::get_num_threads();
  using Set = void (*)(int);
  if (const auto set = reinterpret_cast<Set>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(1);
}

}  // namespace accel::inline v0_1::data
