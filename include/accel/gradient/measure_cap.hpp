// Measure: the size of a bucket that suits the link between the ranks.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>

#include <accel/backend/backend.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::gradient {

/// As large as what an all_reduce moves in ten times its latency; the largest of what the ranks have measured.
///
/// Cost     a dozen all_reduces, of which six are of 4 MiB.
/// Order    collective; the same on every rank.
template <Backend B>
[[nodiscard]] Bytes measure_cap(B& backend) {
  constexpr Bytes small = 4_KiB;
  constexpr Bytes large = 4_MiB;
  const auto seconds = [&](Bytes size) {
    at::Tensor message = backend.allocate(size).view(at::kFloat).zero_();
    std::array<double, 5> times{};
    for (double& time : times) {
      const auto begin = std::chrono::steady_clock::now();
      auto work = backend.all_reduce(message, ReduceOp::sum);
      backend::wait_on_host(backend, work);
      time = Seconds(std::chrono::steady_clock::now() - begin).count();
    }
    std::sort(times.begin() + 1, times.end());  // the first is a warm-up
    return times[2];
  };
  const double latency = seconds(small);
  const double rate = static_cast<double>(large.count) / std::max(seconds(large) - latency, 1e-9);
  at::Tensor bytes = at::full({1}, 10 * latency * rate, at::TensorOptions(at::kDouble).device(backend.device()));
  auto work = backend.all_reduce(bytes, ReduceOp::max);
  backend::wait_on_host(backend, work);
  const auto cap = static_cast<std::int64_t>(std::min(bytes.template item<double>(), 1e12));
  return std::clamp(Bytes{cap}, 64_KiB, 256_MiB);
}

}  // namespace accel::inline v0_1::gradient
