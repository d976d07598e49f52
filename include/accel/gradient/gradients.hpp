// Gradients: those that a list of parameters has.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::gradient {

namespace detail {

inline const at::Tensor& tensor_of(const at::Tensor& tensor) {
  return tensor;
}
inline const at::Tensor& tensor_of(const tensor::NamedTensor& named) {
  return named.tensor;
}

}  // namespace detail

/// The `.grad` of each of `parameters`, tensors or named ones, that has one; in their order.
template <class Range>
[[nodiscard]] std::vector<at::Tensor> gradients_of(const Range& parameters) {
  std::vector<at::Tensor> gradients;
  for (const auto& parameter : parameters) {
    const at::Tensor& gradient = detail::tensor_of(parameter).grad();
    if (gradient.defined()) gradients.push_back(gradient);
  }
  return gradients;
}

}  // namespace accel::inline v0_1::gradient
