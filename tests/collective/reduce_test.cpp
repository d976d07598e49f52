// Reduce: one value out of everybody's, in new tensors.
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/gloo.hpp>
#include <accel/collective/reduce.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "collective/worked.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::InvalidArgument;
using accel::backend::Gloo;
using accel::collective::reduce;
using accel::collective::Reduction;
using accel::testing::Group;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using accel::testing::worked;
using Catch::Matchers::ContainsSubstring;
using enum c10::ScalarType;

TEST_CASE("sum, mean, max and min are new tensors with the worked numbers", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    {
      INFO("the worked numbers of accelerate reduce to what they should");
      const int p = rank.world_size;
      const at::Tensor mine = worked(rank.rank, p);
      const at::Tensor ones_to_p = at::arange(1, p + 1);
      CHECK(reduce(*group, mine, Reduction::sum).equal(ones_to_p * p + p * p * (p - 1) / 2));
      CHECK(reduce(*group, mine, Reduction::max).equal(ones_to_p + p * (p - 1)));
      CHECK(reduce(*group, mine, Reduction::min).equal(ones_to_p));
      const at::Tensor mean = reduce(*group, mine.to(Double), Reduction::mean);
      CHECK(mean.equal(ones_to_p.to(Double) + p * (p - 1) / 2.0));
      if (p == 2) {
        CHECK(reduce(*group, mine, Reduction::sum).equal(at::arange(4, 8, 2)));  // 4 6
        CHECK(mean.equal(at::arange(2, 4).to(Double)));                          // 2 3
        CHECK(reduce(*group, mine, Reduction::max).equal(at::arange(3, 5)));     // 3 4
      }
      CHECK(mine.equal(worked(rank.rank, p)));  // the caller's stays
    }
    {
      INFO("the result is new memory, also on one rank");
      const at::Tensor mine = at::ones({3});
      const at::Tensor result = reduce(*group, mine, Reduction::sum);
      CHECK(result.data_ptr() != mine.data_ptr());
      result.zero_();
      CHECK(mine.equal(at::ones({3})));
      CHECK(rank.world_size > 0);
    }
    {
      INFO("views are reduced as what they show");
      const at::Tensor transposed = at::arange(12).view({4, 3}).t();
      CHECK(reduce(*group, transposed, Reduction::sum).equal(transposed * rank.world_size));
      const at::Tensor spread = at::full({1, 4}, rank.rank).expand({3, 4});
      CHECK(reduce(*group, spread, Reduction::max).equal(at::full({3, 4}, rank.world_size - 1)));
    }
    {
      INFO("what is reduced carries no history");
      const at::Tensor leaf = at::ones({2}).requires_grad_(true);
      CHECK_FALSE(reduce(*group, leaf * 2, Reduction::mean).requires_grad());
    }
  });
}

TEST_CASE("trees and every floating dtype are reduced, means of whole numbers refused", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    {
      INFO("means of every floating dtype, scalars and empty tensors");
      const double expected = (rank.world_size - 1) / 2.0;
      for (const auto dtype : {Float, Double, Half, BFloat16}) {
        const auto options = at::TensorOptions(dtype);
        CHECK(reduce(*group, at::full({}, rank.rank, options), Reduction::mean).equal(at::full({}, expected, options)));
        CHECK(reduce(*group, at::full({5, 1}, rank.rank, options), Reduction::mean)
                  .equal(at::full({5, 1}, expected, options)));
        CHECK(reduce(*group, at::zeros({0, 2}, options), Reduction::mean).sizes() == at::IntArrayRef{0, 2});
      }
    }
    {
      INFO("a tree is reduced tensor by tensor");
      const int p = rank.world_size;
      const auto [sums, word] = reduce(
          *group, std::pair(std::vector{at::full({2}, rank.rank), at::full({}, 1)}, std::string("w")), Reduction::sum);
      CHECK(sums[0].equal(at::full({2}, p * (p - 1) / 2)));
      CHECK(sums[1].equal(at::full({}, p)));
      CHECK(word == "w");
    }
    {
      INFO("the mean of whole numbers is refused before anything is sent");
      for (const auto dtype : {Long, Int, Byte, Bool}) {
        const auto error = thrown_by<InvalidArgument>(
            [&] { (void)reduce(*group, std::pair(at::ones({3}), at::ones({2}, dtype)), Reduction::mean); });
        CHECK_THAT(error, ContainsSubstring(accel::tensor::dtype_name(dtype) + "[2]") && ContainsSubstring("mean"));
      }
      CHECK(reduce(*group, at::full({}, 2.0), Reduction::sum).item<double>() == 2.0 * rank.world_size);
    }
  });
}

