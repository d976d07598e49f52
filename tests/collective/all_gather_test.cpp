// All-gather: everybody's rows on every rank, in the order of ranks.
#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/full.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/all_gather.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "collective/worked.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::InvalidArgument;
using accel::backend::Gloo;
using accel::collective::all_gather;
using accel::collective::gather_rows;
using accel::collective::Rows;
using accel::testing::Group;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using accel::testing::worked;
using Catch::Matchers::ContainsSubstring;
using enum c10::ScalarType;

namespace {

/// What all ranks bring, one after the other.
template <class Brought>
at::Tensor over_ranks(int world_size, Brought&& brought) {
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < world_size; ++rank) parts.push_back(brought(rank));
  return at::cat(parts);
}

struct Batch {
  at::Tensor data;
  std::vector<at::Tensor> more;
  int number = 0;
};

}  // namespace

TEST_CASE("everybody's rows are gathered in the order of ranks, whatever their strides, number and dtype",
          "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    {
      INFO("rank r's (1..P) + P * r gather to 1..P*P");
      const int p = rank.world_size;
      const at::Tensor mine = worked(rank.rank, p);
      CHECK(all_gather(*group, mine).equal(at::arange(1, p * p + 1)));
      CHECK(mine.equal(worked(rank.rank, p)));
    }
    {
      INFO("views of any strides are gathered as what they show");
      const auto transposed = [](int r) { return at::arange(12).add(100 * r).view({4, 3}).t(); };
      const auto sliced = [](int r) { return at::arange(20).add(100 * r).slice(0, 1, 20, 3); };
      const auto spread = [](int r) { return at::full({1, 4}, r).expand({3, 4}); };
      CHECK(all_gather(*group, transposed(rank.rank)).equal(over_ranks(rank.world_size, transposed)));
      CHECK(all_gather(*group, sliced(rank.rank)).equal(over_ranks(rank.world_size, sliced)));
      CHECK(all_gather(*group, spread(rank.rank)).equal(over_ranks(rank.world_size, spread)));
    }
    {
      INFO("a scalar becomes one row");
      CHECK(all_gather(*group, at::full({}, rank.rank)).equal(at::arange(rank.world_size)));
    }
    {
      INFO("ranks may hold different numbers of rows, none included");
      const auto growing = [](int r) { return at::full({2 * r, 3}, r); };
      const auto shrinking = [&](int r) { return at::full({5 - 2 * r, 2, 2}, r + 0.5); };
      const auto none = [](int) { return at::zeros({0, 4}); };
      const auto one_only = [&](int r) { return at::full({r == rank.world_size - 1 ? 7 : 0}, r); };
      CHECK(all_gather(*group, growing(rank.rank)).equal(over_ranks(rank.world_size, growing)));
      CHECK(all_gather(*group, shrinking(rank.rank)).equal(over_ranks(rank.world_size, shrinking)));
      CHECK(all_gather(*group, one_only(rank.rank)).equal(over_ranks(rank.world_size, one_only)));
      CHECK(all_gather(*group, none(rank.rank)).sizes() == at::IntArrayRef{0, 4});
      CHECK(all_gather(*group, at::zeros({rank.rank, 0})).sizes() ==
            at::IntArrayRef{rank.world_size * (rank.world_size - 1) / 2, 0});
    }
    {
      INFO("every dtype is gathered");
      for (const auto dtype : {Float, Double, Half, BFloat16, Long, Int, Byte, Bool, Short, Char}) {
        INFO(accel::tensor::dtype_name(dtype));
        const auto brought = [&](int r) { return at::arange(5 + r).remainder(2 + r).to(dtype); };
        const at::Tensor result = all_gather(*group, brought(rank.rank));
        CHECK(result.scalar_type() == dtype);
        CHECK(result.equal(over_ranks(rank.world_size, brought)));
      }
    }
    {
      INFO("complex numbers are gathered as what they show, where they are only marked as conjugates, too");
      const auto brought = [](int r) { return at::complex(at::full({2, 3}, 1.0 * r), at::arange(6.0).view({2, 3})); };
      const auto conjugate = [&](int r) { return brought(r).conj(); };
      const auto imaginary = [&](int r) { return at::imag(brought(r).conj()); };  // marked as negative
      REQUIRE(imaginary(0).is_neg());
      CHECK(all_gather(*group, brought(rank.rank)).equal(over_ranks(rank.world_size, brought)));
      CHECK(all_gather(*group, conjugate(rank.rank)).equal(over_ranks(rank.world_size, conjugate)));
      CHECK(all_gather(*group, imaginary(rank.rank)).equal(over_ranks(rank.world_size, imaginary)));
    }
  });
}

