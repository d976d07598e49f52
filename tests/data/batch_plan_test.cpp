#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>
#include <accel/data/batch_plan.hpp>

namespace {

using accel::data::BatchPlan;
using accel::data::BatchPlanOptions;
using accel::data::Share;
using accel::data::Tail;
using Batch = std::vector<std::int64_t>;
using Batches = std::vector<Batch>;  // of one rank
using PerRank = std::vector<Batches>;

/// Every batch of every rank, as the loaders would walk them.
PerRank all_batches(const BatchPlan& plan) {
  PerRank ranks;
  for (int rank = 0; rank < plan.options().world_size; ++rank) {
    Batches& mine = ranks.emplace_back();
    for (std::int64_t round = 0; round < plan.batches(rank); ++round) mine.push_back(plan.share(round, rank).positions);
  }
  return ranks;
}

std::size_t index(std::int64_t number) {
  return static_cast<std::size_t>(number);
}

Batch iota(std::int64_t count) {
  Batch numbers(index(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

/// BatchSamplerShard line by line: the batches are dealt one after the other, the first ones are
/// kept to pad with. No closed form, so that it can judge ours.
PerRank as_accelerate_does(const BatchPlanOptions& options) {
  Batches inner;
  for (std::int64_t row = 0; row < options.rows; ++row) {
    if (inner.empty() || std::ssize(inner.back()) == options.batch_size) inner.emplace_back();
    inner.back().push_back(row);
  }
  const bool drop = options.tail == Tail::drop;
  if (drop && !inner.empty() && std::ssize(inner.back()) < options.batch_size) inner.pop_back();

  const auto world = index(options.world_size);
  PerRank ranks(world);
  const auto doubled = [](Batch kept, std::size_t least) {
    while (kept.size() < least) kept.insert(kept.end(), kept.begin(), kept.begin() + std::ssize(kept));
    return kept;
  };
  const auto full_size = index(options.batch_size);
  if (options.split_batches) {
    const std::size_t slice = full_size / world;
    for (Batch batch : inner) {
      if (batch.size() < full_size && options.tail == Tail::wrap_around) {
        const Batch kept = doubled(inner.front(), full_size);
        batch.insert(batch.end(), kept.begin(), kept.end());
      }
      for (std::size_t rank = 0; rank < world; ++rank) {
        const auto begin = std::min(rank * slice, batch.size());
        const auto end = std::min(begin + slice, batch.size());
        if (begin < end) {
          ranks[rank].emplace_back(batch.begin() + static_cast<std::ptrdiff_t>(begin),
                                   batch.begin() + static_cast<std::ptrdiff_t>(end));
        }
      }
    }
    return ranks;
  }
  for (std::size_t first = 0; first < inner.size(); first += world) {
    const std::size_t count = std::min(world, inner.size() - first);
    const bool whole = count == world && inner[first + count - 1].size() == full_size;
    if (!whole && drop) break;
    Batch round;  // all indices of the round, one after the other
    for (std::size_t i = first; i < first + count; ++i) round.insert(round.end(), inner[i].begin(), inner[i].end());
    if (!whole && options.tail == Tail::wrap_around) {
      Batch kept;
      for (std::size_t i = 0; i < std::min(world, inner.size()); ++i) {
        kept.insert(kept.end(), inner[i].begin(), inner[i].end());
      }
      kept = doubled(kept, world * full_size);
      round.insert(round.end(), kept.begin(), kept.end());
      round.resize(world * full_size);
    }
    for (std::size_t begin = 0, rank = 0; begin < round.size(); begin += full_size, ++rank) {
      const auto end = std::min(begin + full_size, round.size());
      ranks[rank].emplace_back(round.begin() + static_cast<std::ptrdiff_t>(begin),
                               round.begin() + static_cast<std::ptrdiff_t>(end));
    }
  }
  return ranks;
}

/// Calls `check(plan)` for n <= 40, batch size <= 6, world size <= 5, split or not.
template <class Check>
void for_all_plans(Tail tail, const Check& check) {
  int plans = 0;
  for (std::int64_t rows = 0; rows <= 40; ++rows) {
    for (int world_size = 1; world_size <= 5; ++world_size) {
      for (std::int64_t batch_size = 1; batch_size <= 6; ++batch_size) {
        for (const bool split : {false, true}) {
          const BatchPlanOptions options{rows, split ? batch_size * world_size : batch_size, world_size, tail, split};
          INFO("rows " << rows << ", batch_size " << options.batch_size << ", world_size " << world_size << ", split "
                       << split);
          check(BatchPlan(options));
          ++plans;
        }
      }
    }
  }
  CHECK(plans == 41 * 5 * 6 * 2);
}

constexpr Tail tails[] = {Tail::every_row, Tail::wrap_around, Tail::drop, Tail::uneven};

}  // namespace

TEST_CASE("batches equal the recorded ones of Accelerate", "[data][parity]") {
  std::ifstream file(ACCEL_TEST_DIR "/parity/recorded/batch_sampler_shard.json");
  const auto recorded = nlohmann::json::parse(file);
  std::size_t compared = 0;
  for (const auto& entry : recorded.at("cases")) {
    const bool drop = entry.at("drop_last").get<bool>();
    const bool even = entry.at("even_batches").get<bool>();
    const BatchPlan plan({.rows = entry.at("samples").get<std::int64_t>(),
                          .batch_size = entry.at("batch_size").get<std::int64_t>(),
                          .world_size = entry.at("world_size").get<int>(),
                          .tail = drop ? Tail::drop : (even ? Tail::wrap_around : Tail::uneven),
                          .split_batches = entry.at("split_batches").get<bool>()});
    INFO(entry.dump());
    REQUIRE(all_batches(plan) == entry.at("ranks").get<PerRank>());
    ++compared;
  }
  CHECK(compared == 160);
}

TEST_CASE("batches equal a walk through Accelerate's algorithm at every small size", "[data]") {
  for (const Tail tail : {Tail::wrap_around, Tail::drop, Tail::uneven}) {
    for_all_plans(tail,
                  [](const BatchPlan& plan) { REQUIRE(all_batches(plan) == as_accelerate_does(plan.options())); });
  }
}

TEST_CASE("the last rounds are those of Accelerate's documented tables", "[data]") {
  struct Row {
    std::int64_t rows, batch_size;
    int world_size;
    bool split;
    Tail tail;
    std::vector<std::int64_t> counts;  // batches of each rank
    Batches last;                      // the last batch of each rank, empty if it has none
  };
  using enum Tail;
  const std::vector<Row> table{
      {24, 3, 2, false, wrap_around, {4, 4}, {{18, 19, 20}, {21, 22, 23}}},
      {24, 3, 2, false, uneven, {4, 4}, {{18, 19, 20}, {21, 22, 23}}},
      {24, 3, 2, false, drop, {4, 4}, {{18, 19, 20}, {21, 22, 23}}},
      {21, 3, 2, false, wrap_around, {4, 4}, {{18, 19, 20}, {0, 1, 2}}},
      {21, 3, 2, false, drop, {3, 3}, {{12, 13, 14}, {15, 16, 17}}},
      {21, 3, 2, false, uneven, {4, 3}, {{18, 19, 20}, {15, 16, 17}}},
      {22, 3, 2, false, wrap_around, {4, 4}, {{18, 19, 20}, {21, 0, 1}}},
      {22, 3, 2, false, uneven, {4, 4}, {{18, 19, 20}, {21}}},
      {22, 3, 2, false, drop, {3, 3}, {{12, 13, 14}, {15, 16, 17}}},
      {20, 3, 2, false, wrap_around, {4, 4}, {{18, 19, 0}, {1, 2, 3}}},
      {20, 3, 2, false, uneven, {4, 3}, {{18, 19}, {15, 16, 17}}},
      {20, 3, 2, false, drop, {3, 3}, {{12, 13, 14}, {15, 16, 17}}},
      {2, 3, 2, false, wrap_around, {1, 1}, {{0, 1, 0}, {1, 0, 1}}},
      {2, 3, 2, false, uneven, {1, 0}, {{0, 1}, {}}},
      {2, 3, 2, false, drop, {0, 0}, {{}, {}}},
      {24, 4, 2, true, wrap_around, {6, 6}, {{20, 21}, {22, 23}}},
      {22, 4, 2, true, wrap_around, {6, 6}, {{20, 21}, {0, 1}}},
      {22, 4, 2, true, uneven, {6, 5}, {{20, 21}, {18, 19}}},
      {21, 4, 2, true, wrap_around, {6, 6}, {{20, 0}, {1, 2}}},
      {21, 4, 2, true, uneven, {6, 5}, {{20}, {18, 19}}},
      {21, 4, 2, true, drop, {5, 5}, {{16, 17}, {18, 19}}},
      {22, 4, 2, true, drop, {5, 5}, {{16, 17}, {18, 19}}},
      {2, 4, 2, true, wrap_around, {1, 1}, {{0, 1}, {0, 1}}},
      {2, 4, 2, true, uneven, {1, 0}, {{0, 1}, {}}},
      {2, 4, 2, true, drop, {0, 0}, {{}, {}}},
      {10, 2, 4, false, wrap_around, {2, 2, 2, 2}, {{8, 9}, {0, 1}, {2, 3}, {4, 5}}},
      {10, 2, 4, false, uneven, {2, 1, 1, 1}, {{8, 9}, {2, 3}, {4, 5}, {6, 7}}},
      {10, 2, 4, false, drop, {1, 1, 1, 1}, {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
      {13, 2, 3, false, wrap_around, {3, 3, 3}, {{12, 0}, {1, 2}, {3, 4}}},
      {13, 2, 3, false, uneven, {3, 2, 2}, {{12}, {8, 9}, {10, 11}}},
      {5, 2, 4, false, wrap_around, {1, 1, 1, 1}, {{0, 1}, {2, 3}, {4, 0}, {1, 2}}},
      {3, 2, 4, false, wrap_around, {1, 1, 1, 1}, {{0, 1}, {2, 0}, {1, 2}, {0, 1}}},
      {3, 2, 4, false, uneven, {1, 1, 0, 0}, {{0, 1}, {2}, {}, {}}},
      {1, 4, 3, false, wrap_around, {1, 1, 1}, {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}},
      {22,
       8,
       3,
       false,
       wrap_around,
       {1, 1, 1},
       {{0, 1, 2, 3, 4, 5, 6, 7}, {8, 9, 10, 11, 12, 13, 14, 15}, {16, 17, 18, 19, 20, 21, 0, 1}}},
      {50,
       8,
       3,
       false,
       wrap_around,
       {3, 3, 3},
       {{48, 49, 0, 1, 2, 3, 4, 5}, {6, 7, 8, 9, 10, 11, 12, 13}, {14, 15, 16, 17, 18, 19, 20, 21}}},
      {10, 4, 4, true, wrap_around, {3, 3, 3, 3}, {{8}, {9}, {0}, {1}}},
      {10, 4, 4, true, uneven, {3, 3, 2, 2}, {{8}, {9}, {6}, {7}}},
      {3, 8, 4, true, wrap_around, {1, 1, 1, 1}, {{0, 1}, {2, 0}, {1, 2}, {0, 1}}},
      {9, 6, 3, true, wrap_around, {2, 2, 2}, {{6, 7}, {8, 0}, {1, 2}}},
      {9, 6, 3, true, uneven, {2, 2, 1}, {{6, 7}, {8}, {4, 5}}},
      // not Accelerate's: every row once
      {22, 3, 2, false, every_row, {4, 4}, {{18, 19}, {20, 21}}},
      {21, 3, 2, false, every_row, {4, 4}, {{18, 19}, {20}}},
      {10, 2, 4, false, every_row, {2, 2, 2, 2}, {{8}, {9}, {0}, {0}}},
      {1, 4, 3, false, every_row, {1, 1, 1}, {{0}, {0}, {0}}},
      {50, 8, 3, false, every_row, {3, 3, 3}, {{48}, {49}, {0}}},
      {21, 4, 2, true, every_row, {6, 6}, {{20}, {0}}},
      {9, 6, 3, true, every_row, {2, 2, 2}, {{6}, {7}, {8}}},
  };
  for (const Row& row : table) {
    INFO("rows " << row.rows << ", batch_size " << row.batch_size << ", world_size " << row.world_size << ", split "
                 << row.split << ", tail " << static_cast<int>(row.tail));
    const BatchPlan plan({row.rows, row.batch_size, row.world_size, row.tail, row.split});
    const PerRank found = all_batches(plan);
    for (std::size_t rank = 0; rank < row.counts.size(); ++rank) {
      CHECK(std::ssize(found[rank]) == row.counts[rank]);
      CHECK((found[rank].empty() ? Batch{} : found[rank].back()) == row.last[rank]);
    }
  }
}

TEST_CASE("the counted rows, in rank order, are the epoch: each row once and in its place", "[data]") {
  for (const Tail tail : tails) {
    for_all_plans(tail, [tail](const BatchPlan& plan) {
      Batch seen;
      for (std::int64_t round = 0; round < plan.rounds(); ++round) {
        for (int rank = 0; rank < plan.options().world_size; ++rank) {
          const Share share = plan.share(round, rank);
          seen.insert(seen.end(), share.positions.begin(), share.positions.begin() + share.counted_rows);
        }
      }
      const auto rows = plan.options().rows;
      REQUIRE(seen == iota(tail == Tail::drop ? rows / plan.global_batch() * plan.global_batch() : rows));
    });
  }
}

TEST_CASE("every_row gives each rank a batch in each round, the last as even as can be", "[data]") {
  for_all_plans(Tail::every_row, [](const BatchPlan& plan) {
    const auto world_size = plan.options().world_size;
    for (std::int64_t round = 0; round < plan.rounds(); ++round) {
      std::vector<std::int64_t> weights;
      for (int rank = 0; rank < world_size; ++rank) {
        const Share share = plan.share(round, rank);
        REQUIRE(share.rows() >= 1);
        REQUIRE(share.weight_rows == share.counted_rows);
        const Batch filler{0};
        REQUIRE((share.weight_rows == share.rows() || (share.weight_rows == 0 && share.positions == filler)));
        weights.push_back(share.weight_rows);
      }
      REQUIRE(std::ranges::is_sorted(weights, std::greater<>()));
      REQUIRE(weights.front() - weights.back() <= 1);
    }
  });
}

TEST_CASE("wrap_around goes on with the first rows until every batch is full", "[data]") {
  for_all_plans(Tail::wrap_around, [](const BatchPlan& plan) {
    const std::int64_t rows = plan.options().rows;
    Batch seen;
    for (std::int64_t round = 0; round < plan.rounds(); ++round) {
      for (int rank = 0; rank < plan.options().world_size; ++rank) {
        const Share share = plan.share(round, rank);
        REQUIRE(share.rows() == plan.global_batch() / plan.options().world_size);
        REQUIRE(share.weight_rows == share.rows());
        seen.insert(seen.end(), share.positions.begin(), share.positions.end());
      }
    }
    REQUIRE(std::ssize(seen) == plan.rounds() * plan.global_batch());
    for (std::int64_t i = 0; i < std::ssize(seen); ++i) REQUIRE(seen[index(i)] == i % rows);
  });
}

TEST_CASE("the weights of a round add up to its weight", "[data]") {
  for (const Tail tail : tails) {
    for_all_plans(tail, [](const BatchPlan& plan) {
      for (std::int64_t round = 0; round < plan.rounds(); ++round) {
        std::int64_t weight = 0;
        for (int rank = 0; rank < plan.options().world_size; ++rank) weight += plan.part(round, rank).weight;
        REQUIRE(weight == plan.weight(round));
        REQUIRE(weight > 0);
      }
    });
  }
}

TEST_CASE("shares, counts and batch numbers tell the same", "[data]") {
  for (const Tail tail : tails) {
    for_all_plans(tail, [tail](const BatchPlan& plan) {
      std::int64_t most = 0;
      for (int rank = 0; rank < plan.options().world_size; ++rank) {
        std::int64_t batches = 0;
        for (std::int64_t round = 0; round < plan.rounds(); ++round) {
          const Share share = plan.share(round, rank);
          REQUIRE(share.counted_rows == plan.part(round, rank).counted);
          REQUIRE(share.weight_rows == plan.part(round, rank).weight);
          batches += share.positions.empty() ? 0 : 1;
        }
        REQUIRE(batches == plan.batches(rank));
        most = std::max(most, batches);
      }
      REQUIRE(most == plan.rounds());
      REQUIRE(plan.remainder() == (tail == Tail::drop ? 0 : plan.options().rows % plan.global_batch()));
    });
  }
}

TEST_CASE("a round in the middle of a huge epoch is computed at once", "[data]") {
  constexpr std::int64_t rows = 4'000'000'000'000'000'003;
  const BatchPlan plan({.rows = rows, .batch_size = 2, .world_size = 3});
  const std::int64_t last = plan.rounds() - 1;
  CHECK(plan.share(last / 2, 1).positions == Batch{last / 2 * 6 + 2, last / 2 * 6 + 3});
  CHECK(plan.remainder() == rows % 6);
  Batch tail;
  for (int rank = 0; rank < 3; ++rank) {
    const Share share = plan.share(last, rank);
    tail.insert(tail.end(), share.positions.begin(), share.positions.begin() + share.counted_rows);
  }
  CHECK(tail.back() == rows - 1);
}

TEST_CASE("no rows, no rounds", "[data]") {
  for (const Tail tail : tails) {
    const BatchPlan plan({.rows = 0, .batch_size = 4, .world_size = 3, .tail = tail});
    CHECK(plan.rounds() == 0);
    CHECK(plan.batches(2) == 0);
    CHECK(plan.remainder() == 0);
    CHECK_THROWS_AS(plan.share(0, 0), accel::InvalidArgument);
  }
}

TEST_CASE("sizes that make no sense are refused with what was expected", "[data]") {
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::MessageMatches;
  const auto refused = [](const BatchPlanOptions& options, const std::string& text) {
    CHECK_THROWS_MATCHES(BatchPlan(options), accel::InvalidArgument, MessageMatches(ContainsSubstring(text)));
  };
  refused({.rows = -1}, ", found -1");
  refused({.rows = 1, .batch_size = 0}, "batch_size: expected at least 1, found 0");
  refused({.rows = 1, .world_size = 0}, "world_size: expected at least 1, found 0");
  for (const Tail tail : {Tail::wrap_around, Tail::wrap_even, Tail::uneven})
    refused({.rows = 1, .batch_size = 7, .world_size = 2, .tail = tail, .split_batches = true},
            "batch_size: expected a multiple of world_size = 2 with split_batches and batches of equal size, found 7");
  refused({.rows = 1, .batch_size = 2, .world_size = 3, .split_batches = true},
          "batch_size: expected at least world_size = 3 with split_batches, found 2");
  refused({.rows = 9, .done_rows = 10}, "resume: expected 0 to 9 rows to be done, found 10");
  refused({.rows = 1, .batch_size = std::numeric_limits<std::int64_t>::max(), .world_size = 3}, "expected at most");

  const BatchPlan plan({.rows = 10, .batch_size = 2, .world_size = 2});
  CHECK_THROWS_MATCHES(plan.share(3, 0), accel::InvalidArgument,
                       Catch::Matchers::Message("round: expected 0 to 2 (3 rounds), found 3"));
  CHECK_THROWS_MATCHES(plan.share(0, 2), accel::InvalidArgument,
                       Catch::Matchers::Message("rank: expected 0 to 1, found 2"));
  CHECK_THROWS_AS(plan.weight(-1), accel::InvalidArgument);
  CHECK_THROWS_AS(plan.batches(-1), accel::InvalidArgument);
}

TEST_CASE("64 rows of all ranks are 22, 21 and 21 of three, weighted so", "[data]") {
  const BatchPlan plan({.rows = 640, .batch_size = 64, .world_size = 3, .split_batches = true});
  CHECK(plan.rounds() == 10);
  for (std::int64_t round = 0; round < 10; ++round) {
    CHECK(plan.part(round, 0).weight == 22);
    CHECK(plan.part(round, 1).weight == 21);
    CHECK(plan.part(round, 2).weight == 21);
    CHECK(plan.weight(round) == 64);
  }
  CHECK(plan.share(1, 1).positions.front() == 64 + 22);
}

TEST_CASE("with a fixed global batch the sequence of global batches is the same for any number of ranks", "[data]") {
  const auto rounds_of = [](const BatchPlan& plan) {
    Batches rounds;
    for (std::int64_t round = 0; round < plan.rounds(); ++round) {
      Batch& all = rounds.emplace_back();
      for (int rank = 0; rank < plan.world_size(); ++rank) {
        const Share share = plan.share(round, rank);
        all.insert(all.end(), share.positions.begin(), share.positions.begin() + share.counted_rows);
      }
    }
    return rounds;
  };
  for (const Tail tail : {Tail::every_row, Tail::drop})
    for (std::int64_t rows = 0; rows <= 40; ++rows)
      for (std::int64_t batch_size = 5; batch_size <= 11; ++batch_size) {
        const auto plan = [&](int ranks) { return BatchPlan({rows, batch_size, ranks, tail, true}); };
        const Batches alone = rounds_of(plan(1));
        for (int ranks = 2; ranks <= 5; ++ranks) REQUIRE(rounds_of(plan(ranks)) == alone);
      }
}

TEST_CASE("a plan that goes on at any round is the rest of the whole one", "[data]") {
  for (const Tail tail : {Tail::every_row, Tail::wrap_around, Tail::wrap_even, Tail::drop, Tail::uneven}) {
    for_all_plans(tail, [](const BatchPlan& whole) {
      for (std::int64_t done = 0; done <= whole.rounds(); ++done) {
        BatchPlanOptions options = whole.options();
        options.done_rows = whole.rows_after(done);
        options.done_rounds = done;
        const BatchPlan rest(options);
        REQUIRE(rest.rounds() == whole.rounds());
        REQUIRE(rest.remainder() == (done < whole.rounds() ? whole.remainder() : 0));
        for (std::int64_t round = done; round < whole.rounds(); ++round)
          for (int rank = 0; rank < whole.world_size(); ++rank) {
            REQUIRE(rest.part(round, rank) == whole.part(round, rank));
            REQUIRE(rest.share(round, rank).positions == whole.share(round, rank).positions);
            REQUIRE(rest.rows_after(round + 1) == whole.rows_after(round + 1));
          }
      }
    });
  }
}

TEST_CASE("at another number of ranks the rest of an epoch is every row that was not done, once, in its place",
          "[data]") {
  for (std::int64_t rows = 0; rows <= 30; ++rows)
    for (int before = 1; before <= 4; ++before)
      for (int after = 1; after <= 4; ++after) {
        const BatchPlan first({.rows = rows, .batch_size = 3, .world_size = before});
        for (std::int64_t done = 0; done <= first.rounds(); ++done) {
          const BatchPlan rest({.rows = rows,
                                .batch_size = 3,
                                .world_size = after,
                                .done_rows = first.rows_after(done),
                                .done_rounds = done});
          Batch seen = iota(first.rows_after(done));
          for (std::int64_t round = done; round < rest.rounds(); ++round)
            for (int rank = 0; rank < after; ++rank) {
              const Share share = rest.share(round, rank);
              seen.insert(seen.end(), share.positions.begin(), share.positions.begin() + share.counted_rows);
            }
          REQUIRE(seen == iota(rows));
        }
      }
}

TEST_CASE("what rank 0 sends is split as Accelerate's dispatcher splits it", "[data]") {
  struct Row {
    std::int64_t rows, batch_size;
    int world_size;
    bool split, drop;
    PerRank ranks;  // the batches of each, as far as the table of accelerate's behaviour has them
  };
  const std::vector<Row> table{
      {10, 2, 2, false, false, {{{0, 1}, {4, 5}, {8}}, {{2, 3}, {6, 7}, {9}}}},
      {10, 2, 2, false, true, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 7}}}},
      {7, 2, 2, false, false, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 0}}}},
      {9, 5, 2, false, false, {{{0, 1, 2, 3, 4}}, {{5, 6, 7, 8, 0}}}},
      {10, 2, 3, false, false, {{{0, 1}, {6, 7}}, {{2, 3}, {8, 9}}, {{4, 5}, {0, 1}}}},
      {11, 2, 4, false, false, {{{0, 1}, {8}}, {{2, 3}, {9}}, {{4, 5}, {10}}, {{6, 7}, {0}}}},
      {7, 4, 2, true, false, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 0}}}},
      {3, 2, 4, false, false, {{{0}}, {{1}}, {{2}}, {{0}}}},
      // Accelerate gives the last two ranks tensors without rows.
      {1, 2, 4, false, false, {{{0}}, {{0}}, {{0}}, {{0}}}},
  };
  for (const Row& row : table) {
    INFO("rows " << row.rows << ", batch_size " << row.batch_size << ", world_size " << row.world_size);
    const BatchPlan plan(
        {row.rows, row.batch_size, row.world_size, row.drop ? Tail::drop : Tail::wrap_even, row.split});
    CHECK(all_batches(plan) == row.ranks);
  }
}

