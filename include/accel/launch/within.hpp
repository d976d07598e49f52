// Within: a deadline for calls that know none.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <utility>

#include <accel/core/units.hpp>

namespace accel::inline v0_1::launch {

/// What within() throws in place of a result.
struct LeftBehind : std::runtime_error {
  LeftBehind() : std::runtime_error("nothing: there was no answer at all") {}
};

namespace detail {

/// within() for a body without a result. No template: threads and futures are compiled once.
inline void run_within(Deadline deadline, std::function<void()> body, const std::function<bool()>& hopeless) {
  constexpr std::chrono::milliseconds head_start{300};  // a timeout of LibTorch's own says more
  constexpr std::chrono::milliseconds slice{20};
  std::packaged_task<void()> task(std::move(body));
  auto result = task.get_future();
  std::thread thread(std::move(task));
  const Deadline end = Deadline::in(deadline.remaining() + head_start);
  while (result.wait_for(std::min(end.remaining(), slice)) != std::future_status::ready) {
    if (!end.passed() && !hopeless()) continue;
    thread.detach();
    throw LeftBehind();
  }
  thread.join();
  result.get();
}

}  // namespace detail

/// Runs `body` on a thread of its own and returns its result. After the deadline the thread is left
/// behind, blocked as it is: `body` must own all that it touches.
///
/// LibTorch's store needs this. Its timeouts hold only while the server answers: a server whose
/// process is stopped, or whose host is gone, keeps a client waiting without limit.
///
/// It is left behind before that, too, once `hopeless()` is true: asked now and then.
///
/// Cost     the start of a thread, some 20 us.
/// Throws   what `body` throws; LeftBehind.
template <class Body, class Hopeless>
std::invoke_result_t<Body> within(Deadline deadline, Body body, Hopeless hopeless) {
  using Result = std::invoke_result_t<Body>;
  if constexpr (std::is_void_v<Result>) {
    detail::run_within(deadline, std::move(body), hopeless);
  } else {
    const auto result = std::make_shared<std::optional<Result>>();
    detail::run_within(deadline, [result, body = std::move(body)]() mutable { result->emplace(body()); }, hopeless);
    return *std::move(*result);
  }
}

template <class Body>
std::invoke_result_t<Body> within(Deadline deadline, Body body) {
  return within(deadline, std::move(body), [] { return false; });
}

}  // namespace accel::inline v0_1::launch
