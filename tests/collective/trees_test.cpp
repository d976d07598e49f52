// Trees: what ranks bring is compared before anything is sent, and what differs is named on every rank.
#include <map>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/collective/pad.hpp>
#include <accel/collective/reduce.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

using Trees = std::map<std::string, std::vector<at::Tensor>>;
using Unordered = std::unordered_map<std::string, at::Tensor>;
using accel::collective::Reduction;

/// The collectives that take a tree on every rank, as the user calls them.
template <class Call>
void for_each_collective(accel::backend::Gloo& backend, Call&& call) {
  call("gather", [&](const auto& tree) { return accel::collective::all_gather(backend, tree); });
  call("reduce", [&](const auto& tree) { return accel::collective::reduce(backend, tree, Reduction::sum); });
  call("broadcast", [&](const auto& tree) { return accel::collective::broadcast(backend, tree, 0); });
  call("pad_across_processes",
       [&](const auto& tree) { return accel::collective::pad_across_processes(backend, tree); });
}

}  // namespace

TEST_CASE("trees that differ are named with both ranks and the path, by every collective on every rank",
          "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::StartsWith;
  on_ranks({2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    for (int odd = 1; odd < rank.world_size; ++odd) {
      const bool is_odd = rank.rank == odd;
      const auto one = [&](const at::Tensor& usual, const at::Tensor& other) {
        return Trees{{"image", {at::ones({2}), is_odd ? other : usual}}};
      };
      struct Case {
        Trees tree;
        std::string path, usual, other;
      };
      const std::vector<Case> cases = {
          {one(at::ones({2}), at::ones({2}, at::kLong)), R"(["image"][1])", "f32", "i64"},
          {one(at::ones({2, 3}), at::ones({2})), R"(["image"][1])", "f32", "f32"},
          {one(at::ones({2}), at::Tensor()), R"(["image"][1])", "f32", "undefined"},
          {is_odd ? Trees{{"image", {at::ones({2})}}} : Trees{{"image", {at::ones({2}), at::ones({2})}}},
           R"(["image"][1])", "f32", "nothing"},
          {is_odd ? Trees{{"mask", {at::ones({2})}}} : Trees{{"image", {at::ones({2})}}}, R"(["image"][0])", "f32",
           "nothing"},
          {is_odd ? Trees{{"image", {at::ones({2})}}} : Trees{}, R"(["image"][0])", "nothing", "f32"},
      };
      for (const auto& [tree, path, usual, other] : cases)
        for_each_collective(*group, [&](const std::string& name, const auto& collective) {
          INFO(name << ", rank " << odd << " has " << other);
          const auto error = thrown_by<InvalidArgument>([&] { (void)collective(tree); });
          CHECK_THAT(error, StartsWith(name + ": ") && ContainsSubstring("at " + path + ": rank 0 has " + usual) &&
                                ContainsSubstring(", rank " + std::to_string(odd) + " has " + other));
        });
    }
    // Sizes, of which gather and padding take any in one dimension: the two others name them.
    const bool is_last = rank.rank == rank.world_size - 1;
    const std::tuple sizes(at::ones({3}), std::map<std::string, at::Tensor>{{"mask", at::ones({is_last ? 3 : 2})}});
    for_each_collective(*group, [&](const std::string& name, const auto& collective) {
      if (name != "reduce" && name != "broadcast") return;
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)collective(sizes); }),
                 StartsWith(name + ": ") && ContainsSubstring("[\"mask\"]: rank 0 has f32[2], rank " +
                                                              std::to_string(rank.world_size - 1) + " has f32[3]"));
    });
    // Nothing was sent: the group goes on.
    CHECK(collective::reduce(*group, at::ones({1}), Reduction::sum).item<double>() == rank.world_size);
  });
}

TEST_CASE("tuples, and what stands in them, come back as they were", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    const std::tuple tree(at::full({2}, rank.rank), std::tuple(std::vector{at::full({1 + rank.rank}, rank.rank)}),
                          std::string("a word"), 7);
    const auto& [alone, inner, word, number] = tree;
    const auto summed = collective::reduce(*group, std::tuple(alone, word, number), Reduction::sum);
    CHECK(std::get<0>(summed).equal(at::full({2}, p * (p - 1) / 2)));
    CHECK(std::get<1>(summed) == "a word");
    CHECK(std::get<2>(summed) == 7);
    const auto gathered = collective::all_gather(*group, tree);
    CHECK(std::get<0>(gathered).equal(at::arange(p).repeat_interleave(2)));
    at::Tensor expected = at::empty({0}, at::kLong);
    for (int r = 0; r < p; ++r) expected = at::cat({expected, at::full({1 + r}, r)});
    CHECK(std::get<0>(std::get<1>(gathered)).at(0).equal(expected));
    const auto sent = collective::broadcast(*group, std::tuple(alone, std::tuple(alone + 1)), p - 1);
    CHECK(std::get<0>(sent).equal(at::full({2}, p - 1)));
    CHECK(std::get<0>(std::get<1>(sent)).equal(at::full({2}, p)));
    const auto padded = collective::pad_across_processes(*group, tree);
    CHECK(std::get<0>(std::get<1>(padded)).at(0).size(0) == p);
  });
}

