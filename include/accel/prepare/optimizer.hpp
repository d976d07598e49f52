// Optimizer: the user's optimizer, stepping only when the gradients are complete.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/Exception.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/gradient/stepper.hpp>
#include <accel/optim/rate.hpp>
#include <accel/precision/autocast.hpp>
#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/scaling.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

/// What accel asks of an optimizer: every torch::optim::Optimizer has it.
template <class O>
concept OptimizerLike = requires(O& optimizer) {
  optimizer.zero_grad(true);
  optimizer.param_groups();
  optimizer.state();
};

/// A T as a shared pointer: an lvalue is borrowed, an rvalue owned.
template <class T>
[[nodiscard]] auto borrow_or_own(T&& object) {
  using Value = std::remove_cvref_t<T>;
  if constexpr (std::is_lvalue_reference_v<T>) {
    return std::shared_ptr<Value>(std::addressof(object), [](Value*) {});
  } else {
    return std::make_shared<Value>(std::forward<T>(object));
  }
}

/// Takes further listings of a tied parameter out of the groups: LibTorch would step it once for each.
template <class O>
std::size_t drop_repeated(O& optimizer) {
  std::unordered_set<const c10::TensorImpl*> seen;
  std::size_t dropped = 0;
  for (auto& group : optimizer.param_groups()) dropped += tensor::drop_repeated(group.params(), seen);
  return dropped;
}

/// A prepared optimizer: the wrapped one with the calls that matter guarded.
///
/// step() does nothing in a micro-step that only accumulates; while a window is open it belongs inside
/// of a micro-step. zero_grad() keeps gradients that are not reduced yet, so it may stand before
/// backward or after step; those of a backward that threw half-way it always lets go. The wrapped
/// optimizer's own calls, `optimizer->step()` and `optimizer->zero_grad()`, are without guards: for
/// gradients of another source. A window is given up by accelerator.give_up_window().
///
/// Throws   InvalidArgument from step(): see Session::check_before_step. Also if gradients are there
///          that accelerator.backward did not make, and after a loop that has ended in mid-window.
/// Differs  Accelerate's zero_grad, at the start of the loop, erases an accumulated window.
template <class O>
class Optimizer {
 public:
  Optimizer(std::shared_ptr<O> optimizer, std::shared_ptr<Session> session)
      : optimizer_(std::move(optimizer)), session_(std::move(session)), number_(++session_->optimizers) {
    find_models();
    if (!has_gradients()) backwards_at_clear_ = session_->accumulation.backwards();
    if (session_->scaler != nullptr) scaling_ = std::make_shared<Scaling>(session_, optimizer_.get());
    session_->checkpointing->add("optimizer", optimizer_, optimizer_part(optimizer_, *session_, stepped_));
  }

  void step() {
    session_->at_rank([&] {
      if (session_->accumulation.only_adds_up()) return;
      follow_groups();
      session_->checkpointing->settle();
      if (scaling_ != nullptr) {
        scaled_step();
        note_step();
        return;
      }
      check_before_step();
      if (stepper_ == nullptr)
        plain_step();
      else
        ACCEL_CHECK(std::exchange(stepper_->has_stepped, false), InvalidArgument,
                    "step: no backward has run since the ",
                    "last step, and with step_in_backward() that is what steps");
      note_step();
    });
  }

  /// Whether the last step() was left out on every rank, because a gradient on one of them was not finite; with a
  /// precision that scales the loss, else never. Keeps its value until the next.
  ///
  /// Cost     the host waits for a GPU that has not got there yet.
  [[nodiscard]] bool step_was_skipped() const { return scaling_ != nullptr && scaling_->was_skipped(); }

  /// From now on each part of the model is stepped as soon as its gradients have arrived, while backward
  /// goes on with earlier layers: in the last backward of a window, before that returns. The loop stays as
  /// it is; step() marks the end of the step. Weights are those of a step after backward, bit for bit. Early is
  /// possible where the last step used everything on every rank; else all steps when the last gradient has come.
  ///
  /// A backward that fails half-way, as when a rank is lost, leaves weights of which some are stepped: go on
  /// from a checkpoint.
  ///
  /// Throws   InvalidArgument later, from what cannot be right with it: clipping by a global norm,
  ///          retain_graph, several backwards for one step.
  /// Order    every rank, before its next backward.
  void step_in_backward()
    requires requires(O& optimizer, std::span<const at::Tensor> some) { optimizer.step_some(some); }
  {
    if (stepper_ != nullptr) return;
    ACCEL_CHECK(scaling_ == nullptr, InvalidArgument, "step_in_backward: the loss is scaled, and whether a step must ",
                "be skipped is known when all gradients are there; step after backward, or take precision::Bf16");
    stepper_ = std::make_shared<StepSome>(optimizer_, session_);
    for (const auto& model : models_) model->steppers.push_back(stepper_);
  }

