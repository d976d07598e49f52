// ThreadSanitizer itself: what it would miss in a rank, no other test under it could tell.
#include "support/ranks.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <thread>

using namespace accel::testing;

TEST_CASE("a data race in a rank is seen, and fails it", "[sanitizers]") {
  const auto results = run_ranks(2, [](Rank) {
    int count = 0;
    std::thread other([&count] { ++count; });
    ++count;
    other.join();
  });
  if (in_another_launch(results)) return;
  for (const auto& result : results) {
    CHECK(result.exit_code == 66);  // ThreadSanitizer's own
    CHECK_THAT(result.output, Catch::Matchers::ContainsSubstring("ThreadSanitizer: data race"));
    CHECK_THAT(result.output, Catch::Matchers::ContainsSubstring("race_test.cpp"));
  }
}
