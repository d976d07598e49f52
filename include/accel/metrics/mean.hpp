// Mean: of values, each by its weight, over everything that any rank has added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/sum.h>

#include <accel/core/error.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

/// Of losses while training, accelerator.running_mean() takes the rows of the current batch by itself. This one has a
/// state to save, takes values of each row, and is computed in one message with other metrics.
///
/// Cost     update(): a few small kernels; the host does not wait. Sums are f64, whatever the values are.
/// Order    update() is of this rank alone.
/// Throws   InvalidArgument. A NaN is none: it shows in the mean.
class Mean : public Tally {
 public:
  Mean() : Tally("mean", 0, 2) {}

  /// Every element of the leading `rows` rows (all, if not said) counts once.
  ///
  /// Shape    values: [N, ...], real.
  void update(const at::Tensor& values, std::optional<std::int64_t> rows = {}) {
    check(values, rows);
    const Unrecorded guard;
    const at::Tensor counted = values.detach().narrow(0, 0, rows.value_or(values.size(0)));
    add(at::sum(counted, at::kDouble), static_cast<double>(counted.numel()));
  }

  /// Every element counts by its weight; by weight 0 not even a NaN.
  ///
  /// Shape    weights: that of the values.
  void update(const at::Tensor& values, const at::Tensor& weights, std::optional<std::int64_t> rows = {}) {
    check(values, rows);
    check(weights, rows);
    ACCEL_CHECK(values.sizes() == weights.sizes() && values.device() == weights.device(), InvalidArgument,
                "mean: expected weights like the values ", tensor::Spec::of(values), ", found ",
                tensor::Spec::of(weights), "; give every value a weight, with .expand_as(values) where they share it");
    const Unrecorded guard;
    const std::int64_t counted = rows.value_or(values.size(0));
    const at::Tensor by = weights.detach().narrow(0, 0, counted).to(at::kDouble);
    const at::Tensor products = values.detach().narrow(0, 0, counted).to(at::kDouble).mul(by);
    add(products.masked_fill(by.eq(0), 0).sum(), by.sum());
  }

  /// One number that is itself the mean of `count` values, as a loss is; of none it does not count, even if it is NaN.
  ///
  /// Shape    value: one element.
  void update_mean(const at::Tensor& value, std::int64_t count) {
    ACCEL_CHECK(value.defined() && value.numel() == 1 && !value.is_complex(), InvalidArgument,
                "mean: expected one real number, found ", tensor::spec(value), "; update() takes one for each row");
    ACCEL_CHECK(count >= 0, InvalidArgument, "mean: expected a count of at least 0, found ", count);
    if (count == 0) return;
    const Unrecorded guard;
    const auto weight = static_cast<double>(count);
    add(value.detach().reshape({}).to(at::kDouble).mul(weight), weight);
  }

  /// NaN if nothing was added, or all by weight 0.
  template <class Ranks>
  [[nodiscard]] double compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] double result(const Totals& totals) const {
    const double weight = totals.sum(1);
    return weight == 0 ? std::numeric_limits<double>::quiet_NaN() : totals.sum(0) / weight;
  }

 private:
  static void check(const at::Tensor& values, detail::Rows rows) {
    ACCEL_CHECK(values.defined() && values.dim() > 0 && !values.is_complex(), InvalidArgument,
                "mean: expected real values, one row per sample, found ", tensor::spec(values),
                "; update_mean() takes the mean of a batch");
    (void)detail::counted_rows("mean", values, rows);
  }

  /// `weight` is a number or f64[].
  template <class Weight>
  void add(const at::Tensor& sum, const Weight& weight) {
    use_device(sum.device());
    numbers_.select(0, 0).add_(sum);
    numbers_.select(0, 1).add_(weight);
  }
};

static_assert(Metric<Mean>);

}  // namespace accel::inline v0_1::metrics
