// Gloo through shared memory: sums in the order of the ranks, whatever lies where, and what happens when a rank goes.
#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

using accel::Bytes;
using accel::CommError;
using accel::Deadline;
using accel::ReduceOp;
using accel::backend::Gloo;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::Seconds;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

/// Numbers of all magnitudes, so that a sum in another order has other bits; every rank can make those of all.
at::Tensor numbers(std::int64_t count, c10::ScalarType dtype, int rank, std::int64_t seed) {
  const at::Tensor index =
      at::arange(count, at::kDouble).add(0.37 * static_cast<double>(1 + rank) + static_cast<double>(seed % 1000));
  return index.mul(12.9898).sin().mul(43758.5453).frac().mul(index.mul(78.233).sin().mul(9).exp()).to(dtype);
}

at::Tensor reduced(const std::vector<at::Tensor>& parts, ReduceOp op) {
  at::Tensor result = parts.front().clone();
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (op == ReduceOp::sum) result = result.add(parts[i]);
    if (op == ReduceOp::max) result = at::maximum(result, parts[i]);
    if (op == ReduceOp::min) result = at::minimum(result, parts[i]);
  }
  return result;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.contiguous().view({-1}).view(at::kByte).equal(b.contiguous().view({-1}).view(at::kByte));
}

/// `values` in memory that the others read where it is, or in memory of LibTorch's.
at::Tensor laid(Group<Gloo>& group, const at::Tensor& values, bool in_shared_memory) {
  if (!in_shared_memory) return values.clone();
  at::Tensor memory = group->allocate(Bytes{static_cast<std::int64_t>(values.nbytes())}).view(values.scalar_type());
  return memory.copy_(values);
}

/// Sizes in elements of float: nothing, odd ones, the ends of small messages and of pieces, several MiB.
const std::vector<std::int64_t> sizes = {0,      1,      3,       1023,    8191,    8193,      16'383,
                                         16'384, 16'385, 262'143, 262'144, 262'145, 1'100'003, 2'097'152 + 3};

}  // namespace

TEST_CASE("through shared memory a sum is that in the order of the ranks, bit for bit", "[backend]") {
  on_ranks({2, 3, 4}, [](Rank rank) {
    Group<Gloo> group;
    CHECK_THAT(group->describe(), ContainsSubstring("reductions through shared memory"));
    for (const auto count : sizes) {
      for (const int in_shared_memory : {0, 1, 2}) {  // 2: of every second rank
        INFO(count << " elements, in shared memory: " << in_shared_memory);
        std::vector<at::Tensor> all;
        for (int r = 0; r < rank.world_size; ++r) all.push_back(numbers(count, at::kFloat, r, count));
        const bool here = in_shared_memory == 1 || (in_shared_memory == 2 && rank.rank % 2 == 0);
        at::Tensor tensor = laid(group, all[static_cast<std::size_t>(rank.rank)], here);
        auto work = group->all_reduce(tensor, ReduceOp::sum);
        work.wait();
        CHECK(work.done());
        CHECK(same_bits(tensor, reduced(all, ReduceOp::sum)));
      }
    }
  });
}
