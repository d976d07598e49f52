// Bf16: forward under autocast in bf16, weights and gradients in f32. Nothing is scaled: bf16 has f32's range.
#pragma once

#include <string_view>
#include <utility>

#include <accel/precision/autocast.hpp>
#include <accel/precision/precision.hpp>

namespace accel::inline v0_1::precision {

/// Memory   per parameter as Fp32, and 2 bytes for the casts of weights while forward runs.
/// Source   Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training.
struct Bf16 : Passthrough {
  using Passthrough::Passthrough;
  static constexpr std::string_view name = "bf16";

  [[nodiscard]] Autocast autocast(bool enabled, bool cache) const {
    return {device.type(), at::kBFloat16, enabled, cache};
  }
  template <class Tree>
  [[nodiscard]] auto output(Tree&& tree) const {
    return in_float(std::forward<Tree>(tree));
  }
};

}  // namespace accel::inline v0_1::precision

static_assert(accel::Precision<accel::precision::Bf16>);
