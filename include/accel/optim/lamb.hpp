// LAMB: Adam's step of each parameter, made as long as its weights times lr.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_neg.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sqrt.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <accel/core/fields.hpp>
#include <accel/optim/blocks.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

struct LAMBOptions {
  LearningRate lr = 1e-3;                   // TensorFlow Addons' and apex's
  std::array<double, 2> betas{0.9, 0.999};  // You et al. 2020, section 4
  double eps = 1e-6;                        // the same
  double weight_decay = 1e-2;               // the same, for BERT
  bool always_adapt = false;                // also where weight_decay is 0: there steps are Adam's, as in apex
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = LAMBOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"betas", &O::betas}, Field{"eps", &O::eps},
                      Field{"weight_decay", &O::weight_decay}, Field{"always_adapt", &O::always_adapt},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// The step u is Adam's with bias correction, and weight_decay times the weights w; w -= lr |w| / |u| u, where the
/// ratio is 1 if either norm is 0. Give it decay_groups(): biases and norms are then neither decayed nor adapted.
///
/// Memory   8 bytes per parameter in f32. In bf16 8, and 4 of its master weight. While it steps, two copies of 2^16
///          elements, on a GPU of 2^22, or of one larger parameter.
/// State    per parameter exp_avg and exp_avg_sq, and a count of steps.
/// Source   You et al. 2020, Large Batch Optimization for Deep Learning, algorithm 2, with the identity for phi.
/// Differs  from apex's FusedLAMB, which also divides gradients by their global norm: that is clip_grad_norm_.
class LAMB : public FlatOptimizer<LAMB, LAMBOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "LAMB";
  static constexpr bool is_elementwise = false;  // a norm is of a whole parameter

  static void check(const LAMBOptions& options) {
    detail::check_not_negative(
        name, {{"lr", options.lr.value()}, {"eps", options.eps}, {"weight_decay", options.weight_decay}});
    detail::check_betas(name, options.betas);
  }

  [[nodiscard]] static std::span<const std::string_view> states(const LAMBOptions&) {
    static constexpr std::array<std::string_view, 2> words = {"exp_avg", "exp_avg_sq"};
    return words;
  }

  static void apply(Batch& batch, const LAMBOptions& options) {
    const auto dtype = batch.parameters.front().scalar_type();
    const auto correction = [&, steps = batch.steps.front().to(at::kDouble)](double beta) {
      return at::pow(beta, steps).neg_().add_(1);
    };
    const at::Tensor first = correction(options.betas[0]).to(dtype);
    const at::Tensor second = correction(options.betas[1]).sqrt_().to(dtype);
    const bool adapts = options.weight_decay != 0 || options.always_adapt;
    in_blocks(batch, is_elementwise, block_of(batch), [&](Batch& part, std::size_t, std::int64_t) {
      const std::vector<at::Tensor> gradients = options.maximize ? at::_foreach_neg(part.gradients) : part.gradients;
      at::_foreach_lerp_(part.states[0], gradients, 1 - options.betas[0]);
      at::_foreach_mul_(part.states[1], options.betas[1]);
      at::_foreach_addcmul_(part.states[1], gradients, gradients, 1 - options.betas[1]);
      const std::vector<at::Tensor> roots = at::_foreach_sqrt(part.states[1]);
      at::_foreach_div_(roots, second);
      at::_foreach_add_(roots, options.eps);
      const std::vector<at::Tensor> update = at::_foreach_div(part.states[0], roots);
      at::_foreach_div_(update, first);
      if (options.weight_decay != 0) at::_foreach_add_(update, part.parameters, options.weight_decay);
      options.lr.pass_to([&](const auto& lr) {
        if (adapts) {
          const std::vector<at::Tensor> lengths = ratios(part.parameters, update).mul(lr).unbind();
          for (std::size_t k = 0; k < update.size(); ++k) update[k].mul_(lengths[k]);
        } else {
          at::_foreach_mul_(update, lr);
        }
      });
      at::_foreach_sub_(part.parameters, update);
    });
  }

 private:
  /// |w| / |u| of each, as one tensor.
  [[nodiscard]] static at::Tensor ratios(const std::vector<at::Tensor>& weights,
                                         const std::vector<at::Tensor>& update) {
    const at::Tensor w = at::stack(at::_foreach_norm(weights));
    const at::Tensor u = at::stack(at::_foreach_norm(update));
    return at::where(w.gt(0).logical_and_(u.gt(0)), w.div(u), 1);
  }
};

static_assert(UpdateRule<LAMB>);

}  // namespace accel::inline v0_1::optim
