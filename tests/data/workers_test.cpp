// Workers of a loader: the same batches as without them, whoever reads, and errors that say which row it was.
#include <torch/torch.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/data/samplers.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"

namespace {

using accel::DataError;
using accel::InvalidArgument;
using accel::data::DataLoader;
using accel::data::DataLoaderOptions;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Alone = accel::Accelerator<accel::backend::Single, accel::precision::Fp32>;

/// Row i is i and a random number; asked by several threads at once.
struct Augmented {
  std::int64_t rows = 40;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> get(std::size_t row, at::Generator& random) const {
    return {torch::tensor(static_cast<std::int64_t>(row)), torch::rand({3}, random)};
  }
};

/// All batches of an epoch, one after the other.
template <class Loader>
std::pair<torch::Tensor, torch::Tensor> epoch(Loader& loader) {
  std::vector<torch::Tensor> rows, numbers;
  for (auto& [row, number] : loader) {
    rows.push_back(row);
    numbers.push_back(number);
  }
  return {torch::cat(rows), torch::cat(numbers)};
}

}  // namespace

TEST_CASE("batches and their random numbers are the same for any number of workers", "[data][threads]") {
  Alone accelerator;
  DataLoaderOptions options{.batch_size = 3, .shuffle = true, .seed = 7};
  auto alone = accelerator.prepare(DataLoader{Augmented{}, options});
  const auto first = epoch(alone);
  const auto second = epoch(alone);
  CHECK_FALSE(first.first.equal(second.first));
  CHECK_FALSE(std::get<0>(first.second.flatten().sort()).equal(std::get<0>(second.second.flatten().sort())));
  // 40 rows, no two alike
  CHECK(std::get<0>(at::_unique(first.second)).numel() == 120);
  for (const int workers : {1, 2, 4}) {
    options.workers = workers;
    options.prefetch = workers == 2 ? 1 : 3;
    auto loader = accelerator.prepare(DataLoader{Augmented{}, options});
    for (const auto& expected : {first, second}) {
      const auto [rows, numbers] = epoch(loader);
      CHECK(rows.equal(expected.first));
      CHECK(numbers.equal(expected.second));
    }
  }
  // The random numbers belong to the sample, so that other batches have them, too.
  auto larger = accelerator.prepare(DataLoader{Augmented{}, {.batch_size = 8, .shuffle = true, .seed = 7}});
  CHECK(epoch(larger).second.equal(first.second));
}

TEST_CASE("workers share a dataset that is const when it is asked, and copy one that is not", "[data][threads]") {
  struct Who {
    std::set<const void*> asked;
    std::mutex mutex;
    void note(const void* dataset) {
      const std::lock_guard lock(mutex);
      asked.insert(dataset);
    }
  };
  struct Shared {
    std::shared_ptr<Who> who;
    [[nodiscard]] std::size_t size() const { return 64; }
    [[nodiscard]] torch::Tensor get(std::size_t row) const {
      who->note(this);
      return torch::tensor(static_cast<std::int64_t>(row));
    }
  };
  struct Own {
    std::shared_ptr<Who> who;
    std::int64_t calls = 0;  // unprotected: a race, if two threads asked one and the same
    [[nodiscard]] std::size_t size() const { return 64; }
    [[nodiscard]] torch::Tensor get(std::size_t row) {
      ++calls;
      who->note(this);
      std::this_thread::yield();
      return torch::tensor(static_cast<std::int64_t>(row));
    }
  };
  const auto walk = [](auto dataset, int workers) {
    Alone accelerator;
    auto loader = accelerator.prepare(DataLoader{dataset, {.batch_size = 2, .workers = workers}});
    std::int64_t next = 0;
    for (auto& rows : loader)
      for (std::int64_t i = 0; i < rows.size(0); ++i) REQUIRE(rows[i].template item<std::int64_t>() == next++);
    CHECK(next == 64);
    CHECK(dataset.who->asked.contains(&loader.dataset()) ==
          (workers == 0 || accel::data::SharedDataset<decltype(dataset)>));
    return dataset.who->asked.size();
  };
  CHECK(walk(Shared{std::make_shared<Who>()}, 3) == 1);
  CHECK(walk(Shared{std::make_shared<Who>()}, 0) == 1);
  CHECK(walk(Own{std::make_shared<Who>()}, 0) == 1);
  CHECK(walk(Own{std::make_shared<Who>()}, 3) <= 3);  // one of them may have done it all
}

