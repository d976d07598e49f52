// LossScaler: the factor by which a loss is multiplied, so that small gradients survive 16 bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string_view>
#include <tuple>
#include <utility>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/precision/host_flag.hpp>
#include <accel/precision/rounds.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::precision {

struct LossScalerOptions {
  double init_scale = 65536.0;          // 2^16; this and the next three are GradScaler's defaults
  double growth_factor = 2.0;           // after growth_interval steps in a row without overflow
  double backoff_factor = 0.5;          // after an overflow
  std::int64_t growth_interval = 2000;  // steps
  double min_scale = 0x1p-126;          // f32's smallest; 0: none, as GradScaler's, and at 0 gradients are 0 / 0
  double max_scale = 0x1.fffffep127;    // f32's largest
  std::int64_t max_skipped = 50;        // steps in a row, then training ends: 2^16 is 6e-11 by then; 0: never
  bool name_overflow = false;           // tell which rank and parameter, see Accelerator::overflow()

  static constexpr auto fields() {
    using O = LossScalerOptions;
    return std::tuple(Field{"init_scale", &O::init_scale}, Field{"growth_factor", &O::growth_factor},
                      Field{"backoff_factor", &O::backoff_factor}, Field{"growth_interval", &O::growth_interval},
                      Field{"min_scale", &O::min_scale}, Field{"max_scale", &O::max_scale},
                      Field{"max_skipped", &O::max_skipped}, Field{"name_overflow", &O::name_overflow});
  }
};

/// The scale and its rule: an overflow multiplies it by backoff_factor; growth_interval updates in a row without
/// one by growth_factor.
///
/// Cost     on a GPU the host waits for nothing but where a number is asked for.
/// State    that of torch.amp.GradScaler, by its words: scale, growth_factor, backoff_factor, growth_interval and
///          _growth_tracker.
/// Source   Micikevicius et al. 2018, Mixed Precision Training; the arithmetic is LibTorch's _amp_update_scale_.
class LossScaler {
 public:
  /// Throws   ConfigError for options that cannot be.
  LossScaler(const LossScalerOptions& options, c10::Device device)
      : options_(checked(options)),
        scale_(number(options.init_scale, at::kFloat, device)),
        growth_tracker_(number(0, at::kInt, device)),
        skipped_in_row_(number(0, at::kFloat, device)),
        found_in_round_(number(0, at::kFloat, device)) {}

  [[nodiscard]] const LossScalerOptions& options() const { return options_; }

  /// f32[] on the device: always the same tensor, whose number changes.
  [[nodiscard]] const at::Tensor& scale() const { return scale_; }

  /// How often it was updated: equal numbers mean equal scales.
  [[nodiscard]] std::int64_t updates() const { return updates_; }

  // Cost     the host waits for a GPU.
  [[nodiscard]] double value() const { return scale_.item<double>(); }
  [[nodiscard]] std::int64_t growth_tracker() const { return growth_tracker_.item<std::int64_t>(); }

  /// An optimizer that is to share this scale: see Rounds.
  [[nodiscard]] std::shared_ptr<Rounds::Participant> join() { return rounds_.join(); }

  /// It has stepped, or skipped its step if `found_inf` (f32[] on the device, equal on all ranks) is 1. The scale is
  /// updated when a round is over, and comes down if anybody has skipped in it.
  ///
  /// Throws   as update().
  void stepped(Rounds::Participant& who, const at::Tensor& found_inf) {
    const c10::AutoGradMode no_grad(false);
    const auto ends = rounds_.step(who);
    if (ends.before) end_round();
    if (found_inf.is_cpu())
      *found_in_round_.mutable_data_ptr<float>() += *found_inf.const_data_ptr<float>();
    else
      found_in_round_.add_(found_inf);
    if (ends.after) end_round();
  }

  /// A round of steps is over; `found_inf` (f32[] on the device) is 1 if one of them was skipped, else 0.
  ///
  /// Throws   OverflowError after max_skipped rounds in a row that were; a GPU tells some steps later.
  void update(const at::Tensor& found_inf) {
    const c10::AutoGradMode no_grad(false);
    at::_amp_update_scale_(scale_, growth_tracker_, found_inf, options_.growth_factor, options_.backoff_factor,
                           options_.growth_interval);
    scale_.clamp_(options_.min_scale, options_.max_scale);
    ++updates_;
    if (options_.max_skipped == 0) return;
    skipped_in_row_.add_(1).mul_(found_inf);
    if (!skipped_.is_ready()) return;
    if (!scale_.is_cpu()) check_skipped();
    skipped_.set(skipped_in_row_);
    if (scale_.is_cpu()) check_skipped();
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("scale", value());
    state.add("growth_factor", options_.growth_factor);
    state.add("backoff_factor", options_.backoff_factor);
    state.add("growth_interval", options_.growth_interval);
    state.add("_growth_tracker", growth_tracker());
    return state;
  }