  /// For optimizers that call the closure themselves, as LBFGS does. The closure calls
  /// accelerator.backward; in a micro-step that only accumulates it is called once, and with
  /// accumulation_steps above 1 it may not be called again in the last. The optimizer sees,
  /// and this returns, the mean loss over the ranks: by its own, each rank would decide differently how
  /// often to call.
  template <class Closure>
  at::Tensor step(Closure&& closure) {
    return session_->at_rank([&]() -> at::Tensor {
      if (session_->accumulation.only_adds_up()) return closure();
      ACCEL_CHECK(scaling_ == nullptr, InvalidArgument, "step: an optimizer that calls a closure cannot be told to ",
                  "skip its step, as it must be where the loss is scaled; take precision::Bf16 or Fp32");
      session_->accumulation.check_window_is_over();
      follow_groups();
      session_->checkpointing->settle();
      bool evaluated = false;
      at::Tensor mean_loss = optimizer_->step([&]() -> at::Tensor {
        ACCEL_CHECK(!std::exchange(evaluated, true) || session_->accumulation.steps() == 1, InvalidArgument,
                    "step: the optimizer evaluates its closure again, which would be on the last micro-batch of the ",
                    "window alone; with accumulation_steps above 1 use an optimizer that evaluates it once");
        at::Tensor loss = closure();
        check_before_step();
        session_->await_reduction();
        return session_->mean_loss(loss);
      });
      note_step();
      return mean_loss;
    });
  }

  void zero_grad(bool set_to_none = true) {
    const auto plain = [](const auto& model) { return !model->ledger.waiting() && !model->ledger.torn(); };
    if (std::all_of(models_.begin(), models_.end(), plain)) {
      optimizer_->zero_grad(set_to_none);
    } else {
      const std::vector<at::Tensor> own = parameters();
      for (const auto& model : models_) model->ledger.clear(own, set_to_none);
    }
    if (!has_gradients()) backwards_at_clear_ = session_->accumulation.backwards();
    for (auto& group : optimizer_->param_groups())
      for (const auto& model : models_)
        if (model->watch != nullptr && plain(model)) model->watch->clear_stray(group.params());
  }

  decltype(auto) param_groups() { return optimizer_->param_groups(); }
  decltype(auto) param_groups() const { return std::as_const(*optimizer_).param_groups(); }
  decltype(auto) state() { return optimizer_->state(); }
  decltype(auto) state() const { return std::as_const(*optimizer_).state(); }
  decltype(auto) defaults() { return optimizer_->defaults(); }

  template <class Group>
  void add_param_group(const Group& group) {
    session_->at_rank([&] {
      for (const auto& parameter : group.params())
        ACCEL_CHECK(session_->model_of(parameter) != nullptr, InvalidArgument,
                    "add_param_group: ", tensor::spec(parameter), unprepared);
      optimizer_->add_param_group(group);
      const std::size_t dropped = drop_repeated(*optimizer_);
      if (dropped > 0)
        session_->log.info("add_param_group: ", dropped, " parameter(s) were listed already, and stay listed once");
      find_models();
    });
  }

  // References to the wrapped optimizer: LibTorch's schedulers and torch::save / torch::load take it so.
  operator O&() { return *optimizer_; }
  operator const O&() const { return *optimizer_; }
  [[nodiscard]] O* operator->() { return optimizer_.get(); }
  [[nodiscard]] O& unwrap() { return *optimizer_; }

 private:
  static constexpr std::string_view unprepared =
      " belongs to no prepared model, so its gradient would stay on this rank; prepare its model first";
  static constexpr bool folds_scale =
      requires(O& optimizer, const gradient::GradScale& scale) { optimizer.step(scale); };

  /// A reduction that was lost changes nothing. The host would have to wait to know it, and does where an optimizer
  /// cannot leave it to the device.
  void plain_step() {
    if constexpr (folds_scale) {
      const at::Tensor lost = session_->lost();
      optimizer_->step(gradient::GradScale{.scale = {}, .found_inf = lost, .on_device = lost.defined()});
    } else {
      session_->await_reduction();
      optimizer_->step();
    }
  }

  void scaled_step() {
    const std::vector<at::Tensor> own = parameters();
    const auto check = [&] { check_before_step(); };
    scaling_->step(models_, own, folds_scale, check, [&](const gradient::GradScale& scale) {
      if constexpr (folds_scale)
        optimizer_->step(scale);
      else
        optimizer_->step();
    });
  }

  [[nodiscard]] std::vector<at::Tensor> parameters() {
    std::vector<at::Tensor> all;
    for (auto& group : optimizer_->param_groups()) all.insert(all.end(), group.params().begin(), group.params().end());
    return all;
  }

  /// The models whose parameters this optimizer steps.
  void find_models() {
    const auto all = parameters();
    models_ = session_->models_of(all);
    known_.clear();
    stranger_.reset();
    for (const auto& parameter : all) {
      known_.push_back(parameter.unsafeGetTensorImpl());
      if (!stranger_ && session_->model_of(parameter) == nullptr) stranger_ = tensor::spec(parameter);
    }
    try {
      for (auto& group : optimizer_->param_groups()) (void)rate_of(group);
      has_rates_ = true;
    } catch (const c10::Error&) {
      has_rates_ = false;  // LibTorch's base class throws where a user's own options have no get_lr()
    }
  }

