// The control plane: small texts between ranks, and names for those that do not come.
#include <unistd.h>

#include <cstddef>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <accel/launch/control_plane.hpp>
#include <accel/launch/rendezvous.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::CommError;
using accel::Deadline;
using accel::launch::ControlPlane;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

namespace {

Deadline soon() {
  return Deadline::in(Seconds(20));
}

}  // namespace

TEST_CASE("every rank gets everybody's text, by rank, whatever is in it, and the root's", "[launch]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    auto control = meet().control_plane();
    {
      INFO("every rank gets everybody's text, by rank, whatever is in it");
      const auto text = [](int of, int round) {
        return std::string(static_cast<std::size_t>(37 * round * of), static_cast<char>(round)) + "\n\0|/" +
               std::to_string(of);
      };
      for (int round = 0; round < 30; ++round) {
        const auto texts = control.all_gather("test", text(rank.rank, round), soon());
        REQUIRE(texts.size() == static_cast<std::size_t>(rank.world_size));
        for (int other = 0; other < rank.world_size; ++other)
          CHECK(texts[static_cast<std::size_t>(other)] == text(other, round));
      }
      for (const auto& empty : control.all_gather("test", "", soon())) CHECK(empty.empty());
      const std::string large(3'000'000, static_cast<char>('a' + rank.rank));
      const auto texts = control.all_gather("test", large, soon());
      for (std::size_t other = 0; other < texts.size(); ++other)
        CHECK(texts[other] == std::string(3'000'000, static_cast<char>('a' + other)));
    }
    {
      INFO("a broadcast gives every rank the root's text");
      for (int root = 0; root < rank.world_size; ++root)
        CHECK(control.broadcast("test", "from " + std::to_string(rank.rank), root, soon()) ==
              "from " + std::to_string(root));
    }
    control.farewell();
  });
}

TEST_CASE("nobody leaves a barrier before the last has come", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    auto control = meet().control_plane();
    control.barrier("start", soon());
    for (int late = 0; late < rank.world_size; ++late) {
      const Stopwatch watch;
      if (rank.rank == late) stay_for(0.2);
      control.barrier("test", soon());
      CHECK(watch.seconds() > 0.1);
    }
    control.farewell();
  });
}

TEST_CASE("ranks that are not in the same round are told so at once, and which they are in", "[launch]") {
  on_ranks({2, 3}, [](Rank rank) {
    auto control = meet().control_plane();
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] {
      if (rank.rank == 1)
        control.barrier("saving", soon());
      else
        (void)control.all_gather("gather", "x", soon());
    });
    CHECK(watch.seconds() < 5);
    CHECK_THAT(error, ContainsSubstring("not in the same exchange"));
    CHECK_THAT(error, ContainsSubstring("rank 1 in saving") || ContainsSubstring("rank 1 is in saving"));
    CHECK_THAT(error, ContainsSubstring("in gather"));
    control.farewell();
  });
}

TEST_CASE("a group without rank 0 hears soon that rank 0, over which it speaks, has left", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    auto whole = meeting.control_plane();
    whole.barrier("start", soon());
    if (rank.rank == 0) return whole.farewell();
    auto part = meeting.part(std::vector<int>{1, 2}, "two").control_plane();
    stay_for(2);  // longer than rank 0 waits for them
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { part.barrier("between two", soon()); });
    CHECK(watch.seconds() < 5);
    CHECK_THAT(error, ContainsSubstring("between two gave up: rank 0 (host ") && ContainsSubstring("has left"));
    part.farewell();
  });
}

TEST_CASE("a group hears at once of a member that has left without its round, and goes on where it had come",
          "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    auto whole = meeting.control_plane();
    auto part = meeting.part(std::vector<int>{0, 2, 1}, "all").control_plane();
    whole.barrier("start", soon());
    if (rank.rank == 2) {
      // It has come to the first round, and left before that was over.
      std::thread([part]() mutable { (void)thrown_by<CommError>([&] { part.barrier("together", soon()); }); }).detach();
      stay_for(0.3);
      whole.farewell();
      stay_for(2);
      return;
    }
    if (rank.rank == 1) stay_for(1);
    part.barrier("together", soon());
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { part.barrier("without it", soon()); });
    CHECK(watch.seconds() < 3 * patience);
    CHECK_THAT(error, ContainsSubstring("without it gave up: rank 2 (host ") &&
                          ContainsSubstring("has left the training after 0 steps"));
    std::cout << error << "\n";
    whole.farewell();
  });
}

