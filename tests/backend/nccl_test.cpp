// BasicNccl over a driver without a GPU: the laws of a backend, the order of the calls, the watchdog.
#include <algorithm>
#include <atomic>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
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
using accel::testing::pace;
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

// What steps by a reduction must know whether the host has waited for it, through every adaptor.
static_assert(accel::backend::waits_on_stream<accel::backend::Checked<accel::backend::Traced<RecordedNccl>>>);
static_assert(!accel::backend::waits_on_stream<accel::backend::Checked<accel::backend::Traced<accel::backend::Gloo>>>);
static_assert(!accel::backend::waits_on_stream<accel::backend::Single>);

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
    const auto told = thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(15))); });
    CHECK_THAT(told, ContainsSubstring("all_reduce number 1 of 12 B failed; NCCL says: unhandled fault of a test"));
    CHECK(watch.seconds() < 3 * patience);
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
    CHECK_THAT(crowded, ContainsSubstring("NCCL: rank 0 (host ") && ContainsSubstring(" and rank 1 (host ") &&
                            ContainsSubstring("have one device, GPU-0"));
    std::cout << crowded << "\n";
    faults().first_device = rank.rank;  // as with srun --gpus-per-task=1
    CHECK(error_of({}).empty());
    faults().first_device = 0;
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
      const Calls calls = RecordingDriver::take_calls();
      CHECK(std::count(calls.begin(), calls.end(), "allocate") == (all ? 1 : 0));  // else LibTorch's own
      CHECK(std::count(calls.begin(), calls.end(), "open_window") == (all ? 1 : 0));
      auto work = group->all_reduce(memory, ReduceOp::sum);
      work.wait();
      CHECK(memory.equal(at::full({64}, 2, at::kByte)));
    }
  });
}

