// Snapshot: tensors as they are now, copied while training goes on with them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accel/core/error.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/safetensors.hpp>

namespace accel::inline v0_1::checkpoint {

/// Host memory for copies that serves again: what is freed is faulted in anew.
///
/// Memory   that of the largest snapshot so far, until it goes.
class CopyMemory {
 public:
  /// u8[bytes], pinned if `for_gpu`. What was given out before is overwritten.
  [[nodiscard]] at::Tensor take(std::int64_t bytes, bool for_gpu) {
    if (!flat_.defined() || flat_.numel() < bytes || flat_.is_pinned() != for_gpu)
      flat_ = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(for_gpu));
    return flat_.narrow(0, 0, bytes);
  }

 private:
  at::Tensor flat_;
};

/// Copies of tensors as they were when it was made. copy() makes them, on any thread, while training reads the tensors;
/// before it writes to them it has to call settle(), which makes what is not made yet. Of a GPU the device copies, and
/// settle() only orders what it does next behind that.
///
/// Whoever writes without settle() is found out by the tensor's version, as long as autograd counts it: then the
/// copy is not what the tensor was, and torn() names it.
///
/// Memory   of the copies, on the host.
class Snapshot {
 public:
  /// Of those `at_once` a copy is made now.
  Snapshot(std::span<const tensor::NamedTensor> tensors, std::span<const tensor::NamedTensor> at_once,
           CopyMemory& memory) {
    std::int64_t bytes = 0;
    const auto add = [&](const tensor::NamedTensor& named) {
      Piece& piece = pieces_.emplace_back();
      piece.name = named.name;
      piece.source = named.tensor.detach();  // shares memory and version, whatever becomes of the tensor itself
      piece.version = piece.source._version();
      bytes = (bytes + alignment - 1) / alignment * alignment;
      offsets_.push_back(bytes);
      bytes += static_cast<std::int64_t>(named.tensor.nbytes());
      if (!named.tensor.is_cpu()) device_ = named.tensor.device();
    };
    for (const auto& named : tensors) add(named);
    for (const auto& named : at_once) add(named);
    const at::Tensor flat = memory.take(bytes, device_ && device_->is_cuda());
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const at::Tensor& source = pieces_[i].source;
      const at::Tensor place = flat.narrow(0, offsets_[i], static_cast<std::int64_t>(source.nbytes()));
      pieces_[i].copy = place.view(source.scalar_type()).view(source.sizes());
    }
    if (device_) start_on_device();
    for (std::size_t i = tensors.size(); i < pieces_.size(); ++i) make(pieces_[i]);
  }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  /// Makes the copies that are not made yet. Where another thread makes one, waits for it.
  void copy() {
    for (Piece& piece : pieces_) make(piece);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return made_ == pieces_.size(); });
  }

  /// Whoever calls it may write to the tensors afterwards. Of a GPU: on the current stream.
  void settle() {
    if (is_settled_.load(std::memory_order_acquire)) return;
    if (on_device_) on_device_->block(c10::impl::VirtualGuardImpl(device_->type()).getStream(*device_));
    for (Piece& piece : pieces_)
      if (piece.source.is_cpu())
        make(piece);
      else
        look(piece);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return made_on_host_ + of_device_ == pieces_.size(); });
    is_settled_.store(true, std::memory_order_release);
  }

  /// The copies, once copy() has returned: contiguous, on the host.
  [[nodiscard]] const at::Tensor& operator[](std::size_t i) const { return pieces_[i].copy; }
  [[nodiscard]] std::size_t size() const { return pieces_.size(); }

  /// The names of tensors that somebody wrote to before they were copied. After copy().
  [[nodiscard]] std::vector<std::string> torn() const {
    std::vector<std::string> names;
    for (const Piece& piece : pieces_)
      if (piece.is_torn) names.push_back(piece.name);
    return names;
  }

 private:
  struct Piece {
    std::string name;
    at::Tensor source;
    std::int64_t version = 0;
    at::Tensor copy;
    std::atomic<bool> is_taken = false;   // by who copies it
    std::atomic<bool> is_looked = false;  // at its version, which may change from then on
    bool is_torn = false;
  };

  /// The device copies all of its own, behind what it was told before.
  void start_on_device() {
    const c10::impl::VirtualGuardImpl of_device(device_->type());
    c10::Event now(device_->type());
    now.record(of_device.getStream(*device_));
    const c10::Stream side = of_device.getStreamFromGlobalPool(*device_);
    now.block(side);
    const c10::StreamGuard guard(side);
    for (const Piece& piece : pieces_) {
      if (piece.source.is_cpu()) continue;
      ++of_device_;
      piece.copy.copy_(piece.source.resolve_conj().resolve_neg(), /*non_blocking=*/true);
      piece.source.record_stream(side);
    }
    on_device_.emplace(device_->type());
    on_device_->record(side);
  }

  void make(Piece& piece) {
    if (piece.is_taken.exchange(true)) return;
    if (piece.source.is_cpu())
      copy_on_host(piece);
    else
      on_device_->synchronize();
    look(piece);
    const std::lock_guard lock(mutex_);
    ++made_;
    if (piece.source.is_cpu()) ++made_on_host_;
    changed_.notify_all();
  }

  static void look(Piece& piece) {
    if (!piece.is_looked.exchange(true)) piece.is_torn = piece.source._version() != piece.version;
  }

  static void copy_on_host(const Piece& piece) {
    if (piece.source.nbytes() == 0) return;
    if (piece.source.is_contiguous() && !piece.source.is_conj() && !piece.source.is_neg())
      // Not copy_(), which would spread over the threads that compute.
      std::memcpy(piece.copy.mutable_data_ptr(), piece.source.const_data_ptr(), piece.source.nbytes());
    else
      piece.copy.copy_(piece.source);
  }

  static constexpr std::int64_t alignment = 64;

  std::deque<Piece> pieces_;
  std::vector<std::int64_t> offsets_;
  std::optional<c10::Device> device_;
  std::optional<c10::Event> on_device_;  // behind what the device copies
  std::atomic<bool> is_settled_ = false;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::size_t made_ = 0;
  std::size_t made_on_host_ = 0;
  std::size_t of_device_ = 0;  // set by the constructor
};

}  // namespace accel::inline v0_1::checkpoint
