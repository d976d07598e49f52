// Hooks: tells when autograd has put something into a parameter's gradient.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace accel::inline v0_1::gradient {

/// Tells its listener whenever backward has put a contribution into a parameter's `.grad`. Hooks go with
/// this object.
///
/// They belong to the tensor and keep no node or stream of autograd alive. A hook that stands there
/// already is called first, and stands there again afterwards.
///
/// Cost     a pointer call per gradient; nothing is allocated.
/// Order    on the thread of the parameter's device: the caller's for the CPU.
class Hooks {
 public:
  struct Listener {
    /// Parameter k's gradient has changed.
    virtual void arrived(std::size_t k) = 0;

    Listener() = default;
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

   protected:
    ~Listener() = default;
  };

  /// `parameters` must outlive this.
  Hooks(std::span<const at::Tensor> parameters, Listener& listener)
      : parameters_(parameters), target_(std::make_shared<Target>(&listener)) {
    using torch::autograd::impl::post_acc_grad_hooks;
    for (std::size_t k = 0; k < parameters_.size(); ++k) {
      auto hook = std::make_unique<Hook>(target_, k, std::move(post_acc_grad_hooks(parameters_[k])));
      torch::autograd::impl::set_post_acc_grad_hooks(parameters_[k], std::move(hook));
    }
  }

  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  ~Hooks() {
    target_->listener = nullptr;  // for those that somebody has put another one in front of
    for (std::size_t k = 0; k < parameters_.size(); ++k) {
      if (lost(k)) continue;
      auto& slot = torch::autograd::impl::post_acc_grad_hooks(parameters_[k]);
      auto next = std::move(static_cast<Hook&>(*slot).next);
      slot = std::move(next);
    }
  }

  /// True if something else stands where the hook was put: it may be that nobody is told any more.
  [[nodiscard]] bool lost(std::size_t k) const {
    const auto* hook = dynamic_cast<const Hook*>(torch::autograd::impl::post_acc_grad_hooks(parameters_[k]).get());
    return hook == nullptr || hook->target != target_;
  }

 private:
  struct Target {
    explicit Target(Listener* own) : listener(own) {}
    Listener* listener;
  };

  struct Hook final : torch::autograd::PostAccumulateGradHook {
    Hook(std::shared_ptr<Target> own, std::size_t parameter,
         std::unique_ptr<torch::autograd::PostAccumulateGradHook> stood)
        : target(std::move(own)), index(parameter), next(std::move(stood)) {}

    void operator()(const at::Tensor& parameter) override {
      if (next != nullptr) (*next)(parameter);
      if (target->listener != nullptr) target->listener->arrived(index);
    }

    std::shared_ptr<Target> target;
    std::size_t index;
    std::unique_ptr<torch::autograd::PostAccumulateGradHook> next;
  };

  std::span<const at::Tensor> parameters_;
  std::shared_ptr<Target> target_;
};

}  // namespace accel::inline v0_1::gradient
