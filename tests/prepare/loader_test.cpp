#include "support/models.hpp"
#include "support/orders.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <stdexcept>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using data::DataLoader;

namespace {

/// Row i holds i: what a batch holds tells which rows it is.
struct Numbers {
  std::int64_t rows;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> get_batch(const torch::Tensor& indices) const {
    return {indices, 2 * indices};
  }
};

std::vector<std::int64_t> list(const torch::Tensor& tensor) {
  const auto row = tensor.contiguous();
  return {row.const_data_ptr<std::int64_t>(), row.const_data_ptr<std::int64_t>() + row.numel()};
}

template <class Loader>
std::vector<std::int64_t> epoch(Loader& loader) {
  std::vector<std::int64_t> rows;
  for (auto& [numbers, doubled] : loader)
    for (const auto row : list(numbers)) rows.push_back(row);
  return rows;
}

}  // namespace

TEST_CASE("the ranks share an epoch in PyTorch's order, and the next one differs", "[loader]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{8}, {.batch_size = 2, .shuffle = true, .seed = 42}});
    using Rows = std::vector<std::int64_t>;
    // Accelerate with data_seed 42: randperm of 42, then of 43.
    REQUIRE(epoch(loader) == (rank.rank == 0 ? Rows{6, 3, 2, 1} : Rows{0, 7, 4, 5}));
    REQUIRE(epoch(loader) == (rank.rank == 0 ? Rows{4, 5, 3, 2} : Rows{7, 1, 6, 0}));
    loader.set_epoch(0);
    REQUIRE(epoch(loader) == (rank.rank == 0 ? Rows{6, 3, 2, 1} : Rows{0, 7, 4, 5}));
  });
}

TEST_CASE("a seed that is left open is rank 0's on all ranks", "[loader]") {
  on_ranks({2, 3}, [](Rank rank) {
    torch::manual_seed(static_cast<std::uint64_t>(100 + rank.rank));
    Gloo accelerator;
    auto loader = accelerator.prepare(DataLoader{Numbers{30}, {.batch_size = 5, .shuffle = true}});
    const auto order = accel::testing::epoch_order(30, 100, 0);
    std::vector<std::int64_t> mine;
    const auto world = static_cast<std::size_t>(rank.world_size);
    for (std::size_t i = 0; i < order.size(); ++i)
      if (i / 5 % world == static_cast<std::size_t>(rank.rank)) mine.push_back(order[i]);
    REQUIRE(epoch(loader) == mine);
  });
}

TEST_CASE("every begin starts the next epoch, after a break as well", "[loader]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto loader = accelerator.prepare(DataLoader{Numbers{6}, {.batch_size = 2}});
  REQUIRE(loader.epoch() == 0);
  for (auto& batch : loader) {
    REQUIRE(batch.first.numel() == 2);
    break;
  }
  REQUIRE(loader.epoch() == 1);
  REQUIRE(epoch(loader).size() == 6);
  REQUIRE(loader.epoch() == 2);
}

TEST_CASE("a loader knows its length, its rows and its remainder", "[loader]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    const auto world = rank.world_size;
    const auto check = [&](const data::DataLoaderOptions& options, std::int64_t length, std::int64_t remainder) {
      auto loader = accelerator.prepare(DataLoader{Numbers{23}, options});
      std::int64_t batches = 0;
      for ([[maybe_unused]] auto& batch : loader) {
        REQUIRE(loader.position().index == batches);
        ++batches;
        REQUIRE(loader.position().is_last() == (batches == length));
      }
      REQUIRE(batches == loader.size());
      REQUIRE(loader.size() == length);
      REQUIRE(loader.rows() == 23);
      REQUIRE(loader.remainder() == remainder);
    };
    const std::int64_t global = 4 * world;
    check({.batch_size = 4}, 23 / global + 1, 23 % global);
    check({.batch_size = 4, .even_batches = true}, 23 / global + 1, 23 % global);
    check({.batch_size = 4, .drop_last = true}, 23 / global, 0);
    check({.batch_size = 6, .split_batches = true}, 4, 5);
  });
}