TEST_CASE("every dtype is reduced as what it is, or refused on every rank before anything is sent", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const int p = rank.world_size;
    {
      INFO("complex numbers add up, and have no largest");
      const auto brought = [](int r) { return at::complex(at::full({3}, 1.0 + r), at::full({3}, 2.0 - r)); };
      const at::Tensor wanted =
          at::complex(at::full({3}, p + p * (p - 1) / 2.0), at::full({3}, 2.0 * p - p * (p - 1) / 2.0));
      CHECK(reduce(*group, brought(rank.rank), Reduction::sum).equal(wanted));
      CHECK(reduce(*group, brought(rank.rank).conj(), Reduction::sum).equal(wanted.conj()));  // only marked as such
      CHECK(reduce(*group, brought(rank.rank), Reduction::mean).allclose(wanted / p));
      for (const auto reduction : {Reduction::max, Reduction::min})
        CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)reduce(*group, brought(rank.rank), reduction); }),
                   ContainsSubstring("complex numbers have no m"));
    }
    {
      INFO("of flags max is any and min is all; a sum is none");
      const at::Tensor flags = at::arange(4).eq(rank.rank);
      CHECK(reduce(*group, flags, Reduction::max).equal(at::arange(4).lt(p)));
      CHECK(reduce(*group, flags, Reduction::min).equal(p == 1 ? flags : at::zeros({4}, Bool)));
      for (const auto reduction : {Reduction::sum, Reduction::mean})
        CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)reduce(*group, flags, reduction); }),
                   ContainsSubstring("take max for any"));
    }
    {
      INFO("half numbers are added up in f32 and rounded once");
      for (const auto dtype : {Half, BFloat16}) {
        const at::Tensor large = at::full({2}, 60000.0, dtype);
        CHECK(reduce(*group, large, Reduction::mean).equal(large));  // their sum is no f16
        const at::Tensor mine = at::full({2}, rank.rank == 0 ? 256.0 : 0.5, dtype);
        CHECK(reduce(*group, mine, Reduction::sum).equal(at::full({2}, 256.0 + 0.5 * (p - 1)).to(dtype)));
        CHECK(reduce(*group, at::full({2}, rank.rank, dtype), Reduction::max).equal(at::full({2}, p - 1, dtype)));
      }
    }
    {
      INFO("whole numbers of every size");
      for (const auto dtype : {Byte, Char, Short, Int, Long}) {
        CHECK(reduce(*group, at::full({2}, rank.rank + 1, dtype), Reduction::sum)
                  .equal(at::full({2}, p * (p + 1) / 2, dtype)));
        CHECK(reduce(*group, at::full({2}, rank.rank + 1, dtype), Reduction::min).equal(at::full({2}, 1, dtype)));
      }
      CHECK(reduce(*group, at::full({}, 20000, Short), Reduction::sum).item<int>() ==
            static_cast<std::int16_t>(20000 * p));  // around, as i16 does
    }
    {
      INFO("what is not reduced between ranks is refused");
      CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)reduce(*group, at::ones({2}).to(UInt16), Reduction::sum); }),
                 ContainsSubstring("u16[2]") && ContainsSubstring("convert"));
      CHECK_THAT(
          thrown_by<InvalidArgument>([&] { (void)reduce(*group, at::ones({2}).to(Float8_e5m2), Reduction::sum); }),
          ContainsSubstring("f8_e5m2[2]"));
    }
    CHECK(reduce(*group, std::vector<at::Tensor>{}, Reduction::sum).empty());
  });
}

TEST_CASE("a NaN on any rank is what comes of it, as in LibTorch, whatever engine reduces", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const bool shared_memory : {true, false}) {
      INFO((shared_memory ? "through shared memory" : "by Gloo's own algorithms"));
      Group<Gloo> group({.timeout_s = 20, .shared_memory = shared_memory});
      for (const auto dtype : {Float, Double, Half, BFloat16})
        for (const auto reduction : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min})
          for (int r = 0; r < rank.world_size; ++r) {
            at::Tensor mine = at::arange(5).to(dtype);
            if (rank.rank == r) mine[r] = std::numeric_limits<double>::quiet_NaN();
            const at::Tensor result = reduce(*group, mine, reduction);
            CHECK(result.isnan().equal(at::arange(5).eq(r)));
          }
      const double infinite = std::numeric_limits<double>::infinity();
      CHECK(reduce(*group, at::full({1}, rank.rank == 0 ? -infinite : 1.0), Reduction::min).item<double>() ==
            -infinite);
    }
  });
}
