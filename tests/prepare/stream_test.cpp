// StreamLoader: by rank, dispatched from rank 0, and sharded by the dataset: every row once, weighted, and from any
// place again.
#include "support/captured.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using data::Reading;
using data::StreamLoader;
using data::StreamLoaderOptions;

namespace {

using Numbers64 = std::vector<std::int64_t>;

/// begin, begin + 1, ..., `rows` of them, and another begin for every epoch.
struct Counting {
  std::int64_t begin = 0, rows = 0;
  std::int64_t next_ = 0, epoch_ = 0;

  void start(std::int64_t epoch) {
    epoch_ = epoch;
    next_ = 0;
  }
  std::optional<torch::Tensor> next() {
    if (next_ == rows) return std::nullopt;
    return torch::tensor(1000 * epoch_ + begin + next_++);
  }
};

/// The same, which can jump.
struct Jumping : Counting {
  std::int64_t skipped = 0;
  void skip(std::int64_t count) {
    count = std::min(count, rows - next_);
    next_ += count;
    skipped += count;
  }
};

/// The same, which knows where it is. It cannot be read to a place: that throws.
struct Stateful : Counting {
  bool was_loaded = false;
  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("next", next_);
    state.add("epoch", epoch_);
    return state;
  }
  void load_state_dict(const tensor::StateDict& state) {
    next_ = state.integer("next");
    epoch_ = state.integer("epoch");
    was_loaded = true;
  }
};

/// x and 2 x of each, in f64: rows of the model with one weight.
struct Pairs {
  Counting numbers;
  std::optional<std::pair<torch::Tensor, torch::Tensor>> next() {
    const auto x = numbers.next();
    if (!x) return std::nullopt;
    return std::pair{x->to(torch::kDouble), 2 * x->to(torch::kDouble)};
  }
};

Numbers64 numbers_of(const torch::Tensor& tensor) {
  const auto row = tensor.contiguous();
  return {row.const_data_ptr<std::int64_t>(), row.const_data_ptr<std::int64_t>() + row.numel()};
}

Numbers64 counted(std::int64_t begin, std::int64_t count) {
  Numbers64 rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(begin + i);
  return rows;
}

/// What the ranks together see of an epoch, by gather_for_metrics, and that it was weighed by rows.
template <class Loader>
Numbers64 gathered(Gloo& accelerator, Loader& loader) {
  Numbers64 all;
  bool was_last = false;
  std::int64_t index = 0;
  for (auto& rows : loader) {
    REQUIRE_FALSE(was_last);
    was_last = loader.position().is_last();
    REQUIRE(loader.position().index == index++);
    const auto of_all = accelerator.gather_for_metrics(rows);
    // Rows, weighted as their gradients are: of every_row the mean over all of the round.
    const auto share = rows.to(torch::kDouble).mean() * loader.position().share();
    const auto mean = accelerator.reduce(share).template item<double>();
    REQUIRE(std::abs(mean - of_all.to(torch::kDouble).mean().template item<double>()) < 1e-9);
    for (const auto row : numbers_of(of_all)) all.push_back(row);
  }
  REQUIRE((was_last || all.empty()));
  return all;
}

}  // namespace

TEST_CASE("every row of a stream is seen once, in its order, read by every rank or by rank 0", "[stream]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched})
      for (const int prefetch : {0, 2})
        for (std::int64_t rows = 0; rows <= 14; ++rows)
          for (const bool split : {false, true}) {
            const std::int64_t batch_size = split ? 5 : 2;
            auto loader = accelerator.prepare(StreamLoader{
                Counting{0, rows},
                {.batch_size = batch_size, .reading = reading, .split_batches = split, .prefetch = prefetch}});
            INFO(rows << " rows " << name_of(reading) << " rank " << rank.rank);
            REQUIRE(gathered(accelerator, loader) == counted(0, rows));
            REQUIRE(gathered(accelerator, loader) == counted(1000, rows));  // the next epoch
          }
  });
}

