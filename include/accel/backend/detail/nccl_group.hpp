// NcclGroup: one communicator, what is in flight on it, and the thread that watches both.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend {

/// What a call of NCCL answers: done, still at it, or an error and its text.
struct NcclAnswer {
  enum class State { done, in_progress, failed };
  State state = State::done;
  std::string text{};  // of an error

  [[nodiscard]] bool failed() const { return state == State::failed; }
};

namespace detail {

/// Works share it with their backend, so that either may go first.
template <class Driver>
class NcclGroup {
 public:
  /// The end of a collective, and whether it was reached by an abort.
  struct Flight {
    explicit Flight(typename Driver::Event end) : event(std::move(end)) {}
    typename Driver::Event event;
    std::atomic<bool> lost{false};
  };

  NcclGroup(Driver engine, launch::ControlPlane plane) : driver(std::move(engine)), control(std::move(plane)) {}
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // A program that ends without a look at its last results has them under way: they get a moment. A
  // healthy, idle communicator is destroyed, any other is aborted, which waits for no peer.
  ~NcclGroup() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    if (watchdog_.joinable()) watchdog_.join();
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    const Deadline moment = Deadline::in(Seconds(1));
    for (trim(); !pending_.empty() && !control.failed() && !moment.passed(); trim())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (!pending_.empty() || control.failed()) {
      drop();
      return;
    }
    for (auto& window : windows_) driver.close_window(comm_, window.handle);
    driver.destroy(comm_, Deadline::in(Seconds(5)));  // a peer that has ended does not take part
    comm_ = nullptr;
  }

  /// Makes the communicator by `init(comm)`, which may answer in_progress, and starts the watchdog.
  template <class Init>
  void connect(Deadline deadline, Init&& init) {
    {
      const std::lock_guard lock(mutex_);
      settle({"NCCL: connecting"}, init(comm_), deadline);
    }
    watchdog_ = std::thread([this] { watch(); });
  }

