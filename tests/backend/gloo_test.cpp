// Gloo: the laws of a backend on several processes, and how it finds its address.
#include <stdlib.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <accel/accelerator.hpp>

#include "conformance/backend_suite.hpp"

using accel::CommError;
using accel::ConfigError;
using accel::ReduceOp;
using accel::backend::Gloo;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::pace;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Gloo as it is between hosts.
struct GlooOverTcp : Gloo {
  struct Options : Gloo::Options {
    Options() { shared_memory = false; }
  };
  GlooOverTcp(const accel::launch::Meeting& meeting, const Options& options) : Gloo(meeting, options) {}
  explicit GlooOverTcp(Gloo&& part) : Gloo(std::move(part)) {}
  [[nodiscard]] GlooOverTcp split(std::span<const int> ranks, std::string_view part) {
    return GlooOverTcp(Gloo::split(ranks, part));
  }
};
static_assert(accel::Backend<GlooOverTcp>);

}  // namespace

ACCEL_BACKEND_SUITE(Gloo, {1, 2, 3})
ACCEL_BACKEND_SUITE(GlooOverTcp, {2, 3})

namespace {

void reaches_everybody_by(const Gloo::Options& options, const std::string& endpoint, Rank rank) {
  Group<Gloo> group(options);
  CHECK_THAT(group->describe(), ContainsSubstring(endpoint));
  at::Tensor sum = at::full({3}, rank.rank + 1.0);
  auto work = group->all_reduce(sum, ReduceOp::sum);
  work.wait();
  CHECK(sum.equal(at::full({3}, rank.world_size * (rank.world_size + 1) / 2.0)));
}

/// Whether SIGPIPE is blocked in that thread of this process.
bool blocks_sigpipe(const std::filesystem::path& thread) {
  std::ifstream status(thread / "status");
  for (std::string word; status >> word;) {
    if (word != "SigBlk:") continue;
    status >> word;
    return (std::stoull(word, nullptr, 16) >> (SIGPIPE - 1) & 1U) != 0;
  }
  return false;
}

}  // namespace

TEST_CASE("no thread of Gloo or the star dies of SIGPIPE, and the program's own keeps its handling", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    Group<Gloo> group;
    at::Tensor tensor = at::ones({3});
    auto work = rank.rank == 0 ? group->send(tensor, 1) : group->recv(tensor, 0);
    work.wait();
    int threads = 0;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
      const bool is_main = thread.path().filename() == std::to_string(::getpid());
      INFO("thread " << thread.path().filename());
      CHECK(blocks_sigpipe(thread.path()) == !is_main);
      ++threads;
    }
    CHECK(threads > 2);
  });
}

TEST_CASE("Gloo takes an interface, a host name or an address", "[backend]") {
  on_ranks({2, 3}, [](Rank rank) {
    reaches_everybody_by({.timeout_s = 20}, "address 127.0.0.1", rank);
    reaches_everybody_by({.timeout_s = 20, .interface = "lo"}, "interface lo", rank);
    reaches_everybody_by({.timeout_s = 20, .hostname = "localhost"}, "address localhost", rank);
    reaches_everybody_by({.timeout_s = 20, .hostname = "127.0.0.1"}, "address 127.0.0.1", rank);
  });
}

TEST_CASE("Gloo takes PyTorch's variable where no option is set", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    ::setenv("GLOO_SOCKET_IFNAME", "lo", 1);
    reaches_everybody_by({.timeout_s = 20}, "interface lo", rank);
    ::setenv("GLOO_SOCKET_IFNAME", "nosuch0", 1);
    reaches_everybody_by({.timeout_s = 20, .interface = "lo"}, "interface lo", rank);
    reaches_everybody_by({.timeout_s = 20, .hostname = "localhost"}, "address localhost", rank);
    ::setenv("GLOO_SOCKET_IFNAME", "", 1);
    reaches_everybody_by({.timeout_s = 20}, "address 127.0.0.1", rank);
  });
}

TEST_CASE("Gloo refuses options that contradict each other", "[backend]") {
  on_ranks({1, 2}, [](Rank) {
    const auto meeting = meet();
    const auto both = thrown_by<ConfigError>([&] { Gloo(meeting, {.interface = "lo", .hostname = "localhost"}); });
    CHECK_THAT(both,
               ContainsSubstring("\"lo\"") && ContainsSubstring("\"localhost\"") && ContainsSubstring("choose one"));
    for (const double timeout_s : {0.0, -1.0})
      CHECK_THAT(thrown_by<ConfigError>([&] { Gloo(meeting, {.timeout_s = timeout_s}); }),
                 ContainsSubstring("timeout_s"));
    meeting.control_plane().farewell();
  });
}

