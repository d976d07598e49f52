// Rounds: when the loss scale is updated, for one optimizer and for several.
#include <accel/precision/rounds.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string>

using accel::precision::Rounds;

namespace {

/// The rounds that end while optimizers A, B, C step in this order: `|` where one does.
std::string rounds(const std::string& steps, int optimizers) {
  Rounds all;
  std::vector<std::shared_ptr<Rounds::Participant>> who;
  for (int i = 0; i < optimizers; ++i) who.push_back(all.join());
  std::string text;
  for (const char step : steps) {
    const auto ends = all.step(*who[static_cast<std::size_t>(step - 'A')]);
    if (ends.before) text += '|';
    text += step;
    if (ends.after) text += '|';
  }
  return text;
}

}  // namespace

TEST_CASE("an optimizer that is alone has a round for each step", "[rounds]") {
  REQUIRE(rounds("AAA", 1) == "A|A|A|");
}

TEST_CASE("those that alternate have one round for all, in whatever order", "[rounds]") {
  REQUIRE(rounds("ABAB", 2) == "AB|AB|");
  REQUIRE(rounds("ABCCBA", 3) == "ABC|CBA|");
}

TEST_CASE("one that never steps holds up one round, once", "[rounds]") {
  REQUIRE(rounds("AAAA", 2) == "A|A|A|A|");
  REQUIRE(rounds("ABABAB", 3) == "AB|AB|AB|");
}

TEST_CASE("one that comes a second time ends the round; one that comes back is waited for again", "[rounds]") {
  REQUIRE(rounds("AAABAAABA", 2) == "A|A|A|BA|A|A|BA|");
}

TEST_CASE("one that is gone is not waited for", "[rounds]") {
  Rounds all;
  const auto first = all.join();
  auto second = all.join();
  REQUIRE(all.step(*first) == Rounds::Ends{false, false});
  REQUIRE(all.step(*second) == Rounds::Ends{false, true});
  second.reset();
  REQUIRE(all.step(*first) == Rounds::Ends{false, true});
  REQUIRE(all.step(*first) == Rounds::Ends{false, true});
}