TEST_CASE("streams are cut as Accelerate's IterableDatasetShard and its dispatcher cut them", "[stream]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    struct Row {
      std::int64_t rows, batch_size;
      int world_size;
      Reading reading;
      bool split, drop;
      std::vector<std::vector<Numbers64>> ranks;
    };
    using enum Reading;
    const std::vector<Row> table{
        {10, 2, 2, by_rank, false, false, {{{0, 1}, {4, 5}, {8, 9}}, {{2, 3}, {6, 7}, {0, 1}}}},
        {10, 2, 2, by_rank, false, true, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 7}}}},
        {10, 2, 3, by_rank, false, false, {{{0, 1}, {6, 7}}, {{2, 3}, {8, 9}}, {{4, 5}, {0, 1}}}},
        {7, 4, 2, by_rank, true, false, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 0}}}},
        {5, 4, 2, by_rank, true, false, {{{0, 1}, {4, 0}}, {{2, 3}, {1, 2}}}},
        {2, 4, 2, by_rank, true, false, {{{0, 1}}, {{0, 1}}}},
        {10, 2, 2, dispatched, false, false, {{{0, 1}, {4, 5}, {8}}, {{2, 3}, {6, 7}, {9}}}},
        {10, 2, 2, dispatched, false, true, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 7}}}},
        {7, 2, 2, dispatched, false, false, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 0}}}},
        {9, 5, 2, dispatched, false, false, {{{0, 1, 2, 3, 4}}, {{5, 6, 7, 8, 0}}}},
        {10, 2, 3, dispatched, false, false, {{{0, 1}, {6, 7}}, {{2, 3}, {8, 9}}, {{4, 5}, {0, 1}}}},
        {7, 4, 2, dispatched, true, false, {{{0, 1}, {4, 5}}, {{2, 3}, {6, 0}}}},
    };
    for (const Row& row : table) {
      if (row.world_size != rank.world_size) continue;
      StreamLoaderOptions options{
          .batch_size = row.batch_size, .reading = row.reading, .drop_last = row.drop, .split_batches = row.split};
      auto loader = accelerator.prepare(StreamLoader{Counting{0, row.rows}, data::compat::accelerate(options)});
      std::vector<Numbers64> mine;
      for (auto& batch : loader) {
        mine.push_back(numbers_of(batch));
        REQUIRE(loader.position().is_last() == (mine.size() == row.ranks[static_cast<std::size_t>(rank.rank)].size()));
      }
      REQUIRE(mine == row.ranks[static_cast<std::size_t>(rank.rank)]);
      // Repeated rows do not reach metrics, as Accelerate's do.
      loader.set_epoch(0);
      Numbers64 all;
      for (auto& batch : loader)
        for (const auto one : numbers_of(accelerator.gather_for_metrics(batch))) all.push_back(one);
      const std::int64_t full = row.split ? row.batch_size : row.batch_size * row.world_size;
      REQUIRE(all == counted(0, row.drop ? row.rows / full * full : row.rows));
    }
  });
}

