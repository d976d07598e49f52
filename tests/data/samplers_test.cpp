// Samplers: what their orders hold, whoever draws them. That they are PyTorch's is parity/loaders_test's.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/permutation.hpp>
#include <accel/data/samplers.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/orders.hpp"

namespace {

using accel::InvalidArgument;
using accel::data::Draw;
using accel::data::Order;
using accel::data::Permutation;
using accel::data::Sampler;
using accel::testing::listed;
namespace sampler = accel::data::sampler;
using Rows = std::vector<std::int64_t>;

Rows drawn(const Sampler& from, std::int64_t rows, std::int64_t epoch = 0, std::uint64_t seed = 42) {
  const Order order = from.order({.rows = rows, .seed = seed, .epoch = epoch, .global_batch = 4});
  CHECK(order.size() == from.samples(rows));
  return listed(order);
}

Rows sorted(Rows rows) {
  std::ranges::sort(rows);
  return rows;
}

Rows first_rows(std::int64_t rows) {
  return listed(Order::sequential(rows));
}

}  // namespace

TEST_CASE("every sampler draws the same for the same seed and epoch, and another order for another", "[data]") {
  Rows lengths;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < 60; ++i) {
    lengths.push_back(1 + i * 7 % 23);
    weights.push_back(1 + static_cast<double>(i % 5));
  }
  const std::vector<Sampler> all{sampler::random(),
                                 sampler::permuted(),
                                 sampler::random({.samples = 100}),
                                 sampler::random({.samples = 100, .replacement = true}),
                                 sampler::weighted(weights),
                                 sampler::weighted(weights, {.samples = 20, .replacement = false}),
                                 sampler::subset({3, 1, 4, 15, 9, 2, 6}),
                                 sampler::stratified(lengths),
                                 sampler::grouped_by_length(lengths),
                                 sampler::interleaved({10, 20, 30})};
  std::set<std::string> names;
  for (const Sampler& one : all) {
    INFO(one.name);
    CHECK(drawn(one, 60) == drawn(one, 60));
    CHECK(drawn(one, 60, 0) != drawn(one, 60, 1));
    CHECK(drawn(one, 60, 0, 1) != drawn(one, 60, 0, 2));
    CHECK(names.insert(one.name).second);
    for (const std::int64_t row : drawn(one, 60)) REQUIRE((row >= 0 && row < 60));
  }
}

TEST_CASE("a permutation that is computed holds every row once, at any size", "[data]") {
  for (std::int64_t n = 0; n <= 300; ++n) {
    const Permutation permutation(n, 7 + static_cast<std::uint64_t>(n));
    Rows rows;
    for (std::int64_t i = 0; i < n; ++i) rows.push_back(permutation[i]);
    REQUIRE(sorted(rows) == first_rows(n));
  }
  // Of rows that no list would hold it still gives each once: of a million of them none comes twice.
  const Permutation huge(std::int64_t{1} << 60, 3);
  std::vector<std::int64_t> seen;
  for (std::int64_t i = 0; i < 1'000'000; ++i) seen.push_back(huge[i * 1'000'003]);
  std::ranges::sort(seen);
  CHECK(std::ranges::adjacent_find(seen) == seen.end());
  CHECK(seen.front() >= 0);
  CHECK(seen.back() < std::int64_t{1} << 60);
}

TEST_CASE("a permutation that is computed mixes: chi-squared of places, and of neighbours", "[data]") {
  // 20000 rows: where each tenth of them goes, tenth by tenth; expected 2000 +- 42 in each of 100 cells.
  constexpr std::int64_t n = 20'000;
  double places = 0, steps = 0;
  constexpr int keys = 20;
  for (std::uint64_t key = 0; key < keys; ++key) {
    const Permutation permutation(n, key);
    std::array<std::array<int, 10>, 10> cells{}, moves{};
    for (std::int64_t i = 0; i < n; ++i) {
      ++cells[static_cast<std::size_t>(i / 2000)][static_cast<std::size_t>(permutation[i] / 2000)];
      const std::int64_t next = permutation[(i + 1) % n];
      ++moves[static_cast<std::size_t>(permutation[i] / 2000)][static_cast<std::size_t>(next / 2000)];
    }
    for (std::size_t a = 0; a < 10; ++a)
      for (std::size_t b = 0; b < 10; ++b) {
        places += std::pow(cells[a][b] - 200, 2) / 200.0;
        steps += std::pow(moves[a][b] - 200, 2) / 200.0;
      }
  }
  // 81 and about 90 degrees of freedom per key; five standard deviations of the mean over 20 keys are 14.
  CHECK(std::abs(places / keys - 81) < 15);
  CHECK(std::abs(steps / keys - 90) < 20);
}

