// PrecisionRecallF1: how many of those taken for a class are of it, how many of it were found, and both in one.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

/// How the scores of classes become one. As scikit-learn's words.
enum class Average {
  binary,    // that of class 1, of two
  macro,     // the mean over the classes that occur, as target or prediction
  weighted,  // the same, each by its targets
  micro,     // of all decisions together: with one class for each target, all three are the accuracy
};

struct PrecisionRecallF1Options {
  std::int64_t classes = 2;
  Average average = Average::binary;
  double beta = 1;           // by how much recall weighs more than precision
  double zero_division = 0;  // a score without anything to divide by: 0, 1, or NaN, which averages leave out
  std::optional<std::int64_t> ignore_index{};  // targets that do not count, such as a padding's -100
  double threshold = 0;                        // a score above it says class 1: 0 for logits, 0.5 for probabilities
};

struct ClassScores {
  double precision = 0;
  double recall = 0;
  double f_beta = 0;         // F1, if beta is 1
  std::int64_t support = 0;  // targets that count
};

struct PrecisionRecallF1Result : ClassScores {  // by the average that was chosen
  std::vector<ClassScores> classes;             // and of each class
};

/// update() takes predictions and targets as Accuracy does: class scores [N, classes, ...], scores of class 1 of two,
/// or labels. What is none of the classes and not ignored, or a NaN, is an error of compute().
///
/// Cost     update(): a few kernels; the host does not wait. compute(): a message of 24 bytes per class.
/// Order    update() is of this rank alone.
/// Source   precision_recall_fscore_support of scikit-learn 1.9, zero_division and averages included.
class PrecisionRecallF1 : public Tally {
 public:
  explicit PrecisionRecallF1(const PrecisionRecallF1Options& options = {})
      : Tally(text(options), 3 * checked(options).classes + 3, 0), options_(options) {}

  /// The leading `rows` rows count; all, if not said.
  void update(const at::Tensor& prediction, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    const auto labels = detail::labels_of_rows(name, prediction, target, rows,
                                               {options_.classes, options_.ignore_index, options_.threshold});
    if (!labels) return;
    const Unrecorded guard;
    const std::int64_t classes = options_.classes;
    const std::int64_t rest = 3 * classes + 2;
    const at::Tensor is_out = labels->counted.logical_not();
    const at::Tensor targets = labels->target.masked_fill(is_out, rest);
    targets.masked_fill_(labels->target_is_wrong, 3 * classes);
    targets.masked_fill_(labels->prediction_is_wrong, 3 * classes + 1);
    const at::Tensor predictions = labels->prediction.add(classes).masked_fill_(is_out, rest);
    const at::Tensor is_miss = labels->prediction.ne(labels->target).logical_or_(is_out);
    const at::Tensor hits = labels->target.add(2 * classes).masked_fill_(is_miss, rest);
    use_device(target.device());
    detail::count_into(counts_, at::cat({targets, predictions, hits}));
  }

  /// All NaN if nothing counts.
  template <class Ranks>
  [[nodiscard]] PrecisionRecallF1Result compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] PrecisionRecallF1Result result(const Totals& totals) const {
    const auto classes = static_cast<std::size_t>(options_.classes);
    const auto& counts = totals.counts;
    detail::refuse(name, counts[3 * classes], "target",
                   detail::outside(options_.classes) + "; mend them, or say ignore_index");
    detail::refuse(name, counts[3 * classes + 1], "prediction", "NaN or " + detail::outside(options_.classes));
    PrecisionRecallF1Result result;
    Decisions all;
    std::vector<ClassScores> occurring;
    for (std::size_t c = 0; c < classes; ++c) {
      const Decisions own{counts[c], counts[classes + c], counts[2 * classes + c]};
      result.classes.push_back(scores(own));
      if (own.targets + own.predictions > 0) occurring.push_back(result.classes.back());
      all.targets += own.targets;
      all.predictions += own.predictions;
      all.hits += own.hits;
    }
    const ClassScores chosen = options_.average == Average::micro    ? scores(all)
                               : options_.average == Average::binary ? result.classes[1]
                                                                     : average(occurring);
    static_cast<ClassScores&>(result) = chosen;
    if (options_.average != Average::binary) result.support = all.targets;
    if (all.targets == 0) result.precision = result.recall = result.f_beta = nan;
    return result;
  }

 private:
  static constexpr const char* name = "precision, recall and F1";
  static constexpr double nan = std::numeric_limits<double>::quiet_NaN();

  struct Decisions {
    std::int64_t targets = 0;
    std::int64_t predictions = 0;
    std::int64_t hits = 0;
  };

  [[nodiscard]] ClassScores scores(const Decisions& of) const {
    const auto quotient = [&](double numerator, double denominator) {
      return denominator == 0 ? options_.zero_division : numerator / denominator;
    };
    const auto hits = static_cast<double>(of.hits);
    const auto targets = static_cast<double>(of.targets);
    const auto predictions = static_cast<double>(of.predictions);
    ClassScores scores{.precision = quotient(hits, predictions), .recall = quotient(hits, targets)};
    const double weight = options_.beta * options_.beta;
    scores.f_beta = std::isinf(weight)   ? scores.recall
                    : options_.beta == 0 ? scores.precision
                                         : quotient((1 + weight) * hits, weight * targets + predictions);
    scores.support = of.targets;
    return scores;
  }

  [[nodiscard]] ClassScores average(const std::vector<ClassScores>& of) const {
    const auto mean = [&](double ClassScores::* score) {
      double sum = 0, weights = 0, plain_sum = 0, count = 0;
      for (const auto& one : of) {
        if (std::isnan(one.*score)) continue;
        const double weight = options_.average == Average::weighted ? static_cast<double>(one.support) : 1;
        sum += weight * (one.*score);
        weights += weight;
        plain_sum += one.*score;
        count += 1;
      }
      return weights > 0 ? sum / weights : count > 0 ? plain_sum / count : nan;
    };
    return {mean(&ClassScores::precision), mean(&ClassScores::recall), mean(&ClassScores::f_beta)};
  }

  [[nodiscard]] static const PrecisionRecallF1Options& checked(const PrecisionRecallF1Options& options) {
    const auto expect = [](bool holds, const char* expected, const auto& found) {
      ACCEL_CHECK(holds, InvalidArgument, name, ": expected ", expected, ", found ", found);
    };
    expect(options.classes >= 2 && options.classes <= (std::int64_t{1} << 31), "2 to 2^31 classes", options.classes);
    expect(options.average != Average::binary || options.classes == 2,
           "two classes for the average binary; choose macro, weighted or micro for more", options.classes);
    expect(options.beta >= 0, "beta of at least 0", options.beta);
    expect(options.zero_division == 0 || options.zero_division == 1 || std::isnan(options.zero_division),
           "zero_division 0, 1 or NaN", options.zero_division);
    return options;
  }

  [[nodiscard]] static std::string text(const PrecisionRecallF1Options& options) {
    const char* average = options.average == Average::binary     ? "binary"
                          : options.average == Average::macro    ? "macro"
                          : options.average == Average::weighted ? "weighted"
                                                                 : "micro";
    return message(name, ", classes = ", options.classes, ", average = ", average, ", beta = ", shortest(options.beta),
                   ", zero_division = ", shortest(options.zero_division),
                   ", ignore_index = ", detail::text(options.ignore_index),
                   ", threshold = ", shortest(options.threshold));
  }

  PrecisionRecallF1Options options_;
};

static_assert(Metric<PrecisionRecallF1>);

}  // namespace accel::inline v0_1::metrics
