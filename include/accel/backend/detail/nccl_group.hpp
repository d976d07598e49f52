// NcclGroup: one communicator, how it is called, and the thread that watches it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/detail/called.hpp>
#include <accel/backend/detail/flights.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend::detail {

/// Between two looks at what is under way: awake at first, as most answers come within microseconds and a sleep costs
/// 75 of them; then asleep.
class Pause {
 public:
  void operator()() const {
    if (Clock::now() - begin_ < awake)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds awake{50};
  Clock::time_point begin_ = Clock::now();
};

/// Works share it with their backend, so that either may go first.
template <class Driver>
class NcclGroup {
 public:
  using Flight = detail::Flight<typename Driver::Event>;

  /// Where the work of a message finds its flight, once that has started.
  struct Ticket {
    std::shared_ptr<Flight> flight;
  };

  NcclGroup(Driver engine, launch::ControlPlane plane) : driver(std::move(engine)), control(std::move(plane)) {}
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // A program that ends without a look at its last results has them under way: they get a moment. A
  // healthy, idle communicator is destroyed, any other is aborted, which waits for no peer.
  ~NcclGroup() {
    ending_ = true;
    control.nudge();
    if (watchdog_.joinable()) watchdog_.join();
    if (comm_ == nullptr) return;
    const auto is_vain = [&] { return control.failed(); };
    // The others must not take for a result what an abort makes of it.
    if (const auto first = flights_.await(Deadline::in(Seconds(1)), is_vain); first && !is_vain())
      control.give_up(message(*first, " was under way when its rank ended"));
    if (is_vain()) {
      drop();
      return;
    }
    const Deadline goodbye = Deadline::in(Seconds(5));  // a peer that has ended does not take part
    for (auto& window : windows_) {
      driver.close_window(comm_, window.handle);
      for (const Pause pause; state().is_in_progress() && !goodbye.passed();) pause();
    }
    driver.destroy(comm_, goodbye);
    comm_ = nullptr;
  }

  /// Makes the communicator by `init(comm)`, which may answer in_progress, and has it watched.
  template <class Init>
  void connect(Deadline deadline, Init&& init) {
    const std::lock_guard lock(calls_);
    settle({"NCCL: connecting"}, deadline, init);
    const auto enter = [device = driver.device()] { Driver::enter_thread(device); };
    flights_.watch(enter);
    watchdog_ = std::thread([this, enter] {
      enter();
      watch();
    });
  }

  /// Starts `call(comm)` on the engine's own stream, after all that the current stream holds. Keeps `tensors` until it
  /// is over.
  template <class Call>
  std::shared_ptr<Flight> run(const Called& called, std::vector<at::Tensor> tensors, Deadline deadline, Call&& call) {
    flights_.trim();
    const std::lock_guard lock(calls_);
    control.check_failure(called.operation);
    start_collected();
    return start({called}, {after_current(called)}, std::move(tensors), deadline, call);
  }

  /// A message, which starts together with all others that are called before one of them is waited for: one after the
  /// other they would wait for their peers in a ring.
  std::shared_ptr<Ticket> collect(const Called& called, const at::Tensor& tensor, Seconds timeout) {
    const std::lock_guard lock(calls_);
    control.check_failure(called.operation);
    collected_.push_back({called, tensor, timeout, after_current(called), std::make_shared<Ticket>()});
    return collected_.back().ticket;
  }

  /// The flight of a message, which starts if it has not yet.
  std::shared_ptr<Flight> start(const Called& called, const Ticket& ticket) {
    const std::lock_guard lock(calls_);
    if (ticket.flight) return ticket.flight;
    control.check_failure(called.operation);
    start_collected();
    return ticket.flight;
  }

  /// One group of NCCL, which launches little for many calls: `call(item)` for each.
  template <class Items, class Call>
  [[nodiscard]] NcclAnswer together(const Items& items, Call&& call) {
    NcclAnswer answer = driver.group_start();
    if (answer.failed()) return answer;
    for (const auto& item : items)
      if (!answer.failed() && !is_stopped_) answer = call(item);
    NcclAnswer end = driver.group_end();  // a group once started is always ended
    return answer.failed() ? answer : end;
  }

  /// Makes `memory` a window of the communicator: collective. It stays one as long as the group.
  void open_window(const at::Tensor& memory, Deadline deadline) {
    const std::lock_guard lock(calls_);
    control.check_failure("allocate");
    start_collected();
    // NCCL writes the handle when it has come so far, wherever that stood when it was called: it stays where it is.
    Window& window = windows_.emplace_back(Window{memory, {}});
    settle({"allocate"}, deadline, [&](Comm& comm) { return driver.open_window(comm, window.memory, window.handle); });
  }

