// Broadcast: one rank's tensors on every rank, in place.
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/broadcast.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

#include "collective/worked.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::InvalidArgument;
using accel::backend::Gloo;
using accel::collective::broadcast;
using accel::collective::broadcast_coalesced;
using accel::testing::Group;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::worked;
using enum c10::ScalarType;

namespace {

struct Item {
  at::Tensor tensor;
  std::pair<at::Tensor, std::string> pair;
  std::map<std::string, std::vector<at::Tensor>> map;
};

}  // namespace

TEST_CASE("the root's tensors arrive everywhere, in place", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    {
      INFO("rank r's (1..P) + P * r becomes the root's on every rank");
      for (int root = 0; root < rank.world_size; ++root) {
        const at::Tensor mine = worked(rank.rank, rank.world_size);
        const at::Tensor result = broadcast(*group, mine, root);
        CHECK(result.equal(worked(root, rank.world_size)));
        CHECK(result.is_same(mine));  // in place
      }
    }
    {
      INFO("every tensor of a tree is broadcast, what is no tensor stays");
      const int r = rank.rank;
      const int root = rank.world_size - 1;
      Item item{at::full({2}, r), {at::full({}, r + 0.5), "of rank " + std::to_string(r)}, {}};
      item.map["a"] = {at::full({0, 3}, r), at::full({3, 1}, r)};
      const Item result = broadcast(*group, item, root);
      CHECK(result.tensor.equal(at::full({2}, root)));
      CHECK(result.pair.first.equal(at::full({}, root + 0.5)));
      CHECK(result.pair.second == "of rank " + std::to_string(r));
      CHECK(result.map.at("a")[0].sizes() == at::IntArrayRef{0, 3});
      CHECK(result.map.at("a")[1].equal(at::full({3, 1}, root)));
    }
    {
      INFO("a broadcast of nothing returns, and a root that does not exist is refused");
      broadcast_coalesced(*group, std::vector<at::Tensor>(), 0);
      for (const int root : {-1, rank.world_size})
        CHECK_THROWS_AS(broadcast(*group, at::zeros({2}), root), InvalidArgument);
      CHECK(broadcast(*group, at::full({2}, rank.rank), 0).equal(at::full({2}, 0)));
    }
  });
}

TEST_CASE("tensors of mixed dtypes and strides are broadcast together", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const auto build = [](int r) {
      std::vector<at::Tensor> tensors;
      for (const auto dtype : {Float, Long, Half, Float, Bool, Double, BFloat16, Long})
        tensors.push_back(at::arange(7).add(r).remainder(5).to(dtype));
      tensors.push_back(at::arange(12).add(r).view({3, 4}).t());                    // transposed
      tensors.push_back(at::arange(24).add(r).view({2, 3, 4}).select(1, 1));        // a slice
      tensors.push_back(at::arange(20).add(100 * r).to(Float).slice(0, 1, 20, 3));  // every third
      tensors.push_back(at::full({}, r));
      tensors.push_back(at::zeros({0}));
      return tensors;
    };
    const int root = rank.world_size / 2;
    const auto mine = build(rank.rank);
    broadcast_coalesced(*group, std::span(mine), root);
    const auto expected = build(root);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      CHECK(mine[i].equal(expected[i]));
      CHECK(mine[i].strides() == expected[i].strides());
    }
  });
}

TEST_CASE("more than one buffer of 25 MiB is broadcast whole", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const auto build = [](int r) {
      // 40 MB in one, then several that share buffers, with small ones between.
      std::vector<at::Tensor> tensors = {at::arange(10'000'000, at::kFloat).add_(r)};
      for (const std::int64_t count : {3'000'000, 5, 4'000'000, 1, 2'000'001})
        tensors.push_back(at::arange(count, at::kInt).add_(r));
      return tensors;
    };
    const auto mine = build(rank.rank);
    broadcast_coalesced(*group, std::span(mine), 0);
    const auto expected = build(0);
    for (std::size_t i = 0; i < mine.size(); ++i) CHECK(mine[i].equal(expected[i]));
  });
}

TEST_CASE("parameters that require a gradient are broadcast, and still require it", "[collective]") {
  on_ranks({2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const at::Tensor parameter = at::full({3}, 1.0 + rank.rank).requires_grad_(true);
    broadcast(*group, parameter, 0);
    CHECK(parameter.detach().equal(at::full({3}, 1.0)));
    CHECK(parameter.requires_grad());
    CHECK(parameter.is_leaf());
  });
}

TEST_CASE("tensors that are broadcast again and again arrive in one message, unseen by autograd", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const auto base = at::full({2, 1}, rank.rank, at::kDouble);
    const std::vector<at::Tensor> tensors{at::full({3}, rank.rank, at::kByte), at::full({}, rank.rank, at::kLong),
                                          at::full({0, 2}, rank.rank),         base.expand({2, 5}),
                                          at::full({7}, rank.rank, at::kHalf), at::full({2, 3}, rank.rank).t()};
    accel::collective::RepeatedBroadcast<Gloo> broadcast(
        *group, {{tensors[0], tensors[1]}, {}, {tensors.begin() + 2, tensors.end()}}, rank.world_size - 1);
    for (int round = 0; round < 3; ++round) {
      for (const auto& tensor : tensors) accel::tensor::without_expansion(tensor).fill_(10 * round + rank.rank);
      if (round == 2) tensors[0].set_data(at::full({3}, 10 * round + rank.rank, at::kByte));  // other memory
      const auto version = tensors[1]._version();
      const auto number = group->control().begin("before");
      broadcast.start();
      broadcast.wait();
      CHECK(group->control().begin("after") - number == 2);  // one collective between
      broadcast.put(1);
      broadcast.put(2);
      CHECK(tensors[0].eq(10 * round + rank.rank).all().item<bool>());  // nothing is put before it is asked for
      broadcast.put(0);
      for (const auto& tensor : tensors) CHECK(tensor.eq(10 * round + rank.world_size - 1).all().item<bool>());
      CHECK(tensors[1]._version() == version);
    }
  });
}

TEST_CASE("nothing is broadcast again and again without a word", "[collective]") {
  on_ranks({2}, [](Rank) {
    Group<Gloo> group;
    accel::collective::RepeatedBroadcast<Gloo> none(*group, {{at::zeros({0})}, {}}, 0);
    const auto number = group->control().begin("before");
    none.start();
    none.wait();
    none.put(0);
    CHECK(group->control().begin("after") - number == 1);
  });
}
