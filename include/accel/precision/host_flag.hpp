// HostFlag: a number that a device has computed, on its way to the host.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace accel::inline v0_1::precision {

/// On the CPU the number is there at once. From a GPU it comes into pinned memory behind what the device is at, and
/// the host waits only if it asks before.
class HostFlag {
 public:
  /// `number` is f32[].
  void set(const at::Tensor& number) {
    if (number.is_cpu()) {
      value_ = static_cast<double>(*number.const_data_ptr<float>());
      return;
    }
    const c10::impl::VirtualGuardImpl guard(number.device().type());
    if (!pinned_.defined()) pinned_ = at::empty({}, at::TensorOptions(at::kFloat).pinned_memory(true));
    pinned_.copy_(number, /*non_blocking=*/true);
    if (!copied_) copied_.emplace(number.device().type());
    copied_->record(guard.getStream(number.device()));
    pending_ = true;
  }

  /// get() would not wait.
  [[nodiscard]] bool is_ready() const { return !pending_ || copied_->query(); }

  /// 0 before the first.
  [[nodiscard]] double get() const {
    if (pending_) {
      copied_->synchronize();
      value_ = static_cast<double>(*pinned_.const_data_ptr<float>());
      pending_ = false;
    }
    return value_;
  }

 private:
  mutable double value_ = 0;
  mutable bool pending_ = false;
  at::Tensor pinned_;  // f32[]
  std::optional<c10::Event> copied_;
};

}  // namespace accel::inline v0_1::precision
