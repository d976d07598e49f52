// Adafactor: squared gradients of a matrix remembered as their means over rows and columns.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/optim/detail/checks.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// The defaults are those of torch.optim.Adafactor.
struct AdafactorOptions {
  LearningRate lr = 1e-2;              // the most that a step is of the weights' root mean square
  double beta2_decay = -0.8;           // squares are averaged with a weight of step ^ beta2_decay for the new one
  std::array<double, 2> eps{0, 1e-3};  // least root of a mean square, 0: that of the dtype; least size of weights
  double d = 1.0;                      // an update of a larger root mean square is cut down to it
  double weight_decay = 0.0;           // of the weights, times lr: decoupled from the gradient
  bool maximize = false;
  LowPrecision low_precision = LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = AdafactorOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"beta2_decay", &O::beta2_decay}, Field{"eps", &O::eps},
                      Field{"d", &O::d}, Field{"weight_decay", &O::weight_decay}, Field{"maximize", &O::maximize},
                      Field{"low_precision", &O::low_precision});
  }
};

/// Memory   of a matrix of m x n 4 (m + n) bytes in f32, of a vector 4 per parameter. In bf16 as much, and 4 per
///          parameter of its master weights. While it steps, a copy of the parameter that it is at.
/// State    per parameter of two dimensions and more row_var and col_var, else variance, and a count of steps.
/// Source   Shazeer & Stern 2018, Adafactor. The arithmetic is that of torch.optim.Adafactor(foreach=True), which
///          says where it differs from the paper.
/// Differs  eps[0] = 0 is its None. Lengths of steps stay on the device: the host waits for no norm.
class Adafactor : public FlatOptimizer<Adafactor, AdafactorOptions> {
 public:
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "Adafactor";
  static constexpr bool is_elementwise = false;  // means and norms are of a whole parameter

  static void check(const AdafactorOptions& options) {
    detail::check_not_negative(name, {{"lr", options.lr.value()},
                                      {"eps", options.eps[0]},
                                      {"eps", options.eps[1]},
                                      {"weight_decay", options.weight_decay}});
    ACCEL_CHECK(options.beta2_decay <= 0, InvalidArgument, "Adafactor: beta2_decay = ", options.beta2_decay,
                " must be at most 0");
    ACCEL_CHECK(options.d >= 1, InvalidArgument, "Adafactor: d = ", options.d, " must be at least 1");
  }

  [[nodiscard]] static std::span<const std::string_view> states(const AdafactorOptions&) {
    static constexpr std::array<std::string_view, 3> words = {"row_var", "col_var", "variance"};
    return words;
  }

  [[nodiscard]] static at::Tensor initial(const AdafactorOptions&, std::size_t s, const at::Tensor& parameter) {
    if ((s == 2) == (parameter.dim() > 1)) return {};
    if (s == 2) return at::zeros_like(parameter);
    std::vector<std::int64_t> sizes = parameter.sizes().vec();
    sizes[sizes.size() - 1 - s] = 1;
    return at::zeros(sizes, parameter.options().requires_grad(false));
  }

  static void apply(Batch& batch, const AdafactorOptions& options) {
    const auto dtype = batch.parameters.front().scalar_type();
    const at::Tensor steps = batch.steps.front().to(at::kDouble);
    options.lr.pass_to([&](const auto& lr) {
      const Common common{.new_share = steps.pow(options.beta2_decay).to(dtype),
                          .relative = at_most(steps.sqrt().reciprocal_(), lr),
                          .eps = options.eps[0] > 0 ? options.eps[0] : epsilon_of(dtype)};
      for (std::size_t k = 0; k < batch.parameters.size(); ++k) {
        if (batch.parameters[k].numel() == 0) continue;  // has no root mean square
        const at::Tensor length =
            root_mean_square(batch.parameters[k]).clamp_min_(options.eps[1]).mul_(common.relative);
        if (options.weight_decay != 0) batch.parameters[k].mul_(detail::decay_factor(lr, options.weight_decay, dtype));
        const at::Tensor update = direction(batch, k, options.maximize, common);
        const at::Tensor cut = root_mean_square(update).div_(options.d).clamp_min_(1);
        batch.parameters[k].sub_(update.mul_(length.div(cut).to(dtype)));
      }
    });
  }

 private:
  /// What all parameters of a step have in common.
  struct Common {
    at::Tensor new_share;  // [], of the dtype: of the new squares in their averages
    at::Tensor relative;   // f64[]
    double eps;
  };

  /// The gradient over the root of its mean square.
  [[nodiscard]] static at::Tensor direction(Batch& batch, std::size_t k, bool maximize, const Common& common) {
    const at::Tensor gradient = maximize ? batch.gradients[k].neg() : batch.gradients[k];
    at::Tensor squares;
    if (gradient.dim() > 1) {
      const at::Tensor &rows = batch.states[0][k], &columns = batch.states[1][k];
      rows.lerp_(mean_squares(gradient, -1), common.new_share);
      columns.lerp_(mean_squares(gradient, -2), common.new_share);
      squares = at::matmul(rows, columns).div_(rows.mean(-2, /*keepdim=*/true).clamp_min_(common.eps));
    } else {
      batch.states[2][k].lerp_(gradient.mul(gradient), common.new_share);
      squares = batch.states[2][k].clone();
    }
    return squares.clamp_min_(common.eps * common.eps).rsqrt_().mul_(gradient);
  }

  [[nodiscard]] static at::Tensor mean_squares(const at::Tensor& gradient, std::int64_t dim) {
    return at::linalg_vector_norm(gradient, 2, dim, /*keepdim=*/true).square_().div_(gradient.size(dim));
  }
  [[nodiscard]] static at::Tensor root_mean_square(const at::Tensor& tensor) {
    return at::linalg_vector_norm(tensor, 2).to(at::kDouble).div(std::sqrt(static_cast<double>(tensor.numel())));
  }

  [[nodiscard]] static at::Tensor at_most(const at::Tensor& numbers, double bound) { return numbers.clamp_max(bound); }
  [[nodiscard]] static at::Tensor at_most(const at::Tensor& numbers, const at::Tensor& bound) {
    return at::minimum(numbers, bound.to(at::kDouble));
  }

  /// The distance from 1 to the next number.
  [[nodiscard]] static double epsilon_of(at::ScalarType dtype) {
    if (dtype == at::kDouble) return std::numeric_limits<double>::epsilon();
    if (dtype == at::kBFloat16) return 0x1p-7;
    return dtype == at::kHalf ? 0x1p-10 : static_cast<double>(std::numeric_limits<float>::epsilon());
  }
};

static_assert(UpdateRule<Adafactor>);

}  // namespace accel::inline v0_1::optim
