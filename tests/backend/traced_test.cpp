// Traced: calls, bytes and times, per operation.
#include <torch/torch.h>

#include <array>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>

#include "conformance/backend_suite.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::ReduceOp;
using accel::backend::Gloo;
using accel::backend::Traced;
using accel::testing::Group;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::stay_for;
using Catch::Matchers::ContainsSubstring;

ACCEL_BACKEND_SUITE(accel::backend::Traced<accel::backend::Gloo>, {1, 2, 3})

TEST_CASE("calls, bytes and times are counted per operation", "[backend]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Traced<Gloo>> group;
    CHECK(group->rows().empty());
    std::vector<at::Tensor> tensors = {at::ones({3}), at::ones({5}, at::kDouble)};
    for (int i = 0; i < 2; ++i) {
      auto work = group->all_reduce(std::span(tensors), ReduceOp::sum);
      work.wait();
      work.wait();  // counts once
    }
    at::Tensor tensor = at::ones({7});
    auto late = group->broadcast(tensor, 0);
    stay_for(0.1);
    late.wait();
    CHECK_THROWS_AS(group->broadcast(tensor, -1), accel::InvalidArgument);  // what is refused is no call
    at::Tensor undefined;
    CHECK_THROWS_AS(group->all_reduce(undefined, ReduceOp::sum), accel::InvalidArgument);

    const std::array<int, 1> self = {rank.rank};
    auto part = group->split(self, accel::message("only ", rank.rank));
    auto own = part.all_reduce(tensor, ReduceOp::sum);
    own.wait();

    const auto rows = group->rows();
    REQUIRE(rows.size() == 2);
    CHECK(rows[0].operation == "all_reduce");
    CHECK(rows[0].calls == 3);
    CHECK(rows[0].bytes.count == 2 * (3 * 4 + 5 * 8) + 7 * 4);
    CHECK(rows[1].operation == "broadcast");
    CHECK(rows[1].calls == 1);
    CHECK(rows[1].bytes.count == 7 * 4);
    CHECK(rows[1].in_flight.count() >= 0.1);
    CHECK(rows[1].waited <= rows[1].in_flight);
    CHECK_THAT(group->table(), ContainsSubstring("operation") && ContainsSubstring("broadcast"));
    if (rank.rank == 0) std::cout << group->table() << "\n";
    group->reset();
    CHECK(group->rows().empty());
  });
}

TEST_CASE("an accelerator shows what its backend has counted", "[backend]") {
  on_ranks({1, 2}, [](Rank) {
    accel::Accelerator<Traced<Gloo>, accel::precision::Fp32> accelerator;
    CHECK_THAT(accelerator.describe(), ContainsSubstring("backend: traced, gloo, "));
    (void)accelerator.reduce(torch::ones({6}));
    REQUIRE(accelerator.backend().rows().size() == 1);
    CHECK(accelerator.backend().rows().front().bytes.count == 24);
  });
}
