// SharedCollectives: the collectives of a group through the memory of one host, who waits for them, and their end.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include <ATen/core/Tensor.h>

#include <accel/backend/detail/course.hpp>
#include <accel/backend/detail/exchange.hpp>
#include <accel/backend/detail/neighbours.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend::detail {

/// The collectives of one group, in the order in which they were called.
///
/// Progress is made by the callers: start() announces its operation and goes on as far as it can, wait()
/// goes on until its operation is over; always one operation after the other, so that nobody can wait for
/// what comes later. Any thread may call.
class SharedCollectives {
 public:
  SharedCollectives(std::unique_ptr<Neighbours> neighbours, launch::ControlPlane control)
      : neighbours_(std::move(neighbours)), control_(std::move(control)), exchange_(*neighbours_) {}
  SharedCollectives(const SharedCollectives&) = delete;
  SharedCollectives& operator=(const SharedCollectives&) = delete;

  // What was never waited for gets a moment: others may read it.
  ~SharedCollectives() {
    try {
      wait(started_, Deadline::in(Seconds(1)), [] { return false; });
    } catch (const std::exception&) {
      // It stays unfinished, which leave() tells.
    }
    neighbours_->leave(error_ || !operations_.empty() ? Board::broken : Board::left);
  }

  /// Undefined where there is no memory left.
  [[nodiscard]] at::Tensor allocate(std::size_t bytes) { return neighbours_->segment().allocate(bytes); }

  /// Its number, for wait() and finished(). Never waits for another rank. What goes wrong, wait() says.
  std::uint64_t start(Operation operation) {
    const std::lock_guard lock(mutex_);
    if (error_) return ++started_;
    operations_.push_back(std::move(operation));
    ++started_;
    try {
      advance();
    } catch (const std::exception&) {
      // Kept in error_.
    }
    return started_;
  }

  /// Whether operation `number` is over.
  [[nodiscard]] bool finished(std::uint64_t number) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    try {
      if (lock && finished_ < number) advance();
    } catch (const std::exception&) {
      return false;  // wait() will say it
    }
    return finished_ >= number;
  }

  /// Until operation `number` is over. Asks `hopeless()` now and then.
  /// Throws   std::runtime_error if it cannot come to its end, or not before the deadline.
  template <class Hopeless>
  void wait(std::uint64_t number, Deadline deadline, Hopeless&& hopeless) {
    constexpr std::chrono::milliseconds slice{100};
    std::unique_lock lock(mutex_);
    // Also where the group has failed meanwhile: what everybody has brought comes to its end on every rank.
    for (advance(); finished_ < number; advance()) {
      if (control_.failed()) throw std::runtime_error("it was given up");
      Neighbours::Awaited& awaited = exchange_.awaited();
      if (neighbours_->reached_soon(awaited)) continue;
      const int other = awaited.rank;
      if (neighbours_->of(other).standing.gone.load() != Board::here && !neighbours_->reached(awaited))
        throw std::runtime_error(message("rank ", other, " has given up or left this group"));
      const auto began = std::chrono::steady_clock::now();
      neighbours_->sleep(lock, awaited, std::min(deadline.remaining(), slice));
      if (deadline.passed())
        throw std::runtime_error(message("rank ", other, " has ended, hangs, or does not call the same operation"));
      if (std::chrono::steady_clock::now() - began >= slice && hopeless())
        throw std::runtime_error(message("rank ", other, " does not come to it"));
    }
  }

  /// After it this rank writes nothing any more, and the others know that its data may change.
  void give_up() noexcept {
    {
      const std::lock_guard lock(mutex_);
      neighbours_->leave(Board::broken);
      if (!error_) error_ = std::make_exception_ptr(std::runtime_error("it was given up"));
      course_ = {};
      operations_.clear();
    }
    neighbours_->rouse();
  }

 private:
  using Standing = Board::Standing;

  // All below with the mutex held.

  /// As far as it goes without waiting.
  void advance() {
    if (error_) std::rethrow_exception(error_);
    try {
      while (!operations_.empty()) {
        announce_what_fits();
        if (announced_ == finished_) {  // the first of them is not
          exchange_.awaited() = slot_free();
          if (!neighbours_->reached(exchange_.awaited())) return;
          continue;
        }
        if (!course_.under_way()) course_ = exchange_.run(operations_.front(), finished_ + 1);
        if (!neighbours_->reached(exchange_.awaited())) return;
        course_.resume();
        if (!course_.under_way()) finish();
      }
    } catch (const std::exception&) {
      error_ = std::current_exception();
      throw;
    }
  }

  void finish() {
    // What was read of a rank that gave up in the middle may have been overwritten before; one that had come
    // to the end had seen that everybody was done reading.
    for (int other = 0; other < neighbours_->world_size(); ++other) {
      const auto& standing = neighbours_->of(other).standing;
      if (standing.gone.load() == Board::broken && standing.finished.load() <= finished_)
        throw std::runtime_error(message("rank ", other, " has given up this group"));
    }
    course_ = {};
    operations_.pop_front();
    ++finished_;
    neighbours_->publish(&Standing::finished, finished_);
  }

  /// In order. A slot is free once everybody is done with the operation that had it before.
  void announce_what_fits() {
    while (announced_ < started_ && announced_ - finished_ < Board::slots) {
      Neighbours::Awaited free = slot_free();
      if (!neighbours_->reached(free)) return;
      exchange_.announce(operations_[announced_ - finished_], announced_ + 1);
      ++announced_;
    }
  }

  [[nodiscard]] Neighbours::Awaited slot_free() const {
    const std::uint64_t before = announced_ < Board::slots ? 0 : announced_ + 1 - Board::slots;
    return {&Standing::finished, before, 0, neighbours_->world_size()};
  }

  std::unique_ptr<Neighbours> neighbours_;
  launch::ControlPlane control_;
  std::mutex mutex_;
  std::deque<Operation> operations_;  // those that are not finished
  std::uint64_t started_ = 0;
  std::uint64_t announced_ = 0;
  std::atomic<std::uint64_t> finished_{0};
  Exchange exchange_;
  Course course_;  // of the first of them
  std::exception_ptr error_;
};

}  // namespace accel::inline v0_1::backend::detail
