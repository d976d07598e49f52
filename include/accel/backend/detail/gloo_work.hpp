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
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <accel/backend/detail/called.hpp>
#include <accel/backend/detail/shared_collectives.hpp>
#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
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
  /// `name`: what the ranks call it, or null; where they share memory it is compared before anything moves.
  GlooWork(std::shared_ptr<GlooGroup> group, const Called& called, Seconds timeout,
           std::shared_ptr<const std::string> name = nullptr)
      : group_(std::move(group)), called_(called), timeout_(timeout), name_(std::move(name)) {}

  GlooWork(GlooWork&&) noexcept = default;
  GlooWork& operator=(GlooWork&&) noexcept = default;

  void wait() { wait_until(Deadline::in(timeout_)); }

  void wait_until(Deadline deadline) {
    Hope hope;
    const auto hopeless = [&] { return hope.is_lost(group_->control, called_); };
    try {
      if (shared_number_ > 0) group_->shared->wait(shared_number_, deadline, hopeless);
      for (; !parts_.empty(); parts_.pop_back()) {
        if (called_.is_message())
          wait_aside(parts_.back(), deadline, hopeless);
        else
          wait_for(*parts_.back(), deadline, hopeless);
        if (parts_.size() == 1) --group_->in_flight;
      }
    } catch (const CallsDiffer& error) {
      group_->give_up();
      const std::string text = message(called_.operation, " number ", called_.number, ": ", error.what());
      group_->control.give_up(text);
      throw CommError(text);
    } catch (const std::exception& error) {
      Failing how{.native = native(error)};
      if (deadline.passed()) how.late = deadline;
      group_->give_up();
      fail(group_->control, called_, how);
    }
    if (scattered_.defined()) {
      output_.view({-1}).copy_(scattered_);
      scattered_.reset();
    }
    tensors_.clear();
  }

  /// Of a message false until wait() has returned: LibTorch completes it only where it is waited for.
  [[nodiscard]] bool done() const {
    if (shared_number_ > 0) return group_->shared->finished(shared_number_);
    if (called_.is_message()) return parts_.empty();
    return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->isCompleted(); });
  }

  [[nodiscard]] bool is_named() const { return name_ != nullptr; }

  /// Hands `tensors` to the engine by `start(engine, tensors)`, and keeps them until it is done.
  template <class Start>
  void run(std::vector<at::Tensor> tensors, Start&& start) {
    tensors_ = std::move(tensors);
    try {
      parts_.push_back(start(*group_->engine, tensors_));
    } catch (const std::exception& error) {
      group_->give_up();
      fail(group_->control, called_, {.verb = "could not start", .native = "Gloo says: " + first_line(error)});
    }
    if (parts_.size() == 1) ++group_->in_flight;
  }

  /// The same through shared memory.
  void run(Operation operation) {
    operation.call.name = name_ ? fnv1a(*name_) | 1U : 0;  // 0 is none
    operation.name = name_;
    shared_number_ = group_->shared->start(std::move(operation));
  }

  /// When all has arrived, `part` is copied into `output`.
  void then_copy(at::Tensor part, at::Tensor output) {
    scattered_ = std::move(part);
    output_ = std::move(output);
  }

 private:
  /// Until Gloo's thread says that `part` is over: awake at first, as sleeping and waking cost more than most
  /// collectives last, but behind whoever else wants the core; then asleep, hearing from time to time whether
  /// the others are well.
  template <class Hopeless>
  static void wait_for(c10d::Work& part, Deadline deadline, Hopeless&& hopeless) {
    // Over loopback 2 ranks' steps of 0.8 ms take 0.63 with it, and of 10 the slowest half as long; 0.2 ms is too
    // short for that, and 5 are not better.
    constexpr std::chrono::milliseconds awake{1};
    const auto begin = std::chrono::steady_clock::now();
    while (!part.isCompleted() && std::chrono::steady_clock::now() - begin < awake) std::this_thread::yield();
    if (!part.isCompleted()) sleep_until_over(part, deadline, hopeless);
    ACCEL_CHECK(part.wait(deadline.remaining()), CommError, "it was aborted");  // throws what went wrong
  }

  template <class Hopeless>
  static void sleep_until_over(c10d::Work& part, Deadline deadline, Hopeless&& hopeless) {
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
  template <class Hopeless>
  static void wait_aside(c10::intrusive_ptr<c10d::Work> part, Deadline deadline, Hopeless&& hopeless) {
    const launch::NoSigpipe guard;  // for the thread that waits
    launch::within(
        deadline,
        [part = std::move(part), deadline] {
          ACCEL_CHECK(part->wait(deadline.remaining()), CommError, "it was aborted");
        },
        hopeless);
  }

  [[nodiscard]] std::string native(const std::exception& error) const {
    if (parts_.empty()) return first_line(error);
    return message(no_answer, ". Gloo says: ", first_line(error));
  }

  std::shared_ptr<GlooGroup> group_;
  Called called_;
  Seconds timeout_;
  std::shared_ptr<const std::string> name_;
  std::uint64_t shared_number_ = 0;  // of SharedCollectives; 0: it goes through the engine, or nowhere
  std::vector<c10::intrusive_ptr<c10d::Work>> parts_;
  std::vector<at::Tensor> tensors_;  // kept until the engine is done with them
  at::Tensor scattered_;             // reduce_scatter: this rank's part of the sum ...
  at::Tensor output_;                // ... and where it goes
};

}  // namespace accel::inline v0_1::backend::detail
