// Adam and AdamW: moments of the gradient and of its square, in one fused call over flat memory.
#pragma once

#include <array>
#include <span>
#include <string_view>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>

#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// The defaults are those of torch.optim.AdamW.
struct AdamWOptions {
  LearningRate lr = 1e-3;
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 1e-2;  // of the weights, times lr: decoupled from the gradient
  bool amsgrad = false;
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = AdamWOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"betas", &O::betas}, Field{"eps", &O::eps},
                      Field{"weight_decay", &O::weight_decay}, Field{"amsgrad", &O::amsgrad},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// The defaults are those of torch.optim.Adam.
struct AdamOptions {
  LearningRate lr = 1e-3;
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;            // added to the gradient, times the weights, ...
  bool decoupled_weight_decay = false;  // ... or AdamW's
  bool amsgrad = false;
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = AdamOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"betas", &O::betas}, Field{"eps", &O::eps},
                      Field{"weight_decay", &O::weight_decay},
                      Field{"decoupled_weight_decay", &O::decoupled_weight_decay}, Field{"amsgrad", &O::amsgrad},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

namespace detail {

/// What the two have in common.
template <class Rule, class Options>
class AdamFamily : public FlatOptimizer<Rule, Options> {
 public:
  using FlatOptimizer<Rule, Options>::FlatOptimizer;
  static constexpr bool is_elementwise = true;

  static void check(const Options& options) {
    detail::check_not_negative(
        Rule::name, {{"lr", options.lr.value()}, {"eps", options.eps}, {"weight_decay", options.weight_decay}});
    detail::check_betas(Rule::name, options.betas);
  }

  [[nodiscard]] static std::span<const std::string_view> states(const Options& options) {
    static constexpr std::array<std::string_view, 3> words = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
    return std::span(words).first(options.amsgrad ? 3 : 2);
  }

 protected:
  template <class FusedAdam>
  static void call(FusedAdam&& fused, Batch& batch, const Options& options, const gradient::GradScale& scale) {
    const auto largest = options.amsgrad ? at::TensorList(batch.states[2]) : at::TensorList();
    options.lr.pass_to([&](const auto& lr) {
      fused(batch.parameters, batch.gradients, batch.states[0], batch.states[1], largest, batch.steps, lr,
            options.betas[0], options.betas[1], options.weight_decay, options.eps, options.amsgrad, options.maximize,
            scale.divisor(), scale.device_flag());
    });
  }
};

}  // namespace detail

/// Memory   8 bytes per parameter in f32, with amsgrad 12. In bf16 as much, and 4 of its master weight.
/// State    per parameter exp_avg and exp_avg_sq, with amsgrad also max_exp_avg_sq, and a count of steps.
/// Source   Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.
///          The arithmetic is that of torch.optim.AdamW(fused=True).
/// Differs  torch::optim::AdamW of LibTorch takes about ten calls per parameter.
class AdamW : public detail::AdamFamily<AdamW, AdamWOptions> {
 public:
  static constexpr std::string_view name = "AdamW";
  using AdamFamily::AdamFamily;

  static void apply(Batch& batch, const AdamWOptions& options, const gradient::GradScale& scale) {
    call([](auto&&... all) { at::_fused_adamw_(all...); }, batch, options, scale);
  }
};

/// State    as AdamW.
/// Source   Kingma & Ba 2015, Adam: A Method for Stochastic Optimization. The arithmetic is that of
///          torch.optim.Adam(fused=True).
class Adam : public detail::AdamFamily<Adam, AdamOptions> {
 public:
  static constexpr std::string_view name = "Adam";
  using AdamFamily::AdamFamily;

  static void apply(Batch& batch, const AdamOptions& options, const gradient::GradScale& scale) {
    if (options.decoupled_weight_decay)
      call([](auto&&... all) { at::_fused_adamw_(all...); }, batch, options, scale);
    else
      call([](auto&&... all) { at::_fused_adam_(all...); }, batch, options, scale);
  }
};

static_assert(UpdateRule<AdamW> && UpdateRule<Adam>);

}  // namespace accel::inline v0_1::optim
