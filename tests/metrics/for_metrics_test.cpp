// gather_for_metrics: an epoch gives every row of the dataset once.
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/orders.hpp"
#include "support/ranks.hpp"

using accel::InvalidArgument;
using accel::data::DataLoader;
using accel::data::DataLoaderOptions;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

/// Rows that are their own numbers.
struct Numbers {
  std::int64_t rows;

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] at::Tensor get_batch(const at::Tensor& indices) const { return indices; }
};

/// What an epoch of `loader` gathers, one row after the other.
template <class Loader>
at::Tensor epoch(Accelerator& accelerator, Loader& loader) {
  at::Tensor seen = at::empty({0}, at::kLong);
  for (auto& batch : loader) seen = at::cat({seen, accelerator.gather_for_metrics(batch)});
  return seen;
}

const DataLoaderOptions every_row{};
const DataLoaderOptions even_batches{.even_batches = true};
const DataLoaderOptions drop_last{.drop_last = true};

}  // namespace

TEST_CASE("an epoch gives every row exactly once, whatever the tail", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Accelerator accelerator;
    for (const std::int64_t rows : {1, 2, 3, 5, 9, 22, 24, 99}) {
      for (const std::int64_t batch_size : {1, 4, 5, 8, 16}) {
        for (auto options : {every_row, even_batches, drop_last}) {
          options.batch_size = batch_size;
          const std::int64_t round = batch_size * rank.world_size;
          const std::int64_t expected = options.drop_last ? rows - rows % round : rows;
          INFO(rows << " rows, batch size " << batch_size << ", tail " << static_cast<int>(options.tail()));
          auto loader = accelerator.prepare(DataLoader{Numbers{rows}, options});
          // In the order of the samples, too: the ranks follow each other within a round.
          CHECK(epoch(accelerator, loader).equal(at::arange(expected)));
        }
      }
    }
  });
}

TEST_CASE("a shuffled epoch gives every row exactly once, in another order each time", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    for (const std::int64_t rows : {9, 22, 99}) {
      for (const std::int64_t batch_size : {4, 5, 16}) {
        for (auto options : {every_row, even_batches}) {
          options.batch_size = batch_size;
          options.shuffle = true;
          options.seed = 42;
          auto loader = accelerator.prepare(DataLoader{Numbers{rows}, options});
          const at::Tensor first = epoch(accelerator, loader);
          const at::Tensor second = epoch(accelerator, loader);
          CHECK(std::get<0>(first.sort()).equal(at::arange(rows)));
          CHECK(std::get<0>(second.sort()).equal(at::arange(rows)));
          CHECK_FALSE(first.equal(second));
          const auto order = accel::testing::epoch_order(rows, 42, 0);
          CHECK(first.equal(at::tensor(order)));  // the order that one process would have
        }
      }
    }
  });
}

TEST_CASE("the numbers of accelerate: 9 rows in fives, 22 in eights, 99 in sixteens, 512 in sixteens", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    for (const auto& [rows, batch_size] : {std::pair{9, 5}, {22, 8}, {99, 16}, {512, 16}, {22, 4}, {30, 4}}) {
      for (auto options : {every_row, even_batches}) {
        options.batch_size = batch_size;
        auto loader = accelerator.prepare(DataLoader{Numbers{rows}, options});
        CHECK(epoch(accelerator, loader).size(0) == rows);
      }
    }
  });
}

TEST_CASE("with drop_last, batch size 5 and 10 P + 1 rows, the second round gathers 5 P rows", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const int p = rank.world_size;
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{10 * p + 1}, {.batch_size = 5, .drop_last = true}});
    std::vector<std::int64_t> gathered;
    for (auto& batch : loader) gathered.push_back(accelerator.gather_for_metrics(batch).size(0));
    CHECK(gathered == std::vector<std::int64_t>{5 * p, 5 * p});
  });
}

TEST_CASE("split_batches gathers every row once", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    for (const std::int64_t rows : {1, 9, 50}) {
      for (const bool even : {false, true}) {
        auto loader = accelerator.prepare(
            DataLoader{Numbers{rows}, {.batch_size = 6, .even_batches = even, .split_batches = true}});
        CHECK(epoch(accelerator, loader).equal(at::arange(rows)));
      }
    }
  });
}