TEST_CASE("a dataset that can neither be shared nor copied has room for one worker", "[data][threads]") {
  struct Unique {
    std::unique_ptr<int> state = std::make_unique<int>(0);
    [[nodiscard]] std::size_t size() const { return 5; }
    [[nodiscard]] torch::Tensor get(std::size_t row) {
      return torch::tensor(static_cast<std::int64_t>(row) + ++*state);
    }
  };
  CHECK_THAT(thrown_by<InvalidArgument>([] { DataLoader(Unique{}, {.workers = 2}); }),
             ContainsSubstring("has room for 1, found 2; make get or get_batch const"));
  Alone accelerator;
  auto loader = accelerator.prepare(DataLoader{Unique{}, {.batch_size = 5, .workers = 1}});
  for (auto& rows : loader) CHECK(rows.equal(torch::tensor({1, 3, 5, 7, 9})));
}

TEST_CASE("a getter that is const does not stand in for the one that is asked", "[data]") {
  struct Plain {
    bool is_augmented = true;
    [[nodiscard]] std::size_t size() const { return 3; }
    [[nodiscard]] std::int64_t get(std::size_t) const { return 0; }
    [[nodiscard]] std::int64_t get(std::size_t, at::Generator&) { return is_augmented ? 1 : 2; }
  };
  Alone accelerator;
  for (const int workers : {0, 2}) {
    auto loader = accelerator.prepare(DataLoader{Plain{}, {.batch_size = 3, .workers = workers}});
    for (auto& batch : loader) CHECK(batch.equal(torch::tensor({1, 1, 1})));
  }
}

TEST_CASE("a first batch that throws leaves nothing under way", "[data][threads]") {
  struct Broken {
    [[nodiscard]] std::size_t size() const { return 4; }
    [[nodiscard]] torch::Tensor get(std::size_t) const { throw std::runtime_error("no"); }
  };
  Alone accelerator;
  for (const int workers : {0, 2}) {
    auto loader = accelerator.prepare(DataLoader{Broken{}, {.batch_size = 2, .workers = workers}});
    CHECK_THROWS_AS(loader.begin(), DataError);
    CHECK(loader.state_dict().integer("epoch") == 1);
    CHECK(loader.state_dict().integer("batches") == 0);
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)accelerator.gather_for_metrics(torch::ones({2})); }),
               ContainsSubstring("no prepared loader is in flight"));
  }
}

TEST_CASE("one dataset for one worker is not read by two passes at once", "[data][threads]") {
  struct Unique {
    std::unique_ptr<int> state = std::make_unique<int>(0);
    [[nodiscard]] std::size_t size() const { return 5; }
    [[nodiscard]] torch::Tensor get(std::size_t) { return torch::tensor(++*state); }
  };
  Alone accelerator;
  auto loader = accelerator.prepare(DataLoader{Unique{}, {.batch_size = 1, .workers = 1}});
  for ([[maybe_unused]] auto& batch : loader)
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)loader.begin(); }),
               ContainsSubstring("another loop over it is under way, and there is one dataset for both"));
}

TEST_CASE("what a dataset throws is told with the row, whoever asked, and is nested in it", "[data][threads]") {
  struct Broken {
    bool whole;
    [[nodiscard]] std::size_t size() const { return 40; }
    [[nodiscard]] torch::Tensor get(std::size_t row) const {
      if (row == 17) throw std::out_of_range("no such picture\nand more");
      return torch::tensor(static_cast<std::int64_t>(row));
    }
  };
  struct BrokenBatch : Broken {
    [[nodiscard]] torch::Tensor get_batch(const std::vector<std::int64_t>& rows) const {
      for (const auto row : rows)
        if (row == 17) throw std::bad_alloc();
      return torch::tensor(rows);
    }
  };
  Alone accelerator;
  for (const int workers : {0, 1, 3}) {
    const auto walk = [&](auto dataset) {
      auto loader = accelerator.prepare(DataLoader{dataset, {.batch_size = 4, .workers = workers}});
      std::int64_t batches = 0;
      try {
        for ([[maybe_unused]] auto& batch : loader) ++batches;
      } catch (const DataError& error) {
        CHECK(batches == 4);  // rows 16 to 19 are the fifth
        std::string nested = "nothing";
        try {
          std::rethrow_if_nested(error);
        } catch (const std::out_of_range&) {
          nested = "out_of_range";
        } catch (const std::bad_alloc&) {
          nested = "bad_alloc";
        }
        return error.what() + (" <- " + nested);
      }
      return std::string("no error");
    };
    CHECK(walk(Broken{false}) == "the dataset could not give row 17: no such picture <- out_of_range");
    CHECK(walk(BrokenBatch{{true}}) == "the dataset could not give rows 16, 17, 18, 19: std::bad_alloc <- bad_alloc");
  }
}

