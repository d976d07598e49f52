// AdamW: Adam with decoupled weight decay, in one fused call over flat memory.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/optimizer.hpp>

namespace accel::inline v0_1::optim {

struct AdamWOptions {
  double lr = 1e-3;
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 1e-2;
  bool amsgrad = false;
  bool maximize = false;

  [[nodiscard]] std::string describe() const {
    return message("AdamW, lr = ", shortest(lr), ", betas = (", shortest(betas[0]), ", ", shortest(betas[1]),
                   "), eps = ", shortest(eps), ", weight_decay = ", shortest(weight_decay), amsgrad ? ", amsgrad" : "",
                   maximize ? ", maximize" : "");
  }
};

/// State    per parameter exp_avg and exp_avg_sq, with amsgrad also max_exp_avg_sq, and a count of steps.
/// Source   Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; the defaults are PyTorch's.
///          The arithmetic is that of torch.optim.AdamW(fused=True).
/// Differs  torch::optim::AdamW of LibTorch takes about ten calls per parameter.
class AdamW : public FusedOptimizer<AdamW, AdamWOptions> {
 public:
  static constexpr std::string_view name = "AdamW";

  explicit AdamW(std::vector<at::Tensor> parameters, AdamWOptions options = {})
      : FusedOptimizer({Group(std::move(parameters))}, options) {}
  explicit AdamW(std::vector<Group> groups, AdamWOptions defaults = {}) : FusedOptimizer(std::move(groups), defaults) {}

  static void check(const AdamWOptions& options) {
    ACCEL_CHECK(options.lr >= 0, InvalidArgument, "AdamW: lr = ", options.lr, " must be at least 0");
    for (const double beta : options.betas)
      ACCEL_CHECK(beta >= 0 && beta < 1, InvalidArgument, "AdamW: beta = ", beta, " must be in [0, 1)");
    ACCEL_CHECK(options.eps >= 0, InvalidArgument, "AdamW: eps = ", options.eps, " must be at least 0");
    ACCEL_CHECK(options.weight_decay >= 0, InvalidArgument, "AdamW: weight_decay = ", options.weight_decay,
                " must be at least 0");
  }

  [[nodiscard]] static std::size_t states(const AdamWOptions& options) { return options.amsgrad ? 3 : 2; }

  static void apply(Batch& batch, const AdamWOptions& options) {
    at::_fused_adamw_(batch.parameters, batch.gradients, batch.states[0], batch.states[1],
                      options.amsgrad ? at::TensorList(batch.states[2]) : at::TensorList(), batch.steps, options.lr,
                      options.betas[0], options.betas[1], options.weight_decay, options.eps, options.amsgrad,
                      options.maximize);
  }
};

}  // namespace accel::inline v0_1::optim
