// Agreement: differences are named with both ranks, and nobody is left waiting.
#include <cstddef>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <accel/collective/agree.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::CheckpointError;
using accel::CommError;
using accel::Deadline;
using accel::InvalidArgument;
using accel::collective::all_or_none;
using accel::collective::require_equal;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::Seconds;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;

namespace {

using Lines = std::vector<std::string>;

Deadline soon() {
  return Deadline::in(Seconds(20));
}

}  // namespace

TEST_CASE("equal lines pass, and cost one round", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank) {
    auto control = meet().control_plane();
    require_equal(control, "test", Lines{}, soon());
    require_equal(control, "test", Lines{"a", "b"}, soon());
    require_equal(control, "test", Lines(1000, "the same"), soon());
    control.farewell();
  });
}

TEST_CASE("the first line that differs is named with both ranks, on every rank", "[collective]") {
  on_ranks({2, 3}, [](Rank rank) {
    auto control = meet().control_plane();
    {
      INFO("the first line that differs is named with both ranks, on every rank");
      const int odd = rank.world_size - 1;
      const auto lines = [&](const std::string& own) {
        return Lines{"same", rank.rank == odd ? own : "reference", "same again", std::to_string(rank.rank)};
      };
      const auto error =
          thrown_by<InvalidArgument>([&] { require_equal(control, "the model", lines("other"), soon()); });
      CHECK_THAT(error, StartsWith("the model differs between ranks"));
      // At 3 ranks rank 1 differs, too, but later: only in its last line.
      if (rank.world_size == 2) CHECK_THAT(error, ContainsSubstring("rank 0 has reference, rank 1 has other"));
      if (rank.world_size == 3) CHECK_THAT(error, ContainsSubstring("rank 0 has 0, rank 1 has 1"));
      const auto again = thrown_by<InvalidArgument>(
          [&] { require_equal(control, "the model", Lines{rank.rank == odd ? "other" : "reference"}, soon()); });
      CHECK_THAT(again, ContainsSubstring("rank 0 has reference, rank " + std::to_string(odd) + " has other"));
      require_equal(control, "the ranks are still in step", Lines{"yes"}, soon());
    }
    {
      INFO("a rank with fewer lines, or with more, is named");
      const int odd = rank.world_size - 1;
      const std::string odd_name = "rank " + std::to_string(odd);
      const Lines shorter = {"a"};
      const Lines longer = {"a", "b"};
      const auto fewer = thrown_by<InvalidArgument>(
          [&] { require_equal(control, "test", rank.rank == odd ? shorter : longer, soon()); });
      CHECK_THAT(fewer, ContainsSubstring("rank 0 has b, " + odd_name + " has nothing"));
      const auto more = thrown_by<InvalidArgument>(
          [&] { require_equal(control, "test", rank.rank == odd ? longer : shorter, soon()); });
      CHECK_THAT(more, ContainsSubstring("rank 0 has nothing, " + odd_name + " has b"));
      const auto none = thrown_by<InvalidArgument>(
          [&] { require_equal(control, "test", rank.rank == odd ? Lines{} : shorter, soon()); });
      CHECK_THAT(none, ContainsSubstring("rank 0 has a, " + odd_name + " has nothing"));
    }
    control.farewell();
  });
}

TEST_CASE("lines that only differ in where one ends are different", "[collective]") {
  on_ranks({2}, [](Rank rank) {
    auto control = meet().control_plane();
    const Lines lines = rank.rank == 0 ? Lines{"ab", "c"} : Lines{"a", "bc"};
    CHECK_THAT(thrown_by<InvalidArgument>([&] { require_equal(control, "test", lines, soon()); }),
               ContainsSubstring("rank 0 has ab, rank 1 has a;"));
    control.farewell();
  });
}

TEST_CASE("what one rank throws all ranks throw, with its text and its rank", "[collective]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    auto control = meet().control_plane();
    for (int bad = 0; bad < rank.world_size; ++bad) {
      const auto body = [&] {
        if (rank.rank == bad) throw InvalidArgument("no such file");
      };
      if (rank.rank == bad) {
        // Its own error, of its own type.
        CHECK(thrown_by<InvalidArgument>([&] { all_or_none<CheckpointError>(control, "save", soon(), body); }) ==
              "no such file");
      } else {
        CHECK(thrown_by<CheckpointError>([&] { all_or_none<CheckpointError>(control, "save", soon(), body); }) ==
              "save failed on rank " + std::to_string(bad) + ": no such file");
      }
    }
    bool ran = false;
    all_or_none<CheckpointError>(control, "nobody throws", soon(), [&] { ran = true; });
    CHECK(ran);
    control.farewell();
  });
}

TEST_CASE("an error of any kind on one rank is an error on all", "[collective]") {
  on_ranks({2}, [](Rank rank) {
    auto control = meet().control_plane();
    {
      INFO("an error without a text is still an error everywhere");
      bool threw = false;
      try {
        all_or_none<CommError>(control, "test", soon(), [&] {
          if (rank.rank == 1) throw std::runtime_error("");
        });
      } catch (const std::runtime_error&) {
        threw = true;
      }
      CHECK(threw);
    }
    {
      INFO("what is no std::exception does not leave the others waiting");
      bool threw = false;
      try {
        all_or_none<InvalidArgument>(control, "test", soon(), [&] {
          if (rank.rank == 1) throw 7;
        });
      } catch (const InvalidArgument&) {
        threw = rank.rank == 0;
      } catch (int) {
        threw = rank.rank == 1;
      }
      CHECK(threw);
    }
    control.farewell();
  });
}

TEST_CASE("where several ranks throw each keeps its own error and the rest hear the first", "[collective]") {
  on_ranks({3}, [](Rank rank) {
    auto control = meet().control_plane();
    const auto error = thrown_by<InvalidArgument>([&] {
      all_or_none<InvalidArgument>(control, "test", soon(), [&] {
        if (rank.rank != 0) throw InvalidArgument("reason " + std::to_string(rank.rank));
      });
    });
    CHECK(error == (rank.rank == 0 ? "test failed on rank 1: reason 1" : "reason " + std::to_string(rank.rank)));
    control.farewell();
  });
}
