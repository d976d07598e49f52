// EMA: the exponential moving average of a model's weights, and the model with it in place of them.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_lerp.h>
#include <c10/core/GradMode.h>
#include <c10/core/TensorImpl.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/precision/autocast.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::optim {

struct EMAOptions {
  double decay = 0.999;  // torch.optim.swa_utils.get_ema_multi_avg_fn's
  bool warm_up = false;  // decay of at most (1 + n) / (10 + n) after n updates: TensorFlow's num_updates

  static constexpr auto fields() {
    return std::tuple(Field{"decay", &EMAOptions::decay}, Field{"warm_up", &EMAOptions::warm_up});
  }
};

/// average = decay * average + (1 - decay) * weight at each update(), the first of which takes the weights as they are.
/// Made with parameters, or without: then bound by accelerator.prepare to the model it is prepared with.
///
///   { auto averaged = ema.swap_in(); evaluate(model); }   // and the weights are back
///
/// Memory   one more copy of the parameters, in f32 where they have 16 bits: in bf16 most updates would be lost in
///          rounding. While it is swapped in, another.
/// State    n_averaged, and by parameter name average.<name>; of parameters that nobody has named the number.
/// Source   Polyak & Juditsky 1992, Acceleration of stochastic approximation by averaging; the arithmetic is that of
///          torch.optim.swa_utils.AveragedModel.
class EMA {
 public:
  static constexpr bool copies_state = true;  // load_state_dict() keeps nothing of what it is given

  explicit EMA(EMAOptions options = {}) : options_(options) {
    ACCEL_CHECK(options.decay >= 0 && options.decay <= 1, InvalidArgument, "EMA: decay = ", options.decay,
                " must be in [0, 1]");
  }
  template <std::same_as<at::Tensor> Tensor>  // so that `{.decay = 0.9}` is no list of tensors to any compiler
  explicit EMA(std::vector<Tensor> parameters, EMAOptions options = {}) : EMA(options) {
    bind(std::move(parameters));
  }

  [[nodiscard]] const EMAOptions& options() const { return options_; }
  [[nodiscard]] const std::vector<at::Tensor>& parameters() const { return parameters_; }
  [[nodiscard]] bool is_unbound() const { return parameters_.empty(); }

  void bind(std::vector<at::Tensor> parameters) {
    for (const auto& parameter : parameters)
      ACCEL_CHECK(parameter.defined() && parameter.is_floating_point(), InvalidArgument,
                  "EMA: expected tensors of floating point, found ", tensor::spec(parameter));
    std::unordered_set<const c10::TensorImpl*> listed;
    tensor::drop_repeated(parameters, listed);
    parameters_ = std::move(parameters);
  }

  /// For its state.
  void name_parameters(std::span<const tensor::NamedTensor> named) { names_.add(named); }

  /// Order    after each step of the optimizer; a prepared one leaves out what was no step.
  /// Throws   InvalidArgument while it is swapped in.
  void update() {
    ACCEL_CHECK(saved_.empty(), InvalidArgument, "EMA: update() while the average is in the model's place would ",
                "average the average; end what swap_in() gave first");
    ACCEL_CHECK(!is_unbound(), InvalidArgument, "EMA: it was made without parameters, and no prepare has bound it; ",
                "prepare it beside its model, or make it with net->parameters()");
    const c10::AutoGradMode no_grad(false);
    std::vector<at::Tensor> weights;
    for (const auto& parameter : parameters_) weights.push_back(exact(parameter));
    if (updates_ == 0) {
      averages_.clear();
      for (std::size_t i = 0; i < weights.size(); ++i)
        averages_.push_back(is_low_precision(parameters_[i]) ? weights[i] : weights[i].clone());
    } else {
      const auto n = static_cast<double>(updates_);
      const double decay = options_.warm_up ? std::min(options_.decay, (1 + n) / (10 + n)) : options_.decay;
      at::_foreach_lerp_(averages_, weights, 1 - decay);
    }
    ++updates_;
  }

  /// How many there were: PyTorch's n_averaged.
  [[nodiscard]] std::int64_t updates() const { return updates_; }
  /// By parameter; none before the first update.
  [[nodiscard]] const std::vector<at::Tensor>& averages() const { return averages_; }

  /// A guard: until its end the model has the averages for weights. What is trained meanwhile is lost.
  ///
  /// Throws   InvalidArgument before the first update, and inside of another one.
  [[nodiscard]] auto swap_in() {
    ACCEL_CHECK(updates_ > 0, InvalidArgument, "EMA: there is no average before the first update()");
    ACCEL_CHECK(saved_.empty(), InvalidArgument, "EMA: the average is in the model's place already");
    const c10::AutoGradMode no_grad(false);
    const std::vector<at::Tensor> weights = written();
    for (const auto& weight : weights) saved_.push_back(weight.clone());
    at::_foreach_copy_(weights, averages_);
    precision::forget_casts();
    return std::unique_ptr<EMA, Restore>(this);
  }

  [[nodiscard]] bool is_swapped_in() const { return !saved_.empty(); }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("n_averaged", updates_);
    for (std::size_t i = 0; i < averages_.size(); ++i)
      state.add("average." + names_.of(parameters_[i], i), averages_[i]);
    return state;
  }

  /// Throws   CheckpointError for an average that lacks, or has another shape.
  void check_state_dict(const tensor::StateDict& state) const {
    const std::int64_t updates = state.integer("n_averaged");
    for (std::size_t i = 0; updates > 0 && i < parameters_.size(); ++i) {
      const at::Tensor& average = state.tensor("average." + names_.of(parameters_[i], i));
      ACCEL_CHECK(average.sizes() == parameters_[i].sizes(), CheckpointError, "EMA: average.",
                  names_.of(parameters_[i], i), " is ", tensor::spec(average), ", expected the shape of ",
                  tensor::spec(parameters_[i]));
    }
  }

  /// Throws   as check_state_dict(); then nothing has changed.
  void load_state_dict(const tensor::StateDict& state) {
    check_state_dict(state);
    const c10::AutoGradMode no_grad(false);
    const std::int64_t updates = state.integer("n_averaged");
    std::vector<at::Tensor> averages;
    for (std::size_t i = 0; updates > 0 && i < parameters_.size(); ++i)
      averages.push_back(exact(parameters_[i]).clone().copy_(state.tensor("average." + names_.of(parameters_[i], i))));
    averages_ = std::move(averages);
    updates_ = updates;
  }

 private:
  struct Restore {
    void operator()(EMA* ema) const {
      const c10::AutoGradMode no_grad(false);
      at::_foreach_copy_(ema->written(), ema->saved_);
      ema->saved_.clear();
      precision::forget_casts();
    }
  };

  [[nodiscard]] static at::Tensor exact(const at::Tensor& parameter) {
    return is_low_precision(parameter) ? parameter.detach().to(at::kFloat) : parameter.detach();
  }

  /// To write to, so that autograd hears of it.
  [[nodiscard]] std::vector<at::Tensor> written() const {
    std::vector<at::Tensor> weights;
    for (const auto& parameter : parameters_) weights.push_back(parameter.detach());
    return weights;
  }

  EMAOptions options_;
  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> averages_;
  std::vector<at::Tensor> saved_;  // the weights, while the averages are in their place
  std::int64_t updates_ = 0;
  tensor::Names names_;
};

static_assert(tensor::Stateful<EMA>);

}  // namespace accel::inline v0_1::optim
