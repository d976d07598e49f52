// Resume: a run that ends at any batch goes on, in a new process, with exactly the batches that were left.
#include "support/folder.hpp"
#include "support/orders.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>
#include <accel/data/samplers.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Row i is i, and random numbers that belong to it.
struct Noisy {
  std::int64_t rows;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> get(std::size_t row, at::Generator& random) const {
    return {torch::tensor(static_cast<std::int64_t>(row)), torch::rand({}, random)};
  }
};

/// One batch of the run: everything that a program can see of it.
struct Seen {
  std::int64_t epoch, index, length, valid, weight, round;
  std::vector<std::int64_t> rows;
  std::vector<float> numbers;
  bool last;

  bool operator==(const Seen&) const = default;
};

template <class Loader, class Batch>
Seen seen(const Loader& loader, std::int64_t epoch, const Batch& batch) {
  const auto& at = loader.position();
  const auto rows = batch.first.contiguous();
  const auto numbers = batch.second.contiguous();
  return {epoch,
          at.index,
          at.length,
          at.rows,
          at.weight_rows,
          at.round_rows,
          {rows.template const_data_ptr<std::int64_t>(), rows.template const_data_ptr<std::int64_t>() + rows.numel()},
          {numbers.template const_data_ptr<float>(), numbers.template const_data_ptr<float>() + numbers.numel()},
          at.is_last()};
}

constexpr int epochs = 3;

/// The folder of the process that started the ranks, for all of them.
std::string shared_folder() {
  const char* folder = std::getenv("ACCEL_RESUME_FOLDER");
  REQUIRE(folder != nullptr);
  return folder;
}

std::string state_path(std::size_t kind, std::size_t batches) {
  return message(shared_folder(), "/", kind, ".", batches, ".safetensors");
}

void save(const tensor::StateDict& state, const std::string& path) {
  tensor::safetensors::write(path, state.entries());
}

tensor::StateDict saved(const std::string& path) {
  const tensor::safetensors::File file(path);
  tensor::StateDict state;
  for (const auto& name : file.names()) state.add(name, file.read(name));
  return state;
}

/// Walks the epochs that are left. After every batch `save` gets the state and what was seen so far.
template <class Loader, class Save>
std::vector<Seen> walk(Loader& loader, const Save& save) {
  std::vector<Seen> all;
  while (loader.epoch() < epochs) {
    const std::int64_t epoch = loader.epoch();
    for (auto& batch : loader) {
      all.push_back(seen(loader, epoch, batch));
      save(loader.state_dict(), all.size());
    }
  }
  return all;
}

/// `state` with other numbers.
tensor::StateDict with(const tensor::StateDict& state, const std::map<std::string, std::int64_t>& numbers) {
  tensor::StateDict changed;
  for (const auto& [name, tensor] : state.entries()) {
    const auto number = numbers.find(name);
    changed.add(name, number == numbers.end() ? tensor : torch::tensor(number->second));
  }
  return changed;
}

/// `options`, and what the tests of a loader differ in.
std::vector<std::pair<std::string, data::DataLoaderOptions>> kinds(std::int64_t rows) {
  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> labels;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < rows; ++i) {
    lengths.push_back(1 + i * 5 % 7);
    labels.push_back(i % 3);
    weights.push_back(1 + static_cast<double>(i % 4));
  }
  const auto shuffled = [](data::DataLoaderOptions options) {
    options.batch_size = 3;
    options.shuffle = true;
    options.seed = 11;
    return options;
  };
  return {{"every row", shuffled({})},
          {"workers", shuffled({.workers = 2})},
          {"even batches", shuffled({.even_batches = true})},
          {"drop last", shuffled({.drop_last = true})},
          {"permuted", {.batch_size = 3, .sampler = data::sampler::permuted(), .seed = 11}},
          {"weighted", {.batch_size = 3, .sampler = data::sampler::weighted(weights), .seed = 11}},
          {"stratified", {.batch_size = 3, .sampler = data::sampler::stratified(labels), .seed = 11}},
          {"subset", {.batch_size = 3, .sampler = data::sampler::subset({1, 3, 5, 7, 9, 11, 13}), .seed = 11}},
          {"interleaved", {.batch_size = 3, .sampler = data::sampler::interleaved({9, rows - 9}), .seed = 11}},
          {"grouped by length",
           {.batch_size = 3, .sampler = data::sampler::grouped_by_length(lengths), .seed = 11, .workers = 1}},
          {"token budget",
           {.sampler = data::sampler::random(), .seed = 11, .batching = data::token_budget(lengths, {.tokens = 12})}}};
}

}  // namespace

