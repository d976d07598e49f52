// Regression: how far predictions are from targets: MSE, RMSE, MAE, MAPE, the largest error, and R2.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>

#include <accel/core/error.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

struct RegressionOptions {
  std::int64_t outputs = 1;  // more: the last dimension, each judged by itself
};

struct RegressionErrors {
  double mse = 0;   // mean squared error
  double rmse = 0;  // its root
  double mae = 0;   // mean absolute error
  double mape = 0;  // mean absolute error as a part of the target, which is at least 2^-52, as scikit-learn's
  double max_error = 0;
  double r2 = 0;  // 1 minus the MSE over the variance of the target; NaN for less than two values
};

struct RegressionResult : RegressionErrors {  // the means over the outputs; of max_error the largest
  std::vector<RegressionErrors> outputs;
  std::int64_t count = 0;  // values of each output
};

/// All is f64, whatever is given. R2 asks for the spread of the targets: it is kept beside their mean, so that targets
/// with a large mean cost no digits, and is exactly 0 where all are equal.
///
/// Cost     update(): a few kernels; the host does not wait.
/// Order    update() is of this rank alone. compute() merges in the order of ranks.
/// Throws   InvalidArgument. A NaN is none: it shows in the errors.
/// Source   Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
///          R2 of targets that are all equal as r2_score of scikit-learn: 1 without an error, else 0.
class Regression : public Tally {
 public:
  explicit Regression(const RegressionOptions& options = {})
      : Tally(message("regression, outputs = ", checked(options.outputs)), 0, 1 + fields * options.outputs),
        options_(options) {}

  /// The leading `rows` rows count; all, if not said.
  ///
  /// Shape    [N, ...], both equal, real; with outputs above 1: [N, ..., outputs].
  void update(const at::Tensor& prediction, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    check(prediction, target);
    const std::int64_t held = detail::counted_rows("regression", target, rows);
    if (held == 0 || target.numel() == 0) return;
    const Unrecorded guard;
    const at::Tensor y = values(target, held);
    const at::Tensor error = values(prediction, held).sub_(y).abs_();
    use_device(target.device());
    const at::Tensor state = numbers_.narrow(0, 1, fields * options_.outputs).view({fields, options_.outputs});
    add_targets(state, y);
    state[squares].add_(error.square().sum(0));
    state[absolutes].add_(error.sum(0));
    state[parts].add_(error.div(y.abs().clamp_min_(epsilon)).sum(0));
    state[largest].copy_(at::maximum(state[largest], error.amax(0)));  // NaN stays
  }

  /// All NaN if nothing was added.
  template <class Ranks>
  [[nodiscard]] RegressionResult compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] RegressionResult result(const Totals& totals) const {
    RegressionResult result;
    result.count = static_cast<std::int64_t>(totals.sum(0));
    result.max_error = -std::numeric_limits<double>::infinity();
    const auto outputs = static_cast<std::size_t>(options_.outputs);
    for (std::size_t k = 0; k < outputs; ++k) {
      const RegressionErrors own = errors_of(totals, k);
      result.outputs.push_back(own);
      for (const auto error : {&RegressionErrors::mse, &RegressionErrors::rmse, &RegressionErrors::mae,
                               &RegressionErrors::mape, &RegressionErrors::r2})
        result.*error += own.*error / static_cast<double>(outputs);
      result.max_error = larger(result.max_error, own.max_error);
    }
    return result;
  }

 private:
  // Rows of the state, behind the number of values.
  enum Field : std::int64_t { reference, mean, spread, squares, absolutes, parts, largest, fields };
  static constexpr double epsilon = 0x1p-52;  // numpy.finfo(float64).eps
  static constexpr double nan = std::numeric_limits<double>::quiet_NaN();

  [[nodiscard]] static std::int64_t checked(std::int64_t outputs) {
    ACCEL_CHECK(outputs >= 1 && outputs <= (std::int64_t{1} << 31), InvalidArgument,
                "regression: expected 1 to 2^31 outputs, found ", outputs);
    return outputs;
  }

  void check(const at::Tensor& prediction, const at::Tensor& target) const {
    detail::check_pair("regression", prediction, target);
    const auto is_real = [](const at::Tensor& tensor) {
      return !tensor.is_complex() && tensor.scalar_type() != at::kBool;
    };
    ACCEL_CHECK(prediction.sizes() == target.sizes() && is_real(prediction) && is_real(target), InvalidArgument,
                "regression: expected numbers of the target's shape, found ", tensor::spec(prediction), " and ",
                tensor::spec(target), "; where only a 1 is between them, call .squeeze(1)");
    ACCEL_CHECK(options_.outputs == 1 || (target.dim() > 1 && target.size(-1) == options_.outputs), InvalidArgument,
                "regression: expected [N, ..., ", options_.outputs, "] for as many outputs, found ",
                tensor::spec(target));
  }

  /// f64[n, outputs], a copy.
  [[nodiscard]] at::Tensor values(const at::Tensor& of, std::int64_t rows) const {
    return of.detach().narrow(0, 0, rows).reshape({-1, options_.outputs}).to(at::kDouble, false, /*copy=*/true);
  }

  /// Their number, mean, and squared distances from it. A mean has no more digits than a target: what is kept is the
  /// mean of what they are above the first of all, so that batches which differ by little are merged with all digits.
  void add_targets(const at::Tensor& state, const at::Tensor& y) {
    const auto number = static_cast<double>(y.size(0));
    const at::Tensor before = numbers_.select(0, 0);
    state[reference].copy_(at::where(before.eq(0), y[0], state[reference]));
    const at::Tensor above = y.sub(state[reference]);
    const at::Tensor center = above.mean(0);
    const at::Tensor distances = above.sub(center).square_().sum(0);
    const at::Tensor all = before.add(number);
    const at::Tensor step = center.sub(state[mean]);
    const at::Tensor weight = before.mul(number).div_(all);
    state[spread].add_(distances).add_(step.mul(weight).mul_(step));
    state[mean].add_(step.mul(all.sub(before).div_(all)));
    before.copy_(all);
  }

  [[nodiscard]] static double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

  [[nodiscard]] RegressionErrors errors_of(const Totals& totals, std::size_t output) const {
    const auto place = [&](Field field) { return 1 + static_cast<std::size_t>(field * options_.outputs) + output; };
    double count = 0, first = 0, center = 0, distances = 0, maximum = 0;
    for (const auto& rank : totals.numbers) {
      const double own = rank[0];
      if (own == 0) continue;
      if (count == 0) first = rank[place(reference)];
      const double step = (rank[place(reference)] - first) + rank[place(mean)] - center;
      distances += rank[place(spread)] + step * (count * own / (count + own)) * step;
      count += own;
      center += step * (own / count);
      maximum = larger(maximum, rank[place(largest)]);
    }
    if (count == 0) return {nan, nan, nan, nan, nan, nan};
    const double squared = totals.sum(place(squares));
    RegressionErrors errors{.mse = squared / count,
                            .rmse = std::sqrt(squared / count),
                            .mae = totals.sum(place(absolutes)) / count,
                            .mape = totals.sum(place(parts)) / count,
                            .max_error = maximum,
                            .r2 = nan};
    if (count >= 2) errors.r2 = squared == 0 ? 1 : distances == 0 && !std::isnan(squared) ? 0 : 1 - squared / distances;
    return errors;
  }

  RegressionOptions options_;
};

static_assert(Metric<Regression>);

}  // namespace accel::inline v0_1::metrics