  /// Starts `call(comm)` on the engine's own stream, after all that the current stream holds. Keeps
  /// `tensors` until it is over: the allocator knows nothing of that stream, and would give their
  /// memory to somebody else. They are let go by the next call or the watchdog, whichever is first.
  template <class Call>
  std::shared_ptr<Flight> run(std::string_view operation, std::int64_t number, Bytes bytes,
                              std::vector<at::Tensor> tensors, Deadline deadline, Call&& call) {
    // Uncontended but for the watchdog's glance, during which nothing may be started.
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) control.check_failure(operation);
    trim();
    const Called what{operation, number, bytes};
    const auto ready = take_flight();
    driver.record_current(ready->event);
    driver.engine_waits(ready->event);
    settle(what, call(comm_), deadline);
    auto flight = take_flight();
    driver.record_engine(flight->event);
    pending_.push_back({what, std::move(tensors), flight, deadline});
    return flight;
  }

  /// Makes `memory` a window of the communicator: collective. It stays one as long as the group.
  void open_window(at::Tensor memory, Deadline deadline) {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) control.check_failure("allocate");
    typename Driver::Window handle{};
    settle({"allocate"}, driver.open_window(comm_, memory, handle), deadline);
    windows_.push_back({std::move(memory), handle});
  }

  /// Stops the communicator. What is under way ends, and is lost.
  void stop() noexcept {
    const std::lock_guard lock(mutex_);
    drop();
  }

  Driver driver;
  launch::ControlPlane control;

 private:
  using State = NcclAnswer::State;

  /// A call, as errors name it: put into words only then.
  struct Called {
    std::string_view operation;  // a literal
    std::int64_t number = 0;     // 0: no collective
    Bytes bytes{};

    friend std::ostream& operator<<(std::ostream& out, const Called& call) {
      out << call.operation;
      if (call.number > 0) out << " number " << call.number << " of " << call.bytes;
      return out;
    }
  };
  struct Pending {
    Called what;
    std::vector<at::Tensor> tensors;
    std::shared_ptr<Flight> flight;
    Deadline deadline;
  };
  struct Window {
    at::Tensor memory;
    typename Driver::Window handle;
  };

  void watch() {
    std::unique_lock lock(mutex_);
    while (!ending_ && comm_ != nullptr) {
      wake_.wait_for(lock, watch_interval);
      if (ending_ || comm_ == nullptr) return;
      trim();
      std::string problem;
      if (const NcclAnswer answer = driver.state(comm_); answer.failed())
        problem = message("NCCL failed", pending_.empty() ? "" : message(" in or after ", pending_.front().what),
                          ". NCCL says: ", answer.text);
      else if (!pending_.empty() && pending_.front().deadline.passed())
        problem = message(pending_.front().what, " failed after ", pending_.front().deadline.span_s(),
                          " s without an answer; a peer has ended, hangs, or does not call the same operation");
      if (problem.empty() && !control.failed()) continue;
      // Before the abort, so that whoever waits finds the reason. One that a peer gave stays.
      if (!problem.empty()) control.give_up(problem);
      drop();
    }
  }

  // The rest is called with the mutex held.

  /// A non-blocking call is not over when it returns: nothing else may be called until it is.
  void settle(const Called& what, NcclAnswer answer, Deadline deadline) {
    while (answer.state == State::in_progress && !deadline.passed() && !control.failed()) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      answer = driver.state(comm_);
    }
    if (answer.state == State::done) return;
    drop();
    control.fail(
        message(what, " could not start", deadline.passed() ? message(" within ", deadline.span_s(), " s") : "",
                answer.text.empty() ? "" : ". NCCL says: ", answer.text),
        what.number);
  }

  void drop() noexcept {
    trim();
    for (const auto& pending : pending_) pending.flight->lost = true;
    if (comm_ != nullptr) driver.abort(comm_);
    comm_ = nullptr;
    pending_.clear();
  }

  /// Lets go of what is over: in order, for one stream keeps the order.
  void trim() noexcept {
    while (!pending_.empty() && driver.passed(pending_.front().flight->event)) pending_.pop_front();
  }

  /// Making an event costs more than recording one: those that nobody holds are used again.
  std::shared_ptr<Flight> take_flight() {
    for (std::size_t i = 0; i < flights_.size(); ++i) {
      next_ = (next_ + 1) % flights_.size();
      if (flights_[next_].use_count() == 1) return flights_[next_];
    }
    return flights_.emplace_back(std::make_shared<Flight>(driver.make_event()));
  }

  static constexpr std::chrono::milliseconds watch_interval{100};  // as c10d's watchdog

  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  typename Driver::Comm comm_ = nullptr;
  std::vector<std::shared_ptr<Flight>> flights_;
  std::size_t next_ = 0;
  std::deque<Pending> pending_;
  std::vector<Window> windows_;
  std::thread watchdog_;
};

/// A collective under way. Waiting twice is allowed.
template <class Driver>
class NcclWork {
 public:
  using Group = NcclGroup<Driver>;

  /// No flight: nothing was sent.
  NcclWork(std::shared_ptr<Group> group, std::string_view operation, std::int64_t number, Bytes bytes,
           std::shared_ptr<typename Group::Flight> flight)
      : group_(std::move(group)), operation_(operation), number_(number), bytes_(bytes), flight_(std::move(flight)) {}

  /// The current stream waits, the host does not: what goes wrong later is said by the next call.
  void wait() {
    if (!flight_) return;
    if (flight_->lost) fail("");
    group_->driver.current_waits(flight_->event);
  }

  void wait_until(Deadline deadline) {
    while (!done()) {
      if (group_->control.failed()) fail("");
      if (deadline.passed())
        fail(message(" after ", deadline.span_s(), " s without an answer",
                     "; a peer has ended, hangs, or does not call the same operation"));
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    wait();
  }

  [[nodiscard]] bool done() const { return !flight_ || group_->driver.passed(flight_->event); }

 private:
  [[noreturn]] void fail(const std::string& why) {
    group_->stop();
    const std::string what = message(operation_, " number ", number_, " of ", bytes_, " failed", why);
    // The watchdog may have come first: then its reason is the one to tell.
    const std::string reason = group_->control.failure();
    group_->control.fail(why.empty() && !reason.empty() ? message(what, ": ", reason) : what, number_);
  }

  std::shared_ptr<Group> group_;
  std::string_view operation_;  // a literal
  std::int64_t number_;
  Bytes bytes_;
  std::shared_ptr<typename Group::Flight> flight_;
};

}  // namespace detail
}  // namespace accel::inline v0_1::backend
