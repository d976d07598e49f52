// Perplexity: e to the mean cross entropy of a token, over all tokens of all ranks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/stack.h>

#include <accel/core/error.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/detail/labels.hpp>
#include <accel/metrics/tally.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

struct PerplexityOptions {
  std::optional<std::int64_t> ignore_index = -100;  // targets that do not count; the default is cross_entropy's
};

/// The log of it is the mean loss. A mean of means of batches would be another number where they have unequal tokens.
///
/// Cost     update(): from logits what cross_entropy takes, in f32 for 16 bits, too; the host does not wait. Sums are
///          f64.
/// Order    update() is of this rank alone.
/// Throws   InvalidArgument; from compute() also for targets that are no token. A NaN is none: it shows.
class Perplexity : public Tally {
 public:
  explicit Perplexity(const PerplexityOptions& options = {})
      : Tally(message("perplexity, ignore_index = ", detail::text(options.ignore_index)), 2, 1), options_(options) {}

  /// The leading `rows` rows count; all, if not said.
  ///
  /// Shape    logits: [N, V, ...], floating, as cross_entropy takes them. target: [N, ...], whole.
  void update(const at::Tensor& logits, const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
    ACCEL_CHECK(detail::form_of(name, logits, target) == detail::Form::class_scores, InvalidArgument, name,
                ": expected logits [N, V, ...] beside a target [N, ...], found ", tensor::spec(logits), " and ",
                tensor::spec(target), "; with the tokens last, move them with .movedim(-1, 1)");
    const std::int64_t held = detail::counted_rows(name, target, rows);
    if (held == 0 || target.numel() == 0) return;
    const Unrecorded guard;
    const at::Tensor tokens = target.detach().narrow(0, 0, held).to(at::kLong);
    const auto [counted, wrong] = detail::judge_target(tokens, logits.size(1), options_.ignore_index);
    const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor losses = at::log_softmax(logits.detach().narrow(0, 0, held), 1, dtype)
                                  .gather(1, tokens.clamp(0, logits.size(1) - 1).unsqueeze(1))
                                  .squeeze(1)
                                  .to(at::kDouble)
                                  .neg();
    use_device(target.device());
    numbers_.add_(losses.masked_fill(counted.logical_not(), 0).sum());
    counts_.add_(at::stack({counted.sum(), wrong.sum()}));
  }

  /// A loss that is the sum over `tokens` tokens; with a mask their number is on the device.
  ///
  /// Shape    loss: one element. tokens: one whole element.
  void update_sum(const at::Tensor& loss, const at::Tensor& tokens) {
    ACCEL_CHECK(tokens.defined() && tokens.numel() == 1 && detail::is_whole(tokens), InvalidArgument, name,
                ": expected one whole number of tokens, found ", tensor::spec(tokens));
    check_sum(loss);
    const Unrecorded guard;
    use_device(loss.device());
    const at::Tensor number = tokens.detach().reshape({}).to(counts_.options(), /*non_blocking=*/true);
    numbers_.add_(loss.detach().reshape({}).to(at::kDouble).masked_fill(number.eq(0), 0));
    counts_.select(0, 0).add_(number);
  }
  void update_sum(const at::Tensor& loss, std::int64_t tokens) {
    ACCEL_CHECK(tokens >= 0, InvalidArgument, name, ": expected at least 0 tokens, found ", tokens);
    check_sum(loss);
    if (tokens == 0) return;
    const Unrecorded guard;
    use_device(loss.device());
    numbers_.add_(loss.detach().reshape({}).to(at::kDouble));
    counts_.select(0, 0).add_(tokens);
  }

  /// NaN if nothing counts.
  template <class Ranks>
  [[nodiscard]] double compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] double result(const Totals& totals) const {
    detail::refuse(name, totals.counts[1], "target",
                   "below 0, or not below the number of tokens; mend them, or say ignore_index");
    if (totals.counts[0] == 0) return std::numeric_limits<double>::quiet_NaN();
    return std::exp(totals.sum(0) / static_cast<double>(totals.counts[0]));
  }

 private:
  static constexpr const char* name = "perplexity";

  static void check_sum(const at::Tensor& loss) {
    ACCEL_CHECK(loss.defined() && loss.numel() == 1 && loss.is_floating_point(), InvalidArgument, name,
                ": expected one number, the sum of the losses of tokens, found ", tensor::spec(loss));
  }

  PerplexityOptions options_;
};

static_assert(Metric<Perplexity>);

}  // namespace accel::inline v0_1::metrics
