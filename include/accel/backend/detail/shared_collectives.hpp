// SharedCollectives: all_reduce, broadcast, all_gather and reduce_scatter through the memory of one host.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/detail/neighbours.hpp>
#include <accel/backend/detail/rank_order.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend::detail {

/// An operation on its way: it stops where the others are not far enough, and is resumed when they are.
class Course {
 public:
  struct promise_type {
    std::exception_ptr error;

    Course get_return_object() { return Course(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { error = std::current_exception(); }
  };

  Course() = default;
  explicit Course(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  Course(Course&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Course& operator=(Course&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Course() {
    if (handle_) handle_.destroy();
  }

  [[nodiscard]] bool under_way() const { return handle_ && !handle_.done(); }

  void resume() {
    handle_.resume();
    if (handle_.done() && handle_.promise().error) std::rethrow_exception(handle_.promise().error);
  }

 private:
  std::coroutine_handle<promise_type> handle_;
};

/// A collective that a rank has called.
struct Operation {
  Call call;
  at::Tensor input, output;  // kept until it is over; one and the same where it works in place

  [[nodiscard]] const std::byte* source() const { return static_cast<const std::byte*>(input.const_data_ptr()); }
  [[nodiscard]] std::byte* target() const { return static_cast<std::byte*>(output.data_ptr()); }
};

/// The collectives of one group, in the order in which they were called.
///
/// A rank announces an operation when it is called: in an entry of its board it says what it calls and
/// where its data can be read. Small messages lie in a slot beside the entry, and everybody reads all of
/// them. Of large ones each rank reduces a slice, and takes the others' slices from them: where they
/// are, if all lie in allocate()'s memory, else piece by piece through scratch. Nobody writes another
/// rank's memory.
///
/// Progress is made by the callers: start() goes on as far as it can, wait() until its operation is
/// over; always one operation after the other, so that nobody can wait for what comes later.
class SharedCollectives {
 public:
  SharedCollectives(std::unique_ptr<Neighbours> neighbours, launch::ControlPlane control)
      : neighbours_(std::move(neighbours)),
        control_(std::move(control)),
        parts_(static_cast<std::size_t>(world_size())) {}
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
      if (neighbours_->reached_soon(awaited_)) continue;
      const int other = awaited_.rank;
      if (neighbours_->of(other).standing.gone.load() != Board::here && !neighbours_->reached(awaited_))
        throw std::runtime_error(message("rank ", other, " has given up or left this group"));
      const auto began = std::chrono::steady_clock::now();
      neighbours_->sleep(lock, awaited_, std::min(deadline.remaining(), slice));
      if (deadline.passed())
        throw std::runtime_error(message("rank ", other, " has ended, hangs, or does not call the same operation"));
      if (std::chrono::steady_clock::now() - began >= slice && hopeless())
        throw std::runtime_error(message("rank ", other, " has left"));
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
        if (!course_.under_way() && announced_ == finished_) awaited_ = slot_free();
        if (!neighbours_->reached(awaited_)) return;
        if (announced_ == finished_) continue;
        if (!course_.under_way()) course_ = run(operations_.front());
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
    for (int other = 0; other < world_size(); ++other) {
      const auto& standing = neighbours_->of(other).standing;
      if (standing.gone.load() == Board::broken && standing.finished.load() <= finished_)
        throw std::runtime_error(message("rank ", other, " has given up this group"));
    }
    course_ = {};
    awaited_ = {};
    operations_.pop_front();
    ++finished_;
    neighbours_->publish(&Standing::finished, finished_);
  }

  /// In order. A slot is free once everybody is done with the operation that had it before.
  void announce_what_fits() {
    while (announced_ < started_ && announced_ - finished_ < Board::slots) {
      Neighbours::Awaited free = slot_free();
      if (!neighbours_->reached(free)) return;
      announce(operations_[announced_ - finished_]);
    }
  }

  [[nodiscard]] Neighbours::Awaited slot_free() const {
    const std::uint64_t before = announced_ < Board::slots ? 0 : announced_ + 1 - Board::slots;
    return {&Standing::finished, before, 0, world_size()};
  }

  void announce(const Operation& operation) {
    const Call& call = operation.call;
    const std::size_t slot = announced_ % Board::slots;
    Board& mine = neighbours_->mine();
    mine.entries[slot] = {call, neighbours_->segment().place(operation.source(), call.bytes)};
    const bool sends = call.kind != Call::Kind::broadcast || call.root == rank();
    if (small(call) && sends) copy(mine.messages[slot].data(), operation.source(), call.bytes);
    neighbours_->publish(&Standing::announced, ++announced_);
  }

  Course run(const Operation& operation) {
    switch (operation.call.kind) {
      case Call::Kind::all_reduce:
        return all_reduce(operation);
      case Call::Kind::broadcast:
        return broadcast(operation);
      case Call::Kind::all_gather:
        return all_gather(operation);
      case Call::Kind::reduce_scatter:
        return reduce_scatter(operation);
    }
    return {};
  }

  Course all_reduce(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes;
    std::byte* const data = operation.target();
    if (small(operation.call)) {
      reduce(operation.call, data, bytes, [&](int r) { return message_of(r); });
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      const auto at = [this, begin](int r) { return data_of(r, begin, 0); };
      if (!directly) {
        turn_over();
        if (!in_place) copy(own_scratch(), data + begin, size);
        co_await everybody_here();
      }
      std::byte* const mine = in_place ? data + begin : own_scratch();
      const Slice own = slice(size, rank());
      reduce(operation.call, mine + own.begin, own.size, [&](int r) { return at(r) + own.begin; });
      co_await everybody_here();

      for (int r = 0; r < world_size(); ++r) {
        const Slice theirs = slice(size, r);
        if (r != rank() || !in_place) copy(data + begin + theirs.begin, at(r) + theirs.begin, theirs.size);
      }
    }
    step();
    if (in_place) co_await steps(0, world_size());  // then its caller may write there again
  }

  Course broadcast(const Operation& operation) {
    const int root = operation.call.root;
    const bool sends = root == rank();
    co_await announced(root, root + 1);
    check_calls(operation.call, root, root + 1);
    const std::size_t bytes = operation.call.bytes;
    if (small(operation.call)) {
      if (!sends) copy(operation.target(), message_of(root), bytes);
      co_return;
    }
    const bool directly = lie_in_place(root, root + 1);
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        if (sends) copy(own_scratch(), operation.source() + begin, size);
        co_await everybody_here();
      }
      if (!sends) copy(operation.target() + begin, data_of(root, begin, 0), size);
    }
    step();
    if (sends && directly) co_await steps(0, world_size());
  }

  Course all_gather(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes;
    if (small(operation.call)) {
      for (int r = 0; r < world_size(); ++r) copy(operation.target() + index(r) * bytes, message_of(r), bytes);
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        if (!in_place) copy(own_scratch(), operation.source() + begin, size);
        co_await everybody_here();
      }
      for (int r = 0; r < world_size(); ++r) {
        const std::byte* const from = r == rank() ? operation.source() + begin : data_of(r, begin, 0);
        copy(operation.target() + index(r) * bytes + begin, from, size);
      }
    }
    step();
    if (in_place) co_await steps(0, world_size());
  }

