// Single: the identity of every collective, for one rank only.
#include <accel/accelerator.hpp>

#include "conformance/backend_suite.hpp"

using accel::backend::Single;
using accel::testing::on_ranks;
using accel::testing::Rank;
using Catch::Matchers::ContainsSubstring;

ACCEL_BACKEND_SUITE(Single, {1})

TEST_CASE("Single refuses more than one rank and says what to use", "[backend]") {
  for (const int world_size : {2, 3}) {
    accel::launch::Meeting meeting;
    meeting.topology.world_size = world_size;
    meeting.family = "torchrun";
    const auto error = accel::testing::thrown_by<accel::ConfigError>([&] { Single(meeting, {}); });
    CHECK_THAT(error, ContainsSubstring("torchrun started " + std::to_string(world_size)) &&
                          ContainsSubstring("backend::Gloo"));
  }
}

TEST_CASE("Single is on the device of its options", "[backend]") {
  Single single({}, {.device = "meta"});
  CHECK(single.device() == c10::Device(c10::kMeta));
  CHECK(single.allocate({8}).device() == single.device());
  at::Tensor on_cpu = at::ones({3});
  CHECK_THROWS_AS(single.all_reduce(on_cpu, accel::ReduceOp::sum), accel::InvalidArgument);
  CHECK_THROWS_AS(Single({}, {.device = "abacus"}), accel::ConfigError);
  CHECK_THAT(single.describe(), ContainsSubstring("meta"));
}

TEST_CASE("an accelerator over Single runs on one rank that a launcher started", "[backend]") {
  on_ranks({1}, [](Rank) {
    accel::Accelerator<Single, accel::precision::Fp32> accelerator;
    CHECK(accelerator.world_size() == 1);
    CHECK(accelerator.reduce(at::full({2}, 3.0)).equal(at::full({2}, 3.0)));
    accelerator.wait_for_everyone();
  });
}
