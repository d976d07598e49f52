// Adagrad: a learning rate for every element, that falls with the sum of its squared gradients.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/full_like.h>

#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// The defaults are those of torch.optim.Adagrad.
struct AdagradOptions {
  LearningRate lr = 1e-2;
  double lr_decay = 0.0;  // of lr: lr / (1 + (step - 1) lr_decay)
  double weight_decay = 0.0;
  double initial_accumulator_value = 0.0;
  double eps = 1e-10;
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = AdagradOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"lr_decay", &O::lr_decay}, Field{"weight_decay", &O::weight_decay},
                      Field{"initial_accumulator_value", &O::initial_accumulator_value}, Field{"eps", &O::eps},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// Memory   4 bytes per parameter in f32. In bf16 4, and 4 of its master weight.
/// State    per parameter sum, of squared gradients, and a count of steps.
/// Source   Duchi et al. 2011, Adaptive Subgradient Methods. The arithmetic is that of
///          torch.optim.Adagrad(fused=True).
class Adagrad : public FlatOptimizer<Adagrad, AdagradOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "Adagrad";
  static constexpr bool is_elementwise = true;

  static void check(const AdagradOptions& options) {
    detail::check_not_negative(name, {{"lr", options.lr.value()},
                                      {"lr_decay", options.lr_decay},
                                      {"weight_decay", options.weight_decay},
                                      {"initial_accumulator_value", options.initial_accumulator_value},
                                      {"eps", options.eps}});
  }

  [[nodiscard]] static std::span<const std::string_view> states(const AdagradOptions&) {
    static constexpr std::array<std::string_view, 1> words = {"sum"};
    return words;
  }

  [[nodiscard]] static at::Tensor initial(const AdagradOptions& options, std::size_t, const at::Tensor& parameter) {
    return at::full_like(parameter, options.initial_accumulator_value);
  }

  static void apply(Batch& batch, const AdagradOptions& options, const gradient::GradScale& scale) {
    options.lr.pass_to([&](const auto& lr) {
      at::_fused_adagrad_(batch.parameters, batch.gradients, batch.states[0], batch.steps, lr, options.lr_decay,
                          options.weight_decay, options.eps, options.maximize, scale.divisor(), scale.device_flag());
    });
  }
};

static_assert(UpdateRule<Adagrad>);

}  // namespace accel::inline v0_1::optim