  Course reduce_scatter(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes / index(world_size());  // of a rank's part
    if (small(operation.call)) {
      reduce(operation.call, operation.target(), bytes, [&](int r) { return message_of(r) + index(rank()) * bytes; });
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece / index(world_size()) / line * line;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        for (int r = 0; !in_place && r < world_size(); ++r)
          copy(own_scratch() + index(r) * size, operation.source() + index(r) * bytes + begin, size);
        co_await everybody_here();
      }
      reduce(operation.call, operation.target() + begin, size,
             [&](int r) { return data_of(r, index(rank()) * bytes + begin, index(rank()) * size); });
    }
    step();
    if (in_place) co_await steps(0, world_size());
  }

  // What they are written with

  struct Until {
    bool ready;
    [[nodiscard]] bool await_ready() const noexcept { return ready; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    void await_resume() const noexcept {}
  };

  /// For co_await: until the ranks [first, end) are that far.
  Until until(Neighbours::Counter counter, std::uint64_t value, int first, int end) {
    awaited_ = {counter, value, first, end};
    return {neighbours_->reached(awaited_)};
  }
  Until announced(int first, int end) { return until(&Standing::announced, finished_ + 1, first, end); }
  Until steps(int first, int end) { return until(&Standing::steps, steps_, first, end); }

