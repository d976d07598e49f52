// Labels: predictions and targets of classification, checked by shape, and which of them count.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include <ATen/core/Tensor.h>
#include <ATen/ops/max.h>
#include <ATen/ops/ones.h>

#include <accel/core/error.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics::detail {

using Rows = std::optional<std::int64_t>;  // the leading ones that count; unset: all

/// What a prediction is. A target has one class for each element.
enum class Form {
  labels,        // of the target's shape, whole numbers
  scores,        // of the target's shape: each is the score of class 1, of two
  class_scores,  // with the classes as dimension 1, as cross_entropy takes them
};

[[nodiscard]] inline bool is_whole(const at::Tensor& tensor) {
  return at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true) &&
         !at::isBarebonesUnsignedType(tensor.scalar_type());
}

/// Throws   InvalidArgument for what has no rows, or lies on another device.
inline void check_pair(std::string_view metric, const at::Tensor& prediction, const at::Tensor& target) {
  ACCEL_CHECK(prediction.defined() && target.defined(), InvalidArgument, metric,
              ": expected a prediction and a target, found ", tensor::spec(prediction), " and ", tensor::spec(target));
  ACCEL_CHECK(target.dim() > 0, InvalidArgument, metric, ": expected one row per sample, found a target ",
              tensor::spec(target), "; call .unsqueeze(0) on one sample");
  ACCEL_CHECK(prediction.device() == target.device(), InvalidArgument, metric, ": the prediction is on ",
              prediction.device().str(), ", the target on ", target.device().str(),
              "; move one of them with .to(accelerator.device())");
}

/// Throws   InvalidArgument unless it is one of the three.
[[nodiscard]] inline Form form_of(std::string_view metric, const at::Tensor& prediction, const at::Tensor& target) {
  check_pair(metric, prediction, target);
  ACCEL_CHECK(is_whole(target), InvalidArgument, metric,
              ": expected a target of classes, i64, i32, i16, i8, u8 or bool, ", "found ", tensor::spec(target),
              "; convert it with .to(at::kLong) if its numbers are whole");
  if (prediction.sizes() == target.sizes()) {
    if (is_whole(prediction)) return Form::labels;
    if (prediction.is_floating_point()) return Form::scores;
  } else if (prediction.is_floating_point() && prediction.dim() == target.dim() + 1 && prediction.size(1) > 1) {
    auto shape = prediction.sizes().vec();
    shape.erase(shape.begin() + 1);
    if (target.sizes() == at::IntArrayRef(shape)) return Form::class_scores;
  }
  throw InvalidArgument(message(metric,
                                ": expected logits [N, C, ...] of at least 2 classes, or scores or labels [N, ...], "
                                "beside a target [N, ...], found ",
                                tensor::spec(prediction), " and ", tensor::spec(target),
                                "; with the classes last, move them with .movedim(-1, 1)"));
}

/// How many rows count.
///
/// Throws   InvalidArgument for more than there are.
[[nodiscard]] inline std::int64_t counted_rows(std::string_view metric, const at::Tensor& tensor, Rows rows) {
  const std::int64_t held = tensor.size(0);
  ACCEL_CHECK(!rows || (*rows >= 0 && *rows <= held), InvalidArgument, metric, ": rows = ", rows.value_or(0),
              " of a batch that has ", held, "; give position().rows of the loader that the batch is from");
  return rows.value_or(held);
}

/// One class for each element, flat, and which of them count.
struct Labels {
  at::Tensor prediction;           // i64[n]
  at::Tensor target;               // i64[n]
  at::Tensor counted;              // bool[n]: neither ignored nor wrong
  at::Tensor target_is_wrong;      // bool[n]: no class, and not ignored
  at::Tensor prediction_is_wrong;  // bool[n]: no class, or NaN, beside a good target
};