TEST_CASE("interrupted at any batch of three epochs, a new process sees what was left, bit for bit", "[resume]") {
  for (const int ranks : {1, 2, 3}) {
    const Folder folder;
    const RankOptions options{.variables = {{"ACCEL_RESUME_FOLDER", folder.path().string()}}};
    const auto save_all = [](Rank) {
      Gloo accelerator;
      std::size_t number = 0;
      for (const auto& [name, kind] : kinds(23)) {
        auto loader = accelerator.prepare(data::DataLoader{Noisy{23}, kind});
        (void)walk(loader, [&](const tensor::StateDict& state, std::size_t batches) {
          if (accelerator.is_main_process()) save(state, state_path(number, batches));
        });
        ++number;
      }
    };
    const auto go_on = [](Rank) {
      Gloo accelerator;
      std::size_t number = 0;
      for (const auto& [name, kind] : kinds(23)) {
        INFO(name);
        auto whole = accelerator.prepare(data::DataLoader{Noisy{23}, kind});
        const auto expected = walk(whole, [](const auto&, std::size_t) {});
        REQUIRE(expected.size() >= 3);
        for (std::size_t done = 1; done <= expected.size(); ++done) {
          auto fresh = kind;
          fresh.seed = 99;  // the state has the run's
          auto loader = accelerator.prepare(data::DataLoader{Noisy{23}, fresh});
          loader.load_state_dict(saved(state_path(number, done)));
          const auto rest = walk(loader, [](const auto&, std::size_t) {});
          REQUIRE((rest == std::vector<Seen>(expected.begin() + static_cast<std::ptrdiff_t>(done), expected.end())));
        }
        ++number;
      }
    };
    on_ranks({ranks}, save_all, options);
    on_ranks({ranks}, go_on, options);
  }
}

TEST_CASE("a run goes on at another number of ranks with the same global batches", "[resume]") {
  // 12 rows a step, whatever the ranks: the sequence of steps, and the random numbers of each row in it, do not depend
  // on who takes them.
  struct Step {
    std::vector<std::int64_t> rows;
    std::vector<float> numbers;
    bool operator==(const Step&) const = default;
  };
  using Kinds = std::vector<data::DataLoaderOptions>;
  static const Kinds kinds{
      {.batch_size = 12, .shuffle = true, .seed = 5, .split_batches = true},
      {.batch_size = 12, .shuffle = true, .seed = 5, .even_batches = true, .split_batches = true, .workers = 2},
      {.batch_size = 12, .shuffle = true, .seed = 5, .drop_last = true, .split_batches = true, .workers = 1},
      {.batch_size = 12, .sampler = data::sampler::permuted(), .seed = 5, .split_batches = true}};
  const auto step_of = [](Gloo& accelerator, const auto& batch) {
    const auto [rows, numbers] = accelerator.gather_for_metrics(batch.first, batch.second);
    const auto list = rows.contiguous();
    const auto drawn = numbers.contiguous();
    return Step{
        {list.template const_data_ptr<std::int64_t>(), list.template const_data_ptr<std::int64_t>() + list.numel()},
        {drawn.template const_data_ptr<float>(), drawn.template const_data_ptr<float>() + drawn.numel()}};
  };
  const auto walk = [&](Gloo& accelerator, auto& loader, const auto& after) {
    std::vector<Step> steps;
    while (loader.epoch() < epochs)
      for (auto& batch : loader) {
        steps.push_back(step_of(accelerator, batch));
        after(steps.size());
      }
    return steps;
  };
  const auto place = [](std::size_t kind, int ranks) { return 10 * kind + static_cast<std::size_t>(ranks); };
  const Folder folder;
  const RankOptions options{.variables = {{"ACCEL_RESUME_FOLDER", folder.path().string()}}};
  on_ranks(
      {1, 2, 3},
      [&](Rank rank) {
        Gloo accelerator;
        for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
          auto loader = accelerator.prepare(data::DataLoader{Noisy{50}, kinds[kind]});
          const auto steps = walk(accelerator, loader, [&](std::size_t done) {
            if (accelerator.is_main_process())
              save(loader.state_dict(), state_path(place(kind, rank.world_size), done));
          });
          // What all ranks together see is what one process would: PyTorch's order, twelve at a time.
          if (kind == 0)
            for (std::size_t step = 0; step < steps.size(); ++step) {
              const auto order = epoch_order(50, 5, static_cast<std::int64_t>(step / 5));
              const auto begin = static_cast<std::ptrdiff_t>(12 * (step % 5));
              REQUIRE(steps[step].rows ==
                      std::vector(order.begin() + begin, order.begin() + std::min<std::ptrdiff_t>(begin + 12, 50)));
            }
        }
      },
      options);
  on_ranks(
      {1, 2, 3},
      [&](Rank) {
        Gloo accelerator;
        for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
          auto whole = accelerator.prepare(data::DataLoader{Noisy{50}, kinds[kind]});
          const auto expected = walk(accelerator, whole, [](std::size_t) {});
          REQUIRE(expected.size() == (kinds[kind].drop_last ? 12 : 15));
          for (const int before : {1, 2, 3})
            for (std::size_t done = 1; done <= expected.size(); ++done) {
              auto loader = accelerator.prepare(data::DataLoader{Noisy{50}, kinds[kind]});
              loader.load_state_dict(saved(state_path(place(kind, before), done)));
              REQUIRE((walk(accelerator, loader, [](std::size_t) {}) ==
                       std::vector<Step>(expected.begin() + static_cast<std::ptrdiff_t>(done), expected.end())));
            }
        }
      },
      options);
}

