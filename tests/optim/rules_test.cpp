// Every rule is held to the laws of all, and so is one that a user has written.
#include "conformance/optimizer_suite.hpp"

#include <accel/accelerator.hpp>

using namespace accel;

namespace {

// doc:begin own_rule
struct SignOptions {
  optim::LearningRate lr = 1e-2;
  bool maximize = false;
  optim::LowPrecision low_precision = optim::LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = SignOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// Steps of lr against the sign of the gradient, with nothing to remember.
struct SignDescent : optim::FlatOptimizer<SignDescent, SignOptions> {
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "SignDescent";
  static constexpr bool is_elementwise = true;

  static void check(const SignOptions& options) {
    ACCEL_CHECK(options.lr >= 0, InvalidArgument, "lr = ", options.lr.value());
  }
  static std::span<const std::string_view> states(const SignOptions&) { return {}; }
  static at::Tensor initial(const SignOptions&, std::size_t, const at::Tensor&) { return {}; }
  static void apply(optim::Batch& batch, const SignOptions& options) {
    for (std::size_t k = 0; k < batch.parameters.size(); ++k)
      batch.parameters[k].sub_(batch.gradients[k].sign() *
                               (options.maximize ? -options.lr.value() : options.lr.value()));
  }
};
// doc:end own_rule

}  // namespace

ACCEL_OPTIMIZER_SUITE(SignDescent, {.lr = 1e-2})
ACCEL_OPTIMIZER_SUITE(optim::AdamW, {.lr = 1e-2},
                      {.lr = 1e-2, .betas = {0.8, 0.95}, .weight_decay = 0.3, .amsgrad = true, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Adam, {.lr = 1e-2, .weight_decay = 0.1},
                      {.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true})
ACCEL_OPTIMIZER_SUITE(optim::SGD, {.lr = 1e-2, .weight_decay = 0.1}, {.lr = 1e-2, .momentum = 0.9, .nesterov = true},
                      {.lr = 1e-2, .momentum = 0.9, .dampening = 0.2, .maximize = true})
ACCEL_OPTIMIZER_SUITE(
    optim::Adagrad, {.lr = 1e-2},
    {.lr = 1e-2, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.5, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Lion, {.lr = 1e-2}, {.lr = 1e-2, .weight_decay = 0.1, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::LAMB, {.lr = 1e-2}, {.lr = 1e-2, .weight_decay = 0},
                      {.lr = 1e-2, .weight_decay = 0, .always_adapt = true, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Adafactor, {.lr = 1e-2},
                      {.lr = 1e-2, .eps = {1e-5, 1e-2}, .d = 2, .weight_decay = 0.1, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Muon, {.lr = 1e-2},
                      {.lr = 1e-2, .nesterov = false, .ns_steps = 3, .adjust_lr_fn = optim::AdjustLr::match_rms_adamw})
