// compute: the value of metrics over all ranks, which add up their counts instead of gathering predictions.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/metrics/tally.hpp>

namespace accel::inline v0_1 {

/// A type M is a Metric if it is a metrics::Tally, and makes its value out of everybody's.
template <class M>
concept Metric = std::derived_from<M, metrics::Tally> &&
                 requires(const M& metric, const metrics::Totals& totals) { metric.result(totals); };

namespace metrics {
namespace detail {

/// An accelerator's backend, or the backend itself.
template <class Ranks>
[[nodiscard]] auto& backend_of(Ranks& ranks) {
  if constexpr (Backend<Ranks>)
    return ranks;
  else
    return ranks.backend();
}

/// What leaves `body` carries an accelerator's rank, and is what the others read if it ends this one, as of its own
/// calls.
template <class Ranks, class Body>
decltype(auto) at_rank(Ranks& ranks, Body&& body) {
  if constexpr (Backend<Ranks>) {
    return std::forward<Body>(body)();
  } else {
    try {
      return std::forward<Body>(body)();
    } catch (Error& error) {
      error.add_label(ranks.topology().label());
      ranks.backend().control().note_error(error);
      throw;
    }
  }
}

/// Everybody's, of each of `tallies`. One message of whole numbers: counts are added on the wire and stay exact;
/// numbers travel as their bits, those of each rank at a place of its own, where all others add 0.
template <Backend B>
[[nodiscard]] std::vector<Totals> exchange(B& backend, std::span<const Tally* const> tallies) {
  const std::int64_t ranks = backend.world_size();
  std::vector<std::string> lines;
  std::int64_t size = 0;
  for (const Tally* tally : tallies) {
    lines.push_back(tally->describe());
    size += tally->count_size() + ranks * tally->number_size();
  }
  // Before anything of another length is sent.
  collective::require_equal(backend.control(), "metrics: what is computed", lines, Deadline::in(backend.timeout()));
  const Unrecorded guard;
  // NOLINTNEXTLINE(misc-const-correctness): a backend may ask for one that it can change
  at::Tensor message = at::zeros({size}, at::TensorOptions().dtype(at::kLong).device(backend.device()));
  std::int64_t place = 0;
  for (const Tally* tally : tallies) {
    if (tally->counts().defined()) {
      message.narrow(0, place, tally->count_size()).copy_(tally->counts());
      message.narrow(0, place + tally->count_size() + backend.rank() * tally->number_size(), tally->number_size())
          .copy_(tally->numbers().view(at::kLong));
    }
    place += tally->count_size() + ranks * tally->number_size();
  }
  auto work = backend.all_reduce(message, ReduceOp::sum);
  backend::wait_on_host(backend, work);
  const at::Tensor host = message.cpu();

  std::vector<Totals> all;
  const auto* next = host.const_data_ptr<std::int64_t>();
  for (const Tally* tally : tallies) {
    const std::int64_t* numbers = next + tally->count_size();
    Totals totals{.counts = {next, numbers}};
    const auto length = static_cast<std::size_t>(tally->number_size());
    for (std::int64_t rank = 0; rank < ranks; ++rank, numbers += length) {
      auto& own = totals.numbers.emplace_back(length);
      if (length > 0) std::memcpy(own.data(), numbers, length * sizeof(double));
    }
    next = numbers;
    all.push_back(std::move(totals));
  }
  return all;
}

}  // namespace detail

/// The value of a metric over everything that any rank has added since its last reset(); of several a tuple. `ranks` is
/// an Accelerator or a Backend. Nothing changes: asked again it says the same.
///
/// Cost     one agreement of 8 bytes over the control plane and one all_reduce, however many metrics there are; the
///          host waits.
/// Order    collective: every rank, the same metrics in the same order. A rank that has added nothing takes part.
/// Throws   InvalidArgument on every rank if metrics or their options differ between ranks, or for what cannot be
///          counted, such as a target that is no class; CommError.
template <class Ranks, Metric... Metrics>
  requires(sizeof...(Metrics) > 0)
[[nodiscard]] auto compute(Ranks& ranks, const Metrics&... metric) {
  return detail::at_rank(ranks, [&] {
    const std::array<const Tally*, sizeof...(Metrics)> tallies{&metric...};
    const auto totals = detail::exchange(detail::backend_of(ranks), std::span<const Tally* const>(tallies));
    if constexpr (sizeof...(Metrics) == 1)
      return (metric, ...).result(totals.front());
    else
      return [&]<std::size_t... i>(std::index_sequence<i...>) {
        return std::tuple{metric.result(totals[i])...};
      }(std::index_sequence_for<Metrics...>());
  });
}

}  // namespace metrics
}  // namespace accel::inline v0_1