  /// The wrapped optimizer's groups are the user's to change.
  void follow_groups() {
    std::size_t i = 0;
    bool are_known = true;
    for (auto& group : optimizer_->param_groups())
      for (const auto& parameter : group.params()) {
        are_known = are_known && i < known_.size() && known_[i] == parameter.unsafeGetTensorImpl();
        ++i;
      }
    if (are_known && i == known_.size()) return;
    drop_repeated(*optimizer_);
    find_models();
  }

  void check_before_step() {
    constexpr std::string_view remedy = "call accelerator.backward(loss) in place of loss.backward()";
    session_->accumulation.check_window_is_over();
    ACCEL_CHECK(!stranger_, InvalidArgument, "step: ", *stranger_, unprepared);
    for (const auto& model : models_) session_->check_before_step(*model);
    for (auto& group : optimizer_->param_groups())
      for (const auto& model : models_) {
        const auto stray = model->stray(group.params());
        ACCEL_CHECK(!stray, InvalidArgument, "step: the gradient of ", *stray, " of ", model->record.label,
                    " comes from a backward that accelerator.backward did not run, so it was not reduced; ", remedy);
      }
    // Hooks see more; but one rank without a scaler has none, and a gradient may have been put there by hand.
    ACCEL_CHECK(session_->accumulation.backwards() > backwards_at_clear_ || !has_gradients(), InvalidArgument,
                "step: there are gradients, but accelerator.backward was not called since they were last cleared; ",
                remedy, ", or step the wrapped optimizer, optimizer->step(), with gradients of your own");
  }

  /// A step was taken, or skipped: the ranks compare what those that have taken the same agree on, as far as the host
  /// knows it.
  void note_step() {
    std::uint64_t what = number_;
    const auto mix = [&](double number) { what = mixed(what, std::bit_cast<std::uint64_t>(number)); };
    mix(static_cast<double>(known_.size()));
    mix(has_gradients() ? 1.0 : 0.0);
    if (has_rates_)
      for (auto& group : optimizer_->param_groups()) mix(rate_of(group));
    if (session_->scaler != nullptr) {
      mix(static_cast<double>(session_->scaler->updates()));
      const at::Tensor& scale = session_->scaler->scale();
      if (scale.is_cpu()) mix(static_cast<double>(*scale.template const_data_ptr<float>()));
    }
    session_->note_step(what);
    *stepped_ = session_->accumulation.backwards();
    if (number_ == 1) ++session_->steps;
    precision::forget_casts();
  }

  /// 0 where only a GPU knows it, or nobody.
  template <class Group>
  [[nodiscard]] static double rate_of(Group& group) {
    const auto& options = group.options();
    if constexpr (requires { options.lr.tensor(); })
      if (options.lr.is_tensor() && !options.lr.tensor().is_cpu()) return 0;
    if constexpr (requires { options.get_lr(); } || requires { options.lr; })
      return optim::rate_of(options);
    else
      return 0;
  }

  [[nodiscard]] bool has_gradients() {
    for (auto& group : optimizer_->param_groups())
      for (auto& parameter : group.params())
        if (parameter.grad().defined()) return true;
    return false;
  }

  struct StepSome final : gradient::Stepper {
    StepSome(std::shared_ptr<O> own, std::shared_ptr<Session> its)
        : optimizer(std::move(own)), session(std::move(its)) {}

    void step(std::span<const at::Tensor> some) override {
      settle(some);
      if constexpr (requires { optimizer->step_some(some); }) optimizer->step_some(some);
    }

    /// What is about to be written to must be copied; a snapshot of the rest goes on beside what backward has left.
    void settle(std::span<const at::Tensor> some) {
      auto& checkpointing = *session->checkpointing;
      if (!checkpointing.has_snapshot()) return;
      if constexpr (requires { optimizer->written_by(some); })
        if (const auto written = optimizer->written_by(some)) return checkpointing.settle(*written);
      checkpointing.settle();
    }

    std::shared_ptr<O> optimizer;
    std::shared_ptr<Session> session;
  };

  std::shared_ptr<O> optimizer_;
  std::shared_ptr<Session> session_;
  std::vector<std::shared_ptr<PreparedModel>> models_;
  std::vector<const c10::TensorImpl*> known_;  // its parameters, when its models were found
  std::optional<std::string> stranger_;        // one of them that belongs to none
  std::shared_ptr<StepSome> stepper_;          // null unless it steps inside of backward
  std::shared_ptr<Scaling> scaling_;           // null unless the loss is scaled
  std::int64_t backwards_at_clear_ = 0;
  std::shared_ptr<std::int64_t> stepped_ = std::make_shared<std::int64_t>(0);  // backwards before the last step
  std::uint64_t number_;                                                       // among the session's
  bool has_rates_ = false;
};

}  // namespace accel::inline v0_1::prepare
