// SGD: stochastic gradient descent with momentum, in one fused call over flat memory.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/zeros_like.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
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

/// State    per parameter momentum_buffer, if there is momentum, and a count of steps.
/// Source   Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
///          The arithmetic is that of torch.optim.SGD(fused=True).
class SGD : public FlatOptimizer<SGD, SGDOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "SGD";
  static constexpr bool is_elementwise = true;

  static void check(const SGDOptions& options) {
    ACCEL_CHECK(options.lr >= 0, InvalidArgument, "SGD: lr = ", options.lr.value(), " must be at least 0");
    ACCEL_CHECK(options.momentum >= 0, InvalidArgument, "SGD: momentum = ", options.momentum, " must be at least 0");
    ACCEL_CHECK(options.weight_decay >= 0, InvalidArgument, "SGD: weight_decay = ", options.weight_decay,
                " must be at least 0");
    ACCEL_CHECK(!options.nesterov || (options.momentum > 0 && options.dampening == 0), InvalidArgument,
                "SGD: nesterov needs momentum above 0 and no dampening; found momentum = ", options.momentum,
                ", dampening = ", options.dampening);
  }

  [[nodiscard]] static std::span<const std::string_view> states(const SGDOptions& options) {
    static constexpr std::array<std::string_view, 1> words = {"momentum_buffer"};
    return std::span(words).first(options.momentum > 0 ? 1 : 0);
  }

  [[nodiscard]] static at::Tensor initial(const SGDOptions&, std::size_t, const at::Tensor& parameter) {
    return at::zeros_like(parameter);
  }

  static void apply(Batch& batch, const SGDOptions& options, const gradient::GradScale& scale) {
    // The first step takes the gradient undamped. Without dampening a buffer of zeros makes no difference, so
    // that nobody need know whether the first was skipped.
    const bool is_first = options.momentum > 0 && options.dampening != 0 ? batch.taken() == 1 : batch.count == 1;
    const auto buffers = options.momentum > 0 ? at::TensorList(batch.states[0]) : at::TensorList();
    options.lr.pass_to([&](const auto& lr) {
      at::_fused_sgd_(batch.parameters, batch.gradients, buffers, options.weight_decay, options.momentum, lr,
                      options.dampening, options.nesterov, options.maximize, is_first, scale.divisor(),
                      scale.device_flag());
    });
  }
};

static_assert(UpdateRule<SGD>);

}  // namespace accel::inline v0_1::optim
