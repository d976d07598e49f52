// Over a backend whose host does not wait, too: a value that never came from the others is an error, not a value.
#include <functional>
#include <string>
#include <vector>

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/backend/basic_nccl.hpp>
#include <accel/collective/agree_on_max.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/collective/reduce.hpp>
#include <accel/gradient/measure_cap.hpp>
#include <accel/metrics/running_mean.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"
#include "support/recording_driver.hpp"

namespace {

using RecordedNccl = accel::backend::BasicNccl<accel::testing::RecordingDriver>;

}  // namespace

TEST_CASE("what the host is given without the others is an error, never a value", "[collective][nccl]") {
  using namespace accel;
  using namespace accel::testing;
  const std::vector<std::function<void(RecordedNccl&)>> values = {
      [](auto& backend) { (void)collective::reduce(backend, at::ones({3}), collective::Reduction::sum); },
      [](auto& backend) {
        const std::vector<collective::Rows> rows(static_cast<std::size_t>(backend.world_size()), {3, 3});
        (void)collective::gather_rows(backend, at::ones({3}), rows);
      },
      [](auto& backend) { (void)collective::broadcast(backend, at::ones({3}), 1); },
      [](auto& backend) { (void)gradient::measure_cap(backend); },
      [](auto& backend) {
        metrics::RunningMean<RecordedNccl> mean(backend);
        mean.update(at::ones({}), 1);
        (void)mean.compute();
      },
      [](auto& backend) {
        collective::AgreeOnMax<RecordedNccl> agree(backend);
        agree(at::zeros({}), true);
      },
  };
  on_ranks({2, 3}, [&](Rank rank) {
    // The last gives up long before rank 0, and its part of the work passes on what is there.
    if (rank.rank == 0) RecordingDriver::faults.abort_takes_s = 0.3;
    for (const auto& value : values) {
      Group<RecordedNccl> group;
      group->control().barrier("both are there", Deadline::in(Seconds(20)));
      if (rank.rank == 1) {
        stay_for(0.2);
        group->abort("the disk is full");
        continue;
      }
      const auto error = thrown_by<CommError>([&] { value(*group); });
      CHECK_THAT(error, Catch::Matchers::ContainsSubstring("rank 1 (host ") &&
                            Catch::Matchers::ContainsSubstring("the disk is full"));
      CHECK_FALSE(thrown_by<CommError>([&] { value(*group); }).empty());
    }
  });
}

TEST_CASE("a flag that the device reads says 1 where the ranks never came together", "[collective][nccl]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({2, 3}, [](Rank rank) {
    if (rank.rank == 0) RecordingDriver::faults.abort_takes_s = 0.3;  // as above
    Group<RecordedNccl> group;
    collective::AgreeOnMax<RecordedNccl> agree(*group);
    const auto agreed = [&](float mine) {
      at::Tensor flag = at::full({}, mine);
      agree(flag, false);
      return flag.item<float>();
    };
    for (int i = 0; i < 200; ++i) REQUIRE(agreed(rank.rank == i % 7 ? 1 : 0) == (i % 7 < rank.world_size ? 1 : 0));
    group->control().barrier("all are there", Deadline::in(Seconds(20)));
    if (rank.rank == 1) {
      stay_for(0.2);
      group->abort("the disk is full");
      return;
    }
    CHECK(agreed(0) == 1);  // what the abort leaves there is the answer before
  });
}
