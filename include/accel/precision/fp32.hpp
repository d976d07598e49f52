// Fp32: forward and backward in the dtype of the parameters, nothing scaled.
#pragma once

#include <string_view>
#include <tuple>

#include <ATen/Context.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/precision/precision.hpp>

namespace accel::inline v0_1::precision {

struct Fp32Options {
  bool tf32 = false;  // CUDA's matrix products and convolutions of f32 with 10 bits of mantissa; for the process

  static constexpr auto fields() { return std::tuple(Field{"tf32", &Fp32Options::tf32}); }
};

/// Memory   per parameter 4 bytes of weight, 4 of gradient, and the optimizer's states: 8 for AdamW, 16 in all.
///          Several ranks have one more copy of the gradients while they differ from their flat memory: none on
///          the CPU.
struct Fp32 : Passthrough {
  using Options = Fp32Options;
  static constexpr std::string_view name = "fp32";

  /// Throws   ConfigError for tf32 without CUDA.
  Fp32(const Options& options, c10::Device on) : Passthrough(on) {
    if (!options.tf32) return;
    ACCEL_CHECK(on.is_cuda(), ConfigError, "precision fp32: tf32 is for CUDA, and this accelerator is on ", on.str());
    at::globalContext().setAllowTF32CuBLAS(true);
    at::globalContext().setAllowTF32CuDNN(true);
  }
};

}  // namespace accel::inline v0_1::precision

static_assert(accel::Precision<accel::precision::Fp32>);
