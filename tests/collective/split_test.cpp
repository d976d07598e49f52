// Split and scatter: a part for each rank, and the parts together again.
#include <cstdint>
#include <fstream>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/scatter.hpp>
#include <accel/collective/split.hpp>
#include <nlohmann/json.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::split_range;
using accel::collective::split;

namespace {

std::vector<std::int64_t> counted(std::int64_t length) {
  std::vector<std::int64_t> list(static_cast<std::size_t>(length));
  std::iota(list.begin(), list.end(), 0);
  return list;
}

struct Prompts {
  std::vector<std::string> texts;
  at::Tensor ids;
  std::map<std::string, std::pair<at::Tensor, std::vector<double>>> more;
  int seed = 0;
};

}  // namespace

TEST_CASE("parts are those that accelerate makes", "[collective][parity]") {
  std::ifstream file(ACCEL_TEST_DIR "/parity/recorded/split_between_processes.json");
  const auto recorded = nlohmann::json::parse(file);
  REQUIRE(recorded.at("cases").size() == 40);
  for (const auto& entry : recorded.at("cases")) {
    const int world_size = entry.at("world_size");
    for (int rank = 0; rank < world_size; ++rank)
      REQUIRE(split(counted(entry.at("samples")), rank, world_size) ==
              entry.at("ranks").at(static_cast<std::size_t>(rank)).get<std::vector<std::int64_t>>());
  }
}

TEST_CASE("parts follow each other, cover all, and differ by one row at most, the larger ones first", "[collective]") {
  static_assert(split_range(7, 3, 4) == accel::Range{6, 7});
  static_assert(split_range(2, 2, 3).size() == 0);
  for (std::int64_t length = 0; length < 40; ++length)
    for (int world_size = 1; world_size < 9; ++world_size) {
      std::int64_t end = 0;
      std::int64_t last = length;
      for (int rank = 0; rank < world_size; ++rank) {
        const auto part = split_range(length, rank, world_size);
        REQUIRE(part.begin == end);
        REQUIRE(part.size() <= last);
        REQUIRE(part.size() >= length / world_size);
        end = part.end;
        last = part.size();
      }
      REQUIRE(end == length);
      REQUIRE(accel::collective::largest_part(length, world_size) == (length + world_size - 1) / world_size);
    }
}

TEST_CASE("all that has rows is split alike, numbers and texts stay whole", "[collective]") {
  const Prompts all{
      {"a", "b", "c", "d", "e"}, at::arange(10).view({5, 2}), {{"x", {at::arange(5), {0, 1, 2, 3, 4}}}}, 42};
  const Prompts part = split(all, 1, 3);
  CHECK(part.texts == std::vector<std::string>{"c", "d"});
  CHECK(part.ids.equal(at::arange(4, 8).view({2, 2})));
  CHECK(part.ids.storage().data_ptr().get() == all.ids.storage().data_ptr().get());  // no copy
  CHECK(part.more.at("x").second == std::vector{2.0, 3.0});
  CHECK(part.seed == 42);
  CHECK(all.texts.size() == 5);  // the caller's stays
  CHECK(all.more.at("x").first.size(0) == 5);
  CHECK(split(std::vector<bool>{true, false, true}, 1, 2) == std::vector<bool>{true});
  CHECK(split(std::vector<at::Tensor>{at::ones({7}), at::ones({})}, 1, 2).front().dim() == 0);  // a list, of anything
  const at::Tensor tensor = at::arange(8);
  CHECK(split(tensor, 0, 1).is_same(tensor));
  CHECK(split(tensor.view({2, 4}), 1, 2).equal(at::arange(4, 8).view({1, 4})));
}

TEST_CASE("what has no equal rows is refused, with both paths", "[collective]") {
  using accel::InvalidArgument;
  using Catch::Matchers::ContainsSubstring;
  for (const int world_size : {1, 2}) {
    CHECK_THROWS_WITH(split(std::pair(at::ones({3}), std::vector{1, 2}), 0, world_size),
                      ContainsSubstring("found 3 at .first and 2 at .second"));
    CHECK_THROWS_WITH(split(std::map<std::string, at::Tensor>{{"a", at::ones({})}}, 0, world_size),
                      ContainsSubstring(R"(found a scalar at ["a"])"));
    CHECK_THROWS_WITH(split(std::pair(1, 2.0), 0, world_size), ContainsSubstring("found neither"));
    CHECK_THROWS_AS(split(at::Tensor(), 0, world_size), InvalidArgument);
  }
}

