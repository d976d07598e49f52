// DeviceCopy: a batch on its way to the device, while the device computes on the one before.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::prepare {

/// Copies on a stream of its own. To the CPU it copies nothing.
class DeviceCopy {
 public:
  explicit DeviceCopy(c10::Device device) : device_(device) {
    if (device.is_cpu()) return;
    const c10::impl::VirtualGuardImpl of_device(device.type());
    side_.emplace(of_device.getStreamFromGlobalPool(device));
    arrived_.emplace(device.type());
  }

  /// Whether copies take time that can be hidden.
  [[nodiscard]] bool is_apart() const { return side_.has_value(); }

  /// Begins to copy; finish() is to follow before anything else reads it. From pinned memory the host does not wait.
  template <class Batch>
  [[nodiscard]] Batch start(Batch batch) {
    if (!side_) return to_device(std::move(batch));
    const c10::StreamGuard guard(*side_);
    Batch moved = to_device(std::move(batch));
    arrived_->record(*side_);
    return moved;
  }

  /// What the current stream does from now on comes behind the copy.
  template <class Batch>
  void finish(Batch& batch) {
    if (!side_) return;
    const c10::Stream current = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    arrived_->block(current);
    // Its memory is the side stream's, and may not be given away there before it has been read here.
    tensor::visit(batch, [&](at::Tensor& tensor) { tensor.record_stream(current); });
  }

 private:
  template <class Batch>
  [[nodiscard]] Batch to_device(Batch batch) const {
    return tensor::map(std::move(batch),
                       [&](const at::Tensor& tensor) { return tensor.to(device_, /*non_blocking=*/true); });
  }

  c10::Device device_;
  std::optional<c10::Stream> side_;
  std::optional<c10::Event> arrived_;
};

}  // namespace accel::inline v0_1::prepare
