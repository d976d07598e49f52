// Course: an operation that stops where it would wait, and goes on from there.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

namespace accel::inline v0_1::backend::detail {

/// An operation on its way: it stops where the others are not far enough, and is resumed when they are.
class Course {
 public:
  struct promise_type {  // NOLINT(readability-identifier-naming): the name that the language asks for
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

/// For co_await: goes on at once if `ready`, else leaves it to who resumes to know when.
struct Until {
  bool ready;
  [[nodiscard]] bool await_ready() const noexcept { return ready; }
  void await_suspend(std::coroutine_handle<>) const noexcept {}
  void await_resume() const noexcept {}
};

}  // namespace accel::inline v0_1::backend::detail