TEST_CASE("rank 0 sends rows of any shape, texts, numbers and maps; nobody else reads", "[stream]") {
  struct Row {
    torch::Tensor sequence;
    std::string text;
    std::map<std::string, double> numbers;
    std::vector<std::int64_t> tokens;
  };
  struct Ragged {
    std::int64_t next_ = 0, reads = 0;
    std::optional<Row> next() {
      ++reads;
      if (next_ == 7) return std::nullopt;
      const auto i = next_++;
      return Row{torch::full({i, 2}, static_cast<double>(i)),
                 std::string(static_cast<std::size_t>(i), 'a') + "\xc3\xa4",
                 {{"half", 0.5 * static_cast<double>(i)}},
                 Numbers64(static_cast<std::size_t>(i % 3), i)};
    }
  };
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    // A function of the rows makes the batch: here the rows themselves.
    const auto as_they_are = [](std::vector<Row> rows) { return rows; };
    auto loader =
        accelerator.prepare(StreamLoader{Ragged{}, {.batch_size = 2, .reading = Reading::dispatched}, as_they_are});
    std::int64_t round_begin = 0;
    for (auto& rows : loader) {
      const std::int64_t in_round = std::min<std::int64_t>(2 * rank.world_size, 7 - round_begin);
      const auto part = data::Deal({.batch_size = 2, .world_size = rank.world_size}).part(in_round, rank.rank);
      REQUIRE(std::ssize(rows) == part.held);
      REQUIRE(loader.position().rows == part.counted);
      for (std::int64_t k = 0; k < part.counted; ++k) {
        const auto i = round_begin + part.first + k;
        const Row& row = rows[static_cast<std::size_t>(k)];
        REQUIRE(row.sequence.equal(torch::full({i, 2}, static_cast<double>(i))));
        REQUIRE(row.text == std::string(static_cast<std::size_t>(i), 'a') + "\xc3\xa4");
        REQUIRE(row.numbers.at("half") == 0.5 * static_cast<double>(i));
        REQUIRE(row.tokens == Numbers64(static_cast<std::size_t>(i % 3), i));
      }
      round_begin += in_round;
    }
    REQUIRE(round_begin == 7);
    REQUIRE((loader.dataset().reads > 0) == (rank.rank == 0));
  });
}

TEST_CASE("texts and numbers beside a stream's rows are gathered once each, in the order of the rows", "[stream]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched, Reading::by_dataset})
      for (const bool even : {false, true}) {
        if (even && reading == Reading::by_dataset) continue;
        const bool is_sharded = reading == Reading::by_dataset;
        // Sharded by itself, rank r has 3 + r rows: 100 r and on.
        auto loader = accelerator.prepare(
            StreamLoader{Counting{is_sharded ? 100 * rank.rank : 0, is_sharded ? 3 + rank.rank : 11},
                         {.batch_size = 2, .reading = reading, .even_batches = even}});
        std::vector<std::string> words;
        std::vector<double> halves;
        Numbers64 rows;
        for (auto& batch : loader) {
          std::vector<std::string> own;
          std::vector<double> half;
          for (const auto row : numbers_of(batch)) {
            own.push_back(message("row ", row));
            half.push_back(0.5 * static_cast<double>(row));
          }
          for (auto& word : accelerator.gather_for_metrics(own)) words.push_back(word);
          for (const double one : accelerator.gather_for_metrics(half)) halves.push_back(one);
          for (const auto row : numbers_of(accelerator.gather_for_metrics(batch))) rows.push_back(row);
        }
        REQUIRE(std::ssize(rows) ==
                (is_sharded ? 3 * rank.world_size + rank.world_size * (rank.world_size - 1) / 2 : 11));
        if (!is_sharded) REQUIRE(rows == counted(0, 11));
        REQUIRE(words.size() == rows.size());
        REQUIRE(halves.size() == rows.size());
        for (std::size_t i = 0; i < rows.size(); ++i) {
          REQUIRE(words[i] == message("row ", rows[i]));
          REQUIRE(halves[i] == 0.5 * static_cast<double>(rows[i]));
        }
      }
  });
}

TEST_CASE("a stream without an end is walked for as long as the loop wants, and goes on where it was", "[stream]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    constexpr std::int64_t no_end = std::numeric_limits<std::int64_t>::max();
    for (const Reading reading : {Reading::by_rank, Reading::dispatched, Reading::by_dataset})
      for (const int prefetch : {0, 2}) {
        const std::int64_t begin = reading == Reading::by_dataset ? 1000 * rank.rank : 0;
        const auto make = [&] {
          return accelerator.prepare(
              StreamLoader{Counting{begin, no_end}, {.batch_size = 2, .reading = reading, .prefetch = prefetch}});
        };
        auto loader = make();
        Numbers64 seen;
        tensor::StateDict state;
        for (auto& batch : loader) {
          REQUIRE_FALSE(loader.position().is_last());
          for (const auto row : numbers_of(batch)) seen.push_back(row);
          if (loader.position().index == 3) state = loader.state_dict();
          if (loader.position().index == 9) break;
        }
        const auto is_dealt = reading != Reading::by_dataset;
        Numbers64 expected;
        for (std::int64_t i = 0; i < 20; ++i)
          expected.push_back(is_dealt ? i / 2 * 2 * rank.world_size + 2 * rank.rank + i % 2 : begin + i);
        REQUIRE(seen == expected);
        auto rest = make();
        rest.load_state_dict(state);
        Numbers64 again;
        for (auto& batch : rest) {
          for (const auto row : numbers_of(batch)) again.push_back(row);
          if (rest.position().index == 9) break;
        }
        REQUIRE(again == Numbers64(expected.begin() + 8, expected.end()));
      }
  });
}

