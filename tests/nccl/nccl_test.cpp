// Nccl with NCCL itself. What needs a GPU, or several, is skipped where there are none.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <accel/backend/nccl.hpp>

#include "conformance/backend_suite.hpp"

using accel::ConfigError;
using accel::ReduceOp;
using accel::backend::Nccl;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

namespace suite = accel::testing::backend_suite;

namespace {

/// Ends the test case as skipped. Inside a rank it has begun, so there are enough.
void needs_devices(int count) {
  const int found = c10::cuda::device_count();
  if (found < count) SKIP("CUDA devices needed: " << count << ", found: " << found);
}

void obeys_the_laws(Rank rank) {
  suite::one_after_the_other({suite::knows_who_it_is<Nccl>, suite::reduces<Nccl>, suite::reduces_groups<Nccl>,
                              suite::broadcasts_from_every_rank<Nccl>, suite::gathers<Nccl>, suite::scatters_sums<Nccl>,
                              suite::splits<Nccl>, suite::allocates_what_it_can_send<Nccl>,
                              suite::works_after_a_move<Nccl>, suite::carries_texts<Nccl>, suite::refuses<Nccl>,
                              suite::ends_with_an_abort<Nccl>, suite::ends_without_a_reason<Nccl>})(rank);
}

}  // namespace

TEST_CASE("without a GPU the constructor says what to use instead, on all ranks", "[nccl]") {
  if (c10::cuda::device_count() > 0) SKIP("this machine has a CUDA device");
  on_ranks({1, 2}, [](Rank) {
    const auto meeting = meet();
    const auto error = thrown_by<ConfigError>([&] { Nccl(meeting, {}); });
    CHECK_THAT(error, ContainsSubstring("NCCL: rank 0 (host ") && ContainsSubstring("no CUDA device") &&
                          ContainsSubstring("backend::Gloo"));
    std::cout << error << "\n";
    meeting.control_plane().farewell();
  });
}

TEST_CASE("NCCL's library is at least as new as its headers", "[nccl]") {
  const std::string version = accel::backend::NcclDriver::version();
  INFO("version " << version);
  CHECK(version.starts_with("2."));
  CHECK(accel::backend::NcclDriver::has_windows());
}

TEST_CASE("more ranks than GPUs is an error of all", "[nccl]") {
  needs_devices(1);
  if (c10::cuda::device_count() > 1) SKIP("this machine has several CUDA devices");
  if (accel::backend::NcclDriver::ranks_share_devices()) SKIP("NCCL_MULTI_RANK_GPU_ENABLE is set");
  on_ranks({2}, [](Rank) {
    const auto meeting = meet();
    CHECK_THAT(thrown_by<ConfigError>([&] { Nccl(meeting, {}); }), ContainsSubstring("2 ranks but 1 device"));
    meeting.control_plane().farewell();
  });
}

TEST_CASE("NCCL obeys the laws of a backend on one GPU", "[nccl]") {
  needs_devices(1);
  on_ranks({1}, obeys_the_laws);
}

TEST_CASE("NCCL obeys the laws of a backend on two GPUs", "[nccl]") {
  needs_devices(2);
  on_ranks({2}, obeys_the_laws);
}

TEST_CASE("NCCL passes messages, and gives up at a deadline, on two GPUs", "[nccl]") {
  needs_devices(2);
  on_ranks({2}, suite::one_after_the_other({suite::says_when_it_is_done<Nccl>, suite::finishes_works_in_any_order<Nccl>,
                                            suite::gives_up_at_the_deadline<Nccl>}));
}

TEST_CASE("wait() leaves the host free, and the current stream sees the result", "[nccl]") {
  needs_devices(1);
  on_ranks({1}, [](Rank) {
    Group<Nccl> group;
    at::Tensor memory = group->allocate(accel::Bytes{std::int64_t{64} << 20}).view(at::kFloat).fill_(1);
    for (int round = 0; round < 20; ++round) {
      memory.add_(1);
      auto work = group->all_reduce(memory, ReduceOp::sum);
      work.wait();
    }
    CHECK(memory.eq(21).all().item<bool>());
  });
}

TEST_CASE("memory becomes a window of NCCL where that is asked for", "[nccl]") {
  needs_devices(1);
  on_ranks({1}, [](Rank) {
    Group<Nccl> group({.timeout_s = 20, .symmetric_windows = true});
    at::Tensor memory = group->allocate(accel::Bytes{1 << 20}).view(at::kFloat).fill_(3);
    auto work = group->all_reduce(memory, ReduceOp::sum);
    work.wait();
    CHECK(memory.eq(3).all().item<bool>());
  });
}