TEST_CASE("groups of some ranks have rounds of their own", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    auto whole = meeting.control_plane();
    if (rank.rank > 0) {
      auto part = meeting.part(std::vector<int>{2, 1}, "two").control_plane();
      CHECK(part.all_gather("test", std::to_string(rank.rank), soon()) == std::vector<std::string>{"2", "1"});
      CHECK(part.broadcast("test", rank.rank == 2 ? "word" : "", 0, soon()) == "word");
      part.barrier("test", soon());
    }
    CHECK(whole.all_gather("test", std::to_string(rank.rank), soon()) == std::vector<std::string>{"0", "1", "2"});
    whole.farewell();
  });
}

TEST_CASE("one rank alone needs nobody", "[launch]") {
  ControlPlane control;
  CHECK(control.all_gather("test", "own", soon()) == std::vector<std::string>{"own"});
  CHECK(control.broadcast("test", "own", 0, soon()) == "own");
  control.barrier("test", soon());
  control.farewell();
}

TEST_CASE("a rank that stays away is named with its host and process", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    auto control = meeting.control_plane();
    const int absent = rank.world_size - 1;
    if (rank.rank == absent) {
      stay_for(1.5);
      return;
    }
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { control.barrier("saving the weights", Deadline::in(Seconds(0.5))); });
    CHECK(watch.seconds() >= 0.45);
    CHECK(watch.seconds() <= 0.5 + 1 * patience);
    const auto& peer = meeting.peers[static_cast<std::size_t>(absent)];
    CHECK_THAT(error, ContainsSubstring("saving the weights gave up after 0.5 s") &&
                          ContainsSubstring("rank " + std::to_string(absent) + " (host " + peer.host + ", process " +
                                            std::to_string(peer.pid) + ")"));
    // The one of the two that gives up later may pass on the words of the first; neither calls the other absent.
    CHECK_THAT(error, !ContainsSubstring("no word from rank " + std::to_string(1 - rank.rank)));
    std::cout << error << "\n";
  });
}

TEST_CASE("that rank 0 has ended is an error that names it, at once", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const auto meeting = meet();
    auto control = meeting.control_plane();
    control.barrier("all are here", soon());
    if (rank.rank == 0) {
      stay_for(0.2);  // the others have read
      ::_exit(0);
    }
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { control.barrier("after the end", soon()); });
    CHECK(watch.seconds() < 2 * patience);
    CHECK_THAT(error, ContainsSubstring("after the end") && ContainsSubstring("rank 0 (host ") &&
                          ContainsSubstring(std::to_string(meeting.peers.front().pid)));
    std::cout << error << "\n";
    const Stopwatch end;
    control.farewell();
    CHECK(end.seconds() < 1 * patience);
  });
}

TEST_CASE("after an error every call says that the group was given up", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    auto control = meet().control_plane();
    if (rank.rank == 0) {
      (void)thrown_by<CommError>([&] { control.barrier("the first", Deadline::in(Seconds(0.3))); });
      const auto later = thrown_by<CommError>([&] { control.barrier("the second", soon()); });
      CHECK_THAT(later, ContainsSubstring("the second: this group of ranks was given up earlier: the first gave up"));
    } else {
      stay_for(0.6);
    }
    control.farewell();
  });
  ControlPlane alone;
  alone.give_up("for a test");
  CHECK_THAT(thrown_by<CommError>([&] { alone.barrier("later", soon()); }), ContainsSubstring("for a test"));
}

TEST_CASE("rank 0 stays until the others have said farewell", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    auto control = meet().control_plane();
    control.barrier("start", soon());
    if (rank.rank == rank.world_size - 1) stay_for(0.5);
    const Stopwatch watch;
    control.farewell();
    if (rank.rank == 0) CHECK(watch.seconds() > 0.3);
  });
}

TEST_CASE("rank 0 does not wait for ever for a farewell", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    auto control = meet().control_plane();
    control.barrier("start", soon());
    if (rank.rank == 1) {
      stay_for(2.5);
      return;
    }
    const Stopwatch watch;
    control.farewell();
    CHECK(watch.seconds() < 2 * patience);
  });
}
