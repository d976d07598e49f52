// Notices: what one rank posts others read, sooner or later, on threads of their own.
#include <future>
#include <string>
#include <thread>
#include <vector>

#include <accel/launch/control_plane.hpp>
#include <accel/launch/notice_board.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::CommError;
using accel::Deadline;
using accel::launch::ControlPlane;
using accel::launch::NoticeBoard;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::Seconds;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

namespace {

namespace notices {

Deadline in_time() {
  return Deadline::in(Seconds(20));
}

}  // namespace notices

}  // namespace

TEST_CASE("what a rank posts every rank reads, whoever comes first, and other sections have other names", "[notices]") {
  using namespace notices;
  on_ranks({1, 2, 3}, [](Rank rank) {
    ControlPlane control = meet().control_plane();
    NoticeBoard board = control.notices("one"), other = control.notices("another");
    const std::string own = accel::message("of ", rank.rank);
    // By a thread that waits for all before they have posted.
    auto read = std::async(std::launch::async, [&] {
      std::vector<std::string> all;
      for (int of = 0; of < rank.world_size; ++of) all.push_back(board.read(accel::message("of ", of), in_time()));
      return all;
    });
    other.post(own, "something else", in_time());
    (void)control.all_gather("meanwhile the ranks meet", "", in_time());
    board.post(own, std::string(100'000, static_cast<char>('a' + rank.rank)), in_time());
    const auto all = read.get();
    for (int of = 0; of < rank.world_size; ++of)
      CHECK(all[static_cast<std::size_t>(of)] == std::string(100'000, static_cast<char>('a' + of)));
    (void)control.all_gather("all have read the old", "", in_time());
    board.post(own, "new", in_time());
    CHECK(board.read(own, in_time()) == "new");
    CHECK(other.read(own, in_time()) == "something else");
    (void)control.all_gather("all have read", "", in_time());
    board.withdraw(own, in_time());
    CHECK_THAT(thrown_by<CommError>([&] { (void)board.read(own, Deadline::in(Seconds(0.1))); }),
               ContainsSubstring(own) && ContainsSubstring("could not be read within 0.1 s"));
    // Who waited in vain has ended nothing.
    CHECK(control.all_gather("and go on", own, in_time()).back() == accel::message("of ", rank.world_size - 1));
    control.farewell();
  });
}
