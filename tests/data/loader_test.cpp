// DataLoader: datasets of many kinds, rows of many types, one batch.
#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"

using accel::InvalidArgument;
using accel::data::DataLoader;
using accel::data::DataLoaderOptions;
using accel::data::Tail;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Single, accel::precision::Fp32>;
using Indices = std::vector<std::int64_t>;

namespace {

/// Row i: data f32[2] = {i, 10 i}, target i64[] = i * i.
at::Tensor data_of(std::int64_t i) {
  return torch::tensor({static_cast<float>(i), static_cast<float>(10 * i)});
}
at::Tensor target_of(std::int64_t i) {
  return torch::tensor(i * i);
}

at::Tensor data_of(const Indices& rows) {
  const at::Tensor i = torch::tensor(rows).to(torch::kFloat);
  return torch::stack({i, 10 * i}, 1);
}
at::Tensor target_of(const Indices& rows) {
  return torch::tensor(rows).square();
}

struct Row {
  torch::Tensor data, target;
};

/// The base of the datasets below: their number of rows.
struct Ten {
  [[nodiscard]] std::size_t size() const { return 10; }
};

struct Structs : Ten {
  [[nodiscard]] Row get(std::size_t i) const {
    const auto n = static_cast<std::int64_t>(i);
    return {data_of(n), target_of(n)};
  }
};

struct Pairs : Ten {
  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> get(std::size_t i) {  // not const
    return {data_of(static_cast<std::int64_t>(i)), target_of(static_cast<std::int64_t>(i))};
  }
};

struct Tuples : Ten {
  [[nodiscard]] std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> get(std::size_t i) const {
    const auto n = static_cast<std::int64_t>(i);
    return {data_of(n), target_of(n), torch::tensor(n % 2 == 0)};
  }
};

struct Tensors : Ten {
  [[nodiscard]] torch::Tensor get(std::size_t i) const { return data_of(static_cast<std::int64_t>(i)); }
};

struct Examples : Ten {
  [[nodiscard]] torch::data::Example<> get(std::size_t i) const {
    return {data_of(static_cast<std::int64_t>(i)), target_of(static_cast<std::int64_t>(i))};
  }
};

struct Nested : Ten {
  struct Item {
    Row row;
    std::vector<torch::Tensor> more;
  };
  [[nodiscard]] Item get(std::size_t i) const {
    const auto n = static_cast<std::int64_t>(i);
    return {{data_of(n), target_of(n)}, {torch::tensor(n)}};
  }
};

// Whole batches, by each kind of index. The wrong row would show in the data.
struct BySize : Ten {
  [[nodiscard]] Row get_batch(const std::vector<std::size_t>& rows) const {
    const Indices signed_rows(rows.begin(), rows.end());
    return {data_of(signed_rows), target_of(signed_rows)};
  }
};
struct BySizeRef : Ten {
  [[nodiscard]] Row get_batch(c10::ArrayRef<std::size_t> rows) const {
    const Indices signed_rows(rows.begin(), rows.end());
    return {data_of(signed_rows), target_of(signed_rows)};
  }
};
struct BySizeSpan : Ten {
  [[nodiscard]] Row get_batch(std::span<const std::size_t> rows) const {
    const Indices signed_rows(rows.begin(), rows.end());
    return {data_of(signed_rows), target_of(signed_rows)};
  }
};
struct BySigned : Ten {
  [[nodiscard]] Row get_batch(const Indices& rows) { return {data_of(rows), target_of(rows)}; }
};
struct BySignedSpan : Ten {
  [[nodiscard]] Row get_batch(std::span<const std::int64_t> rows) const {
    const Indices copy(rows.begin(), rows.end());
    return {data_of(copy), target_of(copy)};
  }
};
struct ByTensor : Ten {
  [[nodiscard]] Row get_batch(const torch::Tensor& rows) const {
    const at::Tensor i = rows.to(torch::kFloat);
    return {torch::stack({i, 10 * i}, 1), rows.square()};
  }
};
/// Both ways: a whole batch at once is the one to take.
struct Both : BySigned {
  [[nodiscard]] Row get(std::size_t) const { throw InvalidArgument("row by row is slower"); }
};
/// A list of tensors is a batch, not rows to be stacked.
struct Lists : Ten {
  [[nodiscard]] std::vector<torch::Tensor> get_batch(const Indices& rows) const {
    return {data_of(rows), target_of(rows), data_of(rows) + 1};
  }
};

// torch::data's own.
struct TorchExamples : torch::data::Dataset<TorchExamples> {
  torch::data::Example<> get(std::size_t i) override {
    return {data_of(static_cast<std::int64_t>(i)), target_of(static_cast<std::int64_t>(i))};
  }
  [[nodiscard]] std::optional<std::size_t> size() const override { return 10; }
};
struct TorchTensors : torch::data::Dataset<TorchTensors, torch::data::TensorExample> {
  torch::data::TensorExample get(std::size_t i) override { return {data_of(static_cast<std::int64_t>(i))}; }
  [[nodiscard]] std::optional<std::size_t> size() const override { return 10; }
};
struct Endless : torch::data::Dataset<Endless> {
  torch::data::Example<> get(std::size_t) override { return {}; }
  [[nodiscard]] std::optional<std::size_t> size() const override { return std::nullopt; }
};

const Indices some = {7, 0, 3, 3, 9};

/// Fetches `some` rows; both members must be those rows.
template <class D>
void gives_data_and_target(D dataset) {
  DataLoader loader(std::move(dataset));
  CHECK(loader.rows() == 10);
  for (const auto& rows : {some, Indices{4}}) {
    auto batch = loader.fetch(rows);
    CHECK(batch.data.equal(data_of(rows)));
    CHECK(batch.target.equal(target_of(rows)));
    CHECK(accel::tensor::rows(batch) == static_cast<std::int64_t>(rows.size()));
  }
}

}  // namespace

