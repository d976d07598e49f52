// Ahead: threads that make things before they are asked for, and hand them out in order.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/data/one_thread.hpp>

namespace accel::inline v0_1::data {

inline constexpr int most_prefetched = 1'000'000;  // items; there is a place for each

/// Items number `first` to `end - 1`, made by `workers` threads at most `depth` ahead of who takes them, taken in the
/// order of their numbers whoever was faster.
///
/// `make(number, worker)` is called by several threads at once, and not at all for what nobody will take any more.
/// Order    its destructor waits for calls under way, for as long as take() would; then it leaves them behind, so that
///          what they use must be theirs, or live until the program ends.
template <class Item>
class Ahead {
 public:
  using Make = std::function<Item(std::int64_t number, int worker)>;

  Ahead(int workers, std::int64_t depth, std::int64_t first, std::int64_t end, Seconds patience, Make make)
      : state_(std::make_shared<State>(std::min(depth, std::max<std::int64_t>(end - first, 1)), first, end,
                                       std::move(make))),
        patience_(patience) {
    try {
      for (int worker = 0; worker < workers; ++worker)
        threads_.emplace_back([state = state_, worker] { state->work(worker); });
    } catch (...) {  // the system has no more threads
      stop();
      throw;
    }
  }
  Ahead(const Ahead&) = delete;
  Ahead& operator=(const Ahead&) = delete;
  ~Ahead() { stop(); }

  /// The next item, or nothing behind the last one.
  ///
  /// Throws   what `make` threw for it, after which there are no more; DataError if it is not there in time.
  [[nodiscard]] std::optional<Item> take() {
    std::unique_lock lock(state_->mutex);
    if (state_->taken == state_->end) return std::nullopt;
    auto& slot = state_->slot(state_->taken);
    if (!state_->made.wait_for(lock, Deadline::in(patience_).remaining(), [&] { return slot.is_ready(); })) {
      state_->taken = state_->end;
      is_stuck_ = true;
      throw DataError(message("the next batch is not there after ", patience_.count(), " s: the dataset, on ",
                              threads_.size(), " worker threads, does not return; mend it, or raise timeout_s"));
    }
    auto item = std::exchange(slot.item, std::nullopt);
    if (const auto error = std::exchange(slot.error, nullptr)) {
      state_->taken = state_->end;
      state_->stopped = true;
      std::rethrow_exception(error);
    }
    ++state_->taken;
    lock.unlock();
    state_->room.notify_one();
    return item;
  }

  /// Whether take() would return at once.
  [[nodiscard]] bool has_next() const {
    const std::lock_guard lock(state_->mutex);
    return state_->taken == state_->end || state_->slot(state_->taken).is_ready();
  }

 private:
  struct Slot {
    std::optional<Item> item;
    std::exception_ptr error;

    [[nodiscard]] bool is_ready() const { return item.has_value() || error != nullptr; }
  };

  /// Outlives this object where a thread does.
  struct State {
    State(std::int64_t depth, std::int64_t first, std::int64_t last, Make how)
        : slots(static_cast<std::size_t>(depth)), begun(first), taken(first), end(last), make(std::move(how)) {}

    [[nodiscard]] Slot& slot(std::int64_t number) { return slots[static_cast<std::size_t>(number) % slots.size()]; }

    void work(int worker) {
      compute_in_one_thread();
      std::unique_lock lock(mutex);
      while (true) {
        room.wait(lock, [&] { return stopped || begun == end || begun < taken + std::ssize(slots); });
        if (stopped || begun == end) return;
        const std::int64_t number = begun++;
        if (begun == end) room.notify_all();  // nothing is left for the others
        ++under_way;
        lock.unlock();
        Slot result;
        try {
          result.item.emplace(make(number, worker));
        } catch (...) {
          result.error = std::current_exception();
        }
        lock.lock();
        --under_way;
        if (result.error) begun = end;  // what comes behind it nobody will take
        slot(number) = std::move(result);
        made.notify_all();
      }
    }

    std::mutex mutex;  // of all that follows
    std::condition_variable made, room;
    std::vector<Slot> slots;  // number n in slot n modulo their count
    std::int64_t begun, taken;
    const std::int64_t end;
    int under_way = 0;  // calls of make
    bool stopped = false;
    const Make make;
  };

  void stop() {
    {
      std::unique_lock lock(state_->mutex);
      state_->stopped = true;
      state_->room.notify_all();
      if (!is_stuck_)
        is_stuck_ =
            !state_->made.wait_for(lock, Deadline::in(patience_).remaining(), [&] { return state_->under_way == 0; });
    }
    for (auto& thread : threads_) is_stuck_ ? thread.detach() : thread.join();
  }

  std::shared_ptr<State> state_;
  Seconds patience_;
  std::vector<std::thread> threads_;
  bool is_stuck_ = false;
};

}  // namespace accel::inline v0_1::data
