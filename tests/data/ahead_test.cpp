// Ahead: what threads make comes in order, bounded, and without a trace of who was faster.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/ahead.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

namespace {

using accel::Seconds;
using accel::data::Ahead;
using namespace std::chrono_literals;

constexpr Seconds patience(60);

}  // namespace

TEST_CASE("items come in order, each once, whatever the number of threads and the depth", "[data][threads]") {
  for (const int workers : {1, 2, 5})
    for (const std::int64_t depth : {1, 2, 7}) {
      Ahead<std::int64_t> ahead(workers, depth, 3, 200, patience, [](std::int64_t number, int worker) {
        if (number % 7 == worker) std::this_thread::sleep_for(200us);  // so that others overtake
        return number * number;
      });
      for (std::int64_t number = 3; number < 200; ++number) REQUIRE(ahead.take() == number * number);
      REQUIRE_FALSE(ahead.take().has_value());
      REQUIRE_FALSE(ahead.take().has_value());
    }
}

TEST_CASE("nobody is further ahead than the depth, and nothing is made that nobody takes", "[data][threads]") {
  std::atomic<std::int64_t> made = 0;
  {
    Ahead<int> ahead(3, 4, 0, 1'000'000, patience, [&](std::int64_t, int) { return static_cast<int>(++made); });
    for (int taken = 0; taken < 50; ++taken) {
      (void)ahead.take();
      REQUIRE(made <= taken + 1 + 4);
    }
    std::this_thread::sleep_for(5ms);
    CHECK(ahead.has_next());
    CHECK(made == 54);
  }
  CHECK(made == 54);
}

TEST_CASE("an exception comes in its turn, and ends what follows", "[data][threads]") {
  Ahead<int> ahead(4, 8, 0, 100, patience, [](std::int64_t number, int) {
    if (number >= 5) throw std::runtime_error("item " + std::to_string(number));
    std::this_thread::sleep_for(1ms);
    return static_cast<int>(number);
  });
  for (int number = 0; number < 5; ++number) REQUIRE(ahead.take() == number);
  CHECK_THROWS_MATCHES(ahead.take(), std::runtime_error, Catch::Matchers::Message("item 5"));
  CHECK_FALSE(ahead.take().has_value());
}

TEST_CASE("going away in the middle waits for what is under way, and leaves no thread", "[data][threads]") {
  std::atomic<int> running = 0;
  for (int round = 0; round < 50; ++round) {
    Ahead<int> ahead(3, 6, 0, 1000, patience, [&](std::int64_t number, int) {
      ++running;
      std::this_thread::sleep_for(100us);
      --running;
      return static_cast<int>(number);
    });
    for (int number = 0; number < round % 4; ++number) (void)ahead.take();
  }
  CHECK(running == 0);
}

TEST_CASE("nothing to make needs no thread", "[data][threads]") {
  Ahead<int> none(2, 2, 5, 5, patience, [](std::int64_t, int) -> int { throw std::runtime_error("nobody asked"); });
  CHECK(none.has_next());
  CHECK_FALSE(none.take().has_value());
}

TEST_CASE("who does not return is named at the deadline, and left behind", "[data][threads]") {
  // Shared, because the thread outlives this test by a little.
  const auto let_go = std::make_shared<std::atomic<bool>>(false);
  const auto is_gone = std::make_shared<std::atomic<bool>>(false);
  {
    Ahead<int> ahead(1, 1, 0, 2, Seconds(0.02), [let_go, is_gone](std::int64_t, int) {
      while (!*let_go) std::this_thread::sleep_for(1ms);
      *is_gone = true;
      return 1;
    });
    CHECK_THROWS_MATCHES(
        ahead.take(), accel::DataError,
        Catch::Matchers::MessageMatches(Catch::Matchers::ContainsSubstring("not there after 0.02 s: the dataset")));
  }
  *let_go = true;
  while (!*is_gone) std::this_thread::sleep_for(1ms);
}

TEST_CASE("behind what failed nothing more is made", "[data][threads]") {
  std::atomic<int> calls = 0;
  {
    Ahead<int> ahead(1, 50, 0, 1000, patience, [&](std::int64_t number, int) {
      ++calls;
      if (number == 3) throw std::runtime_error("broken");
      return 1;
    });
    for (int number = 0; number < 3; ++number) (void)ahead.take();
    CHECK_THROWS_AS(ahead.take(), std::runtime_error);
  }
  CHECK(calls == 4);
}

TEST_CASE("who goes away does not wait for ever for a call that does not return", "[data][threads]") {
  const auto let_go = std::make_shared<std::atomic<bool>>(false);
  const auto is_gone = std::make_shared<std::atomic<bool>>(false);
  {
    Ahead<int> ahead(1, 2, 0, 2, Seconds(0.05), [let_go, is_gone](std::int64_t number, int) {
      if (number == 0) return 0;
      while (!*let_go) std::this_thread::sleep_for(1ms);
      *is_gone = true;
      return 1;
    });
    CHECK(ahead.take() == 0);
  }
  *let_go = true;
  while (!*is_gone) std::this_thread::sleep_for(1ms);
}

TEST_CASE("a patience without end is one", "[data][threads]") {
  Ahead<int> ahead(1, 1, 0, 1, Seconds(std::numeric_limits<double>::infinity()), [](std::int64_t, int) {
    std::this_thread::sleep_for(5ms);
    return 7;
  });
  CHECK(ahead.take() == 7);
}