TEST_CASE("lengths are those of the loop for every kind of batches, and positions count the rows of each", "[loader]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const std::int64_t rows : {0, 1, 5, 12, 23})
      for (const bool split : {false, true})
        for (const int tail : {0, 1, 2, 3, 4}) {
          const std::int64_t together = tail == 0 ? 7 : 6;  // what is not weighed is of one size on all ranks
          data::DataLoaderOptions options{.batch_size = split ? together : 3, .split_batches = split};
          options.even_batches = tail == 1;
          options.drop_last = tail == 2;
          options.uneven = tail == 3;
          if (tail == 4) {
            if (split) continue;
            // Rows of length 1, 2, 3, ...: four and fewer to a batch.
            std::vector<std::int64_t> lengths;
            for (std::int64_t i = 0; i < rows; ++i) lengths.push_back(1 + i % 5);
            options = {.batching = data::token_budget(lengths, {.tokens = 6})};
          }
          INFO(rows << " rows, split " << split << ", tail " << tail << ", rank " << rank.rank);
          auto loader = accelerator.prepare(DataLoader{Numbers{rows}, options});
          const std::int64_t size = loader.size();
          std::int64_t batches = 0, own = 0;
          for (auto& [numbers, doubled] : loader) {
            const auto& at = loader.position();
            REQUIRE(at.index == batches++);
            REQUIRE(at.rows <= numbers.size(0));
            // Repeated rows fill even batches, and stand in where a rank would have none.
            if (tail != 1) REQUIRE((at.rows == numbers.size(0) || at.rows == 0));
            for (const auto row : list(numbers.narrow(0, 0, at.rows))) REQUIRE((row >= 0 && row < rows));
            own += at.rows;
            if (tail == 0 && !split) {
              // Of every_row: full batches in the order of the ranks, then what is left.
              const std::int64_t begin = 3 * rank.world_size * at.index;
              const auto part = data::Deal({.batch_size = 3, .world_size = rank.world_size})
                                    .part(std::min<std::int64_t>(3 * rank.world_size, rows - begin), rank.rank);
              REQUIRE(at.rows == part.counted);
            }
          }
          REQUIRE(batches == size);
          const auto of_all = accelerator.reduce(torch::tensor(own)).template item<std::int64_t>();
          const std::int64_t global = split ? together : 3 * rank.world_size;
          REQUIRE(of_all == (tail == 2 ? rows / global * global : rows));
          const bool is_even = tail != 3;
          if (is_even)
            REQUIRE(accelerator.reduce(torch::tensor(batches)).template item<std::int64_t>() ==
                    rank.world_size * batches);
        }
  });
}

TEST_CASE("sequences are padded, and rows collated as one likes, in a prepared loader with workers", "[loader]") {
  struct Sequences {
    [[nodiscard]] std::size_t size() const { return 7; }
    [[nodiscard]] torch::Tensor get(std::size_t row) const {
      return torch::full({static_cast<std::int64_t>(row)}, static_cast<std::int64_t>(row));
    }
  };
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    for (const int workers : {0, 2}) {
      const data::DataLoaderOptions options{.batch_size = 2, .workers = workers};
      auto padded = accelerator.prepare(DataLoader{Sequences(), options, data::Pad{.value = -1, .multiple_of = 4}});
      std::vector<std::int64_t> seen;
      for (auto& batch : padded) {
        REQUIRE(batch.size(1) % 4 == 0);
        for (std::int64_t i = 0; i < batch.size(0); ++i) {
          const auto kept = batch[i].masked_select(batch[i].ne(-1));
          REQUIRE(kept.equal(torch::full({kept.size(0)}, kept.size(0))));  // as many as it says itself
          REQUIRE(batch[i].narrow(0, 0, kept.size(0)).equal(kept));
        }
        const auto lengths = batch.ne(-1).sum(1);
        for (const auto length : list(accelerator.gather_for_metrics(lengths))) seen.push_back(length);
      }
      REQUIRE(seen == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6});
      const auto joined = [](const std::vector<torch::Tensor>& rows) {
        return std::pair{torch::cat(rows), torch::tensor(static_cast<std::int64_t>(rows.size()))};
      };
      auto own = accelerator.prepare(DataLoader{Sequences(), options, joined});
      std::int64_t rows = 0, elements = 0;
      for (auto& [all, count] : own) {
        if (own.position().rows == 0) continue;  // a row that stands in where this rank would have none
        rows += count.template item<std::int64_t>();
        elements += all.numel();
      }
      REQUIRE(accelerator.reduce(torch::tensor({rows, elements})).equal(torch::tensor({7, 21})));
    }
  });
}

