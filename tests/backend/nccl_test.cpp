// BasicNccl over a driver without a GPU: the laws of a backend, the order of the calls, the watchdog.
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/backend/basic_nccl.hpp>

#include "conformance/backend_suite.hpp"
#include "support/recording_driver.hpp"
#include "support/training.hpp"

using accel::CommError;
using accel::ConfigError;
using accel::Deadline;
using accel::ReduceOp;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::RecordingDriver;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

using RecordedNccl = accel::backend::BasicNccl<RecordingDriver>;
static_assert(accel::backend::DrivesNccl<RecordingDriver>);
static_assert(accel::Backend<RecordedNccl>);

ACCEL_BACKEND_SUITE(RecordedNccl, {1, 2, 3})

namespace {

using Calls = std::vector<std::string>;

auto& faults() {
  return RecordingDriver::faults;
}

bool called(const std::string& call) {
  const Calls calls = RecordingDriver::take_calls();
  return std::find(calls.begin(), calls.end(), call) != calls.end();
}

}  // namespace

// Two summands have one sum, whoever adds them.
TEST_CASE("a training over NCCL's calls is that over Gloo, bit for bit", "[backend][nccl]") {
  on_ranks({1, 2}, [](Rank) {
    CHECK(accel::testing::trained<RecordedNccl>() == accel::testing::trained<accel::backend::Gloo>());
  });
}

TEST_CASE("while a graph is captured, casts of weights are not kept: they would lie in its memory", "[backend][nccl]") {
  struct Asks : torch::nn::Module {
    torch::Tensor forward(const torch::Tensor& x) {
      keeps = at::autocast::is_autocast_cache_enabled();
      return x;
    }
    bool keeps = false;
  };
  on_ranks({1}, [](Rank) {
    accel::Accelerator<accel::backend::Checked<accel::backend::Traced<RecordedNccl>>, accel::precision::Bf16>
        accelerator;
    auto net = std::make_shared<Asks>();
    auto model = accelerator.prepare(net);
    for (const bool captures : {false, true}) {
      faults().captures = captures;
      (void)model(torch::ones({1}));
      REQUIRE(net->keeps == !captures);
      const auto region = accelerator.autocast();
      REQUIRE(at::autocast::is_autocast_cache_enabled() == !captures);
    }
    // An engine that cannot tell.
    struct OnGpu {
      [[nodiscard]] static c10::Device device() { return {c10::DeviceType::CUDA, 0}; }
    };
    REQUIRE(accel::backend::may_be_capturing(OnGpu{}));
  });
}

TEST_CASE("a collective waits for the current stream, and its end is recorded after it", "[backend][nccl]") {
  on_ranks({1, 2}, [](Rank rank) {
    Group<RecordedNccl> group;
    at::Tensor tensor = at::ones({3});
    at::Tensor whole = at::ones({3 * rank.world_size});
    (void)RecordingDriver::take_calls();
    const auto check = [](const std::string& name, auto work) {
      CHECK(RecordingDriver::take_calls() == Calls{"record_current", "engine_waits", name, "record_engine"});
      work.wait();
      CHECK(RecordingDriver::take_calls() == Calls{"current_waits"});
    };
    check("all_reduce", group->all_reduce(tensor, ReduceOp::sum));
    check("broadcast", group->broadcast(tensor, 0));
    check("all_gather", group->all_gather(whole, tensor));
    check("reduce_scatter", group->reduce_scatter(tensor, whole, ReduceOp::max));
  });
}

TEST_CASE("a group of tensors is one group of NCCL, and empty ones are not in it", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    Group<RecordedNccl> group;
    std::vector<at::Tensor> tensors = {at::ones({3}), at::ones({0}), at::ones({5})};
    (void)RecordingDriver::take_calls();
    auto work = group->all_reduce(std::span(tensors), ReduceOp::sum);
    CHECK(RecordingDriver::take_calls() == Calls{"record_current", "engine_waits", "group_start", "all_reduce",
                                                 "all_reduce", "group_end", "record_engine"});
    work.wait();
    CHECK(tensors[2].equal(at::full({5}, 2.0)));
    (void)RecordingDriver::take_calls();
    auto nothing = group->all_reduce(tensors[1], ReduceOp::sum);
    CHECK(nothing.done());
    nothing.wait();
    CHECK(RecordingDriver::take_calls().empty());
  });
}

TEST_CASE("NCCL may take its time to connect, but not longer than the rendezvous", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    faults().polls_of_init = 50;
    {
      Group<RecordedNccl> group;
      at::Tensor tensor = at::ones({3});
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      work.wait();
      CHECK(tensor.equal(at::full({3}, 2.0)));
    }
    faults().polls_of_init = -1;
    const auto meeting = meet(Seconds(3));
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { RecordedNccl(meeting, {}); });
    CHECK_THAT(error, ContainsSubstring("NCCL: connecting could not start"));
    CHECK(watch.seconds() < 5 * patience);
    CHECK(called("abort"));
    std::cout << error << "\n";
    meeting.control_plane().farewell();
  });
}

