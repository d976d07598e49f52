// Bucket: one flat buffer and its views, one per parameter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/view_as_real.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Storage.h>

#include <accel/core/units.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/gradient/ledger.hpp>
#include <accel/tensor/flat.hpp>

namespace accel::inline v0_1::gradient {

/// The gradients of one PlannedBucket in one buffer, and behind them one flag per parameter: the
/// number of ranks that have news for it. The flags ride in the same message, so unused parameters
/// cost no collective of their own.
///
/// Shape    flat: [numel + parameters], dtype of the bucket.
class Bucket {
 public:
  Bucket(PlannedBucket plan, std::span<const at::Tensor> parameters, at::Tensor flat) : plan_(std::move(plan)) {
    for (const std::size_t i : plan_.parameters) parameters_.push_back(parameters[i]);
    views_.resize(size());
    flags_to_send_ = at::ones({static_cast<std::int64_t>(size())}, at::kDouble);
    lie_in(std::move(flat));
  }

  /// The size that `flat` must have.
  [[nodiscard]] static Bytes bytes(const PlannedBucket& plan) {
    const std::int64_t numel = plan.numel + static_cast<std::int64_t>(plan.parameters.size());
    return {numel * static_cast<std::int64_t>(c10::elementSize(plan.dtype))};
  }

  [[nodiscard]] std::size_t size() const { return plan_.parameters.size(); }

  /// What is summed over the ranks. Sums of complex numbers are those of their parts.
  [[nodiscard]] at::Tensor payload() const { return flat_.is_complex() ? at::view_as_real(flat_) : flat_; }

  /// Before anything is written: somebody may hold a gradient of an earlier step that will be. They keep
  /// what they see, in other memory; ours stays where the backend has put it, which may be known to other
  /// ranks. What holds a gradient that is still its parameter's follows it, as it does in LibTorch.
  void leave_to_holders() {
    bool all_are_gradients = true;
    for (std::size_t k = 0; k < size(); ++k) {
      if (is_gradient(k)) continue;
      all_are_gradients = false;
      if (views_[k].use_count() == 1) continue;
      views_[k].set_data(views_[k].clone());
      views_[k] = view(k);
    }
    // By a tensor that shares the memory, as `.detach()` gives: whose, a storage does not tell.
    const bool alone_in_storage = flat_.storage().nbytes() == static_cast<std::size_t>(bytes(plan_).count);
    if (!all_are_gradients && alone_in_storage && flat_.storage().use_count() != 2 + size()) part_storages();
  }

  /// Brings every gradient into the buffer, in one pass, and makes `.grad` its view.
  void fill(const Ledger& ledger) {
    sources_.clear();
    targets_.clear();
    followers_.clear();
    without_news_.clear();
    for (std::size_t k = 0; k < size(); ++k) {
      if (!ledger.has_news(plan_.parameters[k])) without_news_.push_back(k);
      at::Tensor& gradient = parameters_[k].mutable_grad();
      if (!gradient.defined()) {
        views_[k].zero_();
        continue;
      }
      if (is_gradient(k)) continue;
      if (gradient.is_sparse()) gradient = gradient.to_dense();
      targets_.push_back(views_[k]);
      // A handle in the user's hands stays the gradient, as it does where LibTorch adds to it.
      if (gradient.use_count() > 1 && !gradient.requires_grad()) {
        sources_.push_back(gradient.variable_data());
        followers_.push_back(k);
      } else {
        sources_.push_back(std::exchange(gradient, views_[k]));
      }
    }
    if (!sources_.empty()) at::_foreach_copy_(targets_, sources_);
    for (const std::size_t k : followers_) adopt(parameters_[k].grad(), k);
    sources_.clear();
    targets_.clear();
    send_flags();
  }

  /// After the sum has arrived: a parameter without a gradient here has one now if another rank has
  /// used it, and stays without one if nobody has, as in DDP.
  void settle(Ledger& ledger) {
    if (without_news_.empty()) return;
    const at::Tensor ranks =
        (flags_.is_complex() ? at::view_as_real(flags_).select(1, 0) : flags_).to(at::kCPU, at::kDouble);
    const auto* const with_news = ranks.const_data_ptr<double>();
    for (const std::size_t k : without_news_) {
      at::Tensor& gradient = parameters_[k].mutable_grad();
      if (with_news[k] == 0)
        ledger.restore(plan_.parameters[k]);
      else if (!gradient.defined())
        gradient = views_[k];
    }
  }

 private:
  [[nodiscard]] bool is_gradient(std::size_t k) const {
    return parameters_[k].grad().unsafeGetTensorImpl() == views_[k].unsafeGetTensorImpl();
  }

  void lie_in(at::Tensor flat) {
    flat_ = std::move(flat);
    flags_ = flat_.narrow(0, plan_.numel, static_cast<std::int64_t>(size()));
    for (std::size_t k = 0; k < size(); ++k) views_[k] = view(k);
  }

  /// Shares the memory without being a view to autograd: LibTorch's zero_grad calls detach_ on it.
  [[nodiscard]] at::Tensor view(std::size_t k) const {
    return tensor::view_like(flat_, plan_.offsets[k], parameters_[k]).variable_data();
  }

  /// The storage that others know goes on with a copy, and the memory gets a new one, which is ours.
  void part_storages() {
    const auto old = views_;
    const c10::Storage theirs = flat_.storage();
    const at::Tensor copy = flat_.clone();
    const c10::Storage ours(c10::Storage::use_byte_size_t(), theirs.nbytes(),
                            theirs.set_data_ptr(copy.storage().set_data_ptr(c10::DataPtr(nullptr, flat_.device()))));
    lie_in(at::empty({0}, flat_.options()).set_(ours, 0, flat_.sizes(), flat_.strides()));
    for (std::size_t k = 0; k < size(); ++k)
      if (parameters_[k].grad().unsafeGetTensorImpl() == old[k].unsafeGetTensorImpl()) adopt(old[k], k);
  }

  /// Makes `gradient` the view of parameter k: the same tensor to whoever has it, in our memory.
  void adopt(at::Tensor gradient, std::size_t k) {
    gradient.set_data(views_[k]);
    views_[k] = std::move(gradient);
  }

  void send_flags() {
    if (without_news_.empty()) {
      flags_.fill_(1);
      return;
    }
    auto* const with_news = flags_to_send_.mutable_data_ptr<double>();
    for (const std::size_t k : without_news_) with_news[k] = 0;
    flags_.copy_(flags_to_send_);
    flags_to_send_.fill_(1);
  }

  PlannedBucket plan_;
  std::vector<at::Tensor> parameters_;
  at::Tensor flat_;
  at::Tensor flags_;                           // [parameters]
  at::Tensor flags_to_send_;                   // f64[parameters] on the host, 1 but in send_flags()
  std::vector<at::Tensor> views_;              // each of its parameter's shape
  std::vector<at::Tensor> sources_, targets_;  // members, so that a step allocates nothing
  std::vector<std::size_t> followers_;         // gradients that the user has a handle of
  std::vector<std::size_t> without_news_;      // parameters that this rank's backward did not add to
};

}  // namespace accel::inline v0_1::gradient
