// AllThreads: work in pieces, by as many threads as LibTorch computes with.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>

#include <accel/launch/no_signals.hpp>

namespace accel::inline v0_1::tensor {

/// Calls `work(i)` for each i below `pieces`, on this thread and others: who is done takes the next, so that nobody
/// waits for one that the system keeps waiting. Not LibTorch's parallel_for(), which in a program that is compiled
/// without -fopenmp is one thread, and with it gives each thread its share beforehand.
///
/// Order    `work` throws nothing.
template <class Work>
void by_all_threads(std::size_t pieces, const Work& work) {
  std::atomic<std::size_t> next = 0;
  const auto take = [&] {
    for (std::size_t i = next++; i < pieces; i = next++) work(i);
  };
  const auto wanted = std::min(static_cast<std::size_t>(std::max(at::get_num_threads(), 1)), pieces);
  const launch::NoSignals guard;
  std::vector<std::jthread> others;
  while (others.size() + 1 < wanted) others.emplace_back(take);
  take();
}

}  // namespace accel::inline v0_1::tensor
