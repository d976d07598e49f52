// NoticeBoard: values by name between the ranks, for threads that go their own way.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/star.hpp>

namespace accel::inline v0_1::launch {

/// What one rank posts others can read, now or later. Unlike in a round of the control plane nobody has to come, the
/// order of calls is free, and who waits in vain ends nothing but its own wait.
///
/// Copies are the same board. All calls may be made by any thread.
///
/// Cost     a message to rank 0 and one back each, over TCP; rank 0 holds what is posted until it is withdrawn.
class NoticeBoard {
 public:
  /// Of one rank.
  NoticeBoard() : own_(std::make_shared<Own>()) {}
  /// Of a job; names of other `section`s are other names.
  NoticeBoard(std::shared_ptr<Star> star, std::string section) : star_(std::move(star)), section_(std::move(section)) {}

  /// `name` is `value` from now on.
  ///
  /// Throws   CommError where rank 0 does not take it before the deadline, or a rank has failed.
  void post(const std::string& name, const std::string& value, Deadline deadline) {
    if (!star_) {
      const std::lock_guard lock(own_->mutex);
      own_->values[name] = value;
      own_->changed.notify_all();
    } else if (!ask({.kind = Kind::set, .key = section_ + name, .value = value}, deadline)) {
      fail("posted", name, deadline);
    }
  }

  /// The value of `name`, once there is one.
  ///
  /// Throws   CommError where there is none before the deadline, or a rank has failed.
  [[nodiscard]] std::string read(const std::string& name, Deadline deadline) {
    if (star_) {
      auto value = ask({.kind = Kind::get, .key = section_ + name}, deadline);
      if (!value) fail("read", name, deadline);
      return *std::move(value);
    }
    std::unique_lock lock(own_->mutex);
    const auto is_there = [&] { return own_->values.contains(name); };
    if (!own_->changed.wait_for(lock, deadline.remaining(), is_there)) fail("read", name, deadline);
    return own_->values.at(name);
  }

  /// There is no such name any more.
  void withdraw(const std::string& name, Deadline deadline) {
    if (star_) {
      (void)ask({.kind = Kind::remove, .key = section_ + name}, deadline);
      return;
    }
    const std::lock_guard lock(own_->mutex);
    own_->values.erase(name);
  }

 private:
  using Kind = detail::Inquiry::Kind;

  struct Own {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::string, std::string> values;
  };

  [[nodiscard]] std::optional<std::string> ask(const detail::Inquiry& inquiry, Deadline deadline) {
    return star_->ask(inquiry, deadline);
  }

  [[noreturn]] void fail(std::string_view what, const std::string& name, Deadline deadline) const {
    const std::string failure = star_ ? star_->failure() : std::string();
    throw CommError(message(section_, name, " could not be ", what,
                            failure.empty() ? message(" within ", deadline.span_s(), " s") : ": " + failure));
  }

  std::shared_ptr<Star> star_;  // null at one rank
  std::string section_;
  std::shared_ptr<Own> own_;  // of one rank
};

}  // namespace accel::inline v0_1::launch
