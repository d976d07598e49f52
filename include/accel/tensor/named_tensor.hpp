// NamedTensor: a tensor and the name it has in its model or file.
#pragma once

#include <algorithm>
#include <span>
#include <string>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::tensor {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// Whether one of `tensors` is `tensor` itself, not only equal to it.
[[nodiscard]] inline bool is_among(const at::Tensor& tensor, std::span<const at::Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const at::Tensor& one) { return one.is_same(tensor); });
}

}  // namespace accel::inline v0_1::tensor
