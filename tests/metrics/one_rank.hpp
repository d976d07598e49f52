// What the tests of metrics share: a rank of its own, and what is refused there.
#pragma once

#include <limits>
#include <string>
#include <utility>

#include <accel/backend/single.hpp>
#include <accel/core/error.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"

namespace accel::testing {

inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

inline backend::Single& one_rank() {
  static backend::Single single({}, {});
  return single;
}

template <class Body>
void check_refused(Body&& body, const std::string& why) {
  CHECK_THAT(thrown_by<InvalidArgument>(std::forward<Body>(body)), Catch::Matchers::ContainsSubstring(why));
}

}  // namespace accel::testing
