// Concat, Mapped, Subset, random_split: datasets made of datasets.
#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/concat.hpp>
#include <accel/dataset/mapped.hpp>
#include <accel/dataset/subset.hpp>
#include <accel/dataset/tensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::InvalidArgument;
using accel::dataset::Concat;
using accel::dataset::Mapped;
using accel::dataset::random_split;
using accel::dataset::random_split_fractions;
using accel::dataset::Subset;
using accel::dataset::Tensors;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Numbers = std::vector<std::int64_t>;

namespace {

Tensors<torch::Tensor> counting(std::int64_t begin, std::int64_t end) {
  return Tensors{torch::arange(begin, end)};
}

/// Another type with the same rows, that may not be shared.
struct Hundreds {
  int asked = 0;
  [[nodiscard]] std::size_t size() const { return 3; }
  [[nodiscard]] torch::Tensor get(std::size_t row) {
    ++asked;
    return torch::tensor(100 * static_cast<std::int64_t>(row));
  }
};

/// Rows are drawn.
struct Dice {
  [[nodiscard]] std::size_t size() const { return 4; }
  [[nodiscard]] torch::Tensor get(std::size_t, at::Generator& random) const {
    return at::randint(1'000'000, {}, random, at::kLong);
  }
};

struct ByTensorOnly {
  [[nodiscard]] std::size_t size() const { return 5; }
  [[nodiscard]] torch::Tensor get_batch(const torch::Tensor& rows) const { return rows * 2; }
};

std::int64_t number(const torch::Tensor& tensor) {
  return tensor.item<std::int64_t>();
}

template <class D>
Numbers numbers_of(D& dataset) {
  Numbers numbers;
  for (std::size_t row = 0; row < dataset.size(); ++row) numbers.push_back(number(dataset.get(row)));
  return numbers;
}

template <class D>
concept ConstRow = requires(const D& dataset) { dataset.get(0); };
template <class D>
concept Random = requires(const D& dataset, at::Generator& random) { dataset.get(0, random); };

using Counting = Tensors<torch::Tensor>;

}  // namespace

TEST_CASE("a getter that is const does not stand in for the one that draws, in a dataset of datasets", "[dataset]") {
  struct Plain {
    bool is_read = true;
    [[nodiscard]] std::size_t size() const { return 3; }
    [[nodiscard]] std::int64_t get(std::size_t) const { return 0; }
    [[nodiscard]] std::int64_t get(std::size_t, at::Generator&) { return is_read ? 1 : 2; }
  };
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  const auto draws = [&](auto dataset) {
    static_assert(!accel::data::SharedDataset<decltype(dataset)>);
    for (const int workers : {0, 2}) {
      auto loader = accelerator.prepare(accel::data::DataLoader{dataset, {.batch_size = 6, .workers = workers}});
      for (auto& batch : loader) CHECK(batch.eq(1).all().template item<bool>());
    }
  };
  draws(Subset(Plain(), {0, 2}));
  draws(Concat(Plain(), Plain()));
  draws(Concat(std::vector<Plain>(2)));
  draws(Mapped(Plain(), [](std::int64_t number) { return number; }));
}

TEST_CASE("datasets behind each other have the rows of all, in order, empty ones included", "[dataset]") {
  const Concat one_type{std::vector{counting(0, 0), counting(0, 2), counting(0, 0), counting(10, 13), counting(0, 0)}};
  CHECK(numbers_of(one_type) == Numbers{0, 1, 10, 11, 12});
  Concat two_types{counting(5, 7), Hundreds(), counting(9, 10)};
  CHECK(numbers_of(two_types) == Numbers{5, 6, 0, 100, 200, 9});
  const Concat single{std::vector{counting(1, 3)}};
  CHECK(numbers_of(single) == Numbers{1, 2});
  const Concat none{std::vector<Counting>{}};
  CHECK(none.size() == 0);
  CHECK_THROWS_MATCHES(one_type.get(5), InvalidArgument, MessageMatches(ContainsSubstring("5 rows), found 5")));
  CHECK_THROWS_AS(none.get(0), InvalidArgument);
}

