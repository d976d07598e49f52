// GlooWork: a collective of Gloo under way, and what it shares with its backend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend::detail {

/// What works share with their backend, so that either may go first.
struct GlooGroup {
  explicit GlooGroup(launch::ControlPlane plane) : control(std::move(plane)) {}
  GlooGroup(const GlooGroup&) = delete;
  GlooGroup& operator=(const GlooGroup&) = delete;

  // LibTorch's destructor joins threads that wait for lost peers until the timeout. A group with
  // something unfinished is therefore abandoned: its few threads end with the process.
  ~GlooGroup() {
    if (!control.failure().empty() || in_flight > 0) (void)engine.release();
  }

  launch::ControlPlane control;  // knows whether the group was given up
  c10::intrusive_ptr<c10d::Backend> engine;
  std::int64_t sequence = 0;   // collectives begun
  std::int64_t in_flight = 0;  // begun and not yet waited for
};

/// A collective under way. Waiting twice is allowed.
class GlooWork {
 public:
  GlooWork(std::shared_ptr<GlooGroup> group, std::string_view operation, std::size_t bytes, Seconds timeout)
      : group_(std::move(group)),
        operation_(operation),
        sequence_(++group_->sequence),
        bytes_{static_cast<std::int64_t>(bytes)},
        timeout_(timeout) {}

  GlooWork(GlooWork&&) noexcept = default;
  GlooWork& operator=(GlooWork&&) noexcept = default;

  void wait() { wait_until(Deadline::in(timeout_)); }

  void wait_until(Deadline deadline) {
    while (!parts_.empty()) {
      try {
        ACCEL_CHECK(parts_.back()->wait(deadline.remaining()), CommError, "it was aborted");
      } catch (const std::exception& error) {
        const std::string native = first_line(error);
        group_->control.give_up(message(operation_, " number ", sequence_, " failed: ", native));
        throw CommError(message(operation_, " number ", sequence_, " of ", bytes_, " failed",
                                deadline.passed() ? message(" after ", deadline.span_s(), " s without an answer") : "",
                                "; a peer has ended, hangs, or does not call the same operation. Gloo says: ", native));
      }
      parts_.pop_back();
      if (parts_.empty()) --group_->in_flight;
    }
    if (scattered_.defined()) {
      output_.view({-1}).copy_(scattered_);
      scattered_.reset();
    }
    tensors_.clear();
  }

  /// Of a send or recv false until wait() has returned: LibTorch completes them only there.
  [[nodiscard]] bool done() const {
    return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->isCompleted(); });
  }

  /// Hands `tensors` to the engine by `start(engine, tensors)`, and keeps them until it is done.
  template <class Start>
  void run(std::vector<at::Tensor> tensors, Start&& start) {
    tensors_ = std::move(tensors);
    try {
      parts_.push_back(start(*group_->engine, tensors_));
    } catch (const std::exception& error) {
      group_->control.give_up(message(operation_, " number ", sequence_, " could not start"));
      throw CommError(message(operation_, " number ", sequence_, " of ", bytes_,
                              " could not start. Gloo says: ", first_line(error)));
    }
    if (parts_.size() == 1) ++group_->in_flight;
  }

  /// When all has arrived, `part` is copied into `output`.
  void then_copy(at::Tensor part, at::Tensor output) {
    scattered_ = std::move(part);
    output_ = std::move(output);
  }

 private:
  std::shared_ptr<GlooGroup> group_;
  std::string_view operation_;  // a literal
  std::int64_t sequence_;
  Bytes bytes_;
  Seconds timeout_;
  std::vector<c10::intrusive_ptr<c10d::Work>> parts_;
  std::vector<at::Tensor> tensors_;  // kept until the engine is done with them
  at::Tensor scattered_;             // reduce_scatter: this rank's part of the sum ...
  at::Tensor output_;                // ... and where it goes
};

}  // namespace accel::inline v0_1::backend::detail