TEST_CASE("a rank that left without the collective is named at once, not at the timeout", "[backend][nccl]") {
  on_ranks({2, 3}, [](Rank rank) {
    const auto others = meet();  // of its own: rank 0's star must outlive the group
    const int leaver = rank.world_size - 1;
    for (const bool connects_late : {false, true}) {  // with the first collective, so that its call does not settle
      faults().connects_late = connects_late;
      Group<RecordedNccl> group;
      group->control().barrier("all are there", Deadline::in(Seconds(20)));
      if (rank.rank == leaver) continue;
      const Stopwatch watch;
      at::Tensor tensor = at::ones({3});
      const auto error = thrown_by<CommError>([&] {
        auto work = group->all_reduce(tensor, ReduceOp::sum);
        work.wait_until(Deadline::in(Seconds(15)));
      });
      // The news may be there before a call has settled that could.
      CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B could not start: ") ||
                            ContainsSubstring("all_reduce number 1 of 12 B failed: "));
      if (connects_late) CHECK_THAT(error, ContainsSubstring("could not start"));
      CHECK_THAT(error, ContainsSubstring(accel::message("rank ", leaver, " (host ")) &&
                            ContainsSubstring("has left the training after 0 steps"));
      CHECK(watch.seconds() < 5 * patience);
      std::cout << error << "\n";
    }
    auto control = others.control_plane();
    control.barrier("all have heard", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("a late collective names the rank that is behind, whoever notices first", "[backend][nccl]") {
  on_ranks({3}, [](Rank rank) {
    const int late = 1;
    const double beat_s = 0.3 * pace;
    const auto meeting = accel::launch::meet(accel::launch::detect(), accel::launch::next_creation(),
                                             {.timeout = Seconds(30), .beat = Seconds(beat_s)});
    RecordedNccl backend(meeting, {.timeout_s = 3 * beat_s});
    at::Tensor tensor = at::ones({3});
    for (int i = 0; i < 2; ++i) backend.all_reduce(tensor, ReduceOp::sum).wait();
    stay_for(2 * beat_s / pace);
    if (rank.rank == late) {
      stay_for(8 * beat_s / pace);  // it lives and beats, but does not come
    } else {
      (void)backend.all_reduce(tensor, ReduceOp::sum);
      stay_for(6 * beat_s / pace);
      const auto error = thrown_by<CommError>([&] { (void)backend.all_reduce(tensor, ReduceOp::sum); });
      CHECK_THAT(error, ContainsSubstring("all_reduce number 3 of 12 B failed after") &&
                            ContainsSubstring("rank 1 (host ") && ContainsSubstring("was furthest behind"));
      std::cout << error << "\n";
    }
    backend.control().farewell();
  });
}

TEST_CASE("a call of a group that fails ends in an abort that says it, behind the end of the group",
          "[backend][nccl]") {
  on_ranks({1}, [](Rank) {
    for (const int succeed : {1, 2}) {  // the second of two tensors, or the group as a whole
      Group<RecordedNccl> group;
      std::vector<at::Tensor> tensors = {at::ones({3}), at::ones({5})};
      (void)RecordingDriver::take_calls();
      faults().calls_until_error = succeed;
      const auto error = thrown_by<CommError>([&] { (void)group->all_reduce(std::span(tensors), ReduceOp::sum); });
      faults().calls_until_error = -1;
      CHECK_THAT(error, ContainsSubstring(
                            "all_reduce number 1 of 32 B could not start; NCCL says: a call that a test lets fail"));
      const Calls calls = RecordingDriver::take_calls();
      CHECK(std::find(calls.begin(), calls.end(), "abort") > std::find(calls.begin(), calls.end(), "group_end"));
      CHECK(std::find(calls.begin(), calls.end(), "abort") != calls.end());
      CHECK_THAT(thrown_by<CommError>([&] { (void)group->broadcast(tensors[0], 0); }), ContainsSubstring(error));
    }
  });
}

TEST_CASE("what a graph records is not waited for, and nobody looks at its events", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    Group<RecordedNccl> group({.timeout_s = 0.5});
    at::Tensor tensor = at::ones({3});
    faults().captures = true;
    {
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      CHECK(work.done());
      work.wait_until(Deadline::in(Seconds(10)));
    }
    faults().captures = false;
    stay_for(1.5);
    CHECK_FALSE(group->control().failed());
    CHECK_FALSE(called("abort"));
    for (int i = 0; i < 3; ++i) group->all_reduce(tensor, ReduceOp::sum).wait();
    CHECK(tensor.equal(at::full({3}, 16.0)));
  });
}

TEST_CASE("a collective is aborted in time though CUDA answers nobody any more", "[backend][nccl]") {
  on_ranks({2}, [](Rank) {
    for (auto* const hangs : {&faults().hangs_if_asked, &faults().hangs_to_record}) {
      Group<RecordedNccl> group({.timeout_s = 0.5});
      faults().never_finishes = true;
      at::Tensor tensor = at::ones({3});
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      *hangs = true;
      const Stopwatch watch;
      // The first hangs where it looks for what is over, the second where it looks at the current stream.
      const auto error = thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
      CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B failed after 0.5 s without an answer"));
      CHECK(watch.seconds() < 8 * patience);
      CHECK(called("abort"));
      *hangs = false;
      faults().never_finishes = false;
    }
  });
}

TEST_CASE("an error of CUDA's is told in its words, and not waited for", "[backend][nccl]") {
  on_ranks({1, 2}, [](Rank) {
    Group<RecordedNccl> group;
    faults().never_finishes = true;
    at::Tensor tensor = at::ones({3});
    auto work = group->all_reduce(tensor, ReduceOp::sum);
    faults().cuda_error = true;
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(15))); });
    CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B failed; CUDA says: an illegal address of a test"));
    CHECK(watch.seconds() < 3 * patience);
    stay_for(0.3);
    faults().cuda_error = false;
    CHECK(called("abort"));
  });
  on_ranks({1}, [](Rank) {
    Group<RecordedNccl> group;
    at::Tensor tensor = at::ones({3});
    faults().cuda_error = true;  // of an earlier kernel: whatever is called next says it
    const auto error = thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
    CHECK(error == "all_reduce number 1 of 12 B could not start; CUDA says: an illegal address of a test");
    CHECK(group->control().failed());
    CHECK(called("abort"));
  });
}

TEST_CASE("messages that are called before one is waited for are one group of NCCL", "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    Group<RecordedNccl> group;
    at::Tensor mine = at::full({3}, 1.0 + rank.rank);
    at::Tensor theirs = at::zeros({3});
    (void)RecordingDriver::take_calls();
    auto sending = group->send(mine, 1 - rank.rank);
    auto receiving = group->recv(theirs, 1 - rank.rank);
    CHECK(RecordingDriver::take_calls() == Calls{"record_current", "record_current"});
    receiving.wait();
    CHECK(RecordingDriver::take_calls() == Calls{"engine_waits", "engine_waits", "group_start", "send", "recv",
                                                 "group_end", "record_engine", "current_waits"});
    sending.wait();
    CHECK(theirs.equal(at::full({3}, 2.0 - rank.rank)));
    (void)RecordingDriver::take_calls();
    if (rank.rank == 0) {
      (void)group->send(mine, 1);  // let go: it starts
      CHECK(called("send"));
    } else {
      group->recv(theirs, 0).wait();
    }
    CHECK(theirs.equal(at::full({3}, rank.rank == 0 ? 2.0 : 1.0)));
  });
}