TEST_CASE("rows of any type are stacked into one object of their type", "[data]") {
  gives_data_and_target(Structs{});
  gives_data_and_target(Examples{});
  DataLoader pairs(Pairs{});
  const auto [data, target] = pairs.fetch(some);
  CHECK(data.equal(data_of(some)));
  CHECK(target.equal(target_of(some)));
  DataLoader tuples(Tuples{});
  const auto [first, second, even] = tuples.fetch(some);
  CHECK(first.equal(data_of(some)));
  CHECK(second.equal(target_of(some)));
  CHECK(even.equal(torch::tensor(some).remainder(2).eq(0)));
  DataLoader tensors(Tensors{});
  CHECK(tensors.fetch(some).equal(data_of(some)));
  DataLoader nested(Nested{});
  const auto item = nested.fetch(some);
  CHECK(item.row.data.equal(data_of(some)));
  CHECK(item.row.target.equal(target_of(some)));
  REQUIRE(item.more.size() == 1);
  CHECK(item.more[0].equal(torch::tensor(some)));
}

TEST_CASE("whole batches are asked for by every kind of index", "[data]") {
  gives_data_and_target(BySize{});
  gives_data_and_target(BySizeRef{});
  gives_data_and_target(BySizeSpan{});
  gives_data_and_target(BySigned{});
  gives_data_and_target(BySignedSpan{});
  gives_data_and_target(ByTensor{});
  gives_data_and_target(Both{});
  DataLoader lists(Lists{});
  const auto list = lists.fetch(some);
  REQUIRE(list.size() == 3);
  CHECK(list[0].equal(data_of(some)));
  CHECK(list[2].equal(data_of(some) + 1));
}

TEST_CASE("datasets of torch::data are taken, mapped ones included", "[data]") {
  gives_data_and_target(TorchExamples{});
  gives_data_and_target(TorchExamples().map(torch::data::transforms::Stack<>()));
  gives_data_and_target(
      TorchExamples()
          .map(torch::data::transforms::Lambda<torch::data::Example<>>([](torch::data::Example<> row) { return row; }))
          .map(torch::data::transforms::Stack<>()));
  DataLoader tensors(TorchTensors().map(torch::data::transforms::Stack<torch::data::TensorExample>()));
  CHECK(tensors.fetch(some).data.equal(data_of(some)));
  DataLoader plain(TorchTensors{});
  CHECK(plain.fetch(some).data.equal(data_of(some)));
  const Indices all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  DataLoader library(torch::data::datasets::TensorDataset(data_of(all)));
  CHECK(library.rows() == 10);
  CHECK(library.fetch(some).data.equal(data_of(some)));
}

TEST_CASE("a dataset that does not know its size is refused", "[data]") {
  DataLoader loader{Endless{}};
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)loader.rows(); }), ContainsSubstring("does not know its size"));
}

