#include <string>
#include <type_traits>

#include <catch2/catch_test_macros.hpp>

#include <accel/core/error.hpp>

TEST_CASE("every error is an accel::Error and a std::runtime_error", "[core]") {
  STATIC_REQUIRE(std::is_base_of_v<std::runtime_error, accel::Error>);
  STATIC_REQUIRE(std::is_base_of_v<accel::Error, accel::InvalidArgument>);
  STATIC_REQUIRE(std::is_base_of_v<accel::Error, accel::ConfigError>);
  STATIC_REQUIRE(std::is_base_of_v<accel::Error, accel::CommError>);
  STATIC_REQUIRE(std::is_base_of_v<accel::Error, accel::CheckpointError>);
}

TEST_CASE("a message streams its parts", "[core]") {
  CHECK(accel::message("expected ", 3, ", found ", 4.5, '!') == "expected 3, found 4.5!");
}

TEST_CASE("a failed check throws the named type with its message", "[core]") {
  const int found = 3;
  CHECK_NOTHROW([&] { ACCEL_CHECK(found == 3, accel::InvalidArgument, "unused"); }());
  try {
    ACCEL_CHECK(found == 4, accel::InvalidArgument, "expected 4, found ", found);
    FAIL("did not throw");
  } catch (const accel::InvalidArgument& error) {
    CHECK(std::string(error.what()) == "expected 4, found 3");
  }
}

TEST_CASE("a check that holds does not build its message", "[core]") {
  int built = 0;
  const auto part = [&built] { return ++built; };
  ACCEL_CHECK(true, accel::Error, part());
  CHECK(built == 0);
}

TEST_CASE("an error carries the label of the outermost facade once", "[core]") {
  const auto fail = [] { throw accel::CommError("no word from rank 1"); };
  const auto twice = [&] { accel::labelled("[rank 0/2]", [&] { accel::labelled("[rank 0/2]", fail); }); };
  try {
    twice();
    FAIL("did not throw");
  } catch (const accel::CommError& error) {
    CHECK(std::string(error.what()) == "[rank 0/2] no word from rank 1");
  }
}

TEST_CASE("an empty label leaves the message alone, so that a later one still counts", "[core]") {
  accel::Error error("text");
  error.add_label("");
  CHECK(std::string(error.what()) == "text");
  error.add_label("[rank 1/2]");
  CHECK(std::string(error.what()) == "[rank 1/2] text");
}

TEST_CASE("labelled hands through the body's result, references included", "[core]") {
  int value = 7;
  int& same = accel::labelled("[rank 0/2]", [&]() -> int& { return value; });
  CHECK(&same == &value);
}
