// The state behind the star, without sockets, clocks or threads: who is silent, who left, who failed first.
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/greeting.hpp>
#include <accel/launch/detail/roster.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/wire.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using accel::Seconds;
using accel::launch::Peer;
using accel::launch::Progress;
using accel::launch::detail::Clock;
using accel::launch::detail::Contribution;
using accel::launch::detail::ExchangeKey;
using accel::launch::detail::Exchanges;
using accel::launch::detail::Gathering;
using accel::launch::detail::Inquiry;
using accel::launch::detail::Letter;
using accel::launch::detail::Message;
using accel::launch::detail::Packer;
using accel::launch::detail::Roster;
using accel::launch::detail::Shelf;
using accel::launch::detail::Time;
using accel::launch::detail::Unpacker;
using accel::launch::detail::Welcome;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;

namespace {

Peer peer(int rank, int world_size) {
  return {rank, "node" + std::to_string(rank), "net", 100 + rank, world_size};
}

Time clock_at(double seconds) {
  return Time{} + std::chrono::hours(1) + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

/// The rosters of a job, whose letters are delivered at once; a rank may be cut off.
class Job {
 public:
  explicit Job(int world_size, double interval_s = 1) : progress(static_cast<std::size_t>(world_size)) {
    std::vector<Peer> peers;
    for (int rank = 0; rank < world_size; ++rank) peers.push_back(peer(rank, world_size));
    for (int rank = 0; rank < world_size; ++rank) rosters.emplace_back(rank, peers, Seconds(interval_s), clock_at(0));
    cut.resize(peers.size());
  }

  Roster& of(int rank) { return rosters[static_cast<std::size_t>(rank)]; }

  void turn(double seconds) {
    now = clock_at(seconds);
    for (std::size_t r = 0; r < rosters.size(); ++r)
      if (!cut[r]) rosters[r].turn(progress[r], now, [&](int) { return host_answers; });
    deliver();
  }

  void deliver() {
    for (bool more = true; more;) {
      more = false;
      for (std::size_t r = 0; r < rosters.size(); ++r)
        for (const auto& letter : rosters[r].take_letters()) {
          more = true;
          for (std::size_t to = 0; to < rosters.size(); ++to) {
            const bool is_meant = letter.to == Letter::everybody || letter.to == static_cast<int>(to);
            const bool are_linked = is_meant && to != r && (to == 0 || r == 0);
            if (are_linked && !cut[to] && !cut[r]) rosters[to].hear(static_cast<int>(r), letter.message, now);
          }
        }
    }
  }

  std::vector<Roster> rosters;
  std::vector<Progress> progress;
  std::vector<bool> cut;
  bool host_answers = true;
  Time now = clock_at(0);
};

Contribution contribution(std::int64_t number, std::int64_t index, std::int64_t size, std::string value,
                          std::string purpose = "test", std::int64_t root = Contribution::everybody) {
  return {{"", number}, std::move(purpose), root, index, size, std::move(value)};
}

}  // namespace

TEST_CASE("numbers and texts come back from bytes, and half of them are an error", "[launch]") {
  const std::string bytes = Packer().number(-3).real(0.1).text("a\0b").number(1LL << 62).text("").take();
  Unpacker body(bytes);
  CHECK(body.number() == -3);
  CHECK(body.real() == 0.1);
  CHECK(body.text() == "a\0b");
  CHECK(body.number() == 1LL << 62);
  CHECK(body.text().empty());
  CHECK(body.is_over());
  CHECK_THROWS(body.number());
  Unpacker short_of(std::string_view(bytes).substr(0, 20));
  (void)short_of.number();
  (void)short_of.real();
  CHECK_THROWS(short_of.text());
  const std::string counts = Packer().count(0).count(127).count(128).count(~0ULL).take();
  CHECK(counts.size() == 1 + 1 + 2 + 10);
  Unpacker counted(counts);
  CHECK(counted.count() == 0);
  CHECK(counted.count() == 127);
  CHECK(counted.count() == 128);
  CHECK(counted.count() == ~0ULL);
  CHECK_THROWS(Unpacker(std::string_view("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11)).count());
  const std::string lies = Packer().number(-1).take();
  CHECK_THROWS(Unpacker(lies).text());
}

TEST_CASE("nobody fails while all beat, however long", "[launch]") {
  for (const int world_size : {2, 3, 65}) {
    Job job(world_size);
    for (int tick = 1; tick < 100; ++tick) job.turn(0.5 * tick);
    for (auto& roster : job.rosters) CHECK(roster.failure().empty());
  }
}

TEST_CASE("a silent rank is named after three beats and not before, by all, and how its host does", "[launch]") {
  for (const bool answers : {true, false})
    for (const int silent : {0, 2}) {
      Job job(3);
      job.host_answers = answers;
      job.turn(1);
      job.cut[static_cast<std::size_t>(silent)] = true;
      for (double now = 1.5; now < 4; now += 0.5) job.turn(now);
      for (auto& roster : job.rosters) CHECK(roster.failure().empty());
      job.turn(4.1);
      for (int rank = 0; rank < 3; ++rank) {
        if (rank == silent) continue;
        CHECK_THAT(job.of(rank).failure(),
                   StartsWith(accel::message(peer(silent, 3), " is silent since 3.1 s ")) &&
                       ContainsSubstring(answers ? "its host answers" : "its host does not answer"));
      }
    }
}

TEST_CASE("after a pause of its own a rank blames nobody for the silence", "[launch]") {
  Job job(2);
  job.turn(1);
  job.of(0).turn({}, clock_at(60), [](int) { return true; });  // stopped for a minute: it has heard nothing meanwhile
  CHECK(job.of(0).failure().empty());
  job.of(0).turn({}, clock_at(61), [](int) { return true; });
  job.of(0).turn({}, clock_at(62), [](int) { return true; });
  CHECK(job.of(0).failure().empty());
  job.of(0).turn({}, clock_at(63.1), [](int) { return true; });
  CHECK_THAT(job.of(0).failure(), ContainsSubstring("rank 1") && ContainsSubstring("silent since 3.1 s"));
}

TEST_CASE("with interval 0 nobody is ever silent", "[launch]") {
  Job job(2, 0);
  job.cut[1] = true;
  job.turn(1e6);
  CHECK(job.of(0).failure().empty());
  CHECK_FALSE(job.of(0).next_turn());
}

TEST_CASE("the first failure stays, is everybody's, and its words are cut", "[launch]") {
  Job job(3);
  job.of(2).fail("the disk is full" + std::string(5'000'000, '!'));
  job.deliver();
  job.of(1).fail("something that followed from it");
  job.deliver();
  for (auto& roster : job.rosters) {
    CHECK_THAT(roster.failure(), StartsWith("the disk is full!!!"));
    CHECK(roster.failure().size() < 4200);
  }
  CHECK_THAT(job.of(0).failure(), ContainsSubstring("characters more"));
}

TEST_CASE("a connection that ends is a failure of who has not said that it leaves", "[launch]") {
  Job job(3);
  job.of(1).leave({.steps = 7, .collectives = 9, .rounds = 2, .operation = "all_reduce"});
  job.deliver();
  job.of(0).lose(1, clock_at(1));
  CHECK(job.of(0).failure().empty());
  CHECK(job.of(2).missed_by(9, 2).empty());
  CHECK_THAT(job.of(2).missed_by(10, 0),
             StartsWith("rank 1 (host node1, process 101) has left the training after 7 steps and 9 collectives"));
  CHECK_FALSE(job.of(0).missed_by(0, 3).empty());
  CHECK_THAT(job.of(0).departure_of(1), ContainsSubstring("has left"));
  CHECK(job.of(0).departure_of(2).empty());
  CHECK_FALSE(job.of(0).is_alone());
  job.of(0).lose(2, clock_at(2));
  job.deliver();
  CHECK_THAT(job.of(0).failure(), StartsWith("rank 2 (host node2, process 102) has ended without a word"));
  CHECK(job.of(0).is_alone());
}

TEST_CASE("who has halted is known to all until they come to the exchange before which it did", "[launch]") {
  for (const int halted : {0, 2}) {
    Job job(3);
    job.of(halted).halt({.steps = 1, .collectives = 4, .rounds = 6, .operation = "all_reduce"}, "ran out of memory");
    job.deliver();
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == halted) continue;
      CHECK(job.of(rank).halted_before(4, 6).empty());  // which it has begun
      CHECK_THAT(job.of(rank).halted_before(5, 6), StartsWith("rank " + std::to_string(halted) + " (host node") &&
                                                       ContainsSubstring("ran out of memory, after 1 step and 4 coll"));
      CHECK(job.of(rank).halted_before(5, 7).empty());  // behind the exchange it goes on
      CHECK(job.of(rank).missed_by(5, 7).empty());
      CHECK(job.of(rank).failure().empty());
    }
    CHECK(job.of(halted).halted_before(5, 6).empty());
    job.of(halted).halt({.steps = 1, .collectives = 9, .rounds = 8, .operation = "all_reduce"}, "ran out again");
    job.deliver();
    CHECK(job.of(1).halted_before(9, 8).empty());
    CHECK_THAT(job.of(1).halted_before(10, 8), ContainsSubstring("ran out again"));
  }
}

TEST_CASE("the rank furthest behind is known to all that ask, and is nobody where all have come", "[launch]") {
  Job job(4);
  for (std::size_t r = 0; r < 4; ++r) job.progress[r].collectives = r == 2 ? 5 : 8;
  job.turn(1);
  for (int rank = 1; rank < 4; ++rank) job.of(rank).beat(0, job.progress[static_cast<std::size_t>(rank)]);
  job.deliver();
  for (int rank = 1; rank < 4; ++rank) job.of(0).compare(rank, job.progress[0], job.now);
  job.deliver();
  for (const int rank : {0, 1, 3}) {
    const auto progress = job.progress[static_cast<std::size_t>(rank)];
    CHECK_THAT(job.of(rank).suspect(8, progress, job.now),
               StartsWith("rank 2 (host node2, process 102) was furthest behind"));
    CHECK(job.of(rank).suspect(5, progress, job.now).empty());
  }
  CHECK(job.of(2).suspect(8, job.progress[2], job.now).empty());  // itself
  CHECK(job.of(1).comparisons() == 1);
}

TEST_CASE("of who does not even compare, rank 0 is the one behind", "[launch]") {
  Job job(2);
  job.progress[1].collectives = 8;
  job.turn(1);
  job.cut[0] = true;
  CHECK_THAT(job.of(1).suspect(8, job.progress[1], clock_at(2)), StartsWith("rank 0 (host node0"));
}

TEST_CASE("values come back in the order of the members when all have come, and only then", "[launch]") {
  Exchanges exchanges;
  CHECK(exchanges.bring(7, contribution(1, 2, 3, "c")).to.empty());
  CHECK(exchanges.bring(0, contribution(1, 0, 3, "")).to.empty());
  CHECK(exchanges.missing({"", 1}, {0, 4, 7}) == std::vector<int>{4});
  CHECK(exchanges.bring(7, contribution(2, 2, 3, "early")).to.empty());
  const auto result = exchanges.bring(4, contribution(1, 1, 3, "b"));
  CHECK(result.to == std::vector<int>{0, 4, 7});
  CHECK(accel::launch::detail::parted(result.value) == std::vector<std::string>{"", "b", "c"});
  CHECK(exchanges.open() == 1);
  CHECK(exchanges.missing({"", 1}, {0, 4, 7}).empty());
}

TEST_CASE("a root's value is everybody's when all have come", "[launch]") {
  Exchanges exchanges;
  const auto bring = [&](int from, std::string value) {
    return exchanges.bring(from, contribution(1, from, 3, std::move(value), "test", 1));
  };
  CHECK(bring(0, "").to.empty());
  CHECK(bring(1, "word").to.empty());
  CHECK(exchanges.missing({"", 1}, {0, 1, 2}) == std::vector<int>{2});
  const auto result = bring(2, "");
  CHECK(result.to == std::vector<int>{0, 1, 2});
  CHECK(result.value == "word");
  CHECK(exchanges.open() == 0);
}

TEST_CASE("who only wants to meet gets nothing but the word that all are there", "[launch]") {
  Exchanges exchanges;
  const auto bring = [&](int from) {
    return exchanges.bring(from, contribution(1, from, 2, "", "barrier", Contribution::nobody));
  };
  CHECK(bring(1).to.empty());
  CHECK(exchanges.missing({"", 1}, {0, 1}) == std::vector<int>{0});
  const auto result = bring(0);
  CHECK(result.to == std::vector<int>{0, 1});
  CHECK(result.value.empty());
}

TEST_CASE("what is on the shelf is given at once, and what is not when it comes", "[launch]") {
  using Kind = Inquiry::Kind;
  Shelf shelf;
  std::int64_t id = 0;
  const auto ask = [&](const Inquiry& inquiry) { return shelf.ask(3, ++id, inquiry); };
  CHECK(shelf.ask(1, 7, {.kind = Kind::get, .key = "a"}).empty());
  CHECK(shelf.ask(2, 8, {.kind = Kind::get, .key = "a"}).empty());
  CHECK(ask({.kind = Kind::check, .key = "a"}).front().value == "0");
  const auto released = ask({.kind = Kind::set, .key = "a", .value = "x"});
  REQUIRE(released.size() == 3);
  CHECK((released[0].to == 1 && released[0].id == 7 && released[0].value == "x"));
  CHECK((released[1].to == 2 && released[1].id == 8 && released[1].value == "x"));
  CHECK(released[2].to == 3);
  CHECK(ask({.kind = Kind::get, .key = "a"}).front().value == "x");
  CHECK(ask({.kind = Kind::swap, .key = "a", .value = "y", .expected = "z"}).front().value == "x");
  CHECK(ask({.kind = Kind::swap, .key = "a", .value = "y", .expected = "x"}).back().value == "y");
  CHECK(ask({.kind = Kind::swap, .key = "b", .value = "first", .expected = ""}).back().value == "first");
  CHECK(ask({.kind = Kind::add, .key = "n", .amount = 3}).back().value == "3");
  CHECK(ask({.kind = Kind::add, .key = "n", .amount = -5}).back().value == "-2");
  CHECK(ask({.kind = Kind::count}).front().value == "3");
  CHECK(ask({.kind = Kind::remove, .key = "a"}).front().value == "1");
  CHECK(ask({.kind = Kind::remove, .key = "a"}).front().value == "0");
  const auto [number, back] = Inquiry::unpacked(Inquiry{Kind::swap, "k", "v", "e", -9}.packed(4));
  CHECK((number == 4 && back.kind == Kind::swap && back.key == "k" && back.value == "v" && back.expected == "e"));
  CHECK(back.amount == -9);
}

TEST_CASE("groups do not meet, and members of other exchanges are told apart", "[launch]") {
  Exchanges exchanges;
  auto part = contribution(1, 0, 2, "part");
  part.key.group = "/a";
  CHECK(exchanges.bring(3, part).to.empty());
  CHECK(exchanges.bring(0, contribution(1, 0, 2, "whole")).to.empty());
  CHECK(exchanges.open() == 2);
  try {
    (void)exchanges.bring(1, contribution(1, 1, 2, "", "saving"));
    FAIL("it was taken");
  } catch (const std::exception& error) {
    CHECK_THAT(error.what(), ContainsSubstring("rank 0 is in test, rank 1 in saving"));
  }
  CHECK_THROWS(exchanges.bring(1, contribution(1, 2, 2, "")));
}

TEST_CASE("who comes is admitted once, of this run and of this job's size", "[launch]") {
  Gathering gathering(peer(0, 3), "a1", false);
  CHECK_FALSE(gathering.admit(peer(2, 3), "a1"));
  auto again = peer(2, 3);
  again.pid = 999;
  auto refused = gathering.admit(again, "a1");
  REQUIRE(refused);
  CHECK(refused->is_setting);
  CHECK_THAT(refused->sentence, ContainsSubstring("two processes say they are rank 2") &&
                                    ContainsSubstring("process 999") && ContainsSubstring("process 102"));
  refused = gathering.admit(peer(1, 3), "b2");
  REQUIRE(refused);
  CHECK_THAT(refused->sentence, ContainsSubstring("run \"b2\"") && ContainsSubstring("is run \"a1\""));
  CHECK(gathering.admit(peer(1, 3), ""));  // whoever knows the run id says it
  CHECK_FALSE(Gathering(peer(0, 3), "drawn", true).admit(peer(1, 3), ""));
  CHECK_FALSE(gathering.verdict());
  CHECK_FALSE(gathering.is_complete());
  gathering.forget(2);
  CHECK_FALSE(gathering.admit(again, "a1"));
  CHECK_FALSE(gathering.admit(peer(1, 3), "a1"));
  CHECK(gathering.is_complete());
  CHECK(gathering.peers()[2].pid == 999);
  CHECK(gathering.admit(peer(1, 4), "a1"));
  REQUIRE(gathering.verdict());
  CHECK_THAT(gathering.verdict()->sentence,
             ContainsSubstring("WORLD_SIZE is 3 on rank 0") && ContainsSubstring("but 4 on rank 1"));
}

TEST_CASE("everybody's names come back from the welcome, in few bytes", "[launch]") {
  Welcome welcome{"run", Seconds(0.5), {}};
  for (int rank = 0; rank < 1000; ++rank)
    welcome.peers.push_back({rank, "node" + std::to_string(rank / 8), "network", 100'000 + rank, 1000});
  const Message message = welcome.packed();
  CHECK(message.body.size() < 10'000);
  const Welcome heard = Welcome::heard(message);
  CHECK(heard.run_id == "run");
  CHECK(heard.interval == Seconds(0.5));
  REQUIRE(heard.peers.size() == 1000);
  for (std::size_t i = 0; i < 1000; ++i) {
    const Peer &one = heard.peers[i], &other = welcome.peers[i];
    const bool is_equal = one.rank == other.rank && one.host == other.host && one.network == other.network &&
                          one.pid == other.pid && one.world_size == other.world_size;
    REQUIRE(is_equal);
  }
}

TEST_CASE("of many names eight are printed", "[launch]") {
  Gathering gathering(peer(0, 256), "a1", false);
  gathering.give_up(2, "master:1");
  REQUIRE(gathering.verdict());
  CHECK_FALSE(gathering.verdict()->is_setting);
  CHECK_THAT(gathering.verdict()->sentence,
             ContainsSubstring("1 of 256 ranks have come to master:1: rank 0 (host node0, process 100)") &&
                 ContainsSubstring("missing: rank 1, 2, 3, 4, 5, 6, 7, 8 and 247 more"));
}
