#include <string_view>

#include <catch2/catch_test_macros.hpp>

#include <accel/core/named.hpp>
#include <accel/core/version.hpp>

namespace {
struct WithName {
  static constexpr std::string_view name = "with";
};
struct WithoutName {};
struct WithNumber {
  static constexpr int name = 3;
};
}  // namespace

TEST_CASE("a policy is named if its name is text", "[core]") {
  STATIC_REQUIRE(accel::Named<WithName>);
  STATIC_REQUIRE_FALSE(accel::Named<WithoutName>);
  STATIC_REQUIRE_FALSE(accel::Named<WithNumber>);
}

TEST_CASE("the version begins with the one in the namespace", "[core]") {
  STATIC_REQUIRE(std::string_view(ACCEL_VERSION).starts_with("0.1."));
}
