#include <chrono>
#include <sstream>
#include <string>
#include <thread>

#include <catch2/catch_test_macros.hpp>

#include <accel/core/units.hpp>

using namespace accel::literals;
using namespace std::chrono_literals;

TEST_CASE("sizes are written with their unit and compare as bytes", "[core]") {
  CHECK((25_MiB).count == 25 * 1024 * 1024);
  CHECK(1_MiB == 1024_KiB);
  CHECK(1_KiB > 1023_B);
}

TEST_CASE("sizes print in the largest unit that is exact", "[core]") {
  const auto printed = [](accel::Bytes bytes) {
    std::ostringstream out;
    out << bytes;
    return out.str();
  };
  CHECK(printed(25_MiB) == "25 MiB");
  CHECK(printed(1536_KiB) == "1536 KiB");
  CHECK(printed(1025_B) == "1025 B");
  CHECK(printed(0_B) == "0 B");
}

TEST_CASE("a deadline's remaining time is positive before, and still 1 ms after it has passed", "[core]") {
  const auto far = accel::Deadline::in(accel::Seconds(100));
  CHECK_FALSE(far.passed());
  CHECK(far.remaining() > 99s);
  CHECK(far.remaining() <= 100s);
  CHECK(far.span_s() == 100.0);

  const auto near = accel::Deadline::in(accel::Seconds(0.001));
  std::this_thread::sleep_for(5ms);
  CHECK(near.passed());
  CHECK(near.remaining() == 1ms);  // LibTorch would read 0 as "for ever"
}
