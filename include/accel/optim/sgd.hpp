// SGD: stochastic gradient descent with momentum, in one fused call over flat memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_fused_sgd.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/blocks.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// The defaults are those of torch.optim.SGD.
struct SGDOptions {
  LearningRate lr = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = SGDOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"momentum", &O::momentum}, Field{"dampening", &O::dampening},
                      Field{"weight_decay", &O::weight_decay}, Field{"nesterov", &O::nesterov},
                      Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// Memory   with momentum 4 bytes per parameter in f32, else none. In bf16 as much, and 4 of its master weight.
/// State    per parameter momentum_buffer, if there is momentum, and a count of steps.
/// Source   Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
///          The arithmetic is that of torch.optim.SGD(fused=True).
/// Differs  where weights of bf16 and fp16 are stepped as they are, on the CPU: see apply_in_float().
class SGD : public FlatOptimizer<SGD, SGDOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "SGD";
  static constexpr bool is_elementwise = true;

  static void check(const SGDOptions& options) {
    detail::check_not_negative(
        name, {{"lr", options.lr.value()}, {"momentum", options.momentum}, {"weight_decay", options.weight_decay}});
    ACCEL_CHECK(!options.nesterov || (options.momentum > 0 && options.dampening == 0), InvalidArgument,
                "SGD: nesterov needs momentum above 0 and no dampening; found momentum = ", options.momentum,
                ", dampening = ", options.dampening);
  }

  [[nodiscard]] static std::span<const std::string_view> states(const SGDOptions& options) {
    static constexpr std::array<std::string_view, 1> words = {"momentum_buffer"};
    return std::span(words).first(options.momentum > 0 ? 1 : 0);
  }

  static void apply(Batch& batch, const SGDOptions& options, const gradient::GradScale& scale) {
    // The first step takes the gradient undamped. Without dampening a buffer of zeros makes no difference, so
    // that nobody need know whether the first was skipped.
    const bool is_first = options.momentum > 0 && options.dampening != 0 ? batch.is_first() : batch.count == 1;
    if (batch.parameters.front().is_cpu() && is_low_precision(batch.parameters.front()))
      return apply_in_float(batch, options, scale, is_first);
    call(batch, options, scale, is_first);
  }

 private:
  static void call(const Batch& batch, const SGDOptions& options, const gradient::GradScale& scale, bool is_first) {
    const auto buffers = options.momentum > 0 ? at::TensorList(batch.states[0]) : at::TensorList();
    options.lr.pass_to([&](const auto& lr) {
      at::_fused_sgd_(batch.parameters, batch.gradients, buffers, options.weight_decay, options.momentum, lr,
                      options.dampening, options.nesterov, options.maximize, is_first, scale.divisor(),
                      scale.device_flag());
    });
  }

  /// LibTorch's kernel for the CPU leaves most weights of bf16 and fp16 as they are, and reads their momenta as if they
  /// were floats: github.com/pytorch/pytorch/issues/191763, in 2.11 to 2.13.
  static void apply_in_float(Batch& batch, const SGDOptions& options, const gradient::GradScale& scale, bool is_first) {
    in_blocks(batch, is_elementwise, block_of(batch), [&](Batch& part, std::size_t, std::int64_t) {
      Batch exact;
      const auto widen = [](const std::vector<at::Tensor>& from, std::vector<at::Tensor>& to) {
        for (const auto& tensor : from) to.push_back(tensor.to(at::kFloat));
      };
      widen(part.parameters, exact.parameters);
      widen(part.gradients, exact.gradients);
      exact.states.resize(part.states.size());
      for (std::size_t s = 0; s < part.states.size(); ++s) widen(part.states[s], exact.states[s]);
      call(exact, options, scale, is_first);
      at::_foreach_copy_(part.parameters, exact.parameters);
      if (scale.scale.defined()) at::_foreach_copy_(part.gradients, exact.gradients);
      for (std::size_t s = 0; s < part.states.size(); ++s) at::_foreach_copy_(part.states[s], exact.states[s]);
    });
  }
};

static_assert(UpdateRule<SGD>);

}  // namespace accel::inline v0_1::optim