TEST_CASE("streams are cut as by a walk through Accelerate's algorithms, at every small size", "[data]") {
  for (std::int64_t rows = 0; rows <= 40; ++rows)
    for (int ranks = 1; ranks <= 5; ++ranks)
      for (std::int64_t size = 1; size <= 6; ++size)
        for (const bool split : {false, true})
          for (const bool drop : {false, true}) {
            const std::int64_t batch_size = split ? size * ranks : size;
            const auto full = index(size * ranks);
            INFO(rows << " rows, batch_size " << batch_size << ", " << ranks << " ranks, split " << split);
            // IterableDatasetShard: real batches, the last one continued with the first; each rank a slice.
            std::vector<Batch> shards(index(ranks));
            // DataLoaderDispatcher: the first rows of the first batch behind, until the ranks divide them.
            PerRank dispatched(index(ranks));
            Batch first;
            for (std::int64_t begin = 0; begin < rows; begin += size * ranks) {
              Batch real = iota(std::min(rows, begin + size * ranks));
              real.erase(real.begin(), real.begin() + begin);
              if (first.empty()) first = real;
              if (drop && real.size() < full) break;
              Batch padded = real;
              while (padded.size() < full)
                padded.insert(padded.end(), first.begin(), first.begin() + std::ssize(first));
              Batch even = real;
              for (std::size_t next = 0; even.size() % index(ranks) != 0; ++next)
                even.push_back(first[next % first.size()]);
              for (std::size_t rank = 0; rank < index(ranks); ++rank) {
                const auto slice = [&](const Batch& of, std::size_t length) {
                  const auto from = of.begin() + static_cast<std::ptrdiff_t>(rank * length);
                  return Batch(from, from + static_cast<std::ptrdiff_t>(length));
                };
                const Batch own = slice(padded, full / index(ranks));
                shards[rank].insert(shards[rank].end(), own.begin(), own.end());
                dispatched[rank].push_back(slice(even, even.size() / index(ranks)));
              }
            }
            const auto plan_of = [&](Tail tail) {
              return BatchPlan({rows, batch_size, ranks, drop ? Tail::drop : tail, split});
            };
            REQUIRE(all_batches(plan_of(Tail::wrap_even)) == dispatched);
            const PerRank by_rank = all_batches(plan_of(Tail::wrap_around));
            for (std::size_t rank = 0; rank < index(ranks); ++rank) {
              Batch samples;
              for (const Batch& batch : by_rank[rank]) samples.insert(samples.end(), batch.begin(), batch.end());
              REQUIRE(samples == shards[rank]);
            }
          }
}
