#include <string>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

#include <accel/core/error.hpp>
#include <accel/core/log.hpp>

#include "support/captured.hpp"

namespace {

using accel::testing::Captured;
using Level = accel::Log::Level;

std::string written(const accel::Log& log) {
  const Captured captured;
  log.info("step ", 3);
  log.warning("slow");
  return captured.text();
}

}  // namespace

TEST_CASE("the main rank writes infos, every rank writes warnings, with its label", "[core]") {
  CHECK(written(accel::Log("[rank 0/2]", true, Level::info)) ==
        "accel: [rank 0/2] step 3\naccel: [rank 0/2] warning: slow\n");
  CHECK(written(accel::Log("[rank 1/2]", false, Level::info)) == "accel: [rank 1/2] warning: slow\n");
  CHECK(written(accel::Log("", true, Level::info)) == "accel: step 3\naccel: warning: slow\n");
}

TEST_CASE("the level decides what is written", "[core]") {
  CHECK(written(accel::Log("", true, Level::warning)) == "accel: warning: slow\n");
  CHECK(written(accel::Log("", true, Level::off)).empty());
  CHECK(written(accel::Log()) == "accel: warning: slow\n");
}

TEST_CASE("a level is read by its name, and an unknown one lists the known", "[core]") {
  CHECK(accel::Log::parse("info", "ACCEL_LOG") == Level::info);
  CHECK(accel::Log::parse("warning", "ACCEL_LOG") == Level::warning);
  CHECK(accel::Log::parse("off", "ACCEL_LOG") == Level::off);
  CHECK_THROWS_MATCHES(accel::Log::parse("loud", "ACCEL_LOG"), accel::ConfigError,
                       Catch::Matchers::Message("ACCEL_LOG = \"loud\" is not one of: info, warning, off"));
}