TEST_CASE("rank 0 reads and sends the next rounds while the ranks compute on this one", "[stream]") {
  struct Noted : Counting {
    std::shared_ptr<std::atomic<std::int64_t>> reads = std::make_shared<std::atomic<std::int64_t>>(0);
    std::optional<torch::Tensor> next() {
      ++*reads;
      return Counting::next();
    }
  };
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator<backend::Traced<backend::Gloo>, precision::Fp32> accelerator;
    const std::int64_t round = 2 * rank.world_size;
    Noted stream{{0, 100}};
    const auto reads = stream.reads;
    auto loader =
        accelerator.prepare(StreamLoader{stream, {.batch_size = 2, .reading = Reading::dispatched, .prefetch = 3}});
    const auto broadcasts = [&] {
      std::int64_t calls = 0;
      for (const auto& row : accelerator.backend().rows())
        if (row.operation == "broadcast") calls += row.calls;
      return calls;
    };
    std::int64_t rounds = 0;
    for ([[maybe_unused]] auto& batch : loader) {
      // While the ranks are here three rounds are read that nobody has asked for.
      const Deadline deadline = Deadline::in(accel::Seconds(20 * patience));
      while (rank.rank == 0 && *reads < (rounds + 4) * round && !deadline.passed())
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (rank.rank == 0) REQUIRE(*reads >= (rounds + 4) * round);
      accelerator.wait_for_everyone();
      // And the next one is on its way: it was there when this one was handed out.
      if (rounds > 0) REQUIRE(broadcasts() == rounds + 2);
      if (++rounds == 5) break;
    }
    REQUIRE(rounds == 5);
  });
}

TEST_CASE("a stream that can jump is not read to its place", "[stream][resume]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched, Reading::by_dataset}) {
      const std::int64_t round = reading == Reading::by_dataset ? 2 : 2 * rank.world_size;
      const bool reads = reading != Reading::dispatched || rank.rank == 0;
      const auto make = [&] {
        return accelerator.prepare(
            StreamLoader{Jumping{{0, 60}}, {.batch_size = 2, .reading = reading, .prefetch = 0}});
      };
      auto skipping = make();
      skipping.skip_first(3);
      (void)*skipping.begin();
      REQUIRE(skipping.dataset().skipped == (reads ? 3 * round : 0));
      auto walked = make();
      tensor::StateDict state;
      for ([[maybe_unused]] auto& batch : walked)
        if (walked.position().index == 3) state = walked.state_dict();
      auto resumed = make();
      resumed.load_state_dict(state);
      (void)*resumed.begin();
      REQUIRE(resumed.dataset().skipped == (reads ? 4 * round : 0));
    }
  });
}

TEST_CASE("a stream that is read for long to where it goes on says how far it is", "[stream]") {
  struct Slow : Counting {
    std::optional<torch::Tensor> next() {
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
      return Counting::next();
    }
  };
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto loader =
      accelerator.prepare(StreamLoader{Slow{{0, 60}}, {.batch_size = 5, .reading = Reading::by_rank, .prefetch = 0}});
  loader.skip_first(8);
  const Captured said;
  REQUIRE(numbers_of(*loader.begin()) == counted(40, 5));
  REQUIRE_THAT(said.text(),
               ContainsSubstring("accel: reading to where the stream goes on: ") && ContainsSubstring(" of 40 rows\n"));
}

