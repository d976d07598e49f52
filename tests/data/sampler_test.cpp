#include <algorithm>
#include <cstdint>
#include <fstream>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <accel/core/error.hpp>
#include <accel/data/batch_plan.hpp>
#include <accel/data/distributed_sampler.hpp>
#include <accel/data/sampler.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>

#include "support/orders.hpp"

namespace {

using accel::data::BatchPlan;
using accel::data::DistributedSampler;
using accel::testing::epoch_order;
using accel::testing::listed;
using RowList = std::vector<std::int64_t>;

RowList sequence(std::int64_t rows) {
  return listed(accel::data::Order::sequential(rows));
}

nlohmann::json recorded() {
  std::ifstream file(ACCEL_TEST_DIR "/parity/recorded/shuffle.json");
  return nlohmann::json::parse(file);
}

}  // namespace

TEST_CASE("the order of an epoch is PyTorch's permutation for seed + epoch", "[data][parity]") {
  int compared = 0;
  const auto all = recorded();
  for (const auto& entry : all.at("cases")) {
    if (entry.at("kind") != "seedable_random_sampler") continue;
    const auto order = epoch_order(entry.at("samples").get<std::int64_t>(), entry.at("seed").get<std::uint64_t>(),
                                   entry.at("epoch").get<std::int64_t>());
    REQUIRE(order == entry.at("order").get<RowList>());
    ++compared;
  }
  CHECK(compared == 30);
}

TEST_CASE("a distributed sampler has the indices of PyTorch's", "[data][parity]") {
  int compared = 0;
  const auto all = recorded();
  for (const auto& entry : all.at("cases")) {
    if (entry.at("kind") != "distributed_sampler") continue;
    const auto& ranks = entry.at("ranks");
    for (int rank = 0; rank < entry.at("world_size").get<int>(); ++rank) {
      DistributedSampler sampler(entry.at("samples").get<std::int64_t>(), rank, entry.at("world_size").get<int>(),
                                 {.shuffle = entry.at("shuffle").get<bool>(),
                                  .seed = entry.at("seed").get<std::uint64_t>(),
                                  .drop_last = entry.at("drop_last").get<bool>()});
      sampler.set_epoch(entry.at("epoch").get<std::int64_t>());
      REQUIRE(sampler.indices() == ranks.at(static_cast<std::size_t>(rank)).get<RowList>());
      REQUIRE(sampler.size() == std::ssize(sampler.indices()));
    }
    ++compared;
  }
  CHECK(compared == 30);
}

TEST_CASE("the well-known orders of small seeds", "[data]") {
  CHECK(epoch_order(10, 0, 0) == RowList{4, 1, 7, 5, 3, 9, 0, 8, 6, 2});
  CHECK(epoch_order(10, 1, 0) == RowList{5, 6, 1, 2, 0, 8, 9, 3, 7, 4});
  CHECK(epoch_order(10, 42, 0) == RowList{2, 6, 1, 8, 4, 5, 0, 9, 3, 7});
  CHECK(epoch_order(8, 42, 0) == RowList{6, 3, 0, 7, 2, 1, 4, 5});
  CHECK(epoch_order(8, 42, 2) == RowList{4, 7, 3, 2, 1, 5, 6, 0});
}

TEST_CASE("two ranks share out the shuffled epoch as Accelerate does", "[data]") {
  // accelerate, data_seed 42: 8 rows in batches of 2 on 2 ranks, two epochs
  const BatchPlan plan({.rows = 8, .batch_size = 2, .world_size = 2});
  const auto rows_of = [&plan](std::int64_t epoch, int rank) {
    const auto order = epoch_order(8, 42, epoch);
    RowList rows;
    for (std::int64_t round = 0; round < plan.rounds(); ++round) {
      for (const auto position : plan.share(round, rank).positions) {
        rows.push_back(order[static_cast<std::size_t>(position)]);
      }
    }
    return rows;
  };
  CHECK(rows_of(0, 0) == RowList{6, 3, 2, 1});
  CHECK(rows_of(0, 1) == RowList{0, 7, 4, 5});
  CHECK(rows_of(1, 0) == RowList{4, 5, 3, 2});
  CHECK(rows_of(1, 1) == RowList{7, 1, 6, 0});
}

TEST_CASE("without shuffling every epoch is 0, 1, 2, ...", "[data]") {
  CHECK(listed(accel::data::sampler::sequential().order({.rows = 4, .seed = 7, .epoch = 3})) == RowList{0, 1, 2, 3});
  CHECK(epoch_order(0, 7, 3).empty());
}

TEST_CASE("drawing an order leaves LibTorch's default generator alone", "[data]") {
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(5);
  const auto before = generator.get_state();
  (void)epoch_order(1000, 1, 0);
  CHECK(before.equal(generator.get_state()));
}

TEST_CASE("a permutation of many rows holds each of them once", "[data]") {
  for (const std::int64_t rows : {1, 2, 1000, 100'003}) {
    auto order = epoch_order(rows, 18'446'744'073'709'551'615U, 3);  // seed + epoch wraps to 2
    CHECK(order == epoch_order(rows, 2, 0));
    std::ranges::sort(order);
    CHECK(order == sequence(rows));
  }
}

TEST_CASE("each rank of a distributed sampler has as many rows, all of them together every row", "[data]") {
  for (std::int64_t rows = 0; rows <= 20; ++rows) {
    for (int world_size = 1; world_size <= 5; ++world_size) {
      RowList seen;
      for (int rank = 0; rank < world_size; ++rank) {
        const auto mine = DistributedSampler(rows, rank, world_size, {.seed = 3}).indices();
        REQUIRE(std::ssize(mine) == (rows + world_size - 1) / world_size);
        seen.insert(seen.end(), mine.begin(), mine.end());
      }
      std::ranges::sort(seen);
      seen.erase(std::ranges::unique(seen).begin(), seen.end());
      REQUIRE(seen == sequence(rows));
    }
  }
}

TEST_CASE("a rank outside the world is refused", "[data]") {
  using Catch::Matchers::Message;
  CHECK_THROWS_MATCHES(DistributedSampler(10, 2, 2), accel::InvalidArgument, Message("rank: expected 0 to 1, found 2"));
  CHECK_THROWS_AS(DistributedSampler(10, -1, 2), accel::InvalidArgument);
  CHECK_THROWS_AS(DistributedSampler(10, 0, 0), accel::InvalidArgument);
  CHECK_THROWS_MATCHES(epoch_order(-1, 0, 0), accel::InvalidArgument, Message("rows: expected 0 or more, found -1"));
}
