// First: what some ranks do before the others, or for all of them.
#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include <accel/collective/agree.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::collective {

/// What `body` gives, where `runs`; of a body that gives nothing, whether it ran.
template <class Body>
auto run_if(bool runs, Body&& body) {
  using Result = std::invoke_result_t<Body>;
  if constexpr (std::is_void_v<Result>) {
    if (runs) std::forward<Body>(body)();
    return runs;
  } else {
    std::optional<std::decay_t<Result>> result;
    if (runs) result.emplace(std::forward<Body>(body)());
    return result;
  }
}

/// Runs `body` on the ranks that are `first`, then on the others; gives what it gave on this rank.
///
/// Cost     one round over the control plane.
/// Throws   what `body` threw, where it threw. If that is one of the first, CommError with its text on all that it did
///          not run on, at once. If it throws on another rank, nobody waits for that one. CommError on every rank if
///          the first need longer than `patience`.
template <class Body>
std::decay_t<std::invoke_result_t<Body>> first_then_others(launch::ControlPlane& control, std::string_view subject,
                                                           Seconds patience, bool is_first, Body&& body) {
  using Result = std::invoke_result_t<Body>;
  std::exception_ptr failure;
  std::optional<std::conditional_t<std::is_void_v<Result>, bool, std::decay_t<Result>>> result;
  if (is_first) {
    try {
      if constexpr (std::is_void_v<Result>)
        body();
      else
        result.emplace(body());
    } catch (...) {
      failure = std::current_exception();
    }
  }
  all_or_none<CommError>(control, subject, Deadline::in(patience), [&] {
    if (failure) std::rethrow_exception(failure);
  });
  if (!is_first) return body();
  if constexpr (!std::is_void_v<Result>) return *std::move(result);
}

}  // namespace accel::inline v0_1::collective
