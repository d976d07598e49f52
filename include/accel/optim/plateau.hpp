// ReduceLROnPlateau: lowers the rates when what is watched no longer gets better.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/rate.hpp>
#include <accel/optim/scheduler.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::optim {

/// Which values are better: the small ones of a loss, or the large ones of an accuracy.
enum class Better { min, max };

/// By how much a value must be better than the best: by a part of that, or by a difference.
enum class Threshold { rel, abs };

/// The defaults are PyTorch's.
struct PlateauOptions {
  Better mode = Better::min;
  double factor = 0.1;
  std::int64_t patience = 10;  // values in a row that are no better and change nothing yet
  double threshold = 1e-4;
  Threshold threshold_mode = Threshold::rel;
  std::int64_t cooldown = 0;        // values after a reduction that do not count as bad ones
  std::vector<double> min_lr{0.0};  // of all groups, or of each
  double eps = 1e-8;                // what a reduction must be larger than to be made
};

/// Multiplies the rates of all groups by `factor` once `patience` values in a row were no better than the best.
///
/// step(value) judges one value, such as a loss after an epoch. Where ranks have values of their own, prepare it: a
/// prepared one judges their mean, so that all ranks have one rate.
///
/// Throws   InvalidArgument from the constructor, for options that make no sense.
/// State    the best value, the bad ones in a row, what is left of the cooldown, and the rates in force.
/// Source   torch.optim.lr_scheduler.ReduceLROnPlateau of PyTorch 2.11.
/// Differs  LibTorch's ReduceLROnPlateauScheduler judges floats, and has no state to save.
template <class Optimizer>
class ReduceLROnPlateau {
 public:
  explicit ReduceLROnPlateau(Optimizer& optimizer, PlateauOptions options = {})
      : optimizer_(&optimizer), options_(std::move(options)), best_(worst()) {
    const auto check = [](bool holds, const char* expected, double found) {
      ACCEL_CHECK(holds, InvalidArgument, "ReduceLROnPlateau: expected ", expected, ", found ", shortest(found));
    };
    check(options_.factor >= 0 && options_.factor < 1, "factor in [0, 1)", options_.factor);
    check(options_.patience >= 0, "patience of at least 0", static_cast<double>(options_.patience));
    check(options_.cooldown >= 0, "cooldown of at least 0", static_cast<double>(options_.cooldown));
    check(options_.threshold >= 0, "threshold of at least 0", options_.threshold);
    check(options_.eps >= 0, "eps of at least 0", options_.eps);
    const std::size_t groups = optimizer.param_groups().size();
    if (options_.min_lr.size() == 1) options_.min_lr.resize(groups, options_.min_lr.front());
    ACCEL_CHECK(options_.min_lr.size() == groups, InvalidArgument, "ReduceLROnPlateau: expected one min_lr, or ",
                groups, ", one for each group of the optimizer, found ", options_.min_lr.size());
  }

  void step(double value) {
    const bool is_better = better(value);
    if (is_better) best_ = value;
    bad_ = is_better ? 0 : bad_ + 1;
    if (cooling_ > 0) {
      --cooling_;
      bad_ = 0;
    }
    if (bad_ <= options_.patience) return;
    reduce();
    cooling_ = options_.cooldown;
    bad_ = 0;
  }

  [[nodiscard]] double best() const { return best_; }

  /// By group.
  [[nodiscard]] std::vector<double> last_lr() const {
    std::vector<double> rates;
    for (auto& group : optimizer_->param_groups()) rates.push_back(rate_of(group.options()));
    return rates;
  }

  [[nodiscard]] Optimizer& optimizer() const { return *optimizer_; }

  [[nodiscard]] std::string describe() const {
    std::string text = message("plateau, mode = ", options_.mode == Better::min ? "min" : "max",
                               ", factor = ", shortest(options_.factor), ", patience = ", options_.patience,
                               ", threshold = ", shortest(options_.threshold),
                               options_.threshold_mode == Threshold::rel ? " rel" : " abs",
                               ", cooldown = ", options_.cooldown, ", eps = ", shortest(options_.eps), ", min_lr =");
    for (const double rate : options_.min_lr) text += message(" ", shortest(rate));
    return text + message("; best ", shortest(best_), ", ", bad_, " bad, ", cooling_, " to cool down");
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("best", best_);
    state.add("num_bad_epochs", bad_);  // PyTorch's names
    state.add("cooldown_counter", cooling_);
    const auto rates = last_lr();
    for (std::size_t g = 0; g < rates.size(); ++g) state.add("lr." + std::to_string(g), rates[g]);
    return state;
  }

  /// Throws   CheckpointError for the state of another number of groups; then nothing has changed.
  void load_state_dict(const tensor::StateDict& state) {
    auto& groups = optimizer_->param_groups();
    const auto saved = state.below("lr.").entries().size();
    ACCEL_CHECK(saved == groups.size(), CheckpointError, "ReduceLROnPlateau: expected the state of ", groups.size(),
                " groups, found that of ", saved);
    std::vector<double> rates;
    for (std::size_t g = 0; g < saved; ++g) rates.push_back(state.number("lr." + std::to_string(g)));
    const double best = state.number("best");
    const std::int64_t bad = state.integer("num_bad_epochs");
    const std::int64_t cooling = state.integer("cooldown_counter");
    set_rates(groups, rates);
    cooling_ = cooling;
    best_ = best;
    bad_ = bad;
  }

 private:
  [[nodiscard]] double worst() const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    return options_.mode == Better::min ? infinity : -infinity;
  }

  [[nodiscard]] bool better(double value) const {
    const bool relative = options_.threshold_mode == Threshold::rel;
    if (options_.mode == Better::min)
      return value < (relative ? best_ * (1 - options_.threshold) : best_ - options_.threshold);
    return value > (relative ? best_ * (options_.threshold + 1) : best_ + options_.threshold);
  }

  void reduce() {
    auto& groups = optimizer_->param_groups();
    ACCEL_CHECK(groups.size() == options_.min_lr.size(), InvalidArgument, "ReduceLROnPlateau: the optimizer has ",
                groups.size(), " groups, and had ", options_.min_lr.size(),
                " when this was made; make it after the groups are added, ", "and for the optimizer that is stepped");
    std::vector<double> rates = last_lr();
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const double rate = std::max(rates[g] * options_.factor, options_.min_lr[g]);
      if (rates[g] - rate > options_.eps) rates[g] = rate;
    }
    set_rates(groups, rates);
  }

  Optimizer* optimizer_;
  PlateauOptions options_;
  double best_;
  std::int64_t bad_ = 0;      // values in a row
  std::int64_t cooling_ = 0;  // values left of the cooldown
};

template <class Optimizer>
ReduceLROnPlateau(Optimizer&) -> ReduceLROnPlateau<typename detail::Unwrapped<Optimizer>::Type>;
template <class Optimizer>
ReduceLROnPlateau(Optimizer&, PlateauOptions) -> ReduceLROnPlateau<typename detail::Unwrapped<Optimizer>::Type>;

static_assert(tensor::Stateful<ReduceLROnPlateau<torch::optim::SGD>>);

}  // namespace accel::inline v0_1::optim
