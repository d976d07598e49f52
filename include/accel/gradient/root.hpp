// Root: what backward starts from, and the part of its factor that is no power of two.
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>

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
  const auto options = at::TensorOptions(at::kFloat).device(loss.device());
  const at::Tensor root =
      scale.is_cpu() ? at::full(loss.sizes(), factor * static_cast<double>(*scale.const_data_ptr<float>()), options)
                     : at::full(loss.sizes(), factor, options).mul_(scale);
  return root.to(loss.scalar_type());
}

/// Multiplies gradients where they arrive at their parameters, before they are added to what is there.
///
/// Cost     nothing before the first factor that is not 1, then a call per gradient; a new tensor for each
///          gradient that is multiplied: none where somebody else does that who moves them anyway.
class ArrivalFactor {
 public:
  ArrivalFactor() = default;
  ArrivalFactor(const ArrivalFactor&) = delete;
  ArrivalFactor& operator=(const ArrivalFactor&) = delete;
  ~ArrivalFactor() {
    for (const auto& model : models_)
      for (std::size_t i = 0; i < model.hooks.size(); ++i)
        if (model.hooks[i]) model.parameters[i].remove_hook(*model.hooks[i]);
  }

  /// `parameters` must outlive this.
  void add(std::span<const at::Tensor> parameters) {
    models_.push_back({parameters, std::vector<std::optional<unsigned>>(parameters.size())});
  }

  /// From now on; 1 outside of a backward of the accelerator. `but_fresh`: leaves out what arrives where
  /// no gradient was.
  void set(double factor, bool but_fresh = false) {
    factor_ = factor;
    but_fresh_ = but_fresh;
    if (factor != 1.0) hook();
  }

 private:
  struct Model {
    std::span<const at::Tensor> parameters;
    std::vector<std::optional<unsigned>> hooks;  // by parameter
  };

  void hook() {
    for (auto& [parameters, hooks] : models_)
      for (std::size_t i = 0; i < hooks.size(); ++i) {
        const at::Tensor& parameter = parameters[i];
        if (!hooks[i] && parameter.requires_grad())  // a frozen one takes no hook, and may be thawed
          hooks[i] = parameter.register_hook([this, &parameter](const at::Tensor& gradient) {
            const bool stays = factor_ == 1.0 || (but_fresh_ && !parameter.grad().defined());
            return stays || !gradient.defined() ? at::Tensor() : gradient * factor_;
          });
      }
  }

  std::vector<Model> models_;
  double factor_ = 1.0;
  bool but_fresh_ = false;
};

}  // namespace accel::inline v0_1::gradient
