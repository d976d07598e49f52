// ConfusionMatrix: how often each class was taken for which.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

struct ConfusionMatrixOptions {
  std::int64_t classes = 2;
  std::optional<std::int64_t> ignore_index{};  // targets that do not count, such as a padding's -100
  double threshold = 0;                        // a score above it says class 1: 0 for logits, 0.5 for probabilities
};

/// update() takes predictions and targets as Accuracy does: class scores [N, classes, ...], scores of class 1 of two,
/// or labels. What is none of the classes and not ignored, or a NaN, is an error of compute().
///
/// Cost     update(): a few kernels; the host does not wait. compute(): a message of the matrix.
/// Memory   8 classes^2 bytes.
/// Order    update() is of this rank alone.
class ConfusionMatrix : public Tally {
 public:
  explicit ConfusionMatrix(const ConfusionMatrixOptions& options = {})
      : Tally(text(options), checked(options.classes) * options.classes + 3, 0), options_(options) {}

  /// The leading `rows` rows count; all, if not said.
  void update(const at::Tensor& prediction, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    const auto labels = detail::labels_of_rows("confusion matrix", prediction, target, rows,
                                               {options_.classes, options_.ignore_index, options_.threshold});
    if (!labels) return;
    const Unrecorded guard;
    const std::int64_t matrix = options_.classes * options_.classes;
    const at::Tensor cells =
        labels->target.clamp(0, options_.classes - 1).mul_(options_.classes).add_(labels->prediction);
    cells.masked_fill_(labels->counted.logical_not(), matrix + 2);  // behind wrong targets and wrong predictions
    cells.masked_fill_(labels->target_is_wrong, matrix);
    cells.masked_fill_(labels->prediction_is_wrong, matrix + 1);
    use_device(target.device());
    detail::count_into(counts_, cells);
  }

  /// i64[classes, classes] on the CPU: row i column j is how often a target i was taken for j. See normalized().
  template <class Ranks>
  [[nodiscard]] at::Tensor compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] at::Tensor result(const Totals& totals) const {
    const auto cells = static_cast<std::size_t>(options_.classes * options_.classes);
    detail::refuse("confusion matrix", totals.counts[cells], "target",
                   detail::outside(options_.classes) + "; mend them, or say ignore_index");
    detail::refuse("confusion matrix", totals.counts[cells + 1], "prediction",
                   "NaN or " + detail::outside(options_.classes));
    const Unrecorded guard;
    at::Tensor matrix = at::empty({options_.classes, options_.classes}, at::kLong);
    std::memcpy(matrix.mutable_data_ptr(), totals.counts.data(), cells * sizeof(std::int64_t));
    return matrix;
  }

 private:
  [[nodiscard]] static std::int64_t checked(std::int64_t classes) {
    // 2^15 classes are 8 GiB.
    ACCEL_CHECK(classes >= 2 && classes <= 32768, InvalidArgument,
                "confusion matrix: expected 2 to 32768 classes, found ", classes);
    return classes;
  }

  [[nodiscard]] static std::string text(const ConfusionMatrixOptions& options) {
    return message("confusion matrix, classes = ", options.classes,
                   ", ignore_index = ", detail::text(options.ignore_index),
                   ", threshold = ", shortest(options.threshold));
  }

  ConfusionMatrixOptions options_;
};

/// By what a confusion matrix is divided, so that sums are 1: those of rows, of columns, or of all.
enum class Normalize { target, prediction, all };

/// f64, of the shape of `matrix`. 0 where there is nothing to divide by, as scikit-learn's.
[[nodiscard]] inline at::Tensor normalized(const at::Tensor& matrix, Normalize by) {
  const at::Tensor counts = matrix.to(at::kDouble);
  const at::Tensor sum = by == Normalize::target       ? counts.sum(1, /*keepdim=*/true)
                         : by == Normalize::prediction ? counts.sum(0, /*keepdim=*/true)
                                                       : counts.sum();
  return counts.div(sum.masked_fill(sum.eq(0), 1));
}

static_assert(Metric<ConfusionMatrix>);

}  // namespace accel::inline v0_1::metrics