  void step() { neighbours_->publish(&Standing::steps, ++steps_); }

  /// Nobody goes on before everybody is here.
  Until everybody_here() {
    step();
    return steps(0, world_size());
  }

  static constexpr std::size_t line = 64;
  static std::size_t index(int number) { return static_cast<std::size_t>(number); }

  [[nodiscard]] int rank() const { return neighbours_->rank(); }
  [[nodiscard]] int world_size() const { return neighbours_->world_size(); }

  /// Each rank reads all small messages, so that several ranks send less in this way.
  [[nodiscard]] bool small(const Call& call) const {
    return call.bytes <= std::max<std::size_t>(4096, Board::slot / static_cast<std::size_t>(world_size() - 1));
  }

  /// What rank r has announced, of the first operation.
  [[nodiscard]] const Board::Entry& entry(int r) const { return neighbours_->of(r).entries[finished_ % Board::slots]; }
  [[nodiscard]] const std::byte* message_of(int r) const {
    return neighbours_->of(r).messages[finished_ % Board::slots].data();
  }
  [[nodiscard]] std::int64_t place(int r) const { return entry(r).place; }

  /// Whether what these ranks bring can be read where it is.
  [[nodiscard]] bool lie_in_place(int first, int end) const {
    for (int r = first; r < end; ++r)
      if (place(r) < 0) return false;
    return true;
  }

  /// Where to read what rank r brings: at this offset if it lies in place, at the other one of its scratch.
  [[nodiscard]] const std::byte* data_of(int r, std::size_t offset, std::size_t scratch_offset) const {
    if (place(r) >= 0) return neighbours_->at(r, place(r)) + offset;
    return neighbours_->of(r).scratch[half_].data() + scratch_offset;
  }

  /// The scratch has two halves, taken by turns: who writes into one has met everybody who read it.
  void turn_over() { half_ ^= 1; }
  [[nodiscard]] std::byte* own_scratch() { return neighbours_->mine().scratch[half_].data(); }

  void check_calls(const Call& call, int first, int end) const {
    for (int r = first; r < end; ++r)
      if (entry(r).call != call)
        throw std::runtime_error(
            message("where rank ", rank(), " calls ", call, " rank ", r, " calls ", entry(r).call));
  }

  struct Slice {
    std::size_t begin, size;
  };

  /// The part of a message that a rank reduces, in whole cache lines.
  [[nodiscard]] Slice slice(std::size_t bytes, int r) const {
    const std::size_t lines = (bytes + line - 1) / line;
    const auto end_of = [&](int ranks) { return std::min(bytes, lines * index(ranks) / index(world_size()) * line); };
    return {end_of(r), end_of(r + 1) - end_of(r)};
  }

  template <class At>
  void reduce(const Call& call, std::byte* out, std::size_t bytes, At&& at) {
    for (int r = 0; r < world_size(); ++r) parts_[index(r)] = at(r);
    rank_order_.reduce(call.dtype, call.op, out, parts_, bytes);
  }

  static void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    if (to != from) std::memcpy(to, from, bytes);
  }

  std::unique_ptr<Neighbours> neighbours_;
  launch::ControlPlane control_;
  std::mutex mutex_;
  std::deque<Operation> operations_;  // those that are not finished
  std::uint64_t started_ = 0;
  std::uint64_t announced_ = 0;
  std::atomic<std::uint64_t> finished_{0};
  std::uint64_t steps_ = 0;  // equal on all ranks between two operations
  std::size_t half_ = 0;
  Course course_;  // of the first of them
  Neighbours::Awaited awaited_;
  std::exception_ptr error_;
  std::vector<const std::byte*> parts_;
  RankOrder rank_order_;
};

}  // namespace accel::inline v0_1::backend::detail
