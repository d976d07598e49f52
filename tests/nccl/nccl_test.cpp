// Nccl with NCCL itself. What needs a GPU, or several, is skipped where there are none.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>
#include <accel/backend/nccl.hpp>

#include "conformance/backend_suite.hpp"
#include "devices.hpp"

using accel::ConfigError;
using accel::ReduceOp;
using accel::backend::Nccl;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::needs_devices;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using accel::testing::with_cuda;
using Catch::Matchers::ContainsSubstring;

namespace suite = accel::testing::backend_suite;

namespace {

/// NCCL's driver, and what became of the windows that were opened by it.
struct WindowWatcher : accel::backend::NcclDriver {
  using NcclDriver::NcclDriver;

  accel::backend::NcclAnswer open_window(Comm& comm, const at::Tensor& memory, Window& window) {
    ++opened;
    return NcclDriver::open_window(comm, memory, window);
  }

  // At the end of a group: what NCCL made of the windows is known by then.
  void close_window(Comm& comm, Window& window) noexcept {
    if (window != nullptr) ++registered;
    NcclDriver::close_window(comm, window);
  }

  static inline int opened = 0;
  static inline int registered = 0;
};

/// Rank 0 speaks first; small and larger than what NCCL sends in one piece.
void passes_messages(Rank rank) {
  Group<Nccl> group;
  const auto options = at::TensorOptions(group->device());
  for (const std::int64_t count : {1, 1000, 8'000'000}) {
    at::Tensor mine = at::full({count}, 10 + rank.rank, options);
    at::Tensor theirs = at::zeros({count}, options.dtype(mine.dtype()));
    const int other = 1 - rank.rank;
    const auto send = [&] { group->send(mine, other).wait(); };
    const auto receive = [&] { group->recv(theirs, other).wait(); };
    rank.rank == 0 ? send() : receive();
    rank.rank == 0 ? receive() : send();
    CHECK(theirs.eq(10 + other).all().item<bool>());
  }
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
  on_ranks(
      {1, 2},
      [](Rank) {
        const auto meeting = meet();
        const auto error = thrown_by<ConfigError>([&] { Nccl(meeting, {}); });
        CHECK_THAT(error, ContainsSubstring("NCCL: rank 0 (host ") && ContainsSubstring("no CUDA device") &&
                              ContainsSubstring("backend::Gloo"));
        std::cout << error << "\n";
        meeting.control_plane().farewell();
      },
      with_cuda());
}

TEST_CASE("NCCL's library is at least as new as its headers", "[nccl]") {
  int code = 0;
  REQUIRE(::ncclGetVersion(&code) == ncclSuccess);
  CHECK(code >= NCCL_VERSION_CODE);
  CHECK(accel::backend::NcclDriver::version() == accel::message(code / 10000, ".", code / 100 % 100, ".", code % 100));
  CHECK(accel::backend::NcclDriver::has_windows());  // since 2.27.3, and the headers are newer
}

TEST_CASE("more ranks than GPUs is an error of all", "[nccl]") {
  needs_devices(1);
  if (c10::cuda::device_count() > 1) SKIP("this machine has several CUDA devices");
  if (accel::backend::NcclDriver::ranks_share_devices()) SKIP("NCCL_MULTI_RANK_GPU_ENABLE is set");
  on_ranks(
      {2},
      [](Rank) {
        const auto meeting = meet();
        CHECK_THAT(thrown_by<ConfigError>([&] { Nccl(meeting, {}); }), ContainsSubstring("rank 0 (host ") &&
                                                                           ContainsSubstring("rank 1 (host ") &&
                                                                           ContainsSubstring("have one device, GPU-"));
        meeting.control_plane().farewell();
      },
      with_cuda());
}

TEST_CASE("NCCL obeys the laws of a backend on one GPU", "[nccl]") {
  needs_devices(1);
  on_ranks({1}, obeys_the_laws, with_cuda());
}

TEST_CASE("NCCL obeys the laws of a backend on two GPUs", "[nccl]") {
  needs_devices(2);
  on_ranks({2}, obeys_the_laws, with_cuda());
}

TEST_CASE("NCCL passes messages, and gives up at a deadline, on two GPUs", "[nccl]") {
  needs_devices(2);
  on_ranks({2},
           suite::one_after_the_other(
               {passes_messages, suite::passes_round_a_ring<Nccl>, suite::passes_large_messages_round_a_ring<Nccl>,
                suite::exchanges_all_to_all<Nccl>, suite::says_when_it_is_done<Nccl>,
                suite::finishes_works_in_any_order<Nccl>, suite::gives_up_at_the_deadline<Nccl>}),
           with_cuda());
}

TEST_CASE("wait() leaves the host free, and the current stream sees the result", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {1},
      [](Rank) {
        Group<Nccl> group;
        at::Tensor memory = group->allocate(accel::Bytes{std::int64_t{64} << 20}).view(at::kFloat).fill_(1);
        group->all_reduce(memory, ReduceOp::sum).wait();  // connects and warms up
        at::Tensor factor = at::rand({4096, 4096}, at::TensorOptions(group->device())) / 4096;
        at::Tensor product = factor.matmul(factor);
        const auto stream = c10::cuda::getCurrentCUDAStream(group->device().index());
        stream.synchronize();

        for (int i = 0; i < 200; ++i) product = product.matmul(factor);  // 27 TFLOP: a third of a second at the least
        for (int round = 0; round < 20; ++round) {
          memory.add_(1);
          group->all_reduce(memory, ReduceOp::sum).wait();
        }
        memory.add_(1);
        CHECK_FALSE(stream.query());  // the host is here, and the GPU still multiplies
        CHECK(memory.eq(22).all().item<bool>());
      },
      with_cuda());
}

TEST_CASE("memory becomes a window of NCCL where that is asked for", "[nccl]") {
  needs_devices(1);
  on_ranks(
      {c10::cuda::device_count() > 1 ? 2 : 1},
      [](Rank rank) {
        {
          accel::backend::BasicNccl<WindowWatcher> backend(meet(), {.timeout_s = 20, .symmetric_windows = true});
          CHECK_THAT(backend.describe(), ContainsSubstring("symmetric windows"));
          at::Tensor memory = backend.allocate(accel::Bytes{1 << 20}).view(at::kFloat).fill_(3);
          CHECK(WindowWatcher::opened == 1);
          auto work = backend.all_reduce(memory, ReduceOp::sum);
          work.wait();
          CHECK(memory.eq(3 * rank.world_size).all().item<bool>());
          (void)backend.allocate(accel::Bytes{1 << 10});
          CHECK(WindowWatcher::opened == 2);
          backend.control().farewell();
        }
        // A rank alone has nobody to map its memory for, and NCCL may leave the handle empty.
        if (rank.world_size > 1) CHECK(WindowWatcher::registered == 2);
      },
      with_cuda());
}