TEST_CASE("several values give a tuple, and trees are gathered tensor by tensor", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{11}, {.batch_size = 3}});
    at::Tensor wide = at::empty({0, 2}, at::kLong);
    at::Tensor flags = at::empty({0}, at::kBool);
    at::Tensor halves = at::empty({0}, at::kDouble);
    for (auto& batch : loader) {
      auto [tree, half] = accelerator.gather_for_metrics(std::pair(at::stack({batch, batch + 1}, 1), batch.gt(5)),
                                                         batch.to(at::kDouble) / 2);
      wide = at::cat({wide, tree.first});
      flags = at::cat({flags, tree.second});
      halves = at::cat({halves, half});
    }
    const at::Tensor all = at::arange(11);
    CHECK(wide.equal(at::stack({all, all + 1}, 1)));
    CHECK(flags.equal(all.gt(5)));
    CHECK(halves.equal(all.to(at::kDouble) / 2));
  });
}

TEST_CASE("what is not one row per sample is refused on every round, also on one rank", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{10}, {.batch_size = 4}});
    for (auto& batch : loader) {
      const auto refused = [&](const at::Tensor& wrong) {
        const auto error = thrown_by<InvalidArgument>([&] { (void)accelerator.gather_for_metrics(wrong); });
        CHECK_THAT(error, ContainsSubstring("expected " + std::to_string(batch.size(0)) + " rows") &&
                              ContainsSubstring(accel::tensor::spec(wrong)));
      };
      refused(at::ones({batch.size(0) + 1}));
      refused(at::ones({0}));
      if (rank.rank == 0) refused(at::ones({}));  // refused before anything is sent
      CHECK(accelerator.gather_for_metrics(batch).size(0) > 0);
    }
  });
}

TEST_CASE("outside of a loop there is nothing to gather for", "[metrics]") {
  on_ranks({1, 2}, [](Rank) {
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{10}, {.batch_size = 4}});
    const auto refused = [&] {
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)accelerator.gather_for_metrics(at::ones({4})); }),
                 ContainsSubstring("no prepared loader is in flight"));
    };
    refused();
    for (auto& batch : loader) (void)accelerator.gather_for_metrics(batch);
    refused();
    for (auto& batch : loader) {
      (void)accelerator.gather_for_metrics(batch);
      break;
    }
    refused();  // a loop that was left is over, too
  });
}

TEST_CASE("an evaluation inside of a training loop gathers its own rows", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    auto train = accelerator.prepare(DataLoader{Numbers{23}, {.batch_size = 4}});
    auto test = accelerator.prepare(DataLoader{Numbers{7}, {.batch_size = 5}});
    at::Tensor seen = at::empty({0}, at::kLong);
    for (auto& batch : train) {
      CHECK(epoch(accelerator, test).equal(at::arange(7)));
      seen = at::cat({seen, accelerator.gather_for_metrics(batch)});
    }
    CHECK(seen.equal(at::arange(23)));
  });
}

TEST_CASE("texts and numbers are gathered like rows: each sample once, in its place", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    for (const std::int64_t rows : {1, 2, 11, 12})
      for (const bool even : {false, true}) {
        auto loader = accelerator.prepare(DataLoader{Numbers{rows}, {.batch_size = 3, .even_batches = even}});
        std::vector<std::string> words, expected;
        std::vector<double> halves;
        for (auto& batch : loader) {
          std::vector<std::string> mine;
          std::vector<double> half;
          for (std::int64_t i = 0; i < batch.size(0); ++i) {
            const auto number = batch[i].template item<std::int64_t>();
            mine.push_back(std::string(static_cast<std::size_t>(number), 'x') + "\xc3\xa9");
            half.push_back(0.5 * static_cast<double>(number));
          }
          for (auto& word : accelerator.gather_for_metrics(mine)) words.push_back(word);
          for (const double one : accelerator.gather_for_metrics(half)) halves.push_back(one);
          CHECK_THAT(thrown_by<InvalidArgument>(
                         [&] { (void)accelerator.gather_for_metrics(std::vector<std::string>(mine.size() + 1)); }),
                     ContainsSubstring("values, one per row of the batch, found"));
        }
        for (std::int64_t i = 0; i < rows; ++i)
          expected.push_back(std::string(static_cast<std::size_t>(i), 'x') + "\xc3\xa9");
        CHECK(words == expected);
        CHECK(halves.size() == words.size());
        CHECK(halves.back() == 0.5 * static_cast<double>(rows - 1));
      }
  });
}

TEST_CASE("in the last round of an uneven loader nothing is gathered, and nobody waits", "[metrics]") {
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{2 * rank.world_size + 1}, {.batch_size = 2, .uneven = true}});
    std::int64_t batches = 0;
    for (auto& batch : loader) {
      if (++batches == 1) {
        CHECK(accelerator.gather_for_metrics(batch).size(0) == 2 * rank.world_size);
        continue;
      }
      CHECK(rank.rank == 0);
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)accelerator.gather_for_metrics(batch); }),
                 ContainsSubstring("some ranks have no batch"));
    }
    CHECK(batches == (rank.rank == 0 ? 2 : 1));
  });
}