TEST_CASE("trees are gathered tensor by tensor, and rows can be left out", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    {
      INFO("a tree is gathered tensor by tensor");
      const auto data = [](int r) { return at::full({2, 3}, r); };
      const auto more = [](int r) { return at::full({1 + r}, 10.0 * r); };
      const Batch batch{data(rank.rank), {more(rank.rank), at::full({}, rank.rank)}, 7 + rank.rank};
      const Batch result = all_gather(*group, batch);
      CHECK(result.data.equal(over_ranks(rank.world_size, data)));
      CHECK(result.more[0].equal(over_ranks(rank.world_size, more)));
      CHECK(result.more[1].equal(at::arange(rank.world_size)));
      CHECK(result.number == 7 + rank.rank);
      const auto [first, second] = all_gather(*group, std::pair(data(rank.rank), more(rank.rank)));
      CHECK(first.equal(result.data));
      CHECK(second.equal(result.more[0]));
    }
    {
      INFO("rows can be left out from the end of each rank's part");
      const auto held = [](int r) { return std::int64_t{4} - r; };
      const auto kept = [](int r) { return std::int64_t{r == 1 ? 0 : 2}; };
      const auto brought = [&](int r) { return at::arange(held(r) * 2).add(100 * r).view({held(r), 2}); };
      std::vector<Rows> rows;
      for (int r = 0; r < rank.world_size; ++r) rows.push_back({.held = held(r), .kept = kept(r)});
      CHECK(gather_rows(*group, brought(rank.rank), rows).equal(over_ranks(rank.world_size, [&](int r) {
        return brought(r).narrow(0, 0, kept(r));
      })));
    }
  });
}

TEST_CASE("what is gathered from several ranks carries no history", "[collective]") {
  on_ranks({2, 3}, [](Rank) {
    Group<Gloo> group;
    const at::Tensor leaf = at::ones({2}).requires_grad_(true);
    CHECK_FALSE(all_gather(*group, leaf * 2).requires_grad());
  });
}

TEST_CASE("trees that differ are an error on every rank, which names both", "[collective]") {
  on_ranks({2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const int odd = rank.world_size - 1;
    const bool is_odd = rank.rank == odd;
    const auto differ = [&](const std::vector<at::Tensor>& mine, const std::vector<std::string>& named) {
      const auto error = thrown_by<InvalidArgument>([&] { (void)all_gather(*group, mine); });
      CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(odd)) && ContainsSubstring("rank 0"));
      for (const auto& name : named) CHECK_THAT(error, ContainsSubstring(name));
      if (rank.rank == 0) std::cout << error << "\n";
    };
    differ({is_odd ? at::zeros({2, 3}) : at::zeros({2, 4})}, {"f32[*, 3]", "f32[*, 4]"});
    differ({is_odd ? at::zeros({2}, Double) : at::zeros({2})}, {"f64[*]", "f32[*]"});
    differ({is_odd ? at::zeros({2, 1}) : at::zeros({2})}, {"f32[*, 1]", "f32[*]"});
    differ(is_odd ? std::vector{at::zeros({2}), at::zeros({2})} : std::vector{at::zeros({2})}, {"at [1]", "nothing"});
    differ(is_odd ? std::vector<at::Tensor>{} : std::vector{at::zeros({2})}, {"at [0]", "nothing"});
    // Nothing was sent: the group goes on.
    CHECK(all_gather(*group, at::full({}, rank.rank)).equal(at::arange(rank.world_size)));
  });
}