TEST_CASE("streams of different length on every rank: no hang, every row once, weighted", "[stream]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const int prefetch : {0, 3}) {
      // Rank r has 5 + 4 r rows: 1000 r and on.
      const auto mine = [&](std::int64_t r) { return 5 + 4 * r; };
      auto loader =
          accelerator.prepare(StreamLoader{Counting{100 * rank.rank, mine(rank.rank)},
                                           {.batch_size = 2, .reading = Reading::by_dataset, .prefetch = prefetch}});
      for (const std::int64_t epoch : {0, 1}) {
        Numbers64 expected;
        for (std::int64_t r = 0; r < rank.world_size; ++r)
          for (const auto row : counted(1000 * epoch + 100 * r, mine(r))) expected.push_back(row);
        auto seen = gathered(accelerator, loader);
        std::sort(seen.begin(), seen.end());
        REQUIRE(seen == expected);
      }
    }
  });
}

TEST_CASE("training on uneven streams is training on all rows in one process", "[stream]") {
  // One weight, y = 2 x: the gradient of a round is the mean over its rows, whoever has them.
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    const auto rows_of = [](std::int64_t r) { return r == 0 ? 3 : 2 * r; };
    auto net = std::make_shared<Line>();
    auto [model, loader] = accelerator.prepare(net, StreamLoader{Pairs{{10 * rank.rank, rows_of(rank.rank)}},
                                                                 {.batch_size = 2, .reading = Reading::by_dataset}});
    double expected = 0, weight = 0;
    std::int64_t round = 0;
    for (auto& [x, y] : loader) {
      // By hand: the rows that all ranks have in this round.
      double sum = 0, count = 0;
      for (std::int64_t r = 0; r < rank.world_size; ++r)
        for (std::int64_t i = 2 * round; i < std::min<std::int64_t>(2 * round + 2, rows_of(r)); ++i) {
          const auto value = static_cast<double>(10 * r + i);
          sum += 2 * (weight - 2) * value * value;
          ++count;
        }
      accelerator.backward(squared_error(model(x), y));
      REQUIRE(std::abs(net->weight.grad().item<double>() - sum / count) < 1e-9);
      {
        const torch::NoGradGuard no_grad;
        net->weight.sub_(0.001 * net->weight.grad());
        net->weight.mutable_grad().reset();
      }
      weight -= 0.001 * sum / count;
      ++round;
      expected = weight;
    }
    REQUIRE(round == 2);
    REQUIRE(std::abs(net->weight.item<double>() - expected) < 1e-12);
  });
}

TEST_CASE("a rank whose stream is empty while others have rows is an error on all of them", "[stream]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto loader = accelerator.prepare(
        StreamLoader{Counting{0, rank.rank == 1 ? 0 : 4}, {.batch_size = 2, .reading = Reading::by_dataset}});
    REQUIRE_THROWS_WITH(loader.begin(), ContainsSubstring("the stream of rank 1 has no rows where others have some"));
  });
}

TEST_CASE("a stream that throws on one rank is an error on every rank that waits for it", "[stream]") {
  struct Breaking {
    Counting numbers;
    bool breaks = false;
    std::optional<torch::Tensor> next() {
      if (breaks && numbers.next_ == 5) throw std::runtime_error("disk on fire");
      return numbers.next();
    }
  };
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::dispatched, Reading::by_dataset})
      for (const int prefetch : {0, 2}) {
        const int who = reading == Reading::dispatched ? 0 : 1;
        auto loader = accelerator.prepare(StreamLoader{Breaking{{0, 20}, rank.rank == who},
                                                       {.batch_size = 1, .reading = reading, .prefetch = prefetch}});
        std::string text;
        std::int64_t batches = 0;
        try {
          for ([[maybe_unused]] auto& batch : loader) ++batches;
        } catch (const DataError& error) {
          text = error.what();
        }
        REQUIRE(batches == (reading == Reading::dispatched ? (5 - 1) / rank.world_size : 4));
        REQUIRE_THAT(text, ContainsSubstring("row 5 of its epoch: disk on fire"));
        REQUIRE_THAT(text, ContainsSubstring(rank.rank == who ? "[rank" : message("rank ", who)));
      }
  });
}

