// Pad: sizes that differ between ranks become the largest.
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/pad.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

TEST_CASE("what is smaller than on another rank is padded, along any dimension and on either side", "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using collective::pad_across_processes;
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    const int p = rank.world_size;
    {
      INFO("accelerate's worked example: rank 0 has P + 1 elements, the others P");
      const at::Tensor mine = at::arange(1, p + 1 + (rank.rank == 0 ? 1 : 0)) + p * rank.rank;
      const at::Tensor padded = pad_across_processes(*group, mine);
      CHECK(padded.size(0) == p + 1);
      CHECK(padded.narrow(0, 0, mine.size(0)).equal(mine));
      if (rank.rank > 0) CHECK(padded[p].item<int>() == 0);
      if (rank.rank == 0) CHECK(padded.is_same(mine));  // nothing to pad
    }
    {
      INFO("a last dimension, counted from behind, in front, with a value; other sizes need not be equal");
      const int own = 1 + rank.rank;
      const at::Tensor mine = at::full({2 * own, own}, 5, at::kLong).t().contiguous().t();
      const at::Tensor padded = pad_across_processes(*group, mine, {.dim = -1, .value = -7, .pad_first = true});
      CHECK(padded.equal(at::cat({at::full({2 * own, p - own}, -7, at::kLong), mine}, 1)));
      CHECK(pad_across_processes(*group, mine, {.dim = 1, .value = -7, .pad_first = true}).equal(padded));
      CHECK(collective::all_gather(*group, pad_across_processes(*group, padded)).size(0) == 2 * p * p);
    }
    {
      INFO("a middle dimension, and ranks that have nothing");
      const at::Tensor mine = at::ones({2, rank.rank, 3}, at::kBool);
      const at::Tensor padded = pad_across_processes(*group, mine, {.dim = 1});
      CHECK(padded.sizes() == at::IntArrayRef{2, p - 1, 3});
      CHECK(padded.sum().item<int>() == 2 * rank.rank * 3);
      const at::Tensor last_only = at::ones({rank.rank == p - 1 ? 4 : 0}, at::kHalf);
      CHECK(pad_across_processes(*group, last_only, {.value = 1}).equal(at::ones({4}, at::kHalf)));
      CHECK(pad_across_processes(*group, at::zeros({0, 2})).sizes() == at::IntArrayRef{0, 2});
    }
    {
      INFO("a dimension that a tensor has not leaves it as it is");
      const at::Tensor number = at::full({}, rank.rank);
      CHECK(pad_across_processes(*group, number).is_same(number));
      const std::pair tree(at::ones({1 + rank.rank, 2}), at::ones({2, 1 + rank.rank}));
      const auto [a, b] = pad_across_processes(*group, tree, {.dim = 2});
      CHECK(a.is_same(tree.first));
      CHECK(b.is_same(tree.second));
      CHECK(pad_across_processes(*group, tree, {.dim = -3}).first.is_same(tree.first));
      CHECK(pad_across_processes(*group, tree, {.dim = -2}).first.size(0) == p);
    }
  });
}

TEST_CASE("values that a dtype cannot hold, and numbers of dimensions that differ, are errors on every rank",
          "[collective]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using collective::pad_across_processes;
  on_ranks({2, 3}, [](Rank rank) {
    Group<backend::Gloo> group;
    // Rank 0 has nothing to pad, and must refuse it, too.
    const auto ragged = [&](c10::ScalarType dtype) { return at::ones({4 - rank.rank}, dtype); };
    const auto refused = [&](c10::ScalarType dtype, const at::Scalar& value) {
      return thrown_by<InvalidArgument>(
          [&] { (void)pad_across_processes(*group, std::pair(1, ragged(dtype)), {.value = value}); });
    };
    CHECK_THAT(refused(at::kByte, 300), ContainsSubstring("at .second cannot hold the value 300"));
    CHECK_THAT(refused(at::kLong, 0.5), ContainsSubstring("cannot hold the value 0.5"));
    CHECK_THAT(refused(at::kInt, std::numeric_limits<double>::quiet_NaN()), ContainsSubstring("cannot hold"));
    CHECK_THAT(refused(at::kBool, 2), ContainsSubstring("cannot hold"));
    CHECK_THAT(refused(at::kFloat, c10::complex<double>(0, 1)), ContainsSubstring("cannot hold"));
    CHECK(refused(at::kFloat, std::numeric_limits<double>::quiet_NaN()).empty());
    CHECK(refused(at::kComplexFloat, c10::complex<double>(0, 1)).empty());
    const std::vector mine{rank.rank == 1 ? at::ones({2, 2}) : at::ones({2})};
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)pad_across_processes(*group, mine); }),
               ContainsSubstring("at [0]: rank 0 has f32 with 1 dimensions, rank 1 has f32 with 2 dimensions"));
  });
}