  /// Gives up the group by `called`, says why, and stops.
  [[noreturn]] void fail(const Called& called, const Failing& how) {
    flights_.lose();
    try {
      tell(called, how);
    } catch (...) {
      stop();
      throw;
    }
  }

  /// Stops the communicator. What is under way ends, and is lost.
  void stop() noexcept {
    flights_.lose();
    // A call of NCCL's leaves by itself, as the group is given up. One that hangs in CUDA is freed by the abort alone.
    std::unique_lock lock(calls_, std::defer_lock);
    for (const Deadline moment = Deadline::in(Seconds(1)); !lock.try_lock() && !moment.passed();)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    drop();
  }

  Driver driver;
  launch::ControlPlane control;

 private:
  using Comm = typename Driver::Comm;
  using Trouble = typename Flights<typename Driver::Event>::Trouble;

  struct Message {
    Called call;
    at::Tensor tensor;
    Seconds timeout;
    std::shared_ptr<Flight> ready;
    std::shared_ptr<Ticket> ticket;
  };
  struct Window {
    at::Tensor memory;
    typename Driver::Window handle;
  };

  /// Looks ten times a second; when a rank fails at once, before what that one aborts can pass for a result here.
  void watch() {
    for (;;) {
      control.wait_for_failure(watch_interval, ending_);
      if (ending_ || is_stopped_) return;
      if (control.failed()) return follow();
      try {
        if (const auto trouble = find_trouble()) fail(trouble->call, trouble->how);
      } catch (const CommError&) {
        return;  // the same
      }
    }
  }

  /// Somebody else has failed. Whoever waits or calls next finds the reason.
  void follow() {
    if (const std::string own = sentence_about(flights_.first(), control.failure()); !own.empty()) control.give_up(own);
    stop();
  }

  /// First what is known without CUDA, which may hang as long as nobody aborts.
  [[nodiscard]] std::optional<Trouble> find_trouble() {
    if (auto trouble = flights_.trouble(control)) return trouble;
    if (const NcclAnswer answer = state(); answer.failed())
      return Trouble{flights_.first(), {.native = "NCCL says: " + answer.text}};
    return flights_.error();
  }

  [[nodiscard]] NcclAnswer state() {
    const std::lock_guard lock(comm_mutex_);
    return comm_ == nullptr ? was_aborted() : driver.state(comm_);
  }

  [[nodiscard]] static NcclAnswer was_aborted() { return {NcclAnswer::State::failed, "the communicator was aborted"}; }

  /// One at a time: what the first says is the reason for all.
  [[noreturn]] void tell(const Called& called, const Failing& how) {
    const std::lock_guard lock(telling_);
    detail::fail(control, called, how);
  }

  void drop() noexcept {
    is_stopped_ = true;
    flights_.lose();
    Comm doomed = nullptr;
    {
      const std::lock_guard lock(comm_mutex_);
      std::swap(doomed, comm_);
    }
    if (doomed == nullptr) return;  // another thread is at it: until it is done kernels write to the tensors
    // A kernel that is aborted passes on what is there, and those of its peers end as if all were well: these hear
    // first why that is none, and abort theirs.
    std::this_thread::sleep_for(news_time);
    if (driver.abort(doomed))
      flights_.clear();
    else
      flights_.leave_behind();
  }

  // The rest is called with calls_ held.

  template <class Call>
  std::shared_ptr<Flight> start(std::vector<Called> calls, const std::vector<std::shared_ptr<Flight>>& ready,
                                std::vector<at::Tensor> tensors, Deadline deadline, Call&& call) {
    const Called first = calls.front();
    ask_cuda(first, [&] {
      for (const auto& one : ready) driver.engine_waits(one->event);
    });
    control.check_failure(first.operation);  // CUDA may have kept this thread
    settle(first, deadline, call);
    std::shared_ptr<Flight> flight;
    ask_cuda(first, [&] {
      flight = take_flight();
      driver.record_engine(flight->event);
    });
    if (flight->is_recorded) return flight;
    flights_.add(std::move(calls), std::move(tensors), flight, deadline);
    if (is_stopped_) flight->lost = true;  // somebody did not wait for this call
    return flight;
  }