TEST_CASE("interrupted at any batch of three epochs of a stream, a new process reads what was left", "[resume]") {
  // Row i is 1000 epoch + i, with the numbers of rank r behind 100 r where it shards itself.
  struct Count {
    std::int64_t begin = 0, rows = 0, epoch = 0, next_row = 0;
    void start(std::int64_t number) {
      epoch = number;
      next_row = 0;
    }
    std::optional<torch::Tensor> next() {
      return next_row == rows ? std::nullopt : std::optional(torch::tensor(1000 * epoch + begin + next_row++));
    }
  };
  using data::Reading;
  static const std::vector<data::StreamLoaderOptions> kinds{
      {.batch_size = 2, .reading = Reading::by_rank, .prefetch = 2},
      {.batch_size = 2, .reading = Reading::dispatched, .prefetch = 2},
      {.batch_size = 2, .reading = Reading::by_dataset, .prefetch = 0}};
  const auto loader_of = [](Gloo& accelerator, std::size_t kind) {
    const bool is_sharded = kinds[kind].reading == Reading::by_dataset;
    return accelerator.prepare(data::StreamLoader{
        Count{is_sharded ? 100 * accelerator.rank() : 0, is_sharded ? 4 + accelerator.rank() : 13}, kinds[kind]});
  };
  const auto walk_stream = [](auto& loader, const auto& after) {
    std::vector<std::vector<std::int64_t>> all;
    while (loader.epoch() < epochs)
      for (auto& batch : loader) {
        const auto row = batch.contiguous();
        all.emplace_back(row.template const_data_ptr<std::int64_t>(),
                         row.template const_data_ptr<std::int64_t>() + loader.position().rows);
        after(all.size());
      }
    return all;
  };
  // A sharded stream's state is each rank's own.
  const auto place = [](std::size_t kind, int rank) { return 10 * kind + static_cast<std::size_t>(rank); };
  for (const int ranks : {1, 2, 3}) {
    const Folder folder;
    const RankOptions options{.variables = {{"ACCEL_RESUME_FOLDER", folder.path().string()}}};
    const auto save_all = [&](Rank rank) {
      Gloo accelerator;
      for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
        auto loader = loader_of(accelerator, kind);
        (void)walk_stream(
            loader, [&](std::size_t done) { save(loader.state_dict(), state_path(place(kind, rank.rank), done)); });
      }
    };
    const auto go_on = [&](Rank rank) {
      Gloo accelerator;
      for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
        INFO("kind " << kind);
        auto whole = loader_of(accelerator, kind);
        const auto expected = walk_stream(whole, [](std::size_t) {});
        REQUIRE(expected.size() >= 6);
        for (std::size_t done = 1; done <= expected.size(); ++done) {
          auto loader = loader_of(accelerator, kind);
          loader.load_state_dict(saved(state_path(place(kind, rank.rank), done)));
          REQUIRE((walk_stream(loader, [](std::size_t) {}) ==
                   std::vector(expected.begin() + static_cast<std::ptrdiff_t>(done), expected.end())));
        }
      }
    };
    on_ranks({ranks}, save_all, options);
    on_ranks({ranks}, go_on, options);
  }
}

