// What the tests of NCCL ask of a machine.
#pragma once

#include <c10/cuda/CUDAFunctions.h>

#include <catch2/catch_test_macros.hpp>

#include "support/ranks.hpp"

namespace accel::testing {

/// Ends the test case as skipped. Inside a rank it has begun, so there are enough.
inline void needs_devices(int count) {
  const int found = c10::cuda::device_count();
  if (found < count) SKIP("CUDA devices needed: " << count << ", found: " << found);
}

/// CUDA's and NCCL's libraries are loaded by every rank itself: nobody promises that they survive a fork.
inline RankOptions with_cuda(Variables variables = {}) {
  return {.deadline = Seconds(120), .variables = std::move(variables), .own_processes = true};
}

}  // namespace accel::testing
