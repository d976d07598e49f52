// NamedTensor: a tensor and the name it has in its model or file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

namespace accel::inline v0_1::tensor {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// The tensors without their names.
[[nodiscard]] inline std::vector<at::Tensor> tensors_of(std::span<const NamedTensor> named) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(named.size());
  for (const auto& one : named) tensors.push_back(one.tensor);
  return tensors;
}

/// Whether one of `tensors` is `tensor` itself, not only equal to it.
[[nodiscard]] inline bool is_among(const at::Tensor& tensor, std::span<const at::Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const at::Tensor& one) { return one.is_same(tensor); });
}

/// Takes out of `tensors` what is `seen` already, or again: a model lists its tied parameters twice. Gives how many.
inline std::size_t drop_repeated(std::vector<at::Tensor>& tensors, std::unordered_set<const c10::TensorImpl*>& seen) {
  return std::erase_if(tensors, [&](const at::Tensor& one) { return !seen.insert(one.unsafeGetTensorImpl()).second; });
}

/// What tensors are called, where somebody has said so; others by their number, as in PyTorch.
class Names {
 public:
  void add(std::span<const NamedTensor> named) {
    for (const auto& [name, tensor] : named) names_[tensor.unsafeGetTensorImpl()] = name;
  }

  [[nodiscard]] std::string of(const at::Tensor& tensor, std::size_t number) const {
    const auto found = names_.find(tensor.unsafeGetTensorImpl());
    return found == names_.end() ? std::to_string(number) : found->second;
  }

 private:
  std::unordered_map<const c10::TensorImpl*, std::string> names_;
};

}  // namespace accel::inline v0_1::tensor