TEST_CASE("a dataset of datasets may be shared by threads if all of them may", "[dataset]") {
  STATIC_CHECK(ConstRow<Concat<std::vector<Counting>>>);
  STATIC_CHECK(ConstRow<Concat<std::tuple<Counting, Counting>>>);
  STATIC_CHECK(!ConstRow<Concat<std::tuple<Counting, Hundreds>>>);
  STATIC_CHECK(!ConstRow<Subset<Hundreds>>);
  STATIC_CHECK(ConstRow<Subset<Counting>>);
  const auto identity = [](const torch::Tensor& row) { return row; };
  STATIC_CHECK(ConstRow<Mapped<Counting, decltype(identity)>>);
  STATIC_CHECK(!ConstRow<Mapped<Hundreds, decltype(identity)>>);
  STATIC_CHECK(!ConstRow<Subset<Dice>>);
  STATIC_CHECK(Random<Subset<Dice>>);
  STATIC_CHECK(Random<Concat<std::tuple<Counting, Dice>>>);
  STATIC_CHECK(!ConstRow<Concat<std::tuple<Counting, Dice>>>);
  STATIC_CHECK(Random<Mapped<Dice, decltype(identity)>>);
}

TEST_CASE("the random stream reaches the dataset and the function that take it", "[dataset]") {
  const auto stream = [](std::uint64_t seed) { return at::detail::createCPUGenerator(seed); };
  const auto drawn = [&](std::uint64_t seed) {
    auto random = stream(seed);
    return number(Dice().get(0, random));
  };
  const auto plus_drawn = [](const torch::Tensor& row, at::Generator& random) {
    return row + at::randint(1'000'000, {}, random, at::kLong);
  };
  auto random = stream(1);
  CHECK(number(Concat{counting(7, 8), Dice()}.get(0, random)) == 7);
  CHECK(number(Concat{counting(7, 8), Dice()}.get(1, random)) == drawn(1));
  random = stream(2);
  CHECK(number(Subset{Dice(), {3}}.get(0, random)) == drawn(2));
  random = stream(3);
  CHECK(number(Mapped{counting(7, 8), plus_drawn}.get(0, random)) == 7 + drawn(3));
  random = stream(4);
  CHECK(number(Mapped{Dice(), [](const torch::Tensor& row) { return row + 1; }}.get(0, random)) == drawn(4) + 1);
  random = stream(5);
  auto twice = stream(5);
  const auto first = number(Dice().get(0, twice));
  CHECK(number(Mapped{Dice(), plus_drawn}.get(0, random)) == first + number(Dice().get(0, twice)));
}

TEST_CASE("a function maps each row to one of another type", "[dataset]") {
  const Mapped named{Tensors{std::pair{torch::arange(3), torch::arange(3) * 10}}, [](const auto& row) {
                       return std::pair{row.first + row.second, std::to_string(number(row.first))};
                     }};
  CHECK(named.size() == 3);
  CHECK(number(named.get(2).first) == 22);
  CHECK(named.get(2).second == "2");
  Mapped hundreds{Hundreds(), [](const torch::Tensor& row) { return row + 1; }};
  CHECK(numbers_of(hundreds) == Numbers{1, 101, 201});
}