TEST_CASE("rows of different shapes or dtypes are refused with both specs", "[data]") {
  struct Ragged : Ten {
    [[nodiscard]] torch::Tensor get(std::size_t i) const { return torch::ones({static_cast<std::int64_t>(i) + 1}); }
  };
  struct Mixed : Ten {
    [[nodiscard]] torch::Tensor get(std::size_t i) const {
      return torch::ones({2}, i == 0 ? torch::kFloat : torch::kLong);
    }
  };
  DataLoader ragged(Ragged{});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)ragged.fetch({1, 2}); }),
             ContainsSubstring("f32[2]") && ContainsSubstring("f32[3]"));
  CHECK(ragged.fetch({2, 2}).equal(torch::ones({2, 3})));
  DataLoader mixed(Mixed{});
  CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)mixed.fetch({0, 2}); }),
             ContainsSubstring("f32[2]") && ContainsSubstring("i64[2]"));
}

TEST_CASE("a loader owns its dataset and lets it be reached", "[data]") {
  struct Counting : Ten {
    int fetched = 0;
    [[nodiscard]] torch::Tensor get_batch(const Indices& rows) {
      ++fetched;
      return torch::tensor(rows);
    }
  };
  DataLoader loader(Counting{});
  (void)loader.fetch({1});
  (void)loader.fetch({2});
  CHECK(loader.dataset().fetched == 2);
}

TEST_CASE("the options decide about the tail, drop_last first", "[data]") {
  CHECK(DataLoaderOptions{}.tail() == Tail::every_row);
  CHECK(DataLoaderOptions{.even_batches = true}.tail() == Tail::wrap_around);
  CHECK(DataLoaderOptions{.drop_last = true}.tail() == Tail::drop);
  CHECK(DataLoaderOptions{.drop_last = true, .even_batches = true}.tail() == Tail::drop);
  const DataLoader loader(Structs{}, {.batch_size = 3, .drop_last = true});
  CHECK(loader.plan(2).rounds() == 1);
  CHECK(loader.plan(1).rounds() == 3);
}

TEST_CASE("a batch size that is none is refused when the loader is prepared", "[data]") {
  Accelerator accelerator;
  for (const std::int64_t batch_size : {0, -3})
    CHECK_THROWS_AS(accelerator.prepare(DataLoader{Structs{}, {.batch_size = batch_size}}), InvalidArgument);
}

TEST_CASE("a prepared loader gives batches to structured bindings and by reference", "[data]") {
  Accelerator accelerator;
  const auto rows_of = [](std::int64_t begin) {
    Indices rows;
    for (std::int64_t i = begin; i < std::min<std::int64_t>(begin + 4, 10); ++i) rows.push_back(i);
    return rows;
  };
  const DataLoaderOptions options{.batch_size = 4};
  auto [structs, pairs, tuples, tensors, examples, mapped] =
      accelerator.prepare(DataLoader{Structs{}, options}, DataLoader{Pairs{}, options}, DataLoader{Tuples{}, options},
                          DataLoader{Tensors{}, options}, DataLoader{TorchExamples{}, options},
                          DataLoader{TorchExamples().map(torch::data::transforms::Stack<>()), options});
  std::int64_t begin = 0;
  const auto check = [&](const torch::Tensor& data, const torch::Tensor& target) {
    CHECK(data.equal(data_of(rows_of(begin))));
    CHECK(target.equal(target_of(rows_of(begin))));
    begin += 4;
  };
  for (auto& [data, target] : structs) check(data, target);
  CHECK(begin == 12);
  begin = 0;
  for (auto& [data, target] : pairs) check(data, target);
  CHECK(begin == 12);
  begin = 0;
  for (auto& [data, target, even] : tuples) check(data, target);
  CHECK(begin == 12);
  begin = 0;
  for (auto& data : tensors) check(data, data.select(1, 0).square().to(torch::kLong));
  CHECK(begin == 12);
  begin = 0;
  for (auto& batch : examples) check(batch.data, batch.target);
  CHECK(begin == 12);
  begin = 0;
  for (auto& [data, target] : mapped) check(data, target);
  CHECK(begin == 12);
}

TEST_CASE("an empty dataset gives no batch", "[data]") {
  struct None {
    [[nodiscard]] std::size_t size() const { return 0; }
    [[nodiscard]] torch::Tensor get(std::size_t) const { throw InvalidArgument("there is no row"); }
  };
  Accelerator accelerator;
  auto loader = accelerator.prepare(DataLoader{None{}, {.batch_size = 4}});
  CHECK(loader.size() == 0);
  for (auto& batch : loader) FAIL("a batch of " << accel::tensor::spec(batch));
}