TEST_CASE("a stream goes on at any round: by its state, by jumping, or by reading", "[stream][resume]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    const auto check = [&](const auto& stream, StreamLoaderOptions options, const auto& judge) {
      options.batch_size = 2;
      const auto walk = [](auto& loader, const auto& after) {
        std::vector<Numbers64> all;
        while (loader.epoch() < 2)
          for (auto& batch : loader) {
            all.push_back(numbers_of(batch));
            all.push_back({loader.position().index, loader.position().rows, loader.position().is_last()});
            after(all.size(), loader);
          }
        return all;
      };
      std::vector<std::pair<std::size_t, tensor::StateDict>> states;
      auto whole = accelerator.prepare(StreamLoader{stream, options});
      const auto expected =
          walk(whole, [&](std::size_t seen, auto& loader) { states.emplace_back(seen, loader.state_dict()); });
      REQUIRE(states.size() >= 4);
      for (const auto& [seen, state] : states) {
        auto loader = accelerator.prepare(StreamLoader{stream, options});
        loader.load_state_dict(state);
        REQUIRE(walk(loader, [](std::size_t, auto&) {}) ==
                std::vector<Numbers64>(expected.begin() + static_cast<std::ptrdiff_t>(seen), expected.end()));
        judge(loader);
      }
    };
    const auto nothing = [](auto&) {};
    for (const Reading reading : {Reading::by_rank, Reading::dispatched, Reading::by_dataset}) {
      const std::int64_t rows = reading == Reading::by_dataset ? 5 + 3 * rank.rank : 17;
      for (const int prefetch : {0, 2}) {
        const StreamLoaderOptions options{.reading = reading, .prefetch = prefetch};
        check(Counting{10 * rank.rank * (reading == Reading::by_dataset), rows}, options, nothing);
        check(Jumping{{0, rows}}, options, nothing);
        const bool reads = reading != Reading::dispatched || rank.rank == 0;
        check(Stateful{{0, rows}}, options, [&](auto& loader) { REQUIRE(loader.dataset().was_loaded == reads); });
        if (reading != Reading::by_dataset)
          check(Counting{0, rows}, {.reading = reading, .even_batches = true, .prefetch = prefetch}, nothing);
      }
    }
  });
}

TEST_CASE("a stream goes on at another number of ranks, behind the rows that were done", "[stream][resume]") {
  // The state of one rank alone, after two steps of 3: rows 0 to 5 are done.
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched}) {
      auto loader = accelerator.prepare(StreamLoader{Stateful{{0, 20}}, {.batch_size = 3, .reading = reading}});
      tensor::StateDict state;
      const auto fresh = loader.state_dict();
      for (const auto& [name, tensor] : fresh.entries())
        state.add(name, name == "rows"      ? torch::tensor(std::int64_t{6})
                        : name == "batches" ? torch::tensor(std::int64_t{2})
                                            : tensor);
      state.add("stream.next", 6);
      state.add("stream.epoch", 0);
      loader.load_state_dict(state);
      Numbers64 rest;
      for (auto& batch : loader)
        for (const auto row : numbers_of(accelerator.gather_for_metrics(batch))) rest.push_back(row);
      REQUIRE(rest == counted(6, 14));
    }
  });
}

