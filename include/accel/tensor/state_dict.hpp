// StateDict: what an object needs to go on where it stopped, as named tensors.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/scalar_tensor.h>

#include <accel/core/error.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::tensor {

/// Tensors by name, in the order in which they were added. Numbers are tensors without dimensions: f64 or i64.
/// Tensors are shared with who gave them, not copied.
///
/// Throws   CheckpointError for a name that is there already, or is asked for and missing, or is of another kind.
class StateDict {
 public:
  void add(std::string name, at::Tensor tensor) {
    const bool is_new = places_.emplace(name, entries_.size()).second;
    ACCEL_CHECK(is_new, CheckpointError, "state: ", name, " is there already");
    entries_.push_back({std::move(name), std::move(tensor)});
  }
  template <std::floating_point Number>
  void add(std::string name, Number number) {
    add(std::move(name), at::scalar_tensor(static_cast<double>(number), at::kDouble));
  }
  template <std::integral Number>
  void add(std::string name, Number number) {
    add(std::move(name), at::scalar_tensor(static_cast<std::int64_t>(number), at::kLong));
  }
  /// All of `other`, each name behind `prefix`.
  void add(std::string_view prefix, const StateDict& other) {
    for (const auto& [name, tensor] : other.entries_) add(std::string(prefix) + name, tensor);
  }

  [[nodiscard]] bool has(std::string_view name) const { return find(name) != nullptr; }
  [[nodiscard]] const std::vector<NamedTensor>& entries() const { return entries_; }
  [[nodiscard]] bool empty() const { return entries_.empty(); }

  [[nodiscard]] const at::Tensor& tensor(std::string_view name) const {
    const NamedTensor* found = find(name);
    ACCEL_CHECK(found != nullptr, CheckpointError, "state: ", name, " is missing; there are ", entries_.size(),
                " entries", entries_.empty() ? "" : message(", the first is ", entries_.front().name));
    return found->tensor;
  }
  [[nodiscard]] double number(std::string_view name) const { return scalar(name, at::kDouble).item<double>(); }
  [[nodiscard]] std::int64_t integer(std::string_view name) const {
    return scalar(name, at::kLong).item<std::int64_t>();
  }

  /// Those whose name begins with `prefix`, without it.
  [[nodiscard]] StateDict below(std::string_view prefix) const {
    StateDict result;
    for (const auto& [name, tensor] : entries_)
      if (name.starts_with(prefix)) result.add(name.substr(prefix.size()), tensor);
    return result;
  }

 private:
  [[nodiscard]] const NamedTensor* find(std::string_view name) const {
    const auto found = places_.find(std::string(name));
    return found == places_.end() ? nullptr : &entries_[found->second];
  }

  [[nodiscard]] const at::Tensor& scalar(std::string_view name, at::ScalarType dtype) const {
    const at::Tensor& found = tensor(name);
    ACCEL_CHECK(found.dim() == 0 && found.scalar_type() == dtype, CheckpointError, "state: ", name, " is ", spec(found),
                ", expected ", dtype_name(dtype), "[]");
    return found;
  }

  std::vector<NamedTensor> entries_;
  std::unordered_map<std::string, std::size_t> places_;  // of each name
};

/// A type T is Stateful if what it needs to go on can be taken out of it and put back.
template <class T>
concept Stateful = requires(T& object, const T& self, const StateDict& state) {
  { self.state_dict() } -> std::same_as<StateDict>;
  { object.load_state_dict(state) } -> std::same_as<void>;
};

}  // namespace accel::inline v0_1::tensor