TEST_CASE("more samples than rows are one permutation after the other", "[data]") {
  const Rows rows = drawn(sampler::random({.samples = 25}), 10);
  CHECK(sorted(Rows(rows.begin(), rows.begin() + 10)) == first_rows(10));
  CHECK(sorted(Rows(rows.begin() + 10, rows.begin() + 20)) == first_rows(10));
  CHECK(drawn(sampler::random({.samples = 0}), 10) == accel::testing::epoch_order(10, 42, 0));
  CHECK(drawn(sampler::random({.samples = 4}), 10).size() == 4);
}

TEST_CASE("weights are what rows are drawn by", "[data]") {
  const Rows rows = drawn(sampler::weighted({0, 1, 3, 0}, {.samples = 40'000}), 4);
  std::map<std::int64_t, int> counts;
  for (const std::int64_t row : rows) ++counts[row];
  CHECK(counts.size() == 2);
  CHECK(std::abs(counts[2] - 30'000) < 5 * 87);  // five standard deviations
  CHECK(sorted(drawn(sampler::weighted({1, 0, 1, 1}, {.samples = 3, .replacement = false}), 4)) == Rows{0, 2, 3});
}

TEST_CASE("any stretch of a stratified epoch has the classes in the proportions of the whole", "[data]") {
  Rows labels;
  for (std::int64_t i = 0; i < 1000; ++i) labels.push_back(i < 600 ? 0 : i < 900 ? 1 : i < 990 ? 2 : -5);
  const Rows rows = drawn(sampler::stratified(labels), 1000);
  CHECK(sorted(rows) == first_rows(1000));
  const std::map<std::int64_t, double> shares{{0, 0.6}, {1, 0.3}, {2, 0.09}, {-5, 0.01}};
  for (const std::size_t length : {10U, 37U, 250U})
    for (std::size_t begin = 0; begin + length <= rows.size(); ++begin) {
      std::map<std::int64_t, int> counts;
      for (std::size_t i = begin; i < begin + length; ++i) ++counts[labels[static_cast<std::size_t>(rows[i])]];
      for (const auto& [label, share] : shares)
        REQUIRE(std::abs(counts[label] - share * static_cast<double>(length)) <= 2);
    }
}

TEST_CASE("rows are grouped by length, the longest of all first", "[data]") {
  Rows lengths;
  for (std::int64_t i = 0; i < 200; ++i) lengths.push_back(i * 37 % 101);
  const Rows rows = drawn(sampler::grouped_by_length(lengths, {.batch_size = 4, .mega_batches = 5}), 200);
  CHECK(sorted(rows) == first_rows(200));
  CHECK(lengths[static_cast<std::size_t>(rows[0])] == *std::ranges::max_element(lengths));
  // Within 20 rows they fall, but for the row that was swapped to the front.
  for (std::size_t begin = 0; begin < 200; begin += 20)
    for (std::size_t i = begin + 2; i < begin + 20; ++i)
      REQUIRE(lengths[static_cast<std::size_t>(rows[i - 1])] >= lengths[static_cast<std::size_t>(rows[i])]);
  CHECK(drawn(sampler::grouped_by_length({}), 0).empty());
  constexpr auto huge = std::numeric_limits<std::int64_t>::max() / 2;
  CHECK(sorted(drawn(sampler::grouped_by_length(lengths, {.batch_size = huge, .mega_batches = 4}), 200)) ==
        first_rows(200));
}

TEST_CASE("a mixture has its datasets by weight at every place, and ends as it is told", "[data]") {
  const Rows sizes{100, 50, 10};
  const auto source_of = [](std::int64_t row) { return row < 100 ? 0 : row < 150 ? 1 : 2; };
  for (const bool shuffle : {false, true}) {
    const Rows rows = drawn(sampler::interleaved(sizes, {.weights = {2, 1, 1}, .shuffle = shuffle}), 160);
    std::array<int, 3> counts{};
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ++counts[static_cast<std::size_t>(source_of(rows[i]))];
      for (std::size_t k = 0; k < 3; ++k)
        REQUIRE(std::abs(counts[k] - static_cast<double>(i + 1) * (k == 0 ? 0.5 : 0.25)) <= 1);
    }
    CHECK(counts[2] == 10);  // the smallest is exhausted: no row comes twice
    const Rows in_order = sorted(rows);
    CHECK(std::ranges::adjacent_find(in_order) == in_order.end());
  }
  const Rows all =
      drawn(sampler::interleaved(sizes, {.weights = {2, 1, 1}, .end = sampler::MixtureEnd::all_exhausted}), 160);
  Rows distinct = sorted(all);
  distinct.erase(std::ranges::unique(distinct).begin(), distinct.end());
  CHECK(distinct == first_rows(160));
  CHECK(all.size() == 200);                                                   // 100 rows of the first make half of it
  CHECK(sorted(drawn(sampler::interleaved(sizes), 160)) == first_rows(160));  // by size: all end together
}

TEST_CASE("an endless epoch is the epochs of another sampler, from any place", "[data]") {
  const Sampler endless = sampler::endless(sampler::random());
  const Order order = endless.order({.rows = 7, .seed = 5, .epoch = 2});
  CHECK(order.size() == accel::data::endless_samples);
  for (const std::int64_t pass : {0, 1, 5, 1, 100}) {  // back as well
    const Rows expected = accel::testing::epoch_order(7, 5, 2 + pass);
    for (std::int64_t i = 0; i < 7; ++i) REQUIRE(order[pass * 7 + i] == expected[static_cast<std::size_t>(i)]);
  }
  CHECK_THROWS_AS(endless.order({.rows = 0}), InvalidArgument);
}

TEST_CASE("a sampler of one's own is a name and a function", "[data]") {
  const Sampler backwards{.name = "backwards", .order = [](const Draw& draw) {
                            return Order::computed(draw.rows,
                                                   [n = draw.rows](std::int64_t position) { return n - 1 - position; });
                          }};
  CHECK(drawn(backwards, 4) == Rows{3, 2, 1, 0});
}

TEST_CASE("samplers refuse what they cannot draw from", "[data]") {
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::MessageMatches;
  const auto refused = [](const auto& make, const std::string& text) {
    CHECK_THROWS_MATCHES(make(), InvalidArgument, MessageMatches(ContainsSubstring(text)));
  };
  refused([] { return sampler::weighted({1, -1}); }, "found -1 for row 1");
  refused([] { return sampler::weighted({1, std::nan("")}); }, "for row 1");
  refused([] { return sampler::weighted({0, 0}); }, "one weight above 0");
  refused([] { return sampler::weighted({1, 0}, {.samples = 2, .replacement = false}); }, "found 1");
  refused([] { return sampler::weighted({1, 1}).samples(3); }, "one per row of the dataset, 3, found 2");
  refused([] { return sampler::stratified({1, 1}).samples(3); }, "labels: expected one per row");
  refused([] { return sampler::grouped_by_length({1, 1}).samples(3); }, "lengths: expected one per row");
  refused([] { return sampler::subset({1, -1}); }, "found -1");
  refused([] { return sampler::subset({1, 9}).samples(9); }, "expected rows below 9, found 9");
  refused([] { return sampler::interleaved({3, 0}); }, "dataset 1 with 0 rows");
  refused([] { return sampler::interleaved({3, 4}, {.weights = {1}}); }, "a weight for each of 2 datasets, found 1");
  refused([] { return sampler::interleaved({3, 4}).samples(8); },
          "have 7 rows together, the dataset of the loader has 8");
  refused([] { return sampler::random({.samples = 3}).order({.rows = 0}); }, "a dataset without rows");
  refused([] { return Order::sequential(3)[3]; }, "expected a position from 0 to 2, found 3");
}