TEST_CASE("every row comes once, by default; the last one waits for nobody", "[loader]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (std::int64_t rows = 0; rows < 20; ++rows) {
      auto loader = accelerator.prepare(DataLoader{Numbers{rows}, {.batch_size = 3, .shuffle = true, .seed = 1}});
      std::vector<std::int64_t> seen;
      std::int64_t batches = 0;
      for (auto& [numbers, doubled] : loader) {
        ++batches;
        auto [all, all_doubled] = accelerator.gather_for_metrics(numbers, doubled);
        REQUIRE(torch::equal(2 * all, all_doubled));
        for (const auto row : list(all)) seen.push_back(row);
      }
      REQUIRE(batches == (rows + 3 * rank.world_size - 1) / (3 * rank.world_size));
      REQUIRE(seen == accel::testing::epoch_order(rows, 1, 0));  // in the order of the samples
    }
  });
}

TEST_CASE("accumulate knows a batch by its place, or by that of a member", "[loader]") {
  Accelerator<backend::Single, precision::Fp32> accelerator({.accumulation_steps = 2});
  auto loader = accelerator.prepare(DataLoader{Numbers{6}, {.batch_size = 2}});
  std::string flags;
  for (auto& batch : loader) {
    auto micro_step = accelerator.accumulate(batch);
    flags += micro_step.synchronises() ? '1' : '0';
  }
  for (auto& [numbers, doubled] : loader) {
    auto micro_step = accelerator.accumulate(doubled);
    flags += micro_step.synchronises() ? '1' : '0';
  }
  REQUIRE(flags == "011011");
  for (auto batch : loader)
    REQUIRE_THROWS_WITH(accelerator.accumulate(batch), ContainsSubstring("for (auto& batch : loader)"));
}

TEST_CASE("nested loops do not mix: the inner one is measured, the outer one goes on", "[loader]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto [train, test] =
        accelerator.prepare(DataLoader{Numbers{10}, {.batch_size = 2}}, DataLoader{Numbers{7}, {.batch_size = 3}});
    std::int64_t trained = 0;
    for (auto& [numbers, doubled] : train) {
      std::int64_t tested = 0;
      for (auto& [inner, inner_doubled] : test) tested += accelerator.gather_for_metrics(inner).size(0);
      REQUIRE(tested == 7);
      for ([[maybe_unused]] auto& batch : test) break;
      trained += accelerator.gather_for_metrics(numbers).size(0);
    }
    REQUIRE(trained == 10);
  });
}

TEST_CASE("loaders in lvalues are borrowed", "[loader]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  DataLoader own{Numbers{4}, {.batch_size = 2}};
  auto loader = accelerator.prepare(own);
  REQUIRE(&loader.dataset() == &own.dataset());
}

TEST_CASE("loaders that differ between ranks are refused", "[loader]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    REQUIRE_THROWS_WITH(
        accelerator.prepare(DataLoader{Numbers{10 + rank.rank}, {.batch_size = 2}}),
        ContainsSubstring("rank 0 has loader 0: 10 rows") && ContainsSubstring("rank 1 has loader 0: 11 rows"));
    REQUIRE_THROWS_WITH(accelerator.prepare(DataLoader{Numbers{10}, {.batch_size = rank.rank}}),
                        ContainsSubstring("batch_size: expected at least 1, found 0"));
  });
}

TEST_CASE("what a dataset throws says which rank asked, and for which row, with workers as without", "[loader]") {
  struct Broken {
    [[nodiscard]] std::size_t size() const { return 12; }
    [[nodiscard]] torch::Tensor get(std::size_t row) const {
      if (row == 9) throw std::out_of_range("no such picture");
      return torch::tensor(static_cast<std::int64_t>(row));
    }
  };
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const int workers : {0, 2}) {
      auto loader = accelerator.prepare(DataLoader{Broken(), {.batch_size = 2, .workers = workers}});
      std::string text;
      try {
        for ([[maybe_unused]] auto& batch : loader) {
        }
      } catch (const DataError& error) {
        text = error.what();
      }
      // Rows 8 and 9 are rank 0's of two ranks, and rank 1's of three.
      const bool is_asked = rank.rank == (rank.world_size == 2 ? 0 : 1);
      const std::string label = message("[rank ", rank.rank, "/", rank.world_size, "] ");
      REQUIRE(text == (is_asked ? label + "the dataset could not give row 9: no such picture" : ""));
    }
  });
}
