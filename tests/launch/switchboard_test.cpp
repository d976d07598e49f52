// What follows from each word between ranks, without sockets: values through rank 0, who left, who is behind.
#include <chrono>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/switchboard.hpp>
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
using accel::launch::detail::Inquest;
using accel::launch::detail::Inquiry;
using accel::launch::detail::Letter;
using accel::launch::detail::Message;
using accel::launch::detail::Packer;
using accel::launch::detail::Switchboard;
using accel::launch::detail::Time;
using accel::launch::detail::Word;
using Catch::Matchers::ContainsSubstring;

namespace {

/// The switchboards of a job, whose letters are delivered when it is said so, and counted.
class Boards {
 public:
  explicit Boards(int world_size) {
    std::vector<Peer> peers;
    for (int rank = 0; rank < world_size; ++rank)
      peers.push_back({rank, "node" + std::to_string(rank), "net", 100 + rank, world_size});
    for (int rank = 0; rank < world_size; ++rank) boards.emplace_back(rank, peers, Seconds(1), now);
  }

  Switchboard& of(int rank) { return boards[static_cast<std::size_t>(rank)]; }
  int size() const { return static_cast<int>(boards.size()); }

  void say(int rank, const Message& message) { of(rank).say(message, {}, now); }

  void bring(int rank, const ExchangeKey& key, int index, int members, const std::string& value) {
    say(rank, {Word::bring, Contribution{key, "test", Contribution::everybody, index, members, value}.packed()});
  }

  void deliver() {
    for (bool more = true; more;) {
      more = false;
      for (int from = 0; from < size(); ++from)
        for (const auto& letter : of(from).take_letters()) {
          more = true;
          for (int to = 0; to < size(); ++to) {
            const bool is_meant = letter.to == Letter::everybody || letter.to == to;
            if (!is_meant || to == from || (to != 0 && from != 0)) continue;
            ++letters[letter.message.word];
            of(to).hear(from, letter.message, Progress{0, to, 0, "test"}, now);
          }
        }
    }
  }

  Time now = Time{} + std::chrono::hours(1);
  std::vector<Switchboard> boards;
  std::map<Word, int> letters;
};

}  // namespace

TEST_CASE("a value goes through rank 0 to all, rank 0 among them", "[launch]") {
  for (const int ranks : {2, 3, 5}) {
    Boards job(ranks);
    const ExchangeKey key{"", 7};
    for (int rank = ranks - 1; rank >= 0; --rank) {
      CHECK_FALSE(job.of(rank).has_result(key));
      job.bring(rank, key, rank, ranks, std::to_string(rank));
      job.deliver();
    }
    std::vector<std::string> all;
    for (int rank = 0; rank < ranks; ++rank) all.push_back(std::to_string(rank));
    for (int rank = 0; rank < ranks; ++rank) {
      CHECK(job.of(rank).take_news());
      CHECK(job.of(rank).take_result(key) == accel::launch::detail::joined(all));
      CHECK_FALSE(job.of(rank).take_result(key).has_value());
    }
    CHECK(job.letters[Word::bring] == ranks - 1);
    CHECK(job.letters[Word::give] == ranks - 1);
  }
}

TEST_CASE("what is asked of the shelf is answered to who asked, rank 0 among them", "[launch]") {
  Boards job(3);
  for (int rank = 0; rank < 3; ++rank) {
    const auto own = std::to_string(rank);
    const auto waits = job.of(rank).ask({.kind = Inquiry::Kind::get, .key = own}, {}, job.now);
    job.deliver();
    CHECK_FALSE(job.of(rank).has_reply(waits));
    (void)job.of(2 - rank).ask({.kind = Inquiry::Kind::set, .key = own, .value = "of " + own}, {}, job.now);
    job.deliver();
    CHECK(job.of(rank).take_reply(waits) == "of " + own);
  }
}

