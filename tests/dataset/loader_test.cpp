// Datasets in a prepared loader: with workers, on ranks, and going on in the middle of an epoch.
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/concat.hpp>
#include <accel/dataset/csv.hpp>
#include <accel/dataset/json_lines.hpp>
#include <accel/dataset/npy.hpp>
#include <accel/dataset/safetensors.hpp>
#include <accel/dataset/subset.hpp>
#include <accel/dataset/tar.hpp>
#include <accel/dataset/tensors.hpp>
#include <accel/dataset/tokens.hpp>
#include <accel/dataset/torch.hpp>

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

/// The numbers of the rows in a batch that shows them in any of these ways.
torch::Tensor numbers_in(const torch::Tensor& batch) {
  return batch.reshape({batch.size(0), -1}).select(1, 0).to(torch::kLong);
}
template <class A, class B>
torch::Tensor numbers_in(const std::pair<A, B>& batch) {
  return numbers_in(batch.first);
}
torch::Tensor numbers_in(const std::map<std::string, torch::Tensor>& batch) {
  return numbers_in(batch.at("x"));
}
template <class Batch>
  requires requires(const Batch& batch) { batch.data; }
torch::Tensor numbers_in(const Batch& batch) {
  return numbers_in(batch.data);
}

/// Row i of 11 is number i: over all ranks an epoch gives each once, and behind the first batch the others are left.
template <class Make>
void check_eleven(OnRanks& accelerator, const std::string& what, const Make& make) {
  INFO(what);
  const auto walk = [&](auto& loader, std::optional<accel::tensor::StateDict>* first) {
    std::vector<std::int64_t> numbers;
    for (auto& batch : loader) {
      const auto all = accelerator.gather_for_metrics(numbers_in(batch)).contiguous();
      numbers.insert(numbers.end(), all.template const_data_ptr<std::int64_t>(),
                     all.template const_data_ptr<std::int64_t>() + all.numel());
      if (first != nullptr && !*first) *first = loader.state_dict();
    }
    return numbers;
  };
  auto loader = accelerator.prepare(make());
  std::optional<accel::tensor::StateDict> behind_first;
  const auto seen = walk(loader, &behind_first);
  auto sorted = seen;
  std::ranges::sort(sorted);
  REQUIRE(sorted == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  auto rest = accelerator.prepare(make());
  rest.load_state_dict(behind_first.value());
  const auto done = behind_first->integer("rows");
  if (done < 11) REQUIRE(walk(rest, nullptr) == std::vector<std::int64_t>(seen.begin() + done, seen.end()));
}

}  // namespace

TEST_CASE("every kind of dataset goes through a prepared loader: each row once, from any batch again", "[dataset]") {
  namespace dataset = accel::dataset;
  struct ByNumber : torch::data::datasets::Dataset<ByNumber> {
    torch::data::Example<> get(std::size_t row) override {
      return {torch::tensor(static_cast<std::int64_t>(row)), torch::tensor(0)};
    }
    std::optional<std::size_t> size() const override { return 11; }
  };
  struct InTurn : torch::data::datasets::StatefulDataset<InTurn, std::vector<torch::data::Example<>>> {
    std::optional<std::vector<torch::data::Example<>>> get_batch(std::size_t count) override {
      if (at == 11) return std::nullopt;
      std::vector<torch::data::Example<>> rows;
      for (; rows.size() < count && at < 11; ++at) rows.emplace_back(torch::tensor(at), torch::tensor(0));
      return rows;
    }
    void reset() override { at = 0; }
    std::optional<std::size_t> size() const override { return 11; }
    void save(torch::serialize::OutputArchive&) const override {}
    void load(torch::serialize::InputArchive&) override {}
    std::int64_t at = 0;
  };
  on_ranks({1, 2, 3}, [](Rank) {
    const Folder folder;
    accel::testing::run_python(folder, R"(
import io, tarfile
lines = [str(i) for i in range(11)]
with open('f.csv', 'w') as f: f.write('x,y\n' + ''.join(f'{i},{i}\n' for i in lines))
with open('f.jsonl', 'w') as f: f.write(''.join('{"x": %s}\n' % i for i in lines))
with tarfile.open('f.tar', 'w', format=tarfile.USTAR_FORMAT) as f:
    for i in lines:
        info = tarfile.TarInfo(f'{int(i):03}.txt')
        info.size = len(i)
        f.addfile(info, io.BytesIO(i.encode()))
header = "{'descr': '<i8', 'fortran_order': False, 'shape': (11,), }".ljust(117) + '\n'
with open('f.npy', 'wb') as f:
    f.write(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode())
    for i in range(11): f.write(i.to_bytes(8, 'little'))
)");
    const auto numbers = torch::arange(11);
    accel::tensor::safetensors::write(folder / "f.safetensors",
                                      std::vector<accel::tensor::NamedTensor>{{"x", numbers}, {"y", numbers}});
    const auto of_line = [](const nlohmann::json& line) { return torch::tensor(line.at("x").get<std::int64_t>()); };
    const auto of_sample = [](const dataset::TarSample& sample) {
      return torch::tensor(static_cast<std::int64_t>(std::stoi(std::string(sample.text("txt")))));
    };
    OnRanks accelerator;
    for (const int workers : {0, 2}) {
      const accel::data::DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 4, .workers = workers};
      const auto check = [&](const std::string& what, const auto& rows) {
        check_eleven(accelerator, what, [&] { return DataLoader{rows, options}; });
      };
      check("Tensors", dataset::Tensors{std::pair{numbers, numbers}});
      check("Csv", dataset::Csv(folder / "f.csv"));
      check("npy", dataset::Tensors{dataset::open_npy(folder / "f.npy")});
      check("safetensors", dataset::Tensors{dataset::open_safetensors(folder / "f.safetensors")});
      check("JsonLines", dataset::JsonLines({folder / "f.jsonl"}, of_line));
      check("Tar", dataset::Tar({folder / "f.tar"}, of_sample));
      check("torch::data, by number", ByNumber());
      const dataset::Tensors all{numbers};
      check("Concat and Subset",
            dataset::Concat{dataset::Subset{all, {0, 1, 2, 3, 4}}, dataset::Subset{all, {5, 6, 7, 8, 9, 10}}});
    }
    for (const Reading reading : {Reading::by_rank, Reading::dispatched})
      for (const int prefetch : {0, 2}) {
        const accel::data::StreamLoaderOptions options{.batch_size = 2, .reading = reading, .prefetch = prefetch};
        const auto check = [&](const std::string& what, const auto& open) {
          check_eleven(accelerator, what, [&] { return StreamLoader{open(), options}; });
        };
        check("JsonLinesStream", [&] { return dataset::JsonLinesStream({folder / "f.jsonl"}, of_line); });
        check("TarStream", [&] { return dataset::TarStream({folder / "f.tar"}, of_sample); });
        check("TorchStream", [] { return dataset::TorchStream{InTurn(), {.batch_size = 4}}; });
      }
  });
}

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
