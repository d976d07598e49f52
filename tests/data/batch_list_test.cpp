// BatchList: batches of different sizes, dealt to ranks; and the budget of tokens that makes them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/batch_list.hpp>
#include <accel/data/order.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

namespace {

using accel::InvalidArgument;
using accel::data::BatchList;
using accel::data::BatchListOptions;
using accel::data::Order;
using accel::data::Tail;
using accel::data::token_budget;
using List = std::vector<std::int64_t>;
using ListsOfRows = std::vector<List>;

/// The positions of every batch of every rank.
std::vector<ListsOfRows> dealt(const BatchList& list) {
  std::vector<ListsOfRows> ranks(static_cast<std::size_t>(list.world_size()));
  for (int rank = 0; rank < list.world_size(); ++rank)
    for (std::int64_t round = 0; round < list.batches(rank); ++round)
      ranks[static_cast<std::size_t>(rank)].push_back(list.share(round, rank).positions);
  return ranks;
}

BatchList list_of(const List& sizes, int world_size, Tail tail, std::int64_t done_rows = 0, std::int64_t rounds = 0) {
  return BatchList({.rows = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}),
                    .sizes = sizes,
                    .world_size = world_size,
                    .tail = tail,
                    .done_rows = done_rows,
                    .done_rounds = rounds});
}

}  // namespace

TEST_CASE("batches of different sizes go to ranks as Accelerate deals them", "[data]") {
  const List a{0, 1, 2}, b{3, 4}, c{5, 6, 7, 8}, d{9, 10, 11}, e{12, 13};
  const List sizes{3, 2, 4, 3, 2};
  CHECK(dealt(list_of(sizes, 2, Tail::uneven)) == std::vector<ListsOfRows>{{a, c, e}, {b, d}});
  CHECK(dealt(list_of(sizes, 2, Tail::wrap_around)) == std::vector<ListsOfRows>{{a, c, e}, {b, d, a}});
  CHECK(dealt(list_of(sizes, 2, Tail::drop)) == std::vector<ListsOfRows>{{a, c}, {b, d}});
  CHECK(dealt(list_of(sizes, 2, Tail::every_row)) == std::vector<ListsOfRows>{{a, c, e}, {b, d, {0}}});
  for (const int ranks : {2, 3})  // one batch for all
    for (const auto& mine : dealt(list_of({3}, ranks, Tail::wrap_around))) CHECK(mine == ListsOfRows{a});
  const List seven{1, 2, 3, 1, 2, 3, 2};
  CHECK(dealt(list_of(seven, 3, Tail::wrap_around)) ==
        std::vector<ListsOfRows>{{{0}, {6}, {12, 13}}, {{1, 2}, {7, 8}, {0}}, {{3, 4, 5}, {9, 10, 11}, {1, 2}}});
}

TEST_CASE("batches of different sizes count every row once, weigh by rows, and go on at any round", "[data]") {
  const List sizes{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
  const std::int64_t rows = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  for (const Tail tail : {Tail::every_row, Tail::wrap_around, Tail::drop, Tail::uneven})
    for (int ranks = 1; ranks <= 5; ++ranks) {
      const BatchList whole = list_of(sizes, ranks, tail);
      List seen;
      std::int64_t last_rows = 0;
      for (std::int64_t round = 0; round < whole.rounds(); ++round) {
        std::int64_t weight = 0;
        last_rows = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const auto share = whole.share(round, rank);
          const auto part = whole.part(round, rank);
          REQUIRE(share.counted_rows == part.counted);
          REQUIRE((tail == Tail::uneven || share.rows() > 0));
          weight += share.weight_rows;
          last_rows += part.counted;
          seen.insert(seen.end(), share.positions.begin(), share.positions.begin() + share.counted_rows);
        }
        REQUIRE(weight == whole.weight(round));
        const BatchList rest = list_of(sizes, ranks, tail, whole.rows_after(round), round);
        REQUIRE(rest.rounds() == whole.rounds());
        for (std::int64_t k = round; k < whole.rounds(); ++k)
          for (int rank = 0; rank < ranks; ++rank)
            REQUIRE(rest.share(k, rank).positions == whole.share(k, rank).positions);
      }
      const bool is_short = std::ssize(sizes) % ranks != 0 && tail != Tail::drop;
      CHECK(whole.remainder() == (is_short ? last_rows : 0));
      List all(static_cast<std::size_t>(rows));
      std::iota(all.begin(), all.end(), 0);
      if (tail == Tail::drop) all.resize(seen.size());
      CHECK(seen == all);
      CHECK(whole.rows_after(whole.rounds()) == rows);
    }
}