TEST_CASE("a stream that shards itself goes on with its own state only", "[stream][resume]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    const auto loader_of = [&] {
      return accelerator.prepare(
          StreamLoader{Counting{100 * rank.rank, 9}, {.batch_size = 2, .reading = Reading::by_dataset}});
    };
    auto whole = loader_of();
    tensor::StateDict state;
    for ([[maybe_unused]] auto& batch : whole)
      if (whole.position().index == 1) state = whole.state_dict();
    // What the main process alone saves, as of a DataLoader, would be rank 0's rows everywhere.
    tensor::StateDict of_rank_0;
    for (const auto& [name, tensor] : state.entries())
      of_rank_0.add(name, name == "stream.rank" ? torch::tensor(std::int64_t{0}) : tensor);
    auto wrong = loader_of();
    wrong.load_state_dict(of_rank_0);
    REQUIRE_THROWS_WITH(wrong.begin(),
                        ContainsSubstring(rank.rank == 1 ? "the saved position is of rank 0 of 2, and this is rank 1"
                                                         : "rank 1's stream failed"));
    auto right = loader_of();
    right.load_state_dict(state);
    REQUIRE(numbers_of(*right.begin()) == counted(100 * rank.rank + 4, 2));
  });
}

TEST_CASE("batches of a stream are skipped, to its end and beyond", "[stream]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched, Reading::by_dataset})
      for (std::int64_t skipped = 0; skipped <= 7; ++skipped) {
        const auto check = [&](const auto& stream) {
          auto loader = accelerator.prepare(StreamLoader{stream, {.batch_size = 2, .reading = reading}});
          loader.skip_first(skipped);
          Numbers64 rest;
          for (auto& batch : loader)
            for (const auto row : numbers_of(accelerator.gather_for_metrics(batch))) rest.push_back(row);
          const std::int64_t shards = reading == Reading::by_dataset ? rank.world_size : 1;
          const std::int64_t done = std::min<std::int64_t>(10, 2 * skipped * (rank.world_size / shards));
          std::sort(rest.begin(), rest.end());
          Numbers64 expected;
          for (std::int64_t shard = 0; shard < shards; ++shard)
            for (const auto row : counted(100 * shard + done, 10 - done)) expected.push_back(row);
          REQUIRE(rest == expected);
          REQUIRE(loader.epoch() == 1);
        };
        const std::int64_t begin = reading == Reading::by_dataset ? 100 * rank.rank : 0;
        check(Counting{begin, 10});
        check(Jumping{{begin, 10}});
      }
  });
}

TEST_CASE("a stream that cannot be begun again goes on where a loop was left, and loses nothing", "[stream]") {
  struct Pipe {
    std::int64_t rows = 40, next_ = 0;
    std::optional<torch::Tensor> next() { return next_ < rows ? std::optional(torch::tensor(next_++)) : std::nullopt; }
  };
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    for (const Reading reading : {Reading::by_rank, Reading::dispatched})
      for (const int prefetch : {0, 3}) {
        auto loader =
            accelerator.prepare(StreamLoader{Pipe{}, {.batch_size = 2, .reading = reading, .prefetch = prefetch}});
        Numbers64 seen;
        for (int loop = 0; std::ssize(seen) < 40; ++loop) {
          REQUIRE(loader.epoch() == 0);
          int batches = 0;
          for (auto& batch : loader) {
            for (const auto row : numbers_of(accelerator.gather_for_metrics(batch))) seen.push_back(row);
            if (++batches == loop % 3 + 1) break;
          }
          REQUIRE(loader.state_dict().integer("rows") % 40 == std::ssize(seen) % 40);
        }
        REQUIRE(seen == counted(0, 40));
        // There is no way back.
        loader.skip_first(1);
        REQUIRE_THROWS_WITH(loader.begin(), ContainsSubstring("has no start(epoch)"));
      }
    (void)rank;
  });
}

TEST_CASE("two loops over one stream would share it, and are refused", "[stream]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto loader = accelerator.prepare(StreamLoader{Counting{0, 6}, {.batch_size = 2, .reading = Reading::by_rank}});
  std::int64_t batches = 0;
  for ([[maybe_unused]] auto& batch : loader) {
    REQUIRE_THROWS_WITH(loader.begin(),
                        ContainsSubstring("another loop over it is under way, and there is one stream"));
    ++batches;
  }
  REQUIRE(batches == 3);
}

