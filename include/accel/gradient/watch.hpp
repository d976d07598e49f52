// Watch: hears of every gradient of a model, and tells those that nobody has announced.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/gradient/hooks.hpp>
#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::gradient {

/// Passes on what arrives during the accelerator's backward. What arrives outside of it is a stray: a
/// gradient that no rank has reduced.
class Watch final : Hooks::Listener {
 public:
  /// Parameter k of this model is number first + k to `next`, which must outlive this.
  Watch(std::vector<tensor::NamedTensor> parameters, Hooks::Listener& next, std::size_t first)
      : parameters_(std::move(parameters)),
        next_(&next),
        first_(first),
        heard_(parameters_.size(), 0),
        stray_(parameters_.size(), 0),
        hooks_(tensor::tensors_of(parameters_), *this) {}

  /// The numbers of this model's parameters: from the first to before the end.
  [[nodiscard]] std::size_t first() const { return first_; }
  [[nodiscard]] std::size_t end_number() const { return first_ + parameters_.size(); }

  /// A backward of the accelerator begins.
  void begin() {
    // net->zero_grad() tells nobody, but leaves no gradient.
    for (std::size_t k = 0; strays_ > 0 && k < parameters_.size(); ++k)
      if (stray_[k] != 0 && !parameters_[k].tensor.grad().defined()) unmark(k);
    std::fill(heard_.begin(), heard_.end(), std::uint8_t{0});
    listens_ = true;
  }

  /// It is over.
  void end() { listens_ = false; }

  /// The name of one of `parameters` whose gradient is a stray, or null.
  [[nodiscard]] const std::string* stray(std::span<const at::Tensor> parameters) const {
    if (strays_ == 0) return nullptr;
    for (std::size_t k = 0; k < parameters_.size(); ++k)
      if (stray_[k] != 0 && parameters_[k].tensor.grad().defined() &&
          tensor::is_among(parameters_[k].tensor, parameters))
        return &parameters_[k].name;
    return nullptr;
  }

  /// The gradients of `parameters` were cleared.
  void clear_stray(std::span<const at::Tensor> parameters) {
    for (std::size_t k = 0; strays_ > 0 && k < parameters_.size(); ++k)
      if (stray_[k] != 0 && tensor::is_among(parameters_[k].tensor, parameters)) unmark(k);
  }

  /// The name of a parameter of which nothing was heard, and whose hook is gone, or null.
  [[nodiscard]] const std::string* lost_hook() const {
    for (std::size_t k = 0; k < parameters_.size(); ++k)
      if (heard_[k] == 0 && hooks_.lost(k)) return &parameters_[k].name;
    return nullptr;
  }

 private:
  void arrived(std::size_t k) override {
    heard_[k] = 1;
    if (listens_) return next_->arrived(first_ + k);
    if (stray_[k] == 0) ++strays_;
    stray_[k] = 1;
  }

  void unmark(std::size_t k) {
    stray_[k] = 0;
    --strays_;
  }

  std::vector<tensor::NamedTensor> parameters_;
  Hooks::Listener* next_;
  std::size_t first_;
  bool listens_ = false;
  std::vector<std::uint8_t> heard_;  // since the last backward of the accelerator began, by parameter
  std::vector<std::uint8_t> stray_;  // by parameter
  std::size_t strays_ = 0;
  Hooks hooks_;  // last: no hook outlives what it calls
};

}  // namespace accel::inline v0_1::gradient
