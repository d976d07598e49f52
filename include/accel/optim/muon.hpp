// Muon: the momentum of a matrix, with all its singular values made about 1.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::optim {

/// How lr depends on the shape of a matrix of `rows` x `columns`.
enum class AdjustLr {
  original,         // sqrt(max(1, rows / columns)), Jordan 2024
  match_rms_adamw,  // 0.2 sqrt(max(rows, columns)), Liu et al. 2025: lr and weight_decay as for AdamW
};

[[nodiscard]] inline std::string_view name_of(AdjustLr choice) {
  return choice == AdjustLr::original ? "original" : "match_rms_adamw";
}

/// The defaults are those of torch.optim.Muon.
struct MuonOptions {
  LearningRate lr = 1e-3;
  double weight_decay = 0.1;  // of the weights, times lr: decoupled from the gradient
  double momentum = 0.95;
  bool nesterov = true;
  std::array<double, 3> ns_coefficients{3.4445, -4.7750, 2.0315};  // Jordan 2024: steepest at 0
  double eps = 1e-7;                                               // the same
  std::int64_t ns_steps = 5;                                       // the same
  AdjustLr adjust_lr_fn = AdjustLr::original;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = MuonOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"weight_decay", &O::weight_decay}, Field{"momentum", &O::momentum},
                      Field{"nesterov", &O::nesterov}, Field{"ns_coefficients", &O::ns_coefficients},
                      Field{"eps", &O::eps}, Field{"ns_steps", &O::ns_steps}, Field{"adjust_lr_fn", &O::adjust_lr_fn},
                      Field{"low_precision", &O::low_precision});
  }
};

/// For the matrices between the first and the last layer; the others are AdamW's, in an optimizer of its own.
///
/// Memory   4 bytes per parameter in f32. In bf16 4, and 4 of its master weight. While it steps, three copies in bf16
///          of the parameter that it is at, and one in f32.
/// State    per parameter momentum_buffer, and a count of steps.
/// Source   Jordan 2024, Muon: An optimizer for hidden layers in neural networks; Liu et al. 2025, Muon is Scalable for
///          LLM Training. The arithmetic is that of torch.optim.Muon: products of matrices are in bf16.
class Muon : public FlatOptimizer<Muon, MuonOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "Muon";
  static constexpr bool is_elementwise = false;  // a matrix is a whole

  static void check(const MuonOptions& options) {
    detail::check_not_negative(
        name, {{"lr", options.lr.value()}, {"momentum", options.momentum}, {"weight_decay", options.weight_decay}});
    ACCEL_CHECK(options.ns_steps >= 0 && options.ns_steps < 100, InvalidArgument, "Muon: ns_steps = ", options.ns_steps,
                " must be in [0, 100)");
  }

  static void check_parameter(const at::Tensor& parameter) {
    ACCEL_CHECK(parameter.dim() == 2, InvalidArgument, "Muon: expected a matrix, found ", tensor::spec(parameter),
                "; give parameters of other dimensions to an AdamW");
  }

  [[nodiscard]] static std::span<const std::string_view> states(const MuonOptions&) {
    static constexpr std::array<std::string_view, 1> words = {"momentum_buffer"};
    return words;
  }

  static void apply(Batch& batch, const MuonOptions& options) {
    options.lr.pass_to([&](const auto& lr) {
      for (std::size_t k = 0; k < batch.parameters.size(); ++k) {
        const at::Tensor &parameter = batch.parameters[k], &gradient = batch.gradients[k], &buffer = batch.states[0][k];
        buffer.lerp_(gradient, 1 - options.momentum);
        const at::Tensor update =
            orthogonal(options.nesterov ? gradient.lerp(buffer, options.momentum) : buffer, options);
        parameter.mul_(detail::decay_factor(lr, options.weight_decay, parameter.scalar_type()));
        step_along(update, lr, ratio(parameter, options.adjust_lr_fn), parameter);
      }
    });
  }

 private:
  /// About U V' of the singular value decomposition U S V', in bf16, by Newton and Schulz' iteration.
  [[nodiscard]] static at::Tensor orthogonal(const at::Tensor& matrix, const MuonOptions& options) {
    const auto& [a, b, c] = options.ns_coefficients;
    const bool is_tall = matrix.size(0) > matrix.size(1);
    at::Tensor x = matrix.to(at::kBFloat16, /*non_blocking=*/false, /*copy=*/true);
    if (is_tall) x = x.t();
    x.div_(at::linalg_vector_norm(x, 2).clamp_min_(options.eps));  // no singular value is above 1
    for (std::int64_t step = 0; step < options.ns_steps; ++step) {
      const at::Tensor gram = at::mm(x, x.t());
      x = at::addmm(x, at::addmm(gram, gram, gram, b, c), x, a);
    }
    return is_tall ? x.t() : x;
  }

  [[nodiscard]] static double ratio(const at::Tensor& matrix, AdjustLr choice) {
    const auto rows = static_cast<double>(matrix.size(0)), columns = static_cast<double>(matrix.size(1));
    return choice == AdjustLr::original ? std::sqrt(std::max(1.0, rows / columns))
                                        : 0.2 * std::sqrt(std::max(rows, columns));
  }

  static void step_along(const at::Tensor& update, double lr, double ratio, const at::Tensor& parameter) {
    parameter.add_(update, -(lr * ratio));
  }
  static void step_along(const at::Tensor& update, const at::Tensor& lr, double ratio, const at::Tensor& parameter) {
    const auto dtype = parameter.scalar_type();
    parameter.sub_(update.to(dtype).mul_(lr.to(at::kDouble).mul(ratio).to(dtype)));
  }
};

static_assert(UpdateRule<Muon>);

}  // namespace accel::inline v0_1::optim