TEST_CASE("a message that an exception lets go does not start: it could keep this rank from telling the others",
          "[backend][nccl]") {
  on_ranks({2}, [](Rank rank) {
    Group<RecordedNccl> group;
    const auto forget = [&] {
      const auto work = group->send(at::ones({3}), 1 - rank.rank);
      throw std::runtime_error("no such sample");
    };
    CHECK(thrown_by<std::runtime_error>(forget) == "no such sample");
    CHECK_FALSE(called("send"));
  });
}

TEST_CASE("what an abort has not ended yet keeps its tensors, whoever else gives up meanwhile", "[backend][nccl]") {
  on_ranks({1}, [](Rank) {
    for (const bool hangs : {false, true}) {
      faults().never_finishes = true;
      faults().aborts_over = 0;
      faults().abort_takes_s = 2;  // longer than another thread waits for its turn
      faults().abort_hangs = hangs;
      at::Tensor tensor = at::ones({3});
      const auto storage = tensor.storage().getWeakStorageImpl();
      Group<RecordedNccl> group({.timeout_s = 0.3});
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      tensor.reset();
      const auto holders = storage.use_count();  // the recorder's work, and the group
      const Stopwatch watch;
      std::thread other([&] { (void)thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(15))); }); });
      auto least = holders;
      for (; watch.seconds() < 1.9; stay_for(0.01)) least = std::min(least, storage.use_count());
      CHECK(least == holders);
      other.join();
      for (const Stopwatch end; faults().aborts_over == 0 && end.seconds() < 10;) stay_for(0.01);
      stay_for(0.1);  // what comes behind it
      for (const Stopwatch end; !hangs && !storage.expired() && end.seconds() < 10;) stay_for(0.01);
      CHECK(storage.use_count() == (hangs ? holders : 0));  // what goes on writes there
      faults().abort_takes_s = 0;
      faults().abort_hangs = false;
      faults().never_finishes = false;
    }
  });
}

TEST_CASE("a message for a rank that has left is named with it, and others are none of its business",
          "[backend][nccl]") {
  on_ranks({3}, [](Rank rank) {
    const auto others = meet();
    {
      Group<RecordedNccl> group;
      group->control().barrier("all are there", Deadline::in(Seconds(20)));
      at::Tensor tensor = at::ones({3});
      const Stopwatch watch;
      if (rank.rank == 0) {
        auto work = group->recv(tensor, 1);
        const auto error = thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(15))); });
        CHECK_THAT(error, ContainsSubstring("recv number 1 of 12 B from rank 1 failed: rank 1 (host ") &&
                              ContainsSubstring("has left the training"));
        CHECK(watch.seconds() < 6 * patience);
        std::cout << error << "\n";
      }
    }
    auto control = others.control_plane();
    control.barrier("all have heard", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("a tensor whose memory takes its time to be freed keeps nobody from calling", "[backend][nccl]") {
  on_ranks({1, 2}, [](Rank rank) {
    Group<RecordedNccl> group;
    struct Slow {
      std::vector<float> memory = std::vector<float>(3, 1.0F);
      std::atomic<bool> is_freed{false}, others_go_on{false};
    };
    const auto slow = std::make_shared<Slow>();  // the thread may be in it when this has ended
    {
      at::Tensor tensor = at::from_blob(slow->memory.data(), {3}, [slow](void*) {
        slow->is_freed = true;  // as a deleter waits that must see the device idle
        for (const Stopwatch watch; !slow->others_go_on && watch.seconds() < 10;) stay_for(0.01);
      });
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      tensor.reset();
      work.wait_until(Deadline::in(Seconds(10)));
    }
    // Nothing is called meanwhile: it is the thread that looks what is over that frees it.
    for (const Stopwatch watch; !slow->is_freed && watch.seconds() < 10;) stay_for(0.01);
    CHECK(slow->is_freed);
    at::Tensor other = at::ones({3});
    group->all_reduce(other, ReduceOp::sum).wait();
    CHECK(other.equal(at::full({3}, static_cast<float>(rank.world_size))));
    CHECK_FALSE(slow->others_go_on);
    slow->others_go_on = true;
  });
}

TEST_CASE("every thread that calls CUDA says so first: else it would open the first device", "[backend][nccl]") {
  on_ranks({1}, [](Rank) {
    const Group<RecordedNccl> group;
    for (const Stopwatch watch; RecordingDriver::threads_entered < 2 && watch.seconds() < 10;) stay_for(0.01);
    CHECK(RecordingDriver::threads_entered == 2);  // the one that looks what is over, and the watchdog
  });
}
