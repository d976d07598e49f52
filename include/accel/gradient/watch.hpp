// Watch: hears of every gradient of a model, and tells those that nobody has announced.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/gradient/finite.hpp>
#include <accel/gradient/hooks.hpp>
#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::gradient {

/// Passes on what arrives during the accelerator's backward. What arrives outside of it is a stray: a
/// gradient that no rank has reduced.
class Watch final : Hooks::Listener {
 public:
  /// Parameter k of this model is number first + k to `next`, if there is one, which must outlive this, as `parameters`
  /// must.
  Watch(std::span<const at::Tensor> parameters, Hooks::Listener* next, std::size_t first)
      : parameters_(parameters),
        next_(next),
        first_(first),
        heard_(parameters_.size(), 0),
        stray_(parameters_.size(), 0),
        hooks_(parameters, *this) {}

  /// The numbers of this model's parameters: from the first to before the end.
  [[nodiscard]] std::size_t first() const { return first_; }
  [[nodiscard]] std::size_t end_number() const { return first_ + parameters_.size(); }

  /// A backward of the accelerator begins.
  void begin() {
    // net->zero_grad() tells nobody, but leaves no gradient.
    for (std::size_t k = 0; strays_ > 0 && k < parameters_.size(); ++k)
      if (stray_[k] != 0 && !parameters_[k].grad().defined()) unmark(k);
    if (overflow_ && !parameters_[*overflow_].grad().defined()) overflow_.reset();
    std::fill(heard_.begin(), heard_.end(), std::uint8_t{0});
    listens_ = true;
  }

  /// It is over.
  void end() { listens_ = false; }

  /// The number, in this model, of one of `parameters` whose gradient is a stray.
  [[nodiscard]] std::optional<std::size_t> stray(std::span<const at::Tensor> parameters) const {
    for (std::size_t k = 0; strays_ > 0 && k < parameters_.size(); ++k)
      if (stray_[k] != 0 && parameters_[k].grad().defined() && tensor::is_among(parameters_[k], parameters)) return k;
    return std::nullopt;
  }

  /// The gradients of `parameters` were cleared.
  void clear_stray(std::span<const at::Tensor> parameters) {
    for (std::size_t k = 0; strays_ > 0 && k < parameters_.size(); ++k)
      if (stray_[k] != 0 && tensor::is_among(parameters_[k], parameters)) unmark(k);
  }

  /// From now on every gradient that arrives is looked through, before other ranks' are added to it.
  void look_for_overflow() { looks_for_overflow_ = true; }

  /// The number, in this model, of the parameter whose gradient was the first of this rank not to be finite; then
  /// forgets it.
  [[nodiscard]] std::optional<std::size_t> take_overflow() { return std::exchange(overflow_, std::nullopt); }

  /// The number of a parameter of which nothing was heard, and whose hook is gone.
  [[nodiscard]] std::optional<std::size_t> lost_hook() const {
    for (std::size_t k = 0; k < parameters_.size(); ++k)
      if (heard_[k] == 0 && hooks_.lost(k)) return k;
    return std::nullopt;
  }

 private:
  void arrived(std::size_t k) override {
    heard_[k] = 1;
    if (looks_for_overflow_ && listens_ && !overflow_ && !is_finite(parameters_[k].grad())) overflow_ = k;
    if (listens_) {
      if (next_ != nullptr) next_->arrived(first_ + k);
      return;
    }
    if (stray_[k] == 0) ++strays_;
    stray_[k] = 1;
  }

  void unmark(std::size_t k) {
    stray_[k] = 0;
    --strays_;
  }

  std::span<const at::Tensor> parameters_;
  Hooks::Listener* next_;
  std::size_t first_;
  bool listens_ = false;
  std::vector<std::uint8_t> heard_;  // since the last backward of the accelerator began, by parameter
  std::vector<std::uint8_t> stray_;  // by parameter
  std::size_t strays_ = 0;
  bool looks_for_overflow_ = false;
  std::optional<std::size_t> overflow_;
  Hooks hooks_;  // last: no hook outlives what it calls
};

}  // namespace accel::inline v0_1::gradient
