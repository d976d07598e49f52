// Bucket: one flat buffer and its views, one per parameter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>

#include <accel/core/error.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::gradient {

/// The gradients of one PlannedBucket in one buffer, and behind them one flag per parameter: the
/// number of ranks that have a gradient for it. The flags ride in the same message, so unused
/// parameters cost no collective of their own.
///
/// Shape    flat: [numel + parameters], dtype of the bucket.
class Bucket {
 public:
  Bucket(const PlannedBucket& plan, std::span<const tensor::NamedTensor> parameters, at::Tensor flat)
      : flat_(std::move(flat)), flags_(flat_.narrow(0, plan.numel, static_cast<std::int64_t>(plan.parameters.size()))) {
    for (std::size_t k = 0; k < plan.parameters.size(); ++k) {
      parameters_.push_back(parameters[plan.parameters[k]]);
      // Shares the memory without being a view to autograd: LibTorch's zero_grad calls detach_ on it.
      views_.push_back(tensor::view_like(flat_, plan.offsets[k], parameters_.back().tensor).variable_data());
    }
  }

  [[nodiscard]] static std::int64_t numel(const PlannedBucket& plan) {
    return plan.numel + static_cast<std::int64_t>(plan.parameters.size());
  }

  [[nodiscard]] std::size_t size() const { return parameters_.size(); }
  [[nodiscard]] const at::Tensor& flat() const { return flat_; }

  /// Brings every gradient into the buffer, in one pass, and makes `.grad` its view.
  void fill() {
    sources_.clear();
    targets_.clear();
    unused_.clear();
    flags_.fill_(1);
    for (std::size_t k = 0; k < parameters_.size(); ++k) {
      at::Tensor& grad = parameters_[k].tensor.mutable_grad();
      if (!grad.defined()) {
        views_[k].zero_();
        flags_[static_cast<std::int64_t>(k)].zero_();
        unused_.push_back(k);
        continue;
      }
      ACCEL_CHECK(!grad.is_sparse(), InvalidArgument, "the gradient of ", parameters_[k].name,
                  " is sparse, and only dense ones are reduced; make its embedding without sparse(true)");
      if (grad.unsafeGetTensorImpl() == views_[k].unsafeGetTensorImpl()) continue;
      sources_.push_back(std::exchange(grad, views_[k]));
      targets_.push_back(views_[k]);
    }
    if (!sources_.empty()) at::_foreach_copy_(targets_, sources_);
    sources_.clear();
  }

  /// After the sum has arrived: a parameter without a gradient here has one now if another rank has
  /// used it, and stays without one if nobody has, as in DDP.
  void settle_unused() {
    for (const std::size_t k : unused_)
      if (flags_[static_cast<std::int64_t>(k)].item<double>() > 0) parameters_[k].tensor.mutable_grad() = views_[k];
  }

 private:
  std::vector<tensor::NamedTensor> parameters_;
  at::Tensor flat_;
  at::Tensor flags_;                           // [parameters]
  std::vector<at::Tensor> views_;              // each of its parameter's shape
  std::vector<at::Tensor> sources_, targets_;  // members, so that a step allocates nothing
  std::vector<std::size_t> unused_;
};

}  // namespace accel::inline v0_1::gradient
