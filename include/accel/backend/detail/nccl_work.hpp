// NcclWork: a collective or a message of NCCL under way.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include <accel/backend/detail/called.hpp>
#include <accel/backend/detail/flights.hpp>
#include <accel/backend/detail/nccl_group.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::backend::detail {

/// A collective or a message under way. Waiting twice is allowed.
template <class Driver>
class NcclWork {
 public:
  using Group = NcclGroup<Driver>;
  using Flight = typename Group::Flight;
  using Ticket = typename Group::Ticket;

  /// No flight: nothing was sent.
  NcclWork(std::shared_ptr<Group> group, const Called& called, std::shared_ptr<Flight> flight)
      : group_(std::move(group)), called_(called), flight_(std::move(flight)) {}
  NcclWork(std::shared_ptr<Group> group, const Called& called, std::shared_ptr<Ticket> ticket)
      : group_(std::move(group)), called_(called), ticket_(std::move(ticket)) {}

  NcclWork(NcclWork&&) noexcept = default;
  NcclWork& operator=(NcclWork&& other) noexcept {
    std::swap(group_, other.group_);
    std::swap(called_, other.called_);
    std::swap(flight_, other.flight_);
    std::swap(ticket_, other.ticket_);
    return *this;
  }
  // A message whose work is let go starts all the same; but not by an exception, which the others are to hear of soon:
  // to start may mean to wait for a peer.
  ~NcclWork() {
    if (std::uncaught_exceptions() > 0) return;
    try {
      start();
    } catch (const std::exception&) {
      // The group is given up: the next call says why.
    }
  }

  /// The current stream waits, the host does not: what goes wrong later is said by the next call.
  void wait() {
    start();
    if (!flight_) return;
    if (flight_->lost || (group_->control.failed() && !is_over())) group_->fail(called_, {});
    group_->driver.current_waits(flight_->event);
  }

  /// The host waits, and knows afterwards that the result is there.
  void wait_until(Deadline deadline) {
    start();
    if (!flight_) return;
    for (const Pause pause; !is_over(); pause()) {
      if (flight_->lost || group_->control.failed()) group_->fail(called_, {});
      if (deadline.passed()) group_->fail(called_, {.late = deadline, .native = std::string(no_answer)});
    }
    if (const NcclAnswer end = state(); end.failed()) group_->fail(called_, {.native = end.text});
    // It may have ended by an abort, of this rank or of another, which tells the others first.
    if (flight_->lost || group_->control.failed()) group_->fail(called_, {});
    wait();
  }

  [[nodiscard]] bool done() const {
    try {
      start();
    } catch (const CommError&) {
      return true;  // wait() throws it
    }
    return !flight_ || is_over();
  }

 private:
  void start() const {
    if (!ticket_) return;
    flight_ = group_->start(called_, *ticket_);
    ticket_.reset();
  }

  /// Of what a graph has recorded there is nothing to ask: the device says no more than that it is no event of its own.
  [[nodiscard]] NcclAnswer state() const { return flight_->is_recorded ? NcclAnswer{} : flight_->event.state(); }
  [[nodiscard]] bool is_over() const { return !state().is_in_progress(); }

  std::shared_ptr<Group> group_;
  Called called_;
  mutable std::shared_ptr<Flight> flight_;
  mutable std::shared_ptr<Ticket> ticket_;  // of a message that has not started
};

}  // namespace accel::inline v0_1::backend::detail
