// Root: what backward starts from, and the part of its factor that is no power of two.
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace accel::inline v0_1::gradient {

/// The factor of a loss, in two parts whose product it is.
struct SplitFactor {
  double root = 1.0;     // what autograd starts from
  double arrival = 1.0;  // what gradients are multiplied by where they arrive
};

/// Powers of two are exact in any dtype on the way and stay in the root. The rest follows where
/// gradients arrive: 1/3 in bf16 is 0.33398, and all gradients behind it would be 0.2 % too large.
[[nodiscard]] inline SplitFactor split_factor(double factor) {
  int exponent = 0;
  const double mantissa = std::frexp(factor, &exponent);  // in [0.5, 1), or 0
  if (mantissa == 0.5 || mantissa == 0.0) return {factor, 1.0};
  return {std::ldexp(1.0, exponent - 1), 2 * mantissa};
}

/// A tensor for backward of `loss` to start from; undefined for 1, which is what autograd takes by itself.
///
/// Memory   a new one for each backward, as autograd's own: a gradient may be a view of it from then on.
[[nodiscard]] inline at::Tensor root_gradient(const at::Tensor& loss, double factor) {
  if (factor == 1.0) return {};
  return at::full(loss.sizes(), factor, loss.options().requires_grad(false));
}

/// The same times a loss scale (f32[] on the device of the loss). Infinite where the loss's dtype cannot hold it,
/// as in PyTorch: the step is skipped, and the scale comes down.
///
/// Cost     on a GPU the host waits for nothing.
[[nodiscard]] inline at::Tensor root_gradient(const at::Tensor& loss, double factor, const at::Tensor& scale) {
  const auto dtype = loss.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto options = at::TensorOptions(dtype).device(loss.device());
  const at::Tensor root =
      scale.is_cpu() ? at::full(loss.sizes(), factor * static_cast<double>(*scale.const_data_ptr<float>()), options)
                     : at::full(loss.sizes(), factor, options).mul_(scale);
  return root.to(loss.scalar_type());
}

/// Multiplies gradients where they arrive at their parameters, before they are added to what is there.
///
/// Cost     nothing before the first factor that is not 1, then a look at each parameter and a call per gradient where
///          one is not 1; a new tensor for each
///          gradient that is multiplied: none where somebody else does that who moves them anyway.
class ArrivalFactor {
 public:
  ArrivalFactor() = default;
  ArrivalFactor(const ArrivalFactor&) = delete;
  ArrivalFactor& operator=(const ArrivalFactor&) = delete;
  ~ArrivalFactor() {
    for (const auto& model : models_)
      for (const auto& hooked : model.hooked)
        if (hooked.hook != nullptr) hooked.hook->owner = nullptr;  // a graph may keep the node
  }

  /// `parameters` must outlive this.
  void add(std::span<const at::Tensor> parameters) {
    models_.push_back({parameters, std::vector<Hooked>(parameters.size())});
  }

  /// From now on; 1 outside of a backward of the accelerator. `but_fresh`: leaves out what arrives where
  /// no gradient was.
  void set(double factor, bool but_fresh = false) {
    factor_ = factor;
    but_fresh_ = but_fresh;
    if (factor != 1.0) hook();
  }

 private:
  /// Of the node that adds to a parameter's gradient. A hook of the tensor would also be called where
  /// torch::autograd::grad asks for its gradient within a backward, which is added to nothing.
  struct Hook final : torch::autograd::FunctionPreHook {
    Hook(const ArrivalFactor& own, const at::Tensor& of) : owner(&own), parameter(&of) {}

    torch::autograd::variable_list operator()(const torch::autograd::variable_list& gradients) override {
      if (owner == nullptr || owner->factor_ == 1.0 || !gradients[0].defined()) return gradients;
      if (owner->but_fresh_ && !parameter->grad().defined()) return gradients;
      return {gradients[0] * owner->factor_};
    }

    const ArrivalFactor* owner;
    const at::Tensor* parameter;
  };

  struct Hooked {
    std::shared_ptr<torch::autograd::Node> node;  // a parameter's own, and the same as long as it is kept
    Hook* hook = nullptr;                         // the node's
  };

  struct Model {
    std::span<const at::Tensor> parameters;
    std::vector<Hooked> hooked;  // by parameter
  };

  void hook() {
    for (auto& [parameters, hooked] : models_) {
      for (std::size_t i = 0; i < hooked.size(); ++i) {
        if (!parameters[i].requires_grad()) continue;  // it has no node, and may be thawed
        // Who gives a parameter data of another dtype takes its node away.
        if (hooked[i].node != nullptr &&
            hooked[i].node == torch::autograd::impl::try_get_grad_accumulator(parameters[i]))
          continue;
        if (hooked[i].hook != nullptr) hooked[i].hook->owner = nullptr;
        hooked[i].node = torch::autograd::impl::grad_accumulator(parameters[i]);
        auto hook = std::make_unique<Hook>(*this, parameters[i]);
        hooked[i].hook = hook.get();
        hooked[i].node->add_pre_hook(std::move(hook));
      }
    }
  }

  std::vector<Model> models_;
  double factor_ = 1.0;
  bool but_fresh_ = false;
};

}  // namespace accel::inline v0_1::gradient
