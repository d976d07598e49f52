// Flights: what is under way on a device, in order, and the thread that looks what is over.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/detail/called.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend {

/// What a call of NCCL answers, or an event: done, still at it, or an error and its text.
struct NcclAnswer {
  enum class State { done, in_progress, failed };
  State state = State::done;
  std::string text{};  // of an error

  [[nodiscard]] bool failed() const { return state == State::failed; }
  [[nodiscard]] bool is_in_progress() const { return state == State::in_progress; }
};

namespace detail {

/// The end of a collective, or of messages that go together.
template <class Event>
struct Flight {
  explicit Flight(Event end) : event(std::move(end)) {}
  Event event;
  std::atomic<bool> lost{false};  // an abort will end it, or has
  bool is_recorded = false;       // a graph has it: it takes place when that runs, and nobody is told
};

/// Keeps the tensors of what is under way: the allocator knows nothing of the engine's stream, and would give their
/// memory to somebody else.
///
/// The thread asks the device. That may hang as long as the device does, so nobody else has to wait for it: it is
/// left behind where an abort does not free it. Tensors are let go under no lock: that may wait for the device, too.
template <class Event>
class Flights {
 public:
  /// What ends the waiting for all of them.
  struct Trouble {
    Called call;
    Failing how{};
  };

  Flights() = default;
  Flights(const Flights&) = delete;
  Flights& operator=(const Flights&) = delete;
  ~Flights() { end(); }

  /// `enter()` prepares a thread for the device.
  template <class Enter>
  void watch(Enter enter) {
    thread_ = std::thread([state = state_, enter = std::move(enter)] {
      enter();
      state->look_now_and_then();
    });
  }

  void add(std::vector<Called> calls, std::vector<at::Tensor> tensors, std::shared_ptr<Flight<Event>> flight,
           Deadline deadline) {
    const Deadline unseen = Deadline::in(Seconds(deadline.remaining()) + Seconds(1));
    std::vector<Hope> hopes(calls.size());
    const std::lock_guard lock(state_->mutex);
    state_->entries.push_back(
        {std::move(calls), std::move(hopes), std::move(tensors), std::move(flight), deadline, unseen, false});
  }

  /// Lets go of what is over.
  void trim() { state_->trim(); }

  /// What keeps the first of them from ever being over, as far as that is known without asking the device. `control`
  /// knows of the other ranks.
  [[nodiscard]] std::optional<Trouble> trouble(const launch::ControlPlane& control) {
    const std::lock_guard lock(state_->mutex);
    if (state_->entries.empty()) return std::nullopt;
    Entry& first = state_->entries.front();
    // Of messages that go together some may have come: who has left may have been done with its own.
    std::size_t lost = 0;
    for (std::size_t i = 0; i < first.calls.size(); ++i)
      if (first.hopes[i].is_lost(control, first.calls[i])) ++lost;
    if (lost == first.calls.size()) return Trouble{first.calls.front()};
    if (first.deadline.passed() && (first.is_late || first.unseen.passed()))
      return Trouble{first.calls.front(), {.late = first.deadline, .native = std::string(no_answer)}};
    return std::nullopt;
  }

  /// What the device says instead of ending the first of them.
  [[nodiscard]] std::optional<Trouble> error() {
    const std::lock_guard lock(state_->mutex);
    if (state_->error.empty()) return std::nullopt;
    return Trouble{state_->first(), {.native = state_->error}};
  }

  /// The oldest, for errors.
  [[nodiscard]] Called first() {
    const std::lock_guard lock(state_->mutex);
    return state_->first();
  }

  /// All of them will end by an abort: before it, so that nobody takes that for their end.
  void lose() noexcept {
    const std::lock_guard lock(state_->mutex);
    for (const auto& entry : state_->entries) entry.flight->lost = true;
  }