TEST_CASE("a state that a stream goes on changing is saved as it was", "[stream][resume]") {
  struct Buffered : Counting {
    torch::Tensor place = torch::zeros({}, torch::kLong);
    std::optional<torch::Tensor> next() {
      place.add_(1);
      return Counting::next();
    }
    [[nodiscard]] tensor::StateDict state_dict() const {
      tensor::StateDict state;
      state.add("place", place);  // not a copy
      return state;
    }
    void load_state_dict(const tensor::StateDict& state) { next_ = state.integer("place"); }
  };
  Accelerator<backend::Single, precision::Fp32> accelerator;
  const StreamLoaderOptions options{.batch_size = 2, .reading = Reading::by_rank, .prefetch = 3};
  auto whole = accelerator.prepare(StreamLoader{Buffered{{0, 9}}, options});
  tensor::StateDict state;
  for ([[maybe_unused]] auto& batch : whole)
    if (whole.position().index == 1) state = whole.state_dict();
  auto loader = accelerator.prepare(StreamLoader{Buffered{{0, 9}}, options});
  loader.load_state_dict(state);
  REQUIRE(numbers_of(*loader.begin()) == Numbers64{4, 5});
}

TEST_CASE("leaving a dispatched loop early leaves nothing on its way", "[stream]") {
  on_ranks({2, 3}, [](Rank) {
    Gloo accelerator;
    auto loader = accelerator.prepare(StreamLoader{Counting{0, 30}, {.batch_size = 2, .reading = Reading::dispatched}});
    for (int round = 0; round < 5; ++round) {
      for ([[maybe_unused]] auto& batch : loader)
        if (loader.position().index == round) break;
      REQUIRE(accelerator.reduce(torch::ones({3})).equal(torch::full({3}, accelerator.world_size())));
    }
  });
}

TEST_CASE("an accumulation window that the stream ends is as long as it was", "[stream]") {
  Accelerator<backend::Single, precision::Fp32> accelerator({.accumulation_steps = 3});
  auto net = std::make_shared<Line>();
  auto [model, loader] =
      accelerator.prepare(net, StreamLoader{Pairs{{1, 5}}, {.batch_size = 1, .reading = Reading::by_rank}});
  std::vector<double> gradients;
  std::string windows;
  for (auto& batch : loader) {
    auto micro_step = accelerator.accumulate(batch);
    windows += std::to_string(micro_step.window_position()) + (micro_step.synchronises() ? "! " : " ");
    accelerator.backward(squared_error(model(batch.first), batch.second));
    if (!micro_step.synchronises()) continue;
    gradients.push_back(net->weight.grad().item<double>());
    net->weight.mutable_grad().reset();
  }
  REQUIRE(windows == "0 1 2! 0 1! ");
  // d/dw (w x - 2 x)^2 at w = 0 is -4 x^2: of x = 1, 2, 3, and of 4 and 5.
  REQUIRE(std::abs(gradients[0] + 4 * (1 + 4 + 9) / 3.0) < 1e-12);
  REQUIRE(std::abs(gradients[1] + 4 * (16 + 25) / 2.0) < 1e-12);
}

TEST_CASE("who reads a stream has to be said, and what cannot be is refused", "[stream]") {
  const auto refused = [](const StreamLoaderOptions& options, const std::string& text) {
    REQUIRE_THROWS_WITH(StreamLoader(Counting{}, options), ContainsSubstring(text));
  };
  refused({}, "reading: say who reads the stream: by_rank");
  refused({.batch_size = 0, .reading = Reading::by_rank}, "batch_size: expected at least 1, found 0");
  refused({.reading = Reading::by_rank, .prefetch = -1}, "prefetch: expected 0 to 1000000 rounds, found -1");
  refused({.reading = Reading::by_dataset, .drop_last = true}, "leave even_batches, drop_last and split_batches out");
}
