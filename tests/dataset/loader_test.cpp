// Datasets in a prepared loader: with workers, on ranks, and going on in the middle of an epoch.
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/json_lines.hpp>
#include <accel/dataset/tensors.hpp>
#include <accel/dataset/tokens.hpp>

#include <catch2/catch_test_macros.hpp>

#include "files.hpp"
#include "support/ranks.hpp"

using accel::data::DataLoader;
using accel::data::Reading;
using accel::data::StreamLoader;
using accel::testing::Folder;
using accel::testing::on_ranks;
using accel::testing::put;
using accel::testing::Rank;

namespace {

using OnRanks = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

/// 1000 tokens of u16, token i at place i.
accel::dataset::Tokens thousand_tokens(const Folder& folder) {
  std::string bytes;
  for (int i = 0; i < 1000; ++i) bytes.append({static_cast<char>(i & 255), static_cast<char>(i >> 8)});
  put(folder / "tokens", bytes);
  return accel::dataset::Tokens({folder / "tokens"}, {.format = accel::dataset::TokenFormat::u16});
}

/// The epoch's first tokens of each window, over all ranks.
template <class Loader>
std::vector<std::int64_t> begins_of(OnRanks& accelerator, Loader& loader) {
  std::vector<std::int64_t> begins;
  for (auto& batch : loader) {
    const auto all = accelerator.gather_for_metrics(batch.input.select(1, 0).contiguous());
    begins.insert(begins.end(), all.template const_data_ptr<std::int64_t>(),
                  all.template const_data_ptr<std::int64_t>() + all.numel());
    CHECK(batch.target.equal(batch.input + 1));
  }
  std::ranges::sort(begins);
  return begins;
}

}  // namespace

TEST_CASE("random windows of tokens are the same on any number of ranks and workers, and new every epoch",
          "[dataset]") {
  constexpr std::uint64_t seed = 3;
  on_ranks({1, 2, 3}, [&](Rank) {
    const Folder folder;
    const accel::dataset::RandomTokenWindows windows(thousand_tokens(folder), {.length = 8, .windows = 50});
    OnRanks accelerator;
    for (const int workers : {0, 1, 3}) {
      auto loader = accelerator.prepare(DataLoader{windows, {.batch_size = 4, .seed = seed, .workers = workers}});
      for (std::int64_t epoch = 0; epoch < 2; ++epoch) {
        accel::data::SampleRandom random(seed, epoch);
        std::vector<std::int64_t> expected;
        for (std::int64_t row = 0; row < 50; ++row)
          expected.push_back(torch::randint(1000 - 8, {1}, random.at(row)).item<std::int64_t>());
        std::ranges::sort(expected);
        CHECK(begins_of(accelerator, loader) == expected);
      }
    }
  });
}

TEST_CASE("windows side by side are each seen once, shuffled, by any number of ranks and workers", "[dataset]") {
  on_ranks({1, 3}, [&](Rank) {
    const Folder folder;
    const accel::dataset::TokenWindows windows(thousand_tokens(folder), {.length = 9});
    std::vector<std::int64_t> expected;
    for (std::int64_t row = 0; row < static_cast<std::int64_t>(windows.size()); ++row) expected.push_back(9 * row);
    OnRanks accelerator;
    for (const int workers : {0, 3}) {
      auto loader = accelerator.prepare(DataLoader{windows, {.batch_size = 4, .shuffle = true, .workers = workers}});
      CHECK(begins_of(accelerator, loader) == expected);
    }
  });
}

TEST_CASE("lines dealt to ranks are each seen once, and a run goes on behind any batch", "[dataset]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const Folder folder;
    std::vector<std::filesystem::path> files;
    std::vector<std::int64_t> expected;
    for (int file = 0; file < 5; ++file) {
      std::string text;
      for (int line = 0; line < 4 + file; ++line) {
        text += accel::message("{\"x\": ", 100 * file + line, "}\n\n");
        expected.push_back(100 * file + line);
      }
      files.push_back(folder / std::to_string(file));
      put(files.back(), text);
    }
    const auto make = [&] {
      return StreamLoader{accel::dataset::JsonLinesStream{
                              files,
                              [](const nlohmann::json& line) { return torch::tensor(line.at("x").get<int>()); },
                              {.shuffle = true, .seed = 7, .shard = rank.rank, .shards = rank.world_size}},
                          {.batch_size = 3, .reading = Reading::by_dataset}};
    };
    OnRanks accelerator;
    auto loader = accelerator.prepare(make());
    std::vector<std::vector<std::int64_t>> mine;
    std::vector<accel::tensor::StateDict> behind;
    std::vector<std::int64_t> all;
    for (auto& batch : loader) {
      const auto row = batch.contiguous().to(torch::kLong);
      mine.emplace_back(row.const_data_ptr<std::int64_t>(),
                        row.const_data_ptr<std::int64_t>() + loader.position().rows);
      behind.push_back(loader.state_dict());
      const auto everyone = accelerator.gather_for_metrics(row);
      all.insert(all.end(), everyone.const_data_ptr<std::int64_t>(),
                 everyone.const_data_ptr<std::int64_t>() + everyone.numel());
    }
    std::ranges::sort(all);
    CHECK(all == expected);
    for (std::size_t done = 1; done <= behind.size(); ++done) {
      auto rest = accelerator.prepare(make());
      rest.load_state_dict(behind[done - 1]);
      std::size_t at = done;
      if (done < mine.size()) {
        for (auto& batch : rest) {
          REQUIRE(at < mine.size());
          const auto row = batch.contiguous().to(torch::kLong);
          CHECK(mine[at++] == std::vector(row.const_data_ptr<std::int64_t>(),
                                          row.const_data_ptr<std::int64_t>() + rest.position().rows));
        }
        CHECK(at == mine.size());
      }
    }
  });
}