  /// When it has hung, and the device may still write to them: they are never let go.
  void leave_behind() noexcept {
    const std::lock_guard lock(state_->mutex);
    try {
      static auto& kept = *new std::list<std::list<Entry>>;  // outlives static destruction
      static std::mutex of_kept;
      const std::lock_guard lock_kept(of_kept);
      kept.emplace_back().swap(state_->entries);
    } catch (const std::bad_alloc&) {
      // Without memory for that: they stay where they are, until the group ends.
    }
  }

  /// After it.
  void clear() noexcept {
    std::list<Entry> gone;  // longer than the lock
    const std::lock_guard lock(state_->mutex);
    gone.swap(state_->entries);
  }

  /// Until all are over; not longer than `moment`, and not once `is_vain()`. The oldest that is not. Somebody has
  /// looked since, unless a look takes seconds.
  template <class IsVain>
  [[nodiscard]] std::optional<Called> await(Deadline moment, IsVain&& is_vain) {
    const Deadline seconds = Deadline::in(Seconds(5));
    std::unique_lock lock(state_->mutex);
    const std::int64_t looked = state_->looks + 1;  // one may be under way
    state_->interval = std::chrono::milliseconds(1);
    state_->wake.notify_all();
    const auto is_known = [&] { return moment.passed() && (state_->looks > looked || seconds.passed()); };
    while (!state_->entries.empty() && !is_vain() && !is_known())
      state_->changed.wait_for(lock, std::chrono::milliseconds(1));
    return state_->entries.empty() ? std::nullopt : std::optional(state_->first());
  }

  /// The thread ends, if the device lets it.
  void end() noexcept {
    if (!thread_.joinable()) return;
    std::unique_lock lock(state_->mutex);
    state_->ending = true;
    state_->wake.notify_all();
    const bool ended = state_->changed.wait_for(lock, std::chrono::seconds(1), [&] { return state_->ended; });
    lock.unlock();
    ended ? thread_.join() : thread_.detach();
  }

 private:
  struct Entry {
    std::vector<Called> calls;
    std::vector<Hope> hopes;  // of each
    std::vector<at::Tensor> tensors;
    std::shared_ptr<Flight<Event>> flight;
    Deadline deadline;
    Deadline unseen;       // by then a thread that does not hang has looked
    bool is_late = false;  // it was under way after its deadline
  };

  /// Shared with the thread, which may outlive its group.
  struct State {
    void look_now_and_then() {
      std::unique_lock lock(mutex);
      while (!ending) {
        wake.wait_for(lock, interval);
        lock.unlock();
        trim();
        lock.lock();
        ++looks;
        changed.notify_all();
      }
      ended = true;
      changed.notify_all();
    }

    /// In order, for one stream keeps the order.
    void trim() {
      std::list<Entry> gone;  // longer than the lock
      std::unique_lock lock(mutex);
      while (!entries.empty() && error.empty()) {
        const auto flight = entries.front().flight;  // held: nobody uses it again meanwhile
        const bool is_due = entries.front().deadline.passed();
        lock.unlock();
        const NcclAnswer answer = flight->event.state();
        lock.lock();
        if (entries.empty() || entries.front().flight != flight) continue;  // another thread was faster
        if (answer.failed()) error = answer.text;
        if (answer.is_in_progress()) entries.front().is_late |= is_due;
        if (answer.state != NcclAnswer::State::done) break;
        gone.splice(gone.end(), entries, entries.begin());
      }
    }

    [[nodiscard]] Called first() const { return entries.empty() ? Called{"NCCL"} : entries.front().calls.front(); }

    std::mutex mutex;  // of all below; never held while the device is asked
    std::condition_variable wake, changed;
    std::chrono::milliseconds interval{100};  // as c10d's watchdog
    std::list<Entry> entries;
    std::string error;
    std::int64_t looks = 0;  // of the thread
    bool ending = false;
    bool ended = false;
  };

  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::thread thread_;
};

}  // namespace detail
}  // namespace accel::inline v0_1::backend
