// Fp16: forward under autocast in fp16, weights and gradients in f32, and a scaled loss.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/precision/autocast.hpp>
#include <accel/precision/loss_scaler.hpp>
#include <accel/precision/precision.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::precision {

/// torch.autocast with fp16 and torch.amp.GradScaler, on GPU and CPU.
///
/// Memory   per parameter as Fp32, and 2 bytes for the casts of weights while forward runs.
/// State    the scaler's.
/// Source   Micikevicius et al. 2018, Mixed Precision Training.
/// Differs  Accelerate trains in f32 without a word where it is asked for fp16 on the CPU.
class Fp16 : public Passthrough {
 public:
  using Options = LossScalerOptions;
  static constexpr std::string_view name = "fp16";
  static constexpr bool scales_loss = true;

  Fp16(const Options& options, c10::Device on) : Passthrough(on), scaler_(options, on) {}

  /// Trainable weights in fp16 have gradients in fp16, which lose again what the scale has saved when it is divided
  /// out: GradScaler refuses them, too. Those of bf16 need no scale, and its unscaling on CUDA does not take them.
  void check(const tensor::Record& record) const { check(record, device); }
  static void check(const tensor::Record& record, c10::Device device) {
    for (std::size_t i = 0; i < record.parameters.size(); ++i) {
      if (!record.trainable[i]) continue;
      const auto dtype = record.dtypes[i];
      ACCEL_CHECK(dtype != at::kHalf && (dtype != at::kBFloat16 || !device.is_cuda()), InvalidArgument,
                  "prepare: precision fp16 scales the loss, and gradients that are divided by the scale again must be ",
                  "f32, but ", record.parameters[i].name, " of ", record.label, " is ", tensor::dtype_name(dtype),
                  " and requires a gradient; keep weights in f32, forward runs in fp16 by itself",
                  dtype == at::kBFloat16 ? "; or take precision::Bf16, which needs no scale" : "");
    }
  }

  [[nodiscard]] Autocast autocast(bool enabled, bool cache) const { return {device.type(), at::kHalf, enabled, cache}; }
  template <class Tree>
  [[nodiscard]] auto output(Tree&& tree) const {
    return in_float(std::forward<Tree>(tree));
  }

  [[nodiscard]] LossScaler* scaler() { return &scaler_; }
  [[nodiscard]] tensor::StateDict state_dict() const { return scaler_.state_dict(); }
  void load_state_dict(const tensor::StateDict& state) { scaler_.load_state_dict(state); }

 private:
  LossScaler scaler_;
};

}  // namespace accel::inline v0_1::precision

static_assert(accel::Precision<accel::precision::Fp16>);
