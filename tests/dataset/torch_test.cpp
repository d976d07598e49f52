// torch::data's datasets: MNIST as it is, stateful and stream ones as rows.
#include <torch/torch.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/mapped.hpp>
#include <accel/dataset/subset.hpp>
#include <accel/dataset/torch.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::TorchStream;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
namespace data = torch::data;

namespace {

std::string big_endian(std::uint32_t number) {
  return {static_cast<char>(number >> 24), static_cast<char>(number >> 16), static_cast<char>(number >> 8),
          static_cast<char>(number)};
}

/// MNIST's test set, as LibTorch asks for it: 10000 images. That of number i is i % 251 all over.
void put_mnist(const Folder& folder) {
  std::string images = big_endian(2051) + big_endian(10000) + big_endian(28) + big_endian(28);
  std::string labels = big_endian(2049) + big_endian(10000);
  for (int i = 0; i < 10000; ++i) {
    images.append(28UL * 28UL, static_cast<char>(i % 251));
    labels += static_cast<char>(i % 10);
  }
  put(folder / "t10k-images-idx3-ubyte", images);
  put(folder / "t10k-labels-idx1-ubyte", labels);
}

data::datasets::MNIST mnist(const Folder& folder) {
  return data::datasets::MNIST(folder.path().string(), data::datasets::MNIST::Mode::kTest);
}

/// Numbers 0 to 9, over again after reset().
struct Stateful : data::datasets::StatefulDataset<Stateful, std::vector<data::Example<>>> {
  std::optional<std::vector<data::Example<>>> get_batch(std::size_t count) override {
    if (at == 10) return std::nullopt;
    std::vector<data::Example<>> rows;
    for (; rows.size() < count && at < 10; ++at) rows.emplace_back(torch::tensor(at), torch::tensor(at * at));
    return rows;
  }
  void reset() override {
    at = 0;
    ++resets;
  }
  std::optional<std::size_t> size() const override { return 10; }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
  std::int64_t at = 7;
  int resets = 0;
};

/// Counts on for ever.
struct Endless : data::datasets::StreamDataset<Endless, torch::Tensor> {
  torch::Tensor get_batch(std::size_t count) override {
    at += static_cast<std::int64_t>(count);
    return torch::arange(at - static_cast<std::int64_t>(count), at);
  }
  std::optional<std::size_t> size() const override { return std::nullopt; }
  std::int64_t at = 0;
};

}  // namespace

TEST_CASE("LibTorch's MNIST is a dataset as it is, and one to map, stack, split and normalise", "[dataset]") {
  const Folder folder;
  put_mnist(folder);
  const accel::data::DataLoaderOptions options{.batch_size = 4};
  accel::data::DataLoader plain(mnist(folder), options);
  CHECK(plain.rows() == 10000);
  const std::vector<std::int64_t> rows{9999, 3, 252};
  const auto target = torch::tensor({9, 3, 2});
  const auto pixel = torch::tensor({9999 % 251 / 255.F, 3 / 255.F, 1 / 255.F});
  const auto plain_batch = plain.fetch(rows);
  CHECK(plain_batch.target.equal(target));
  CHECK(plain_batch.data.select(2, 27).select(2, 5).view({3}).equal(pixel));
  accel::data::DataLoader stacked(
      mnist(folder).map(data::transforms::Normalize<>(0.5, 0.25)).map(data::transforms::Stack<>()), options);
  CHECK(accel::tensor::spec(stacked.fetch(rows).data) == "f32[3, 1, 28, 28]");
  CHECK(stacked.fetch(rows).data.select(2, 0).select(2, 0).view({3}).equal((pixel - 0.5) / 0.25));
  auto [train, held_out] = accel::dataset::random_split(mnist(folder), {9000, 1000}, 1);
  CHECK(held_out.size() == 1000);
  CHECK(held_out.get(5).target.item<std::int64_t>() == held_out.rows()[5] % 10);
  accel::data::DataLoader part(train, options);
  CHECK(part.fetch({0, 8999}).target.equal(torch::tensor({train.rows()[0] % 10, train.rows()[8999] % 10})));
  accel::dataset::Mapped doubled{mnist(folder), [](const data::Example<>& row) { return row.target * 2; }};
  CHECK(doubled.get(7).item<std::int64_t>() == 14);
}

TEST_CASE("a stateful dataset is a stream of rows that begins again with each epoch", "[dataset]") {
  for (const std::size_t batch_size : {1U, 3U, 10U, 64U}) {
    TorchStream rows{Stateful(), {.batch_size = batch_size}};
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      if (epoch > 0) rows.start(epoch);
      for (std::int64_t i = 0; i < 10; ++i) {
        const auto row = rows.next();
        REQUIRE(row.has_value());
        CHECK(row->data.item<std::int64_t>() == i);
        CHECK(row->target.item<std::int64_t>() == i * i);
      }
      CHECK(!rows.next());
      CHECK(!rows.next());
    }
    for (int i = 0; i < 4; ++i) (void)rows.next();
    rows.start(0);  // in the middle
    CHECK(rows.next()->data.item<std::int64_t>() == 0);
  }
}

TEST_CASE("a stacked batch is taken apart into its rows", "[dataset]") {
  TorchStream rows{Stateful().map(data::transforms::Stack<>()), {.batch_size = 4}};
  for (std::int64_t i = 0; i < 10; ++i) {
    const auto row = rows.next();
    REQUIRE(row.has_value());
    CHECK(row->target.dim() == 0);
    CHECK(row->target.item<std::int64_t>() == i * i);
  }
  CHECK(!rows.next());
}

TEST_CASE("an endless stream ends where its epoch is said to, and goes on in the next", "[dataset]") {
  TorchStream rows{Endless(), {.batch_size = 4, .rows = 6}};
  std::vector<std::int64_t> seen;
  while (const auto row = rows.next()) seen.push_back(row->item<std::int64_t>());
  CHECK(seen == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5});
  rows.start(1);
  CHECK(rows.next()->item<std::int64_t>() == 8);
  CHECK_THROWS_AS(TorchStream(Endless(), {.batch_size = 0}), InvalidArgument);
}

TEST_CASE("a batch without rows is an error and no endless loop", "[dataset]") {
  struct Nothing {
    [[nodiscard]] std::vector<torch::Tensor> get_batch(std::size_t) { return {torch::zeros({0, 2})}; }
  };
  TorchStream rows{Nothing()};
  CHECK_THROWS_MATCHES(rows.next(), DataError, MessageMatches(ContainsSubstring("found a batch without rows")));
}
