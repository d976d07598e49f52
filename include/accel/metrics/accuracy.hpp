// Accuracy: the part of the predictions that are right, or that have the right class among their first k.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

struct AccuracyOptions {
  std::int64_t top_k = 1;                      // of class scores: right if the class is among the k with the highest
  std::optional<std::int64_t> ignore_index{};  // targets that do not count, such as a padding's -100
  double threshold = 0;                        // a score above it says class 1: 0 for logits, 0.5 for probabilities
};

/// What update() takes, by shape:
///
///   prediction      target     it is right if
///   [N, C, ...]     [N, ...]   floating: fewer than top_k classes are before the target's. Before it are those of a
///                              higher score, and of equal ones those of a lower number, as argmax has it
///   [N, ...]        [N, ...]   floating: (it > threshold) is the target, 0 or 1
///   [N, ...]        [N, ...]   whole: it is the target
///
/// A target that is no class and not ignored, a NaN among scores, or a label below 0 is an error of compute().
///
/// Cost     update(): a few kernels, over the scores where there are; the host does not wait.
/// Order    update() is of this rank alone.
/// Differs  from scikit-learn's top_k_accuracy_score where scores are equal at the k-th place: there the higher number
///          is before.
class Accuracy : public Tally {
 public:
  explicit Accuracy(const AccuracyOptions& options = {}) : Tally(text(options), 4, 0), options_(options) {
    ACCEL_CHECK(options.top_k >= 1, InvalidArgument, "accuracy: expected top_k of at least 1, found ", options.top_k);
  }

  /// The leading `rows` rows count; all, if not said.
  void update(const at::Tensor& prediction, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    const detail::Form form = detail::form_of("accuracy", prediction, target);
    const bool has_k = form == detail::Form::class_scores ? options_.top_k <= prediction.size(1) : options_.top_k == 1;
    ACCEL_CHECK(has_k, InvalidArgument, "accuracy: there is no top ", options_.top_k, " of ", tensor::spec(prediction),
                "; give scores [N, C, ...] of at least so many classes");
    const std::int64_t counted = detail::counted_rows("accuracy", target, rows);
    if (counted == 0 || target.numel() == 0) return;
    const Unrecorded guard;
    const at::Tensor scores = prediction.detach().narrow(0, 0, counted);
    const at::Tensor classes = target.detach().narrow(0, 0, counted);
    const auto labels = detail::labels_of(
        scores, classes, form, {.classes = {}, .ignore_index = options_.ignore_index, .threshold = options_.threshold});
    const at::Tensor right = options_.top_k == 1 ? labels.prediction.eq(labels.target) : is_in_top(scores, classes);
    use_device(target.device());
    counts_.add_(at::stack({right.logical_and(labels.counted).sum(), labels.counted.sum(), labels.target_is_wrong.sum(),
                            labels.prediction_is_wrong.sum()}));
  }

  /// NaN if nothing counts.
  template <class Ranks>
  [[nodiscard]] double compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] double result(const Totals& totals) const {
    detail::refuse("accuracy", totals.counts[2], "target",
                   "below 0, or not below the number of classes; mend them, or say ignore_index");
    detail::refuse("accuracy", totals.counts[3], "prediction", "NaN or a label below 0");
    if (totals.counts[1] == 0) return std::numeric_limits<double>::quiet_NaN();
    return static_cast<double>(totals.counts[0]) / static_cast<double>(totals.counts[1]);
  }

 private:
  [[nodiscard]] static std::string text(const AccuracyOptions& options) {
    return message("accuracy, top_k = ", options.top_k, ", ignore_index = ", detail::text(options.ignore_index),
                   ", threshold = ", shortest(options.threshold));
  }

  /// bool[n]
  [[nodiscard]] at::Tensor is_in_top(const at::Tensor& scores, const at::Tensor& target) const {
    const std::int64_t classes = scores.size(1);
    const at::Tensor own = target.to(at::kLong).clamp(0, classes - 1).unsqueeze(1);  // beyond it: judged by the caller
    std::vector<std::int64_t> along(static_cast<std::size_t>(scores.dim()), 1);
    along[1] = classes;
    const at::Tensor numbers = at::arange(classes, own.options()).view(along);
    const at::Tensor own_score = scores.gather(1, own);
    const at::Tensor before = scores.eq(own_score).logical_and_(numbers.lt(own));
    before.logical_or_(scores.gt(own_score));
    return before.sum(1).lt(options_.top_k).reshape({-1});
  }

  AccuracyOptions options_;
};

static_assert(Metric<Accuracy>);

}  // namespace accel::inline v0_1::metrics
