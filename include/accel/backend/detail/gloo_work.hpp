// GlooWork: a collective of Gloo under way, and what it shares with its backend.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <accel/backend/detail/shared_collectives.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/no_sigpipe.hpp>
#include <accel/launch/within.hpp>

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

  /// Afterwards this rank writes nothing for the group, and the others can tell.
  void give_up() noexcept {
    if (shared) shared->give_up();
  }

  launch::ControlPlane control;  // knows whether the group was given up
  c10::intrusive_ptr<c10d::Backend> engine;
  std::unique_ptr<SharedCollectives> shared;  // null where the ranks do not share memory
  std::atomic<std::int64_t> in_flight = 0;    // of the engine, begun and not yet waited for
};

/// A collective under way. Waiting twice is allowed.
class GlooWork {
 public:
  GlooWork(std::shared_ptr<GlooGroup> group, std::string_view operation, std::size_t bytes, Seconds timeout)
      : group_(std::move(group)),
        operation_(operation),
        sequence_(group_->control.begin(operation)),
        bytes_{static_cast<std::int64_t>(bytes)},
        timeout_(timeout) {}

  GlooWork(GlooWork&&) noexcept = default;
  GlooWork& operator=(GlooWork&&) noexcept = default;

  void wait() { wait_until(Deadline::in(timeout_)); }

  void wait_until(Deadline deadline) {
    try {
      if (shared_number_ > 0) group_->shared->wait(shared_number_, deadline, [this] { return hopeless(); });
      for (; !parts_.empty(); parts_.pop_back()) {
        if (reports_completion_)
          wait_for(*parts_.back(), deadline);
        else
          wait_aside(parts_.back(), deadline);
        if (parts_.size() == 1) --group_->in_flight;
      }
    } catch (const std::exception& error) {
      const bool interrupted = group_->control.failed();
      const bool late = deadline.passed();
      const std::string what = message(operation_, " number ", sequence_, " of ", bytes_, " failed",
                                       late ? message(" after ", deadline.span_s(), " s without an answer") : "",
                                       interrupted ? std::string() : message("; ", native(error)));
      group_->give_up();
      if (const std::string reason = group_->control.failure(); !reason.empty()) {
        const std::string text = message(what, ": ", reason);
        group_->control.give_up(text);
        throw CommError(text);
      }
      group_->control.fail(what, sequence_, 0, Seconds(late ? 0 : 0.5));
    }
    if (scattered_.defined()) {
      output_.view({-1}).copy_(scattered_);
      scattered_.reset();
    }
    tensors_.clear();
  }

  /// Of a send or recv false until wait() has returned: see completes_in_wait().
  [[nodiscard]] bool done() const {
    if (shared_number_ > 0) return group_->shared->finished(shared_number_);
    return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->isCompleted(); });
  }

  /// Hands `tensors` to the engine by `start(engine, tensors)`, and keeps them until it is done.
  template <class Start>
  void run(std::vector<at::Tensor> tensors, Start&& start) {
    tensors_ = std::move(tensors);
    try {
      parts_.push_back(start(*group_->engine, tensors_));
    } catch (const std::exception& error) {
      group_->give_up();
      group_->control.fail(message(operation_, " number ", sequence_, " of ", bytes_,
                                   " could not start. Gloo says: ", first_line(error)),
                           sequence_);
    }
    if (parts_.size() == 1) ++group_->in_flight;
  }

  /// The same through shared memory.
  void run(Operation operation) { shared_number_ = group_->shared->start(std::move(operation)); }

  /// Of a send or recv: LibTorch completes them only where they are waited for.
  void completes_in_wait() { reports_completion_ = false; }

  /// When all has arrived, `part` is copied into `output`.
  void then_copy(at::Tensor part, at::Tensor output) {
    scattered_ = std::move(part);
    output_ = std::move(output);
  }

 private:
  /// Until Gloo's thread says that `part` is over: awake at first, as sleeping and waking cost more than most
  /// collectives last, but behind whoever else wants the core; then asleep, hearing from time to time whether
  /// the others are well.
  void wait_for(c10d::Work& part, Deadline deadline) const {
    // Over loopback 2 ranks' steps of 0.8 ms take 0.63 with it, and of 10 the slowest half as long; 0.2 ms is too
    // short for that, and 5 are not better.
    constexpr std::chrono::milliseconds awake{1};
    const auto begin = std::chrono::steady_clock::now();
    while (!part.isCompleted() && std::chrono::steady_clock::now() - begin < awake) std::this_thread::yield();
    if (!part.isCompleted()) sleep_until_over(part, deadline);
    ACCEL_CHECK(part.wait(deadline.remaining()), CommError, "it was aborted");  // throws what went wrong
  }

  void sleep_until_over(c10d::Work& part, Deadline deadline) const {
    constexpr std::chrono::milliseconds slice{200};
    struct Bell {
      std::mutex mutex;
      std::condition_variable rings;
      bool rung = false;
    };
    const auto bell = std::make_shared<Bell>();
    part.getFuture()->addCallback([bell](c10::ivalue::Future&) {
      const std::lock_guard lock(bell->mutex);
      bell->rung = true;
      bell->rings.notify_one();
    });
    std::unique_lock lock(bell->mutex);
    while (!bell->rings.wait_for(lock, std::min(deadline.remaining(), slice), [&] { return bell->rung; }))
      if (deadline.passed() || hopeless()) throw std::runtime_error("nothing yet");
  }

  /// A wait that cannot be cut in slices: its end would tear Gloo's connections.
  void wait_aside(c10::intrusive_ptr<c10d::Work> part, Deadline deadline) {
    const launch::NoSigpipe guard;  // for the thread that waits
    launch::within(
        deadline,
        [part = std::move(part), deadline] {
          ACCEL_CHECK(part->wait(deadline.remaining()), CommError, "it was aborted");
        },
        [this] { return hopeless(); });
  }

  [[nodiscard]] std::string native(const std::exception& error) const {
    if (parts_.empty()) return first_line(error);
    return message("a peer has ended, hangs, or does not call the same operation. Gloo says: ", first_line(error));
  }

  [[nodiscard]] bool hopeless() const { return group_->control.failed() || group_->control.missed_by(sequence_, 0); }

  std::shared_ptr<GlooGroup> group_;
  std::string_view operation_;  // a literal
  std::int64_t sequence_;
  Bytes bytes_;
  Seconds timeout_;
  std::uint64_t shared_number_ = 0;  // of SharedCollectives; 0: it goes through the engine, or nowhere
  bool reports_completion_ = true;
  std::vector<c10::intrusive_ptr<c10d::Work>> parts_;
  std::vector<at::Tensor> tensors_;  // kept until the engine is done with them
  at::Tensor scattered_;             // reduce_scatter: this rank's part of the sum ...
  at::Tensor output_;                // ... and where it goes
};

}  // namespace accel::inline v0_1::backend::detail