TEST_CASE("padding repeats the last row of the whole, and says how many rows are valid", "[collective]") {
  // What accelerate's documentation joins in the wrong order: 0 1 | 2 4 | 3 4 | 4 4.
  const std::vector<std::pair<std::vector<std::int64_t>, std::int64_t>> wanted = {
      {{0, 1}, 2}, {{2, 4}, 1}, {{3, 4}, 1}, {{4, 4}, 1}};
  for (int rank = 0; rank < 4; ++rank) {
    const auto& [values, valid] = wanted[static_cast<std::size_t>(rank)];
    const auto list = split(counted(5), rank, 4, {.pad = true});
    CHECK(list.values == values);
    CHECK(list.valid == valid);
    const auto tensor = split(at::arange(10).view({5, 2}), rank, 4, {.pad = true});
    CHECK(tensor.valid == valid);
    CHECK(tensor.values.select(1, 0).equal(2 * at::arange(5).index_select(0, at::tensor(values))));
  }
  const auto last = split(std::vector<std::string>{"A", "B"}, 4, 5, {.pad = true});
  CHECK(last.values == std::vector<std::string>{"B"});
  CHECK(last.valid == 0);
  CHECK(split(std::vector<int>{}, 1, 2, {.pad = true}).values.empty());
  CHECK(split(std::pair(at::ones({3}), counted(3)), 1, 2, {.pad = true}).values.second ==
        std::vector<std::int64_t>{2, 2});
}

TEST_CASE("parts that were padded are joined without their padding, in order", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using collective::gather_split;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    for (const std::int64_t length : {0, 1, 2, 3, 4, 5, 7}) {
      INFO("of " << length << " rows");
      const at::Tensor whole = at::arange(3 * length).view({length, 3});
      const auto part = split(std::pair(whole, counted(length)), rank.rank, rank.world_size, {.pad = true});
      CHECK(gather_split(*group, part.values.first, part.valid).equal(whole));
      const std::map<std::string, at::Tensor> results = {{"twice", 2 * part.values.first}};
      CHECK(gather_split(*group, results, part.valid).at("twice").equal(2 * whole));
      CHECK(gather_split(*group, part.values.second, part.valid) == counted(length));
      // A list of tensors of any shape.
      std::vector<at::Tensor> list;
      for (const auto number : part.values.second) list.push_back(at::full({number}, number));
      const auto joined = gather_split(*group, list, part.valid);
      REQUIRE(joined.size() == static_cast<std::size_t>(length));
      for (std::int64_t k = 0; k < length; ++k) CHECK(joined[static_cast<std::size_t>(k)].equal(at::full({k}, k)));
    }
    const std::int64_t valid = rank.rank == rank.world_size - 1 ? 4 : 3;
    const auto error = thrown_by<InvalidArgument>([&] { (void)gather_split(*group, at::ones({3}), valid); });
    CHECK_THAT(error, ContainsSubstring("expected at least 4 rows"));
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)gather_split(*group, std::vector<int>(3), valid); }),
               ContainsSubstring("expected at least 4 rows"));
  });
}

TEST_CASE("what one rank has is dealt to all, who know nothing of it", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using collective::scatter;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    for (int root = 0; root < p; ++root)
      for (const std::int64_t length : {0, 1, 4, 5}) {
        INFO("rank " << root << " has " << length << " rows");
        const bool is_root = rank.rank == root;
        const auto own = split_range(length, rank.rank, p);
        const at::Tensor whole =
            at::arange(2.0 * static_cast<double>(length)).view({length, 2}).add(root).requires_grad_(true);
        const at::Tensor part = scatter(*group, is_root ? whole : at::Tensor(), root);
        CHECK(part.equal(whole.narrow(0, own.begin, own.size())));
        CHECK_FALSE(part.requires_grad());
        std::vector<std::pair<at::Tensor, std::string>> list;
        for (std::int64_t k = 0; is_root && k < length; ++k) list.emplace_back(at::ones({k, 2}), std::to_string(k));
        const auto mine = scatter(*group, list, root);
        REQUIRE(std::ssize(mine) == own.size());
        for (std::int64_t k = 0; k < own.size(); ++k) {
          const auto& [tensor, text] = mine[static_cast<std::size_t>(k)];
          CHECK(tensor.equal(at::ones({own.begin + k, 2})));
          CHECK(text == std::to_string(own.begin + k));
        }
      }
    const Prompts prompts{{"a", "b", "c"}, at::arange(3), {}, 7};
    CHECK(scatter(*group, rank.rank == 0 ? prompts : Prompts{}, 0).seed == 7);
    for (int root = 0; root < p; ++root) {
      const auto uneven = std::pair(at::ones({2}), std::vector<int>(rank.rank == root ? 3 : 2));
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)scatter(*group, uneven, root); }),
                 ContainsSubstring("found 2 at .first and 3 at .second"));
    }
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)scatter(*group, at::ones({2}), p); }),
               ContainsSubstring("is not in [0, "));
    if (p > 1)
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)scatter(*group, at::ones({2}), rank.rank == 1 ? 1 : 0); }),
                 ContainsSubstring("rank 1 has from rank 1"));
  });
}
