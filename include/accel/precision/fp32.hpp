// Fp32: forward and backward in the dtype of the parameters, nothing scaled.
#pragma once

#include <string_view>

#include <accel/precision/precision.hpp>

namespace accel::inline v0_1::precision {

struct Fp32 : Passthrough {
  static constexpr std::string_view name = "fp32";
};

}  // namespace accel::inline v0_1::precision

static_assert(accel::Precision<accel::precision::Fp32>);