/// Which targets are one of `classes` (or any from 0), beside those to ignore.
///
/// Returns   {counted, wrong}, of the shape of `target`.
[[nodiscard]] inline std::pair<at::Tensor, at::Tensor> judge_target(const at::Tensor& target,
                                                                    std::optional<std::int64_t> classes,
                                                                    std::optional<std::int64_t> ignore_index) {
  const at::Tensor counted = target.ge(0);
  if (classes) counted.logical_and_(target.lt(*classes));
  if (!ignore_index) return {counted, counted.logical_not()};
  const at::Tensor kept = target.ne(*ignore_index);
  return {counted.logical_and(kept), counted.logical_not().logical_and_(kept)};
}

struct LabelOptions {
  std::optional<std::int64_t> classes;  // unset: those of class scores, or any
  std::optional<std::int64_t> ignore_index;
  double threshold;
};

/// `prediction` and `target` hold the rows that count, and are of `form`. Of equal scores the first class has it.
[[nodiscard]] inline Labels labels_of(const at::Tensor& prediction, const at::Tensor& target, Form form,
                                      const LabelOptions& options) {
  Labels labels;
  labels.target = target.reshape({-1}).to(at::kLong);
  auto classes = options.classes;
  at::Tensor is_wrong;
  if (form == Form::class_scores) {
    classes = prediction.size(1);
    const auto [best, place] = at::max(prediction, 1);  // NaN is above all numbers
    labels.prediction = place.reshape({-1});
    is_wrong = best.isnan().reshape({-1});
  } else if (form == Form::scores) {
    classes = 2;
    const at::Tensor scores = prediction.reshape({-1});
    labels.prediction = scores.gt(options.threshold).to(at::kLong);
    is_wrong = scores.isnan();
  } else {
    labels.prediction = prediction.reshape({-1}).to(at::kLong);
    is_wrong = labels.prediction.lt(0);
    if (classes) is_wrong.logical_or_(labels.prediction.ge(*classes));
  }
  std::tie(labels.counted, labels.target_is_wrong) = judge_target(labels.target, classes, options.ignore_index);
  labels.prediction_is_wrong = is_wrong.logical_and(labels.counted);
  labels.counted.logical_and_(is_wrong.logical_not_());
  return labels;
}

/// The same of the leading `rows` rows of what update() is given; nothing if there is nothing.
///
/// Throws   InvalidArgument for shapes and dtypes that are none of the three, or other than `options.classes`.
[[nodiscard]] inline std::optional<Labels> labels_of_rows(std::string_view metric, const at::Tensor& prediction,
                                                          const at::Tensor& target, Rows rows,
                                                          const LabelOptions& options) {
  const Form form = form_of(metric, prediction, target);
  const std::int64_t found = form == Form::class_scores ? prediction.size(1)
                             : form == Form::scores     ? 2
                                                        : *options.classes;
  ACCEL_CHECK(found == *options.classes, InvalidArgument, metric, ": expected scores of ", *options.classes,
              " classes, found ", tensor::spec(prediction), " beside a target ", tensor::spec(target),
              "; say how many there are: {.classes = ", found, "}");
  const std::int64_t counted = counted_rows(metric, target, rows);
  if (counted == 0 || target.numel() == 0) return std::nullopt;
  const Unrecorded guard;
  return labels_of(prediction.detach().narrow(0, 0, counted), target.detach().narrow(0, 0, counted), form, options);
}

/// Adds 1 to `counts` for each of `cells`, i64, all inside of it. As bincount, for which the host waits for a GPU.
inline void count_into(const at::Tensor& counts, const at::Tensor& cells) {
  counts.scatter_add_(0, cells, at::ones({1}, counts.options()).expand_as(cells));
}

/// Throws   InvalidArgument if there is anything wrong, as in "accuracy: 3 targets are outside of 0..9".
inline void refuse(std::string_view metric, std::int64_t wrong, std::string_view what, std::string_view why) {
  ACCEL_CHECK(wrong == 0, InvalidArgument, metric, ": ", wrong, " ", what, wrong == 1 ? " is " : "s are ", why);
}

[[nodiscard]] inline std::string outside(std::int64_t classes) {
  return message("outside of 0..", classes - 1);
}

[[nodiscard]] inline std::string text(std::optional<std::int64_t> number) {
  return number ? std::to_string(*number) : "none";
}

}  // namespace accel::inline v0_1::metrics::detail
