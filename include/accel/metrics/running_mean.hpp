// RunningMean: the mean of a loss over steps and ranks, without a host sync until it is asked for.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::metrics {

/// Adds up values by weight on the device; compute() is the mean over everything that any rank
/// added since the last reset().
///
/// Cost     update(): two small kernels. compute(): one all_reduce of two numbers, and the host waits.
template <Backend B>
class RunningMean {
 public:
  explicit RunningMean(B& backend) : backend_(&backend) { reset(); }

  RunningMean(RunningMean&&) noexcept = default;  // a copy would share the sum but not the weight
  RunningMean& operator=(RunningMean&&) noexcept = default;

  /// `value` is a scalar tensor, as a loss is; `weight` usually the rows it is the mean of.
  void update(const at::Tensor& value, std::int64_t weight) {
    ACCEL_CHECK(value.defined() && value.numel() == 1, InvalidArgument, "running mean: expected one number, found ",
                tensor::spec(value));
    if (weight == 0) return;  // a filler batch: its loss speaks for no row
    const c10::AutoGradMode no_grad(false);
    const auto addend = value.detach().reshape({}).to(sums_.options(), /*non_blocking=*/true);
    sums_.select(0, 0).add_(addend, static_cast<double>(weight));
    weight_ += weight;
  }

  /// NaN if nothing was added. Order: collective.
  [[nodiscard]] double compute() {
    at::Tensor total = sums_.clone();  // [2]: weighted sum, weight
    total.select(0, 1).fill_(static_cast<double>(weight_));
    auto work = backend_->all_reduce(total, ReduceOp::sum);
    backend::wait_on_host(*backend_, work);
    const at::Tensor host = total.cpu();
    return host.const_data_ptr<double>()[0] / host.const_data_ptr<double>()[1];
  }

  void reset() {
    sums_ = at::zeros({2}, at::TensorOptions().dtype(at::kDouble).device(backend_->device()));
    weight_ = 0;
  }

 private:
  B* backend_;
  at::Tensor sums_;  // f64[2]: the sum of value * weight; the second is filled in by compute()
  std::int64_t weight_ = 0;
};

}  // namespace accel::inline v0_1::metrics