TEST_CASE("Gloo names an interface or a host that is not there", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    for (const Gloo::Options& options :
         {Gloo::Options{.interface = "nosuch0"}, Gloo::Options{.hostname = "192.0.2.1"}}) {  // of nobody, RFC 5737
      const auto meeting = meet();
      const Stopwatch watch;
      const auto error = thrown_by<ConfigError>([&] { Gloo(meeting, options); });
      CHECK_THAT(error, ContainsSubstring("rank 0 (host ") && ContainsSubstring("cannot listen"));
      CHECK_THAT(error, ContainsSubstring("set interface or hostname"));
      if (rank.rank == 0) CHECK_THAT(error, ContainsSubstring(options.interface + options.hostname));
      CHECK(watch.seconds() < 5 * patience);
      std::cout << error << "\n";
      meeting.control_plane().farewell();
    }
  });
}

TEST_CASE("an interface that one rank lacks is an error of all, at once", "[backend]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    const bool broken = rank.rank == rank.world_size - 1;
    const Stopwatch watch;
    const auto error =
        thrown_by<ConfigError>([&] { Gloo(meeting, {.timeout_s = 20, .interface = broken ? "nosuch0" : "lo"}); });
    CHECK_THAT(error, ContainsSubstring("Gloo: rank " + std::to_string(rank.world_size - 1) + " (host "));
    CHECK(watch.seconds() < 3 * patience);
    std::cout << error << "\n";
    meeting.control_plane().farewell();
  });
}

TEST_CASE("a rank that does not connect is an error of the others at the deadline", "[backend]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet(Seconds(2));
    const Stopwatch watch;
    if (rank.rank == rank.world_size - 1) {  // takes part in the choice of addresses, then goes no further
      (void)meeting.control_plane().all_gather("Gloo: choosing an address", "", accel::Deadline::in(Seconds(2)));
      stay_for(3.5);
      return;
    }
    const auto error = thrown_by<CommError>([&] { Gloo(meeting, {.timeout_s = 20}); });
    CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(rank.rank) + " by address 127.0.0.1 did not reach"));
    CHECK_THAT(error, ContainsSubstring("within 2 s"));
    CHECK(watch.seconds() < 3 * patience);
    std::cout << error << "\n";
    if (rank.rank == 0) stay_for(1);  // the others speak over it
  });
}

TEST_CASE("a wait that begins late ends at its own deadline, and names who is behind", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    Gloo::Options options;
    options.timeout_s = 2 * pace;
    options.shared_memory = false;
    Group<Gloo> group(options);
    auto others = meet().control_plane();  // one of its own: that of the group is given up
    const auto all_are_done = [&] { others.barrier("rank 0 has its error", accel::Deadline::in(Seconds(60))); };
    if (rank.rank == 1) return all_are_done();
    at::Tensor tensor = at::ones({3});
    auto work = group->all_reduce(tensor, ReduceOp::sum);
    stay_for(1);  // as in the rest of a backward: Gloo's clock runs
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { work.wait(); });
    CHECK(watch.seconds() >= 0.9 * options.timeout_s.value());
    CHECK_THAT(error, ContainsSubstring("without an answer") && ContainsSubstring("rank 1 (host ") &&
                          ContainsSubstring("was furthest behind"));
    std::cout << error << "\n";
    all_are_done();
  });
}

TEST_CASE("where no address is known to the other hosts, all are told to set one", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    auto meeting = meet();
    if (rank.rank == 0) meeting.local_address = "";  // as where MASTER_ADDR leads to 127.0.1.1
    const auto error = thrown_by<ConfigError>([&] { Gloo(meeting, {}); });
    CHECK_THAT(error, ContainsSubstring("rank 0 (host ") && ContainsSubstring("loopback address"));
    meeting.control_plane().farewell();
  });
}

TEST_CASE("a Gloo group whose works are dropped unfinished lets the process end", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    const Stopwatch watch;
    {
      Group<Gloo> group({.timeout_s = 20});
      at::Tensor tensor = at::ones({1000});
      if (rank.rank == 0) (void)group->all_reduce(tensor, ReduceOp::sum);
      group->control().barrier("begun", accel::Deadline::in(Seconds(20)));
    }
    CHECK(watch.seconds() < 5 * patience);
  });
}

TEST_CASE("Gloo refuses to reduce what it cannot, and goes on", "[backend]") {
  on_ranks({1, 2}, [](Rank rank) {
    Group<Gloo> group;
    for (const auto dtype : {at::kShort, at::kComplexFloat, at::kFloat8_e4m3fn}) {
      at::Tensor tensor = at::zeros({3}, dtype);
      const auto error = thrown_by<accel::InvalidArgument>([&] { (void)group->all_reduce(tensor, ReduceOp::max); });
      CHECK_THAT(error, ContainsSubstring(accel::tensor::spec(tensor)));
    }
    at::Tensor flags = at::full({2}, rank.rank == 0, at::kBool);
    CHECK_THROWS_AS(group->all_reduce(flags, ReduceOp::sum), accel::InvalidArgument);  // two would be no flag
    auto work = group->all_reduce(flags, ReduceOp::max);
    work.wait();
    CHECK(flags.equal(at::ones({2}, at::kBool)));
  });
}
