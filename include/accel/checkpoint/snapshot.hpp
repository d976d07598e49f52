// Snapshot: tensors as they are now, copied while training goes on with them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <iterator>
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
#include <accel/core/pages.hpp>
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
    if (!flat_.defined() || flat_.numel() < bytes || flat_.is_pinned() != for_gpu) {
      flat_.reset();  // before there is another
      flat_ = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(for_gpu));
      if (!for_gpu) prefer_huge_pages({static_cast<std::byte*>(flat_.mutable_data_ptr()), flat_.nbytes()});
    }
    return flat_.narrow(0, 0, bytes);
  }

 private:
  at::Tensor flat_;
};

/// Copies of tensors as they were when it was made. copy() makes them, on any thread, while training reads the tensors;
/// before it writes to some of them it has to call settle() of these, which makes what is not made yet. Of a GPU the
/// device copies, and settle() only orders what it does next behind that.
///
/// Whoever writes without settle() is found out by the tensor's version, as long as LibTorch or accel::optim writes:
/// then the copy may not be what the tensor was, and torn() names it. A version counts up at the end of a write, so it
/// is looked at when the copy is made, and once more when nobody writes any longer: in settle(), or, should that not
/// have come, in torn().
///
/// Memory   of the copies, on the host.
class Snapshot {
 public:
  /// Of those `at_once` a copy is made now. With `others_wait` nobody writes to any of them before the last use of the
  /// copies: what lies on the host as it will be written is not copied at all.
  Snapshot(std::span<const tensor::NamedTensor> tensors, std::span<const tensor::NamedTensor> at_once,
           CopyMemory& memory, bool others_wait = false) {
    std::int64_t bytes = 0;
    const auto add = [&](const tensor::NamedTensor& named, bool is_later) {
      Piece& piece = pieces_.emplace_back();
      piece.name = named.name;
      piece.source = named.tensor.detach();  // shares memory and version, whatever becomes of the tensor itself
      piece.is_on_host = named.tensor.is_cpu();
      piece.is_borrowed = others_wait && piece.is_on_host && is_plain(piece.source);
      piece.extent = extent_of(piece.source);
      piece.is_later = is_later || piece.is_borrowed;
      piece.version = piece.source._version();
      if (piece.is_borrowed) {
        piece.copy = piece.source;
        offsets_.push_back(0);
        return;
      }
      bytes = (bytes + alignment - 1) / alignment * alignment;
      offsets_.push_back(bytes);
      bytes += static_cast<std::int64_t>(named.tensor.nbytes());
      if (!piece.is_on_host) device_ = named.tensor.device();
    };
    for (const auto& named : tensors) add(named, true);
    for (const auto& named : at_once) add(named, false);
    const at::Tensor flat = memory.take(bytes, device_ && device_->is_cuda());
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].is_borrowed) continue;
      const at::Tensor& source = pieces_[i].source;
      const at::Tensor place = flat.narrow(0, offsets_[i], static_cast<std::int64_t>(source.nbytes()));
      pieces_[i].copy = place.view(source.scalar_type()).view(source.sizes());
    }
    if (device_) start_on_device();
    for (Piece& piece : pieces_)
      if (piece.is_on_host && !piece.is_later) make(piece);
  }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  /// Makes the copies that are not made yet. Where another thread makes one, waits for it.
  ///
  /// Throws   what a copy has thrown, on whatever thread.
  void copy() {
    for (Piece& piece : pieces_) make(piece);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return made_ == pieces_.size(); });
    if (failure_) std::rethrow_exception(failure_);
  }

  /// Whoever calls it may write to all the tensors afterwards. Of a GPU: on the current stream.
  void settle() {
    settle_if([](const Piece&) { return true; });
  }

  /// The same of what lies, if only in part, where `written` does; the copies of the rest go on.
  void settle(std::span<const at::Tensor> written) {
    std::vector<Extent> extents;
    for (const at::Tensor& tensor : written)
      if (tensor.numel() > 0) extents.push_back(extent_of(tensor));
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < extents.size(); ++i)  // how far those up to there reach
      extents[i].end = std::max(extents[i].end, extents[i - 1].end);
    settle_if([&](const Piece& piece) {
      const auto behind = std::lower_bound(extents.begin(), extents.end(), piece.extent.end,
                                           [](const Extent& extent, std::uintptr_t end) { return extent.begin < end; });
      return behind != extents.begin() && std::prev(behind)->end > piece.extent.begin;
    });
  }

  /// The copies, once copy() has returned: contiguous, on the host.
  [[nodiscard]] const at::Tensor& operator[](std::size_t i) const { return pieces_[i].copy; }
  [[nodiscard]] std::size_t size() const { return pieces_.size(); }

  /// The names of tensors that somebody wrote to before or while they were copied, or, as far as that cannot be told
  /// apart, soon afterwards. After copy(); the later it is called, the longer a write may have taken.
  [[nodiscard]] std::vector<std::string> torn() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (Piece& piece : pieces_) {
      if (piece.is_later) look(piece);
      if (piece.is_torn) names.push_back(piece.name);
    }
    return names;
  }

 private:
  /// Bytes in memory, from the first to behind the last.
  struct Extent {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
  };

  struct Piece {
    std::string name;
    at::Tensor source;  // none once it may be written to
    Extent extent;
    bool is_on_host = true;
    bool is_borrowed = false;  // the copy is the source
    bool is_later = true;      // not copied at once
    std::int64_t version = 0;
    at::Tensor copy;
    std::size_t event = 0;               // of on_device_: it is copied
    std::atomic<bool> is_taken = false;  // by who copies it
    bool is_made = false;                // under the mutex, as what follows
    bool is_torn = false;
  };

  [[nodiscard]] static Extent extent_of(const at::Tensor& tensor) {
    if (tensor.numel() == 0) return {};
    std::int64_t last = 0;
    for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
    return {begin,
            begin + (static_cast<std::uintptr_t>(last) + 1) * static_cast<std::uintptr_t>(tensor.element_size())};
  }

  /// The device copies all of its own, behind what it was told before. What it is told next goes on beside that, but
  /// for what is to be copied at once.
  void start_on_device() {
    const c10::impl::VirtualGuardImpl of_device(device_->type());
    const c10::Stream current = of_device.getStream(*device_);
    c10::Event now(device_->type());
    now.record(current);
    const c10::Stream side = of_device.getStreamFromGlobalPool(*device_);
    now.block(side);
    const c10::StreamGuard guard(side);
    std::size_t bytes = 0;  // since the last event
    const auto record = [&] {
      on_device_.emplace_back(device_->type()).record(side);
      bytes = 0;
    };
    const auto copy_those = [&](bool later) {
      for (Piece& piece : pieces_) {
        if (piece.is_on_host || piece.is_later != later) continue;
        piece.copy.copy_(piece.source.resolve_conj().resolve_neg(), /*non_blocking=*/true);
        piece.source.record_stream(side);
        piece.event = on_device_.size();
        bytes += piece.source.nbytes();
        if (bytes >= bytes_of_event) record();
      }
      record();
    };
    copy_those(false);
    on_device_.back().block(current);
    copy_those(true);
  }

  template <class Condition>
  void settle_if(const Condition& condition) {
    std::vector<Piece*> some;
    for (Piece& piece : pieces_)
      if (piece.source.defined() && condition(piece)) some.push_back(&piece);
    std::optional<std::size_t> event;
    for (Piece* piece : some) {
      if (piece->is_on_host)
        make(*piece);
      else
        event = std::max(event.value_or(0), piece->event);  // one stream: all before are over, too
    }
    if (event) on_device_[*event].block(c10::impl::VirtualGuardImpl(device_->type()).getStream(*device_));
    std::unique_lock lock(mutex_);
    for (Piece* piece : some) {
      if (piece->is_on_host) changed_.wait(lock, [&] { return piece->is_made; });
      if (piece->is_later) look(*piece);
    }
    // Who looks whether memory is somebody's alone, as optimizers do, is not to find it here.
    for (Piece* piece : some) piece->source.reset();
  }

  void make(Piece& piece) {
    if (piece.is_taken.exchange(true)) return;
    std::exception_ptr failed;
    try {
      if (piece.is_on_host)
        copy_on_host(piece);
      else
        on_device_[piece.event].synchronize();
    } catch (...) {
      failed = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    if (failed) failure_ = failed;
    if (piece.is_on_host) look(piece);
    piece.is_made = true;
    ++made_;
    changed_.notify_all();
  }

  /// Under the mutex. What is nothing cannot be torn, whoever counts its versions.
  static void look(Piece& piece) {
    if (piece.source.defined() && piece.source.numel() > 0 && piece.source._version() != piece.version)
      piece.is_torn = true;
  }

  [[nodiscard]] static bool is_plain(const at::Tensor& source) {
    return source.is_contiguous() && !source.is_conj() && !source.is_neg();
  }

  static void copy_on_host(const Piece& piece) {
    if (piece.is_borrowed || piece.source.nbytes() == 0) return;
    if (is_plain(piece.source))
      // Not copy_(), which would spread over the threads that compute.
      std::memcpy(piece.copy.mutable_data_ptr(), piece.source.const_data_ptr(), piece.source.nbytes());
    else
      piece.copy.copy_(piece.source);
  }

  static constexpr std::int64_t alignment = 64;
  static constexpr std::size_t bytes_of_event = 32 << 20;

  std::deque<Piece> pieces_;
  std::vector<std::int64_t> offsets_;
  std::optional<c10::Device> device_;
  std::vector<c10::Event> on_device_;  // each behind some of what the device copies, in their order
  std::mutex mutex_;                   // of what follows
  std::condition_variable changed_;
  std::size_t made_ = 0;
  std::exception_ptr failure_;
};

}  // namespace accel::inline v0_1::checkpoint
