// Record: a module as a list of named tensors, each once, and what must be equal on all ranks.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::tensor {

/// A model as it was when it was prepared.
struct Record {
  struct Alias {
    std::string name;  // a further name ...
    std::string of;    // ... of the tensor with this name
  };

  std::string label;                    // "model 0", for messages
  std::vector<NamedTensor> parameters;  // each tensor once, in order of registration
  std::vector<NamedTensor> buffers;
  std::vector<Alias> aliases;   // tied: registered more than once
  std::vector<bool> trainable;  // of the parameters
  std::vector<c10::ScalarType> dtypes;

  /// Throws   InvalidArgument, by name, for what cannot be sent as it lies in memory.
  void check_layouts() const {
    const auto check = [&](const NamedTensor& named) {
      ACCEL_CHECK(named.tensor.layout() == at::kStrided, InvalidArgument, "prepare: ", named.name, " of ", label,
                  " is ", layout(named.tensor), ", and only dense tensors are sent between ranks; make it dense");
    };
    for (const auto& parameter : parameters) check(parameter);
    for (const auto& buffer : buffers) check(buffer);
  }

  [[nodiscard]] bool holds(const at::Tensor& tensor) const {
    for (const auto& parameter : parameters)
      if (parameter.tensor.is_same(tensor)) return true;
    return false;
  }

  [[nodiscard]] std::vector<NamedTensor> trainable_parameters() const {
    std::vector<NamedTensor> result;
    for (std::size_t i = 0; i < parameters.size(); ++i)
      if (trainable[i]) result.push_back(parameters[i]);
    return result;
  }

  /// The name of the k-th of them.
  [[nodiscard]] std::string trainable_name(std::size_t k) const { return trainable_parameters()[k].name; }

  [[nodiscard]] std::vector<at::Tensor> parameter_tensors() const { return tensors_of(parameters); }

  /// Parameters, then buffers.
  [[nodiscard]] std::vector<at::Tensor> tensors() const {
    auto all = parameter_tensors();
    for (auto& buffer : buffer_tensors()) all.push_back(std::move(buffer));
    return all;
  }

  [[nodiscard]] std::vector<at::Tensor> buffer_tensors() const { return tensors_of(buffers); }

  /// What is of floating point becomes `dtype`; LibTorch's Module::to would take integers along. Tensors stay the
  /// tensors they are.
  void cast(c10::ScalarType dtype) {
    const auto cast_one = [&](const at::Tensor& tensor) {
      if (tensor.is_floating_point()) tensor.set_data(tensor.detach().to(dtype));
    };
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      cast_one(parameters[i].tensor);
      dtypes[i] = parameters[i].tensor.scalar_type();
    }
    for (const auto& buffer : buffers) cast_one(buffer.tensor);
  }

  /// One line per tensor and tie: what every rank must have alike. Strides count: the same place of a
  /// flat buffer would be another element.
  void describe(std::vector<std::string>& lines) const {
    for (std::size_t i = 0; i < parameters.size(); ++i)
      lines.push_back(message(label, ": ", parameters[i].name, " ", layout(parameters[i].tensor),
                              trainable[i] ? " requires_grad" : " frozen"));
    for (const auto& buffer : buffers)
      lines.push_back(message(label, ": buffer ", buffer.name, " ", layout(buffer.tensor)));
    for (const auto& [name, of] : aliases) lines.push_back(message(label, ": ", name, " tied to ", of));
  }
};

namespace detail {

inline void add(std::vector<NamedTensor>& list, std::vector<Record::Alias>& aliases, const std::string& name,
                const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  for (const auto& known : list) {
    if (!known.tensor.is_same(tensor)) continue;
    aliases.push_back({name, known.name});
    return;
  }
  list.push_back({name, tensor});
}

}  // namespace detail

/// Lists the tensors of `net`. LibTorch lists a tied parameter once per name, and its optimizers
/// would step it as often; here it is one parameter with further names.
template <class Net>
[[nodiscard]] Record record(Net& net, std::string label) {
  Record result;
  result.label = std::move(label);
  for (const auto& item : net.named_parameters())
    detail::add(result.parameters, result.aliases, item.key(), item.value());
  for (const auto& item : net.named_buffers()) detail::add(result.buffers, result.aliases, item.key(), item.value());
  for (const auto& [name, tensor] : result.parameters) {
    result.trainable.push_back(tensor.requires_grad());
    result.dtypes.push_back(tensor.scalar_type());
  }
  return result;
}

}  // namespace accel::inline v0_1::tensor