  void load_state_dict(const tensor::StateDict& state) {
    LossScalerOptions options = options_;
    options.init_scale = state.number("scale");
    options.growth_factor = state.number("growth_factor");
    options.backoff_factor = state.number("backoff_factor");
    options.growth_interval = state.integer("growth_interval");
    const std::int64_t tracker = state.integer("_growth_tracker");
    const LossScaler loaded(options, scale_.device());  // its checks
    const double init_scale = options_.init_scale;
    options_ = options;
    options_.init_scale = init_scale;
    scale_.copy_(loaded.scale_);
    growth_tracker_.fill_(tracker);
    skipped_in_row_.zero_();
    skipped_ = {};
    found_in_round_.zero_();
    rounds_.begin();
    ++updates_;
  }

 private:
  [[nodiscard]] static at::Tensor number(double value, at::ScalarType dtype, c10::Device device) {
    return at::full({}, value, at::TensorOptions(dtype).device(device));
  }

  [[nodiscard]] static const LossScalerOptions& checked(const LossScalerOptions& options) {
    // The scale is f32, and so are its bounds, then.
    const auto in_float = [](double value) { return static_cast<double>(static_cast<float>(value)); };
    const auto finite_above = [](double value, double bound) { return value > bound && std::isfinite(value); };
    ACCEL_CHECK(finite_above(in_float(options.init_scale), 0), ConfigError,
                "loss scale: init_scale = ", options.init_scale, " must be above 0, and finite in f32");
    ACCEL_CHECK(finite_above(in_float(options.growth_factor), 1), ConfigError,
                "loss scale: growth_factor = ", options.growth_factor, " must be above 1, and finite");
    ACCEL_CHECK(options.backoff_factor > 0 && options.backoff_factor < 1, ConfigError,
                "loss scale: backoff_factor = ", options.backoff_factor, " must be between 0 and 1");
    ACCEL_CHECK(options.growth_interval > 0, ConfigError, "loss scale: growth_interval = ", options.growth_interval,
                " must be at least 1");
    ACCEL_CHECK(options.min_scale >= 0 && in_float(options.min_scale) <= in_float(options.init_scale) &&
                    in_float(options.init_scale) <= in_float(options.max_scale),
                ConfigError, "loss scale: init_scale = ", options.init_scale,
                " must lie between min_scale = ", options.min_scale,
                ", which is at least 0, and max_scale = ", options.max_scale);
    ACCEL_CHECK(options.max_skipped >= 0, ConfigError, "loss scale: max_skipped = ", options.max_skipped,
                " must be at least 0");
    return options;
  }

  void end_round() {
    // A sum of flags until here; the rule takes any number but 0 for an overflow, and what counts them takes 1.
    found_in_round_.clamp_(0, 1);
    const at::Tensor found = std::exchange(found_in_round_, at::zeros_like(found_in_round_));
    update(found);
  }

  void check_skipped() {
    const double in_row = skipped_.get();
    if (in_row >= static_cast<double>(options_.max_skipped)) skipped_ = {};  // whoever goes on is told once
    ACCEL_CHECK(in_row < static_cast<double>(options_.max_skipped), OverflowError, "step: ", in_row,
                " steps in a row were skipped, because gradients were not finite, and the loss scale has come down to ",
                value(), ": a gradient is inf or NaN at any scale; look at the inputs and the loss, set ",
                "{.precision = {.name_overflow = true}} to be told which rank and parameter, or max_skipped to go on");
  }

  LossScalerOptions options_;
  at::Tensor scale_;           // f32[]
  at::Tensor growth_tracker_;  // i32[]: updates in a row without overflow
  at::Tensor skipped_in_row_;  // f32[]
  HostFlag skipped_;           // the same, for the host
  std::int64_t updates_ = 0;
  Rounds rounds_;
  at::Tensor found_in_round_;  // f32[]: how many have skipped
};

static_assert(tensor::Stateful<LossScaler>);

}  // namespace accel::inline v0_1::precision
