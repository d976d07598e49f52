// Optimizer: the user's optimizer, stepping only when the gradients are complete.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/prepare/session.hpp>
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
    return std::make_shared<Value>(std::move(object));
  }
}

/// A prepared optimizer: the wrapped one with the calls that matter guarded.
///
/// step() does nothing in a micro-step that only accumulates. zero_grad() keeps gradients that are
/// not reduced yet, so it may stand before backward or after step.
///
/// Throws   InvalidArgument from step(): see Session::check_before_step.
/// Differs  Accelerate's zero_grad, at the start of the loop, erases an accumulated window.
template <class O>
class Optimizer {
 public:
  Optimizer(std::shared_ptr<O> optimizer, std::shared_ptr<Session> session)
      : optimizer_(std::move(optimizer)), session_(std::move(session)) {}

  void step() {
    labelled(session_->topology.label(), [&] {
      if (waits()) return;
      session_->check_before_step(has_gradients());
      optimizer_->step();
    });
  }

  /// For optimizers that call the closure themselves, as LBFGS does. The closure calls
  /// accelerator.backward; in a micro-step that only accumulates it is called once.
  template <class Closure>
  at::Tensor step(Closure&& closure) {
    return labelled(session_->topology.label(), [&]() -> at::Tensor {
      if (waits()) return closure();
      return optimizer_->step([&]() -> at::Tensor {
        at::Tensor loss = closure();
        session_->check_before_step(has_gradients());
        return loss;
      });
    });
  }

  void zero_grad(bool set_to_none = true) {
    if (!session_->accumulation.unfinished()) optimizer_->zero_grad(set_to_none);
  }

  decltype(auto) param_groups() { return optimizer_->param_groups(); }
  decltype(auto) param_groups() const { return std::as_const(*optimizer_).param_groups(); }
  decltype(auto) state() { return optimizer_->state(); }
  decltype(auto) state() const { return std::as_const(*optimizer_).state(); }
  decltype(auto) defaults() { return optimizer_->defaults(); }

  template <class Group>
  void add_param_group(const Group& group) {
    labelled(session_->topology.label(), [&] {
      for (const auto& parameter : group.params())
        ACCEL_CHECK(session_->prepared(parameter), InvalidArgument, "add_param_group: ", tensor::spec(parameter),
                    " belongs to no prepared model, so its gradient would stay on this rank; prepare its model first");
      optimizer_->add_param_group(group);
    });
  }

  // References to the wrapped optimizer: LibTorch's schedulers and torch::save / torch::load take it so.
  operator O&() { return *optimizer_; }
  operator const O&() const { return *optimizer_; }
  [[nodiscard]] O* operator->() { return optimizer_.get(); }
  [[nodiscard]] O& unwrap() { return *optimizer_; }

 private:
  /// True in a micro-step that only accumulates. Under no_sync a step is a mistake, and checked.
  [[nodiscard]] bool waits() const {
    const auto& accumulation = session_->accumulation;
    return !accumulation.synchronises() && !accumulation.in_no_sync();
  }

  [[nodiscard]] bool has_gradients() {
    for (auto& group : optimizer_->param_groups())
      for (auto& parameter : group.params())
        if (parameter.grad().defined()) return true;
    return false;
  }

  std::shared_ptr<O> optimizer_;
  std::shared_ptr<Session> session_;
};

}  // namespace accel::inline v0_1::prepare