TEST_CASE("at an orderly end every rank hears of all that have left, in as many letters as ranks", "[launch]") {
  constexpr int ranks = 20;
  Boards job(ranks);
  for (int rank = 1; rank < ranks; ++rank) job.of(rank).leave(Progress{rank, 0, 0, "test"});
  job.deliver();
  for (int rank = 0; rank < ranks; ++rank)
    for (int other = 1; other < ranks; ++other) {
      CHECK(job.of(rank).roster().has_left(other));
      CHECK_THAT(job.of(rank).roster().departure_of(other),
                 ContainsSubstring("after " + std::to_string(other) + " step"));
    }
  CHECK(job.of(0).roster().is_alone());
  CHECK(job.letters[Word::left] == 2 * (ranks - 1));
}

TEST_CASE("who has left had its results before: they are sent first", "[launch]") {
  Boards job(2);
  const ExchangeKey key{"", 1};
  job.bring(1, key, 1, 2, "b");
  job.deliver();
  job.of(0).leave({});
  job.bring(0, key, 0, 2, "a");
  const auto letters = job.of(0).take_letters();
  REQUIRE(letters.size() == 2);
  CHECK(letters.front().message.word == Word::give);
  CHECK(letters.back().message.word == Word::left);
}

TEST_CASE("all ask at once how far the others are, and all are asked once", "[launch]") {
  constexpr int ranks = 20;
  Boards job(ranks);
  for (int rank = 0; rank < ranks; ++rank) job.say(rank, {Word::report, {}});
  job.deliver();
  CHECK(job.letters[Word::report] == 2 * (ranks - 1));
  CHECK(job.letters[Word::beat] == ranks - 1);
  job.now += std::chrono::milliseconds(200);
  job.say(3, {Word::report, {}});
  job.say(3, {Word::compare, {}});
  job.deliver();
  CHECK(job.letters[Word::beat] == 2 * (ranks - 1));
  CHECK_THAT(job.of(3).roster().suspect(5, {}, job.now), ContainsSubstring("rank 0 ("));  // as deliver() says
}

TEST_CASE("a part of the job hears at once of a member that has left without its exchange, and only then", "[launch]") {
  const std::vector<int> members = {1, 3, 2};
  for (const bool came : {false, true}) {
    Boards job(4);
    const ExchangeKey key{"/part", 1};
    job.bring(1, key, 0, 3, "a");
    if (came) job.bring(3, key, 1, 3, "b");
    job.of(3).leave({});
    job.deliver();
    CHECK(job.of(1).take_news());
    job.say(1, {Word::late, Inquest{key, "test", true, 0, members}.packed()});
    job.deliver();
    for (int rank = 0; rank < 3; ++rank)
      CHECK_THAT(job.of(rank).roster().failure(),
                 came ? ContainsSubstring("") : ContainsSubstring("test gave up: rank 3 (host node3"));
    if (!came) continue;
    CHECK(job.of(1).roster().failure().empty());
    job.bring(2, key, 2, 3, "c");
    job.deliver();
    CHECK(job.of(1).has_result(key));
  }
}

TEST_CASE("who is missing is said once, however many ask", "[launch]") {
  constexpr int ranks = 20;
  Boards job(ranks);
  const ExchangeKey key{"", 1};
  for (int rank = 1; rank < ranks; ++rank) {
    job.bring(rank, key, rank, ranks, "");
    job.say(rank, {Word::late, Inquest{key, "test", false, 0.5, {}}.packed()});
  }
  job.deliver();
  for (int rank = 0; rank < ranks; ++rank)
    CHECK_THAT(job.of(rank).roster().failure(),
               ContainsSubstring("test gave up after 0.5 s: no word from rank 0 (host node0"));
  CHECK(job.letters[Word::failed] == 2 * (ranks - 1));  // and back, as each passes on what it hears
}

TEST_CASE("a rank that found the meeting overdue, just before it was let in, is heard all the same", "[launch]") {
  Boards job(2);
  job.of(0).hear(1, {Word::overdue, Packer().real(2).take()}, {}, job.now);
  job.deliver();
  for (int rank = 0; rank < 2; ++rank) CHECK(job.of(rank).roster().failure().empty());
  const ExchangeKey key{"", 1};
  for (int rank = 0; rank < 2; ++rank) job.bring(rank, key, rank, 2, "");
  job.deliver();
  CHECK(job.of(1).has_result(key));
}
