// Clock: the one that ranks go by, each its own.
#pragma once

#include <chrono>

namespace accel::inline v0_1::launch::detail {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

}  // namespace accel::inline v0_1::launch::detail