TEST_CASE("a worker computes by itself, and leaves the other threads their number", "[data][threads]") {
  struct Threads {
    [[nodiscard]] std::size_t size() const { return 4; }
    [[nodiscard]] std::int64_t get(std::size_t) const { return at::get_num_threads(); }
  };
  Alone accelerator({.threads = 3});
  auto loader = accelerator.prepare(DataLoader{Threads{}, {.batch_size = 4, .workers = 1}});
  for (auto& threads : loader) CHECK(threads.equal(torch::tensor({1, 1, 1, 1})));
  CHECK(at::get_num_threads() == 3);
  std::thread([] { CHECK(at::get_num_threads() == 3); }).join();
}

TEST_CASE("leaving a loop leaves no thread and no trace", "[data][threads]") {
  Alone accelerator;
  auto loader =
      accelerator.prepare(DataLoader{Augmented{}, {.batch_size = 2, .shuffle = true, .seed = 3, .workers = 2}});
  const auto whole = [&](std::int64_t number) {
    auto other = accelerator.prepare(DataLoader{Augmented{}, {.batch_size = 2, .shuffle = true, .seed = 3}});
    other.set_epoch(number);
    return epoch(other).second;
  };
  for ([[maybe_unused]] auto& batch : loader) break;
  CHECK(epoch(loader).second.equal(whole(1)));
  try {
    for ([[maybe_unused]] auto& batch : loader) throw std::runtime_error("the loss is NaN");
  } catch (const std::runtime_error&) {
    CHECK(loader.epoch() == 3);
  }
  CHECK(epoch(loader).second.equal(whole(3)));
  // A pass in a pass, as an evaluation within an epoch.
  std::int64_t inner = 0;
  for ([[maybe_unused]] auto& outer : loader) {
    for ([[maybe_unused]] auto& batch : loader) ++inner;
    break;
  }
  CHECK(inner == 20);
}

TEST_CASE("a sampler that names a row that is not there is told so, with the place", "[data]") {
  Alone accelerator;
  const accel::data::Sampler beyond{.name = "beyond", .order = [](const accel::data::Draw& draw) {
                                      return accel::data::Order::computed(
                                          draw.rows, [](std::int64_t position) { return position * 2; });
                                    }};
  auto loader = accelerator.prepare(DataLoader{Augmented{10}, {.batch_size = 3, .sampler = beyond}});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)epoch(loader); }),
             ContainsSubstring("the sampler gave row 10 at position 5, and the dataset has 10 rows"));
  const accel::data::Sampler liar{.name = "liar",
                                  .order = [](const accel::data::Draw&) { return accel::data::Order::sequential(3); }};
  auto short_of = accelerator.prepare(DataLoader{Augmented{10}, {.batch_size = 3, .sampler = liar}});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)epoch(short_of); }),
             ContainsSubstring("the sampler liar gave 3 rows for an epoch, and had said 10"));
}

TEST_CASE("batches of different sizes need an epoch with an end, and groups that are told their size", "[data]") {
  Alone accelerator;
  namespace sampler = accel::data::sampler;
  const auto budget = accel::data::token_budget(std::vector<std::int64_t>(40, 1), {.tokens = 4});
  auto endless = accelerator.prepare(
      DataLoader{Augmented{}, {.sampler = sampler::endless(sampler::random()), .batching = budget}});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)endless.begin(); }), ContainsSubstring("and the sampler endless"));
  auto grouped = accelerator.prepare(DataLoader{
      Augmented{}, {.sampler = sampler::grouped_by_length(std::vector<std::int64_t>(40, 1)), .batching = budget}});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)grouped.begin(); }), ContainsSubstring("say batch_size"));
}

TEST_CASE("options that contradict each other are refused", "[data]") {
  const auto refused = [](const DataLoaderOptions& options, const std::string& text) {
    CHECK_THAT(thrown_by<InvalidArgument>([&] { DataLoader(Augmented{}, options); }), ContainsSubstring(text));
  };
  refused({.shuffle = true, .sampler = accel::data::sampler::sequential()}, "both say what the order is");
  refused({.batch_size = 4, .batching = accel::data::token_budget({1}, {})}, "leave batch_size and split_batches out");
  refused({.even_batches = true, .uneven = true}, "contradict");
  refused({.workers = -1}, "workers: expected 0 to 1024 threads, found -1");
  refused({.prefetch = 0}, "prefetch: expected 1 to 1000000 batches, found 0");
  refused({.prefetch = 1'000'001}, "prefetch: expected 1 to 1000000 batches, found 1000001");
  refused({.timeout_s = 0}, "timeout_s: expected more than 0");
}