TEST_CASE("an error that NCCL reports ends in an abort that says it", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    Group<RecordedNccl> group;
    faults().never_finishes = true;
    at::Tensor tensor = at::ones({3});
    auto work = group->all_reduce(tensor, ReduceOp::sum);
    faults().error = true;
    const Stopwatch watch;
    work.wait();  // of a stream: it ends, and says nothing
    CHECK(watch.seconds() < 2 * patience);
    CHECK(called("abort"));
    CHECK(group->control().failed());
    const auto error = thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
    CHECK_THAT(error, ContainsSubstring("unhandled fault of a test"));
    std::cout << error << "\n";
    CHECK_THAT(thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(1))); }),
               ContainsSubstring("all_reduce number 1 of 12 B"));
  });
}

TEST_CASE("a collective that takes longer than timeout_s is aborted without anybody waiting", "[backend][nccl]") {
  on_ranks({1, 2}, [](Rank) {
    Group<RecordedNccl> group({.timeout_s = 0.5});
    faults().never_finishes = true;
    at::Tensor tensor = at::ones({3});
    (void)group->all_reduce(tensor, ReduceOp::sum);
    stay_for(1.5);
    CHECK(called("abort"));
    CHECK(group->control().failed());
    const auto error = thrown_by<CommError>([&] { (void)group->broadcast(tensor, 0); });
    CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B failed after 0.5 s"));
    std::cout << error << "\n";
  });
}

TEST_CASE("the failure of a rank ends what the others wait for", "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    Group<RecordedNccl> group;
    at::Tensor tensor = at::ones({3});
    if (rank.rank == 1) {
      group->abort("the disk is full");
      stay_for(1);
      return;
    }
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] {
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      work.wait_until(Deadline::in(Seconds(20)));
    });
    CHECK_THAT(error, ContainsSubstring("the disk is full"));
    CHECK(watch.seconds() < 5 * patience);
    std::cout << error << "\n";
  });
}

TEST_CASE("a group of NCCL whose works never finish lets the process end", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    const Stopwatch watch;
    {
      Group<RecordedNccl> group;
      faults().never_finishes = true;
      at::Tensor tensor = at::ones({1000});
      (void)group->all_reduce(tensor, ReduceOp::sum);
      (void)RecordingDriver::take_calls();
    }
    CHECK(called("abort"));
    CHECK(watch.seconds() < 5 * patience);
  });
}

TEST_CASE("tensors live until their collective is over, and results under way get a moment", "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    at::Tensor tensor = at::ones({1000});
    {
      Group<RecordedNccl> group;
      at::Tensor alone = at::ones({3});
      const auto storage = alone.storage().getWeakStorageImpl();
      if (rank.rank == 1) stay_for(0.2);
      auto work = group->all_reduce(alone, ReduceOp::sum);
      alone.reset();
      if (rank.rank == 0) CHECK_FALSE(storage.expired());
      work.wait();
      stay_for(0.5);
      CHECK(storage.expired());
      (void)group->all_reduce(tensor, ReduceOp::sum);
    }
    CHECK(tensor.equal(at::full({1000}, 2.0)));
  });
}

TEST_CASE("all ranks hear of one that has no device", "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    const auto error_of = [](const RecordedNccl::Options& options) {
      const auto meeting = meet();
      const auto error = thrown_by<ConfigError>([&] { RecordedNccl(meeting, options); });
      meeting.control_plane().farewell();
      return error;
    };
    faults().devices = rank.rank == 1 ? 0 : 8;
    const auto missing = error_of({});
    CHECK_THAT(missing, ContainsSubstring("NCCL: rank 1 (host ") && ContainsSubstring("no CUDA device") &&
                            ContainsSubstring("backend::Gloo"));
    std::cout << missing << "\n";
    faults().devices = 1;
    const auto crowded = error_of({});
    CHECK_THAT(crowded, ContainsSubstring("2 ranks but 1 device"));
    std::cout << crowded << "\n";
    faults().devices_can_be_shared = true;
    CHECK(error_of({}).empty());
    CHECK_THAT(error_of({.timeout_s = 0}), ContainsSubstring("timeout_s"));
  });
}

TEST_CASE("memory becomes a window only where every rank asks for it", "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    for (const bool all : {true, false}) {
      (void)RecordingDriver::take_calls();
      Group<RecordedNccl> group({.timeout_s = 20, .symmetric_windows = all || rank.rank == 0});
      at::Tensor memory = group->allocate(accel::Bytes{64}).fill_(1);
      CHECK(called("open_window") == all);
      auto work = group->all_reduce(memory, ReduceOp::sum);
      work.wait();
      CHECK(memory.equal(at::full({64}, 2, at::kByte)));
    }
  });
}
