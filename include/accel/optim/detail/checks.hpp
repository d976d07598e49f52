// What the options of most rules must be.
#pragma once

#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::optim::detail {

/// Throws   InvalidArgument unless each is.
inline void check_not_negative(std::string_view rule,
                               std::initializer_list<std::pair<std::string_view, double>> options) {
  for (const auto& [name, value] : options)
    ACCEL_CHECK(value >= 0, InvalidArgument, rule, ": ", name, " = ", value, " must be at least 0");
}

/// Throws   InvalidArgument unless they are weights of averages.
inline void check_betas(std::string_view rule, std::span<const double> betas) {
  for (const double beta : betas)
    ACCEL_CHECK(beta >= 0 && beta < 1, InvalidArgument, rule, ": beta = ", beta, " must be in [0, 1)");
}

}  // namespace accel::inline v0_1::optim::detail