TEST_CASE("what is wrong on one rank only is an error on all, with the rank and the path", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::StartsWith;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    for (int bad = 0; bad < rank.world_size; ++bad) {
      const auto tree = [&](const at::Tensor& wrong) {
        return Trees{{"a", {at::ones({2}), rank.rank == bad ? wrong : at::ones({2})}}};
      };
      const std::vector<std::pair<at::Tensor, std::string>> wrongs = {
          {at::empty({2}, at::TensorOptions().device(at::kMeta)), "expected tensors on cpu, found f32[2]@meta"},
          {at::ones({2}).to_sparse(), "expected dense tensors"},
          {at::quantize_per_tensor(at::ones({2}), 0.1, 0, at::kQInt8), "expected dense tensors"},
      };
      for (const auto& [wrong, words] : wrongs)
        for_each_collective(*group, [&](const std::string& name, const auto& collective) {
          INFO(name << ": " << words);
          const auto error = thrown_by<InvalidArgument>([&] { (void)collective(tree(wrong)); });
          CHECK_THAT(error, ContainsSubstring(words) && ContainsSubstring(R"(at ["a"][1])"));
          CHECK_THAT(error,
                     StartsWith(rank.rank == bad ? name + ": " : name + " failed on rank " + std::to_string(bad)));
        });
      for_each_collective(*group, [&](const std::string& name, const auto& collective) {
        const at::Tensor mine = rank.rank == bad ? at::Tensor() : at::ones({2});
        CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)collective(mine); }),
                   StartsWith(name) && ContainsSubstring("undefined"));
      });
    }
    // In a tree a tensor may be missing, if it is on all ranks.
    const std::pair tree(at::ones({2}), at::Tensor());
    for_each_collective(
        *group, [&](const std::string&, const auto& collective) { CHECK_FALSE(collective(tree).second.defined()); });
  });
}

TEST_CASE("calls that differ are named, and nothing is computed", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const bool is_last = rank.rank == rank.world_size - 1;
    const at::Tensor x = at::ones({2});
    const std::string last = ", rank " + std::to_string(rank.world_size - 1) + " has ";
    CHECK_THAT(thrown_by<InvalidArgument>(
                   [&] { (void)collective::reduce(*group, x, is_last ? Reduction::mean : Reduction::sum); }),
               ContainsSubstring("at the call: rank 0 has sum" + last + "mean"));
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)collective::broadcast(*group, x, is_last ? 1 : 0); }),
               ContainsSubstring("rank 0 has from rank 0" + last + "from rank 1"));
    CHECK_THAT(thrown_by<InvalidArgument>(
                   [&] { (void)collective::pad_across_processes(*group, x, {.dim = is_last ? -1 : 0}); }),
               ContainsSubstring("rank 0 has dim 0, value 0" + last + "dim -1, value 0"));
    // Another collective altogether: no rank waits for what does not come.
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] {
      if (is_last)
        (void)collective::all_gather(*group, x);
      else
        (void)collective::reduce(*group, x, Reduction::sum);
    });
    CHECK_THAT(error, ContainsSubstring("gather") && ContainsSubstring("reduce"));
    CHECK(watch.seconds() < 10 * patience);
  });
}

TEST_CASE("tensors expanded on one rank only cannot be broadcast", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({2}, [](Rank rank) {
    Group<backend::Gloo> group;
    const at::Tensor mine = rank.rank == 0 ? at::ones({1, 3}).expand({2, 3}) : at::zeros({2, 3});
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)collective::broadcast(*group, mine, 0); }),
               ContainsSubstring("rank 0 has f32[2, 3] expanded from f32[1, 3], rank 1 has f32[2, 3]"));
    const at::Tensor alike = at::full({1, 3}, rank.rank + 1).expand({2, 3});
    CHECK(collective::broadcast(*group, alike, 1).equal(at::full({2, 3}, 2)));
  });
}

TEST_CASE("an unordered_map that has another order on each rank is sent by its keys", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    constexpr int keys = 20;
    Unordered mine;
    if (rank.rank > 0) mine.reserve(1000 * static_cast<std::size_t>(rank.rank));
    for (int i = 0; i < keys; ++i) {
      const int k = rank.rank % 2 == 0 ? i : keys - 1 - i;
      mine["key " + std::to_string(k)] = at::full({2}, 100 * k + rank.rank, at::kLong);
    }
    const auto value = [&](const Unordered& tree, int k) { return tree.at("key " + std::to_string(k)); };
    const auto sums = collective::reduce(*group, mine, Reduction::sum);
    const auto rows = collective::all_gather(*group, mine);
    const auto copies = collective::broadcast(*group, mine, p - 1);
    for (int k = 0; k < keys; ++k) {
      CHECK(value(sums, k).equal(at::full({2}, 100 * k * p + p * (p - 1) / 2, at::kLong)));
      CHECK(value(rows, k).size(0) == 2 * p);
      for (int r = 0; r < p; ++r) CHECK(value(rows, k)[2 * r].item<int>() == 100 * k + r);
      CHECK(value(copies, k).equal(at::full({2}, 100 * k + p - 1, at::kLong)));
    }
  });
}