  void start_collected() {
    if (collected_.empty()) return;
    const auto messages = std::exchange(collected_, {});
    std::vector<Called> calls;
    std::vector<std::shared_ptr<Flight>> ready;
    std::vector<at::Tensor> tensors;
    for (const auto& message : messages) {
      calls.push_back(message.call);
      ready.push_back(message.ready);
      tensors.push_back(message.tensor);
    }
    const Deadline deadline = Deadline::in(messages.front().timeout);
    const auto flight = start(std::move(calls), ready, std::move(tensors), deadline, [&](Comm& comm) {
      return together(messages, [&](const Message& message) {
        const int peer = message.call.peer;
        return message.call.operation == "send" ? driver.send(comm, message.tensor, peer)
                                                : driver.recv(comm, message.tensor, peer);
      });
    });
    for (const auto& message : messages) message.ticket->flight = flight;
  }

  /// Calls, until the communicator says that the call is over, whatever it has answered; until then nothing else may
  /// be called. A first call connects, for which the others have to come.
  template <class Call>
  void settle(const Called& called, Deadline deadline, Call&& call) {
    NcclAnswer answer = on_communicator(std::forward<Call>(call));
    if (!answer.failed()) answer = state();
    Hope hope;
    for (const Pause pause; answer.is_in_progress() && !deadline.passed() && !hope.is_lost(control, called);
         answer = state())
      pause();
    if (answer.state == NcclAnswer::State::done) return;
    Failing how{.verb = "could not start"};
    if (answer.failed())
      how.native = "NCCL says: " + answer.text;
    else if (deadline.passed())
      how.late = deadline;
    fail_within(called, how);
  }

  /// A copy of it, which stays what it is when another thread ends the communicator: that waits for this call for a
  /// while, and after it for those that hang.
  template <class Call>
  [[nodiscard]] NcclAnswer on_communicator(Call&& call) {
    Comm own = nullptr;
    {
      const std::lock_guard lock(comm_mutex_);
      own = comm_;
    }
    if (is_stopped_) return was_aborted();
    const bool is_first = own == nullptr;
    NcclAnswer answer = std::forward<Call>(call)(own);
    if (!is_first) return answer;
    const std::lock_guard lock(comm_mutex_);
    comm_ = own;
    return answer;
  }

  /// `body` asks CUDA for streams and events.
  template <class Body>
  void ask_cuda(const Called& called, Body&& body) {
    std::string said;
    try {
      return std::forward<Body>(body)();
    } catch (const std::exception& error) {
      said = first_line(error);
    }
    fail_within(called, {.verb = "could not start", .native = said});
  }

  /// fail() of who calls.
  [[noreturn]] void fail_within(const Called& called, const Failing& how) {
    flights_.lose();
    try {
      tell(called, how);
    } catch (...) {
      drop();
      throw;
    }
  }

  /// What the current stream holds now.
  [[nodiscard]] std::shared_ptr<Flight> after_current(const Called& called) {
    std::shared_ptr<Flight> ready;
    ask_cuda(called, [&] {
      ready = take_flight();
      driver.record_current(ready->event);
    });
    return ready;
  }

  /// Making an event costs more than recording one: those that nobody holds are used again. A graph keeps what it has
  /// recorded.
  std::shared_ptr<Flight> take_flight() {
    if (driver.is_capturing()) {
      auto recorded = std::make_shared<Flight>(driver.make_event());
      recorded->is_recorded = true;
      return recorded;
    }
    for (std::size_t i = 0; i < pool_.size(); ++i) {
      next_ = (next_ + 1) % pool_.size();
      if (pool_[next_].use_count() == 1) return pool_[next_];
    }
    return pool_.emplace_back(std::make_shared<Flight>(driver.make_event()));
  }

  static constexpr Seconds watch_interval{0.1};              // as c10d's watchdog
  static constexpr std::chrono::milliseconds news_time{50};  // by way of rank 0, who tells a thousand others

  std::mutex calls_;  // one call at a time, until it has settled
  std::vector<Message> collected_;
  std::list<Window> windows_;
  std::vector<std::shared_ptr<Flight>> pool_;
  std::size_t next_ = 0;

  std::mutex telling_;

  std::mutex comm_mutex_;  // for who looks at the communicator, or ends it, beside a call
  Comm comm_ = nullptr;
  std::atomic<bool> is_stopped_{false};
  Flights<typename Driver::Event> flights_;

  std::atomic<bool> ending_{false};
  std::thread watchdog_;
};

}  // namespace accel::inline v0_1::backend::detail
