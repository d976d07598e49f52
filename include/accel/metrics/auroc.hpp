// Auroc: the area under the curve of true over false positives, from two histograms of scores per class.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

struct AurocOptions {
  std::int64_t classes = 2;  // two: scores of class 1; more: each class against all others
  std::int64_t bins = 1001;  // scores are rounded to one of so many, evenly from the lowest to the highest: thousandths
  double lowest = 0;
  double highest = 1;
  std::optional<std::int64_t> ignore_index{};  // targets that do not count, such as a padding's -100
};

/// Exact where scores are on the bins, such as multiples of 0.001 under the default options. Where several are rounded
/// into one bin, what that can have changed is known: each pair of a positive and a negative there counts half.
struct ClassAuroc {
  double auroc = 0;        // NaN without positives or negatives
  double error_bound = 0;  // the area of the scores themselves is not further away
};

struct AurocResult : ClassAuroc {   // of more than two classes the means
  std::vector<ClassAuroc> classes;  // one for two classes
};

/// Scores outside of the range, NaN among them, and targets that are no class are an error of compute(). For logits
/// pass their sigmoid or softmax, or say the range.
///
/// Cost     update(): a few kernels; the host does not wait. compute(): a message of the histograms.
/// Memory   16 bins bytes for two classes, as much for each of more.
/// Order    update() is of this rank alone.
/// Source   Hanley & McNeil 1982: the area is the part of pairs in which the positive has the higher score, ties half.
///          Of several classes the mean as roc_auc_score of scikit-learn, multi_class="ovr".
class Auroc : public Tally {
 public:
  explicit Auroc(const AurocOptions& options = {})
      : Tally(text(options), 2 * checked(options).bins * curves(options) + 3, 0), options_(options) {}

  /// The leading `rows` rows count; all, if not said.
  ///
  /// Shape    scores: [N, ...] for two classes, else [N, classes, ...]. target: [N, ...], whole.
  void update(const at::Tensor& scores, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    const detail::Form form = detail::form_of("auroc", scores, target);
    const bool fits = options_.classes == 2 ? form == detail::Form::scores
                                            : form == detail::Form::class_scores && scores.size(1) == options_.classes;
    ACCEL_CHECK(fits, InvalidArgument, "auroc: expected scores [N, ", options_.classes == 2 ? "" : "classes, ",
                "...] of ", options_.classes, " classes, found ", tensor::spec(scores), " beside a target ",
                tensor::spec(target),
                options_.classes == 2 ? "; of two classes give the scores of class 1: .select(1, 1)"
                                      : "; say how many there are: {.classes = ...}");
    const std::int64_t held = detail::counted_rows("auroc", target, rows);
    if (held == 0 || target.numel() == 0) return;
    const Unrecorded guard;
    const std::int64_t all = curves(options_);
    const at::Tensor mine = scores.detach().narrow(0, 0, held).to(at::kDouble);
    const at::Tensor values = all == 1 ? mine.reshape({-1, 1}) : mine.movedim(1, -1).reshape({-1, all});  // [n, all]
    const at::Tensor classes = target.detach().narrow(0, 0, held).reshape({-1, 1}).to(at::kLong);         // [n, 1]
    auto [counted, wrong_target] = detail::judge_target(classes, options_.classes, options_.ignore_index);
    const at::Tensor in_range = values.ge(options_.lowest).logical_and_(values.le(options_.highest));
    const at::Tensor good = in_range.all(1, /*keepdim=*/true);
    const at::Tensor wrong_score = counted.logical_and(good.logical_not());

    // Cell [curve][is positive][bin].
    const double per_bin = static_cast<double>(options_.bins - 1) / (options_.highest - options_.lowest);
    const at::Tensor bin = values.masked_fill(in_range.logical_not(), options_.lowest)
                               .sub_(options_.lowest)
                               .mul_(per_bin)
                               .round_()
                               .clamp_max_(static_cast<double>(options_.bins - 1))
                               .to(at::kLong);
    const at::Tensor curve = at::arange(all, classes.options());
    const at::Tensor is_positive = classes.eq(all == 1 ? curve.add(1) : curve).to(at::kLong);
    const at::Tensor cells = curve.mul(2).add(is_positive).mul_(options_.bins).add_(bin);
    const std::int64_t wrong = 2 * options_.bins * all;  // targets, scores, and the rest
    use_device(target.device());
    detail::count_into(counts_, cells.masked_fill_(counted.logical_and(good).logical_not_(), wrong + 2).reshape({-1}));
    counts_.select(0, wrong).add_(wrong_target.sum());
    counts_.select(0, wrong + 1).add_(wrong_score.sum());
  }