TEST_CASE("a token budget holds with padding, and takes as many rows as fit", "[data]") {
  const auto batching = token_budget({5, 3, 9, 1, 1, 1, 10, 0, 2}, {.tokens = 10});
  // 5+3 -> 2 x 5; 9; 1 1 1 -> then 10 does not fit; 10; 0 2 -> 2 x 2
  CHECK(batching.sizes(Order::sequential(9)) == List{2, 1, 3, 1, 2});
  CHECK(batching.sizes(Order::of(List{6, 2, 0, 1})) == List{1, 1, 2});
  CHECK(batching.sizes(Order::sequential(0)).empty());
  CHECK(token_budget({1, 2}, {}).name != token_budget({2, 1}, {}).name);  // ranks and runs are compared by it
  CHECK(token_budget({1, 1, 1, 1, 1}, {.tokens = 100, .rows = 2}).sizes(Order::sequential(5)) == List{2, 2, 1});
  // Rows without a token would fit for ever.
  CHECK(token_budget(List(7, 0), {.tokens = 3}).sizes(Order::sequential(7)) == List{3, 3, 1});

  List lengths;
  for (std::int64_t i = 0; i < 500; ++i) lengths.push_back(1 + i * i % 97);
  const Order order = Order::shuffled(500, 3);
  const auto sizes = token_budget(lengths, {.tokens = 256}).sizes(order);
  std::int64_t position = 0;
  for (std::size_t batch = 0; batch < sizes.size(); ++batch) {
    std::int64_t longest = 0;
    for (std::int64_t i = 0; i < sizes[batch]; ++i)
      longest = std::max(longest, lengths[static_cast<std::size_t>(order[position + i])]);
    REQUIRE(longest * sizes[batch] <= 256);
    position += sizes[batch];
    if (position == 500) break;
    longest = std::max(longest, lengths[static_cast<std::size_t>(order[position])]);
    REQUIRE(longest * (sizes[batch] + 1) > 256);  // one more would not have fitted
  }
  CHECK(position == 500);
}

TEST_CASE("batches that cannot be are refused with what was expected", "[data]") {
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::MessageMatches;
  CHECK_THROWS_MATCHES(token_budget({1, 11}, {.tokens = 10}).sizes(Order::sequential(2)), InvalidArgument,
                       MessageMatches(ContainsSubstring("row 1 has 11 tokens, expected 0 to tokens = 10")));
  CHECK_THROWS_MATCHES(token_budget({1}, {.tokens = 10}).sizes(Order::sequential(2)), InvalidArgument,
                       MessageMatches(ContainsSubstring("row 1 has no length, there are 1")));
  CHECK_THROWS_AS(token_budget({1}, {.tokens = 0}), InvalidArgument);
  CHECK_THROWS_MATCHES(BatchList({.rows = 3, .sizes = {2, 2}}), InvalidArgument,
                       MessageMatches(ContainsSubstring("batch 1: expected 1 to 1 rows")));
  CHECK_THROWS_AS(BatchList({.rows = 3, .sizes = {0}}), InvalidArgument);
  CHECK_THROWS_MATCHES(BatchList({.rows = 4, .sizes = {2, 2}, .done_rows = 1}), InvalidArgument,
                       MessageMatches(ContainsSubstring("1 rows are done, which ends in the middle of a batch")));
  CHECK_THROWS_AS(BatchList({.rows = 4, .sizes = {2, 2}, .tail = Tail::wrap_even}), InvalidArgument);
  CHECK_THROWS_AS(list_of({2, 2}, 2, Tail::every_row).part(1, 0), InvalidArgument);
  CHECK(BatchList({.rows = 0}).rounds() == 0);
  CHECK(BatchList({.rows = 0, .world_size = 3}).batches(2) == 0);
}
