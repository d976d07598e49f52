// LearningRate: a number on the host, or a tensor on the device that a captured step reads anew each time.
#pragma once

#include <concepts>
#include <utility>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::optim {

/// `.lr = 1e-3` is a number; `.lr = torch::tensor(1e-3F, device)` is a tensor, shared with whoever has it, as
/// PyTorch's optimizers take it: then a CUDA graph sees every change.
///
/// Shape    a tensor is a scalar of floating point.
class LearningRate {
 public:
  LearningRate(double number) : number_(number) {}
  LearningRate(at::Tensor tensor) : tensor_(std::move(tensor)) {
    ACCEL_CHECK(tensor_.defined() && tensor_.numel() == 1 && tensor_.is_floating_point(), InvalidArgument,
                "lr: expected a number, or a tensor of one floating-point number, found ", tensor::spec(tensor_));
    if (tensor_.dim() > 0) tensor_ = tensor_.squeeze();
  }

  [[nodiscard]] bool is_tensor() const { return tensor_.defined(); }
  [[nodiscard]] const at::Tensor& tensor() const { return tensor_; }

  /// Cost     the host waits, if it is a tensor on a GPU.
  [[nodiscard]] double value() const { return is_tensor() ? tensor_.item<double>() : number_; }
  operator double() const { return value(); }

  /// A tensor stays the tensor it is, and is written to.
  void set(double value) {
    if (is_tensor())
      tensor_.fill_(value);
    else
      number_ = value;
  }

  /// Calls `call` with the number or with the tensor, as the fused operators take either.
  template <class Call>
  decltype(auto) pass_to(Call&& call) const {
    return is_tensor() ? std::forward<Call>(call)(tensor_) : std::forward<Call>(call)(number_);
  }

 private:
  double number_ = 0;
  at::Tensor tensor_;  // in place of it
};

namespace detail {

/// 1 - lr * weight_decay, by which decoupled decay multiplies weights of `dtype`.
[[nodiscard]] inline double decay_factor(double lr, double weight_decay, at::ScalarType) {
  return 1 - lr * weight_decay;
}
[[nodiscard]] inline at::Tensor decay_factor(const at::Tensor& lr, double weight_decay, at::ScalarType dtype) {
  return lr.to(at::kDouble).mul(-weight_decay).add(1).to(dtype);  // as exact as of a number
}

}  // namespace detail

}  // namespace accel::inline v0_1::optim