TEST_CASE("an order that depends on the global batch stays what it was at another number of ranks", "[resume]") {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 50; ++i) lengths.push_back(1 + i * 7 % 13);
  on_ranks({1, 2, 3}, [&](Rank) {
    const auto options = [&](std::int64_t batch_size) {
      return data::DataLoaderOptions{
          .batch_size = batch_size, .sampler = data::sampler::grouped_by_length(lengths), .seed = 3};
    };
    // What one rank with batches of 4 has left behind 4 of them.
    const auto order = options(4).sampler->order({.rows = 50, .seed = 3, .epoch = 0, .global_batch = 4});
    std::vector<std::int64_t> expected;
    for (std::int64_t i = 16; i < 50; ++i) expected.push_back(order[i]);
    Gloo accelerator;
    auto loader = accelerator.prepare(data::DataLoader{Noisy{50}, options(5)});  // another batch as well
    loader.load_state_dict(with(loader.state_dict(), {{"rows", 16}, {"batches", 4}, {"global_batch", 4}}));
    std::vector<std::int64_t> rest;
    for (auto& [rows, numbers] : loader) {
      REQUIRE(loader.state_dict().integer("global_batch") == 4);
      const auto list = accelerator.gather_for_metrics(rows).contiguous();
      rest.insert(rest.end(), list.template const_data_ptr<std::int64_t>(),
                  list.template const_data_ptr<std::int64_t>() + list.numel());
    }
    REQUIRE(rest == expected);
    for ([[maybe_unused]] auto& batch : loader) {
      REQUIRE(loader.state_dict().integer("global_batch") == 5 * accelerator.world_size());  // the next epoch's own
      break;
    }
  });
}

TEST_CASE("skipping batches is going on behind them, for one epoch", "[resume]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    for (const auto& [name, options] : kinds(40)) {
      INFO(name);
      auto whole = accelerator.prepare(data::DataLoader{Noisy{40}, options});
      const auto expected = walk(whole, [](const auto&, std::size_t) {});
      const auto of_first = std::count_if(expected.begin(), expected.end(), [](auto& one) { return one.epoch == 0; });
      for (std::ptrdiff_t skipped = 0; skipped <= of_first + 1; ++skipped) {
        auto loader = accelerator.prepare(data::DataLoader{Noisy{40}, options});
        loader.skip_first(skipped);
        REQUIRE((walk(loader, [](const auto&, std::size_t) {}) ==
                 std::vector<Seen>(expected.begin() + std::min(skipped, of_first), expected.end())));
      }
    }
  });
}

TEST_CASE("outside of the loop the state is the begin of the next epoch, after a break as well", "[resume]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto loader = accelerator.prepare(data::DataLoader{Noisy{9}, {.batch_size = 2, .shuffle = true, .seed = 1}});
  const auto place = [&] {
    const auto state = loader.state_dict();
    return std::vector{state.integer("epoch"), state.integer("rows"), state.integer("batches")};
  };
  using Place = std::vector<std::int64_t>;
  CHECK(place() == Place{0, 0, 0});
  for ([[maybe_unused]] auto& batch : loader) {
    CHECK(place() == Place{0, 2, 1});
    break;
  }
  CHECK(place() == Place{1, 0, 0});
  for ([[maybe_unused]] auto& batch : loader) {
  }
  CHECK(place() == Place{2, 0, 0});
  loader.skip_first(3);
  CHECK(place() == Place{2, 6, 3});
  loader.set_epoch(5);
  CHECK(place() == Place{5, 0, 0});
}

TEST_CASE("the state of another dataset, order or run is refused, and one that differs between ranks", "[resume]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    const auto loader_of = [&](std::int64_t rows, bool shuffle) {
      return accelerator.prepare(data::DataLoader{Noisy{rows}, {.batch_size = 2, .shuffle = shuffle, .seed = 1}});
    };
    auto loader = loader_of(20, true);
    const auto refuses = [&](auto other, const std::string& text) {
      CHECK_THROWS_WITH(other.load_state_dict(loader.state_dict()), ContainsSubstring(text));
    };
    refuses(loader_of(21, true), "belongs to another dataset or order; this one is 21 rows, random");
    refuses(loader_of(20, false), "this one is 20 rows, sequential");
    tensor::StateDict incomplete;
    incomplete.add("epoch", 1);
    CHECK_THROWS_AS(loader.load_state_dict(incomplete), CheckpointError);
    // Each rank for itself would read other rows, and nobody would know.
    loader.skip_first(rank.rank);
    CHECK_THROWS_WITH(loader.begin(), ContainsSubstring("loader: where it goes on differs between ranks") &&
                                          ContainsSubstring("behind 0 rows") && ContainsSubstring("behind 4 rows"));
  });
}