TEST_CASE("a subset has the rows that were named, by row and by batch", "[dataset]") {
  const Subset some{counting(0, 10), {7, 3, 3}};
  CHECK(numbers_of(some) == Numbers{7, 3, 3});
  CHECK(some.get_batch({2, 0}).equal(torch::tensor({3, 7})));
  const Subset by_tensor{ByTensorOnly(), {4, 1}};
  CHECK(by_tensor.get_batch({1, 0}).equal(torch::tensor({2, 8})));
  Subset hundreds{Hundreds(), {2}};
  CHECK(numbers_of(hundreds) == Numbers{200});
  const Subset nested{some, {2, 0}};
  CHECK(nested.get_batch({0, 1}).equal(torch::tensor({3, 7})));
  CHECK(Subset{counting(0, 3), Numbers{}}.size() == 0);
  CHECK_THROWS_MATCHES((Subset{counting(0, 3), {3}}), InvalidArgument,
                       MessageMatches(ContainsSubstring("expected 0 to 2 (3 rows), found 3")));
  CHECK_THROWS_AS(some.get(3), InvalidArgument);
  CHECK_THROWS_AS(some.get_batch({-1}), InvalidArgument);
}

TEST_CASE("parts share a dataset that reading does not change, and have their own of one that it does", "[dataset]") {
  const auto [a, b] = random_split(counting(0, 4), {2, 2}, 0);
  CHECK(&a.dataset() == &b.dataset());
  auto [c, d] = random_split(Hundreds(), {1, 2}, 0);
  auto copy = c;
  (void)c.get(0);
  CHECK(c.dataset().asked == 1);
  CHECK(d.dataset().asked == 0);
  CHECK(copy.dataset().asked == 0);
}

TEST_CASE("a random split is PyTorch's, row for row, by sizes and by fractions", "[dataset]") {
  const accel::testing::Folder folder;
  accel::testing::run_python(folder, R"(
import torch
from torch.utils.data import random_split
for name, n, parts, seed in [('sizes', 100, [70, 20, 10], 3), ('fractions', 101, [0.5, 0.3, 0.2], 4),
                             ('odd', 10, [0.33, 0.33, 0.34], 5), ('empty', 7, [0, 7], 6)]:
    split = random_split(list(range(n)), parts, generator=torch.Generator().manual_seed(seed))
    with open(name, 'w') as f: f.write(';'.join(','.join(str(i) for i in part.indices) for part in split))
)");
  const auto same = [&](const std::string& name, const auto& split) {
    INFO(name);
    std::string text;
    for (std::size_t k = 0; k < split.size(); ++k) {
      if (k > 0) text += ";";
      for (std::size_t i = 0; i < split[k].size(); ++i) {
        text += (i > 0 ? "," : "") + std::to_string(split[k].rows()[i]);
        CHECK(number(split[k].get(i)) == split[k].rows()[i]);
      }
    }
    CHECK(text == accel::testing::bytes_of(folder / name));
  };
  same("sizes", random_split(counting(0, 100), {70, 20, 10}, 3));
  same("fractions", random_split_fractions(counting(0, 101), {0.5, 0.3, 0.2}, 4));
  same("odd", random_split_fractions(counting(0, 10), {0.33, 0.33, 0.34}, 5));
  same("empty", random_split(counting(0, 7), {0, 7}, 6));
  const auto [train, held_out] = random_split(counting(0, 3), {2, 1}, 0);
  CHECK(train.size() + held_out.size() == 3);
}

TEST_CASE("a split that does not add up is refused", "[dataset]") {
  CHECK_THROWS_MATCHES(random_split(counting(0, 10), {7, 2}, 0), InvalidArgument,
                       MessageMatches(ContainsSubstring("add up to 10 rows, found 9")));
  CHECK_THROWS_AS(random_split(counting(0, 10), {11, -1}, 0), InvalidArgument);
  CHECK_THROWS_MATCHES(random_split_fractions(counting(0, 10), {0.5, 0.4}, 0), InvalidArgument,
                       MessageMatches(ContainsSubstring("add up to 1, found 0.9")));
  CHECK_THROWS_AS(random_split_fractions(counting(0, 10), {1.5, -0.5}, 0), InvalidArgument);
  CHECK(random_split_fractions(counting(0, 0), {0.5, 0.5}, 0)[0].size() == 0);
}
