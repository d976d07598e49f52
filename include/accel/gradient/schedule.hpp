// Schedule: the buckets of a used set, and what of them this rank waits for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/gradient/arena.hpp>
#include <accel/gradient/bucket_plan.hpp>

namespace accel::inline v0_1::gradient {

struct Schedule {
  static constexpr auto none = static_cast<std::size_t>(-1);

  std::vector<std::uint8_t> used{};  // by parameter, as for all that follow
  std::vector<PlannedBucket> buckets{};
  std::vector<at::Tensor> payloads{};    // by bucket
  std::vector<std::size_t> bucket_of{};  // by parameter; none: it is not in any
  std::vector<std::uint8_t> arrives{};   // by parameter: on this rank, the last time
  std::vector<std::size_t> expected{};   // by bucket: how many arrive
  bool certain = false;                  // everything arrived, on every rank, the last time

  /// `installed`: the bucket of each parameter by a plan of an earlier run, or empty.
  void plan(const Arena& arena, const BucketCaps& caps, std::vector<std::uint8_t> set,
            const std::vector<std::size_t>& installed) {
    used = std::move(set);
    buckets = plan_buckets(arena.layout(), caps, used, installed);
    payloads.clear();
    bucket_of.assign(used.size(), none);
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      payloads.push_back(arena.payload(buckets[b]));
      for (const std::size_t i : buckets[b].parameters) bucket_of[i] = b;
    }
    count();
  }

  void expect(const std::vector<std::uint8_t>& arrivals) {
    if (arrives == arrivals) return;
    arrives = arrivals;
    count();
  }

 private:
  void count() {
    expected.assign(buckets.size(), 0);
    for (std::size_t i = 0; i < arrives.size(); ++i)
      if (arrives[i] != 0 && bucket_of[i] != none) ++expected[bucket_of[i]];
  }
};

}  // namespace accel::inline v0_1::gradient
