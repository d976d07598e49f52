// Progress: when it speaks, and what it says.
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <accel/core/progress.hpp>

#include <catch2/catch_test_macros.hpp>

using accel::Counted;
using accel::Progress;

namespace {

/// Lines as they are shown, by a clock that a test sets.
struct Shown {
  std::chrono::steady_clock::time_point now{};
  std::vector<std::string> lines;

  accel::ProgressOptions options() {
    return {.show = [this](const std::string& line) { lines.push_back(line); }, .now = [this] { return now; }};
  }
  void pass(std::chrono::milliseconds span) { now += span; }
};

}  // namespace

TEST_CASE("progress is silent for two seconds and then shows a line every two seconds", "[core]") {
  using namespace std::chrono_literals;
  Shown shown;
  Progress progress("indexing shards/000.tar", 4'000'000'000, Counted::bytes, shown.options());
  for (std::int64_t step = 1; step <= 100; ++step) {
    shown.pass(50ms);  // 5 s in all
    progress.reached(step * 10'000'000);
  }
  CHECK(shown.lines ==
        std::vector<std::string>{"indexing shards/000.tar: 0.4 of 4.0 GB", "indexing shards/000.tar: 0.8 of 4.0 GB"});
  shown.pass(10s);
  progress.rename("indexing shards/001.tar");
  progress.reached(4'000'000'000);
  progress.reached(4'000'000'000);
  CHECK(shown.lines.size() == 3);
  CHECK(shown.lines.back() == "indexing shards/001.tar: 4.0 of 4.0 GB");
}

TEST_CASE("progress counts in the unit of the whole", "[core]") {
  using accel::detail::share_of;
  CHECK(share_of(7, 999, Counted::bytes) == "7 of 999 B");
  CHECK(share_of(7, 1000, Counted::bytes) == "0.0 of 1.0 kB");
  CHECK(share_of(1'250'000, 12'500'000, Counted::bytes) == "1.2 of 12.5 MB");
  CHECK(share_of(0, 3'000'000'000'000'000, Counted::bytes) == "0.0 of 3000.0 TB");
  CHECK(share_of(12, 4096, Counted::rows) == "12 of 4096 rows");
  CHECK(share_of(0, 0, Counted::bytes) == "0 of 0 B");
}