TEST_CASE("random trees are gathered, reduced, broadcast and padded as formulas over the ranks say", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  struct Node {
    at::Tensor tensor;
    std::vector<std::pair<at::Tensor, std::string>> list;
    std::unordered_map<int, std::optional<at::Tensor>> map;
    int number = 0;
  };
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    for (unsigned seed = 0; seed < 25; ++seed) {
      // The tree of any rank: equal but for rows, where `ragged`, and values, which rank and place give.
      const auto tree_of = [&](int r, bool ragged) {
        std::mt19937 shared(seed);
        const auto below = [&](int n) { return static_cast<int>(shared() % static_cast<unsigned>(n)); };
        int place = 0;
        const auto tensor = [&] {
          static constexpr std::array dtypes = {at::kFloat, at::kLong,     at::kDouble, at::kHalf,
                                                at::kInt,   at::kBFloat16, at::kShort,  at::kComplexFloat};
          const auto dtype = dtypes[static_cast<std::size_t>(below(8))];
          std::vector<std::int64_t> sizes;
          for (int dims = below(4); dims > 0; --dims) sizes.push_back(below(4));
          if (ragged && sizes.empty()) sizes.push_back(1);
          const int more = below(3);
          if (ragged) sizes.front() = (sizes.front() + r * more) % 5;
          ++place;
          at::Tensor values =
              (at::arange(at::empty(sizes).numel()).add(place + 3 * r)).remainder(17).view(sizes).to(dtype);
          if (below(3) == 0 && values.dim() > 1) values = values.transpose(0, 1).contiguous().transpose(0, 1);
          return values;
        };
        Node node;
        node.tensor = tensor();
        for (int k = below(3); k > 0; --k) node.list.emplace_back(tensor(), "of rank " + std::to_string(r));
        if (r % 2 == 1) node.map.reserve(500);
        std::map<int, std::optional<at::Tensor>> entries;
        for (int k = below(4); k > 0; --k) {
          const int key = below(50);
          entries[key] = below(4) == 0 ? std::nullopt : std::optional(tensor());
        }
        for (auto& [key, value] : entries) node.map.emplace(key, value);
        node.number = r;
        return node;
      };
      std::vector<std::vector<at::Tensor>> same, ragged;  // of each rank
      for (int r = 0; r < p; ++r) {
        same.push_back(tensor::leaves(tree_of(r, false)));
        ragged.push_back(tensor::leaves(tree_of(r, true)));
      }
      const auto check = [&](const char* what, const Node& result, const auto& expected) {
        INFO(what << ", seed " << seed);
        const auto found = tensor::leaves(result);
        REQUIRE(found.size() == same.front().size());
        CHECK(result.number == rank.rank);
        for (std::size_t k = 0; k < found.size(); ++k) {
          INFO("tensor " << k << ": " << tensor::spec(found[k]));
          const at::Tensor wanted = expected(k);
          REQUIRE(tensor::spec(found[k]) == tensor::spec(wanted));
          REQUIRE(found[k].equal(wanted));
        }
      };
      const auto mine = tree_of(rank.rank, false);
      const auto uneven = tree_of(rank.rank, true);
      check("sum", collective::reduce(*group, mine, Reduction::sum), [&](std::size_t k) {
        at::Tensor sum = same[0][k].clone();
        for (int r = 1; r < p; ++r) sum = sum + same[static_cast<std::size_t>(r)][k];
        return sum;
      });
      check("gather", collective::all_gather(*group, uneven), [&](std::size_t k) {
        std::vector<at::Tensor> parts;
        for (const auto& of_rank : ragged) parts.push_back(of_rank[k]);
        return at::cat(parts);
      });
      check("pad", collective::pad_across_processes(*group, uneven, {.value = 3, .pad_first = seed % 2 == 0}),
            [&](std::size_t k) {
              std::int64_t most = 0;
              for (const auto& of_rank : ragged) most = std::max(most, of_rank[k].size(0));
              const at::Tensor own = ragged[static_cast<std::size_t>(rank.rank)][k];
              auto shape = own.sizes().vec();
              shape[0] = most - own.size(0);
              const at::Tensor added = at::full(shape, 3, own.options());
              return seed % 2 == 0 ? at::cat({added, own}) : at::cat({own, added});
            });
      const int root = static_cast<int>(seed) % p;
      check("broadcast", collective::broadcast(*group, mine, root),
            [&](std::size_t k) { return same[static_cast<std::size_t>(root)][k]; });
    }
  });
}