  template <class Ranks>
  [[nodiscard]] AurocResult compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] AurocResult result(const Totals& totals) const {
    const auto bins = static_cast<std::size_t>(options_.bins);
    const auto all = static_cast<std::size_t>(curves(options_));
    const std::span<const std::int64_t> counts(totals.counts);
    detail::refuse("auroc", counts[2 * bins * all], "target",
                   detail::outside(options_.classes) + "; mend them, or say ignore_index");
    const std::int64_t wrong = counts[2 * bins * all + 1];
    ACCEL_CHECK(wrong == 0, InvalidArgument, "auroc: scores of ", wrong, wrong == 1 ? " row" : " rows",
                " are outside of [", shortest(options_.lowest), ", ", shortest(options_.highest),
                "]; for logits pass their sigmoid or softmax, or say lowest and highest");
    AurocResult result;
    for (std::size_t curve = 0; curve < all; ++curve) {
      const auto own = counts.subspan(2 * bins * curve, 2 * bins);
      result.classes.push_back(area(own.first(bins), own.last(bins)));
      result.auroc += result.classes.back().auroc / static_cast<double>(all);
      result.error_bound += result.classes.back().error_bound / static_cast<double>(all);
    }
    return result;
  }

 private:
  [[nodiscard]] static std::int64_t curves(const AurocOptions& options) {
    return options.classes == 2 ? 1 : options.classes;
  }

  [[nodiscard]] static ClassAuroc area(std::span<const std::int64_t> negatives,
                                       std::span<const std::int64_t> positives) {
    double below = 0;  // negatives of lower scores
    double sum_positives = 0, won = 0, tied = 0;
    for (std::size_t bin = 0; bin < negatives.size(); ++bin) {
      const auto here = static_cast<double>(positives[bin]);
      won += here * below;
      tied += here * static_cast<double>(negatives[bin]);
      below += static_cast<double>(negatives[bin]);
      sum_positives += here;
    }
    const double pairs = sum_positives * below;
    if (pairs == 0) return {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN()};
    return {(won + tied / 2) / pairs, tied / 2 / pairs};
  }

  [[nodiscard]] static const AurocOptions& checked(const AurocOptions& options) {
    ACCEL_CHECK(options.classes >= 2 && options.bins >= 2 && options.classes <= max_cells / options.bins,
                InvalidArgument, "auroc: expected at least 2 classes and 2 bins, and a product of at most ", max_cells,
                ", found ", options.classes, " and ", options.bins);
    ACCEL_CHECK(std::isfinite(options.highest - options.lowest) && options.lowest < options.highest, InvalidArgument,
                "auroc: expected lowest below highest, found ", shortest(options.lowest), " and ",
                shortest(options.highest));
    return options;
  }

  static constexpr std::int64_t max_cells = std::int64_t{1} << 30;  // 16 GiB

  [[nodiscard]] static std::string text(const AurocOptions& options) {
    return message("auroc, classes = ", options.classes, ", bins = ", options.bins,
                   ", lowest = ", shortest(options.lowest), ", highest = ", shortest(options.highest),
                   ", ignore_index = ", detail::text(options.ignore_index));
  }

  AurocOptions options_;
};

static_assert(Metric<Auroc>);

}  // namespace accel::inline v0_1::metrics
