// Lion: steps of equal size along the signs of a momentum.
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
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_neg.h>
#include <ATen/ops/_foreach_sign.h>
#include <ATen/ops/_foreach_sub.h>

#include <accel/core/fields.hpp>
#include <accel/optim/blocks.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// A step is larger than one of AdamW, so lr is to be 3 to 10 times smaller than its, and weight_decay as many times
/// larger (Chen et al. 2023, section 5).
struct LionOptions {
  LearningRate lr = 1e-4;                  // Chen et al. 2023, its published code
  std::array<double, 2> betas{0.9, 0.99};  // the same, section 5
  double weight_decay = 0.0;               // of the weights, times lr: decoupled from the gradient
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = LionOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"betas", &O::betas}, Field{"weight_decay", &O::weight_decay},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// Memory   4 bytes per parameter in f32. In bf16 4, and 4 of its master weight. While it steps, two copies of 2^16
///          elements, on a GPU of 2^22.
/// Cost     five passes over blocks that stay in the cache: memory is read and written once.
/// State    per parameter exp_avg, and a count of steps.
/// Source   Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2.
class Lion : public FlatOptimizer<Lion, LionOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "Lion";
  static constexpr bool is_elementwise = true;

  static void check(const LionOptions& options) {
    detail::check_not_negative(name, {{"lr", options.lr.value()}, {"weight_decay", options.weight_decay}});
    detail::check_betas(name, options.betas);
  }

  [[nodiscard]] static std::span<const std::string_view> states(const LionOptions&) {
    static constexpr std::array<std::string_view, 1> words = {"exp_avg"};
    return words;
  }

  static void apply(Batch& batch, const LionOptions& options) {
    in_blocks(batch, is_elementwise, block_of(batch), [&](Batch& part, std::size_t, std::int64_t) {
      const auto dtype = part.parameters.front().scalar_type();
      const std::vector<at::Tensor> gradients = options.maximize ? at::_foreach_neg(part.gradients) : part.gradients;
      const std::vector<at::Tensor> update = at::_foreach_lerp(part.states[0], gradients, 1 - options.betas[0]);
      at::_foreach_sign_(update);
      at::_foreach_lerp_(part.states[0], gradients, 1 - options.betas[1]);
      options.lr.pass_to([&](const auto& lr) {
        if (options.weight_decay != 0)
          at::_foreach_mul_(part.parameters, detail::decay_factor(lr, options.weight_decay, dtype));
        step_along(update, lr, part);
      });
    });
  }

 private:
  static void step_along(const std::vector<at::Tensor>& signs, double lr, const Batch& part) {
    at::_foreach_add_(part.parameters, signs, -lr);
  }
  static void step_along(const std::vector<at::Tensor>& signs, const at::Tensor& lr, const Batch& part) {
    at::_foreach_mul_(signs, lr.to(part.parameters.front().scalar_type()));
    at::_foreach_sub_(part.parameters, signs);
  }
};

static_assert(UpdateRule<Lion>);

}  // namespace accel::inline v0_1::optim
