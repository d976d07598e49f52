// Bf16Weights: weights, gradients and forward in bf16; the optimizer keeps what bf16 has no bits for.
#pragma once

#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include <accel/precision/precision.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::precision {

/// The model's floating-point parameters and buffers become bf16, and so do the tensors that forward is given. Takes
/// the optimizers of accel::optim, which step f32 master weights, or round by chance: optim::LowPrecision.
///
/// Memory   per parameter 2 bytes of weight, 2 of gradient, and with AdamW 8 of states and 4 of master weight: 16;
///          with stochastic rounding 12. Gradients cross the ranks in half the bytes.
/// Source   Kalamkar et al. 2019; Zamirai et al. 2020, Revisiting BFloat16 Training.
struct Bf16Weights : Passthrough {
  using Passthrough::Passthrough;
  static constexpr std::string_view name = "bf16_weights";

  [[nodiscard]] std::optional<c10::ScalarType> weights_dtype() const { return at::kBFloat16; }

  template <class Argument>
  [[nodiscard]] decltype(auto) input(Argument&& argument) const {
    if constexpr (tensor::is_tree<std::remove_cvref_t<Argument>>()) {
      return tensor::map(std::forward<Argument>(argument), [](const at::Tensor& tensor) {
        return tensor.is_floating_point() ? tensor.to(at::kBFloat16) : tensor;
      });
    } else {
      return std::forward<Argument>(argument);
    }
  }
  template <class Tree>
  [[nodiscard]] auto output(Tree&& tree) const {
    return in_float(std::forward<Tree>(tree));
  }
};

}  // namespace accel::inline v0_1::precision

static_assert(accel::Precision<accel::precision::Bf16Weights>);
