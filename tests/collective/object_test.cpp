// Objects: JSON and trees from everybody, or from one, of sizes that nobody else knows.
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/object.hpp>
#include <nlohmann/json.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace objects {  // where to_json and from_json are found

struct Score {
  std::string name;
  double value = 0;
  bool operator==(const Score&) const = default;
};
inline void to_json(nlohmann::json& json, const Score& score) {
  if (score.name == "unwritable") throw std::runtime_error("no such score");
  json = {{"name", score.name}, {"value", score.value}};
}
inline void from_json(const nlohmann::json& json, Score& score) {
  if (json.at("name") == "unreadable") throw std::runtime_error("cannot be read");
  score = {json.at("name").get<std::string>(), json.at("value").get<double>()};
}

struct Sample {  // no JSON: a tree
  at::Tensor image;
  std::string caption;
  std::optional<int> label;
};

}  // namespace objects

static_assert(accel::collective::JsonLike<nlohmann::json> && accel::collective::JsonLike<objects::Score> &&
              accel::collective::JsonLike<std::vector<objects::Score>> &&
              accel::collective::JsonLike<std::map<std::string, double>>);
static_assert(!accel::collective::JsonLike<at::Tensor> && !accel::collective::JsonLike<std::vector<at::Tensor>> &&
              !accel::collective::JsonLike<std::pair<at::Tensor, int>> &&
              !accel::collective::JsonLike<objects::Sample>);

TEST_CASE("objects are gathered one per rank, small and large, JSON and trees", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using collective::gather_object;
  using nlohmann::json;
  using objects::Sample;
  using objects::Score;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    {
      INFO("JSON of any kind, which may differ between ranks, and keeps every bit");
      const auto brought = [](int r) {
        json value = {{"rank", r}, {"list", std::vector<int>(static_cast<std::size_t>(r), r)}, {"x", 0.1 + r}};
        if (r == 1) value = nullptr;
        if (r == 2) value["text"] = std::string("\xff\0", 2);  // no UTF-8
        return value;
      };
      const std::vector<json> all = gather_object(*group, brought(rank.rank));
      REQUIRE(all.size() == static_cast<std::size_t>(p));
      for (int r = 0; r < p; ++r) CHECK(all[static_cast<std::size_t>(r)] == brought(r));
      const auto nans = gather_object(*group, std::numeric_limits<double>::quiet_NaN());
      for (const double one : nans) CHECK(std::isnan(one));
      CHECK(gather_object(*group, std::numeric_limits<std::uint64_t>::max()).back() ==
            std::numeric_limits<std::uint64_t>::max());
    }
    {
      INFO("types that become JSON");
      const auto all = gather_object(*group, Score{"s" + std::to_string(rank.rank), 1.5 * rank.rank});
      for (int r = 0; r < p; ++r) CHECK(all[static_cast<std::size_t>(r)] == Score{"s" + std::to_string(r), 1.5 * r});
    }
    {
      INFO("trees with tensors");
      const Sample mine{at::full({rank.rank, 2}, rank.rank), "caption " + std::to_string(rank.rank), rank.rank};
      const auto all = gather_object(*group, mine);
      for (int r = 0; r < p; ++r) {
        CHECK(all[static_cast<std::size_t>(r)].image.equal(at::full({r, 2}, r)));
        CHECK(all[static_cast<std::size_t>(r)].caption == "caption " + std::to_string(r));
        CHECK(all[static_cast<std::size_t>(r)].label == r);
      }
    }
    {
      INFO("where some are large and others small; around the bound");
      for (const int size : {65'535, 65'536, 65'537, 300'000}) {
        const auto text = [&](int r) {
          return std::string(r % 2 == 0 ? static_cast<std::size_t>(size + r) : 3, static_cast<char>('a' + r));
        };
        const auto all = gather_object(*group, text(rank.rank));
        for (int r = 0; r < p; ++r) CHECK(all[static_cast<std::size_t>(r)] == text(r));
        const auto tensor = [&](int r) { return std::pair(at::arange(size / 8 + r), r); };
        const auto trees = gather_object(*group, tensor(rank.rank));
        for (int r = 0; r < p; ++r) CHECK(trees[static_cast<std::size_t>(r)].first.equal(tensor(r).first));
      }
    }
  });
}

TEST_CASE("one rank's object is broadcast, and who receives it need not know its size", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using collective::broadcast_object;
  using nlohmann::json;
  using objects::Sample;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    for (int root = 0; root < rank.world_size; ++root) {
      const bool is_root = rank.rank == root;
      const json value = {{"from", root}, {"pi", 3.14}};
      CHECK(broadcast_object(*group, is_root ? value : json(), root) == value);
      const auto samples = [&](int count) {
        std::vector<Sample> list;
        for (int k = 0; k < count; ++k)
          list.push_back({at::arange(k + 1000 * (root % 2)), "number " + std::to_string(k), k});
        return list;
      };
      const auto received = broadcast_object(*group, is_root ? samples(20) : std::vector<Sample>{}, root);
      REQUIRE(received.size() == 20);
      for (int k = 0; k < 20; ++k) {
        const auto& one = received[static_cast<std::size_t>(k)];
        CHECK(one.image.equal(at::arange(k + 1000 * (root % 2))));
        CHECK(one.caption == "number " + std::to_string(k));
      }
    }
  });
}

TEST_CASE("objects that cannot be sent, and roots that differ, are errors on every rank", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using collective::broadcast_object;
  using collective::gather_object;
  using objects::Score;
  on_ranks({2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    for (int bad = 0; bad < rank.world_size; ++bad) {
      const bool is_bad = rank.rank == bad;
      const auto word = [&](const char* name) { return Score{is_bad ? name : "usual", 1}; };
      const auto failed = " failed on rank " + std::to_string(bad) + ": ";
      const auto throws = [&](const std::string& subject, const auto& call, const std::string& text) {
        try {
          call();
          FAIL_CHECK("nothing was thrown");
        } catch (const std::exception& error) {
          CHECK_THAT(error.what(), ContainsSubstring(text));
          if (!is_bad) CHECK_THAT(error.what(), ContainsSubstring(subject + failed));
        }
      };
      throws("gather_object", [&] { (void)gather_object(*group, word("unwritable")); }, "no such score");
      throws("broadcast_object", [&] { (void)broadcast_object(*group, word("unwritable"), bad); }, "no such score");
      // What only those who receive it would find out.
      throws("broadcast_object", [&] { (void)broadcast_object(*group, word("unreadable"), bad); }, "cannot be read");
      const auto sparse = std::vector{is_bad ? at::ones({2}).to_sparse() : at::ones({2})};
      throws("gather_object", [&] { (void)gather_object(*group, sparse); }, "at [0]");
    }
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)broadcast_object(*group, 1, rank.rank == 1 ? 1 : 0); }),
               ContainsSubstring("rank 0 has from rank 0, rank 1 has from rank 1"));
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)broadcast_object(*group, 1, rank.world_size); }),
               ContainsSubstring("is not in [0, "));
    CHECK(gather_object(*group, rank.rank).back() == rank.world_size - 1);  // the group goes on
  });
}
