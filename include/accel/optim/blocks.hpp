// Blocks: a batch in parts of bounded size, for what needs copies of what it steps, or the cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

namespace detail {

/// `numel` elements in the order in which they lie in memory; `dense` has no gaps.
[[nodiscard]] inline at::Tensor slice(const at::Tensor& dense, std::int64_t begin, std::int64_t numel) {
  return dense.as_strided({numel}, {1}, dense.storage_offset() + begin);
}

}  // namespace detail

/// As many elements as several passes over them find in the cache: four arrays of them are half of 2 MiB, the L2 cache
/// of a core of today's servers. On a GPU enough to be worth a kernel.
[[nodiscard]] inline std::int64_t block_of(const Batch& batch) {
  return std::int64_t{1} << (batch.parameters.front().is_cpu() ? 16 : 22);
}

/// Calls `visitor(part, first, begin)` with parts of `batch`: `part.parameters[0]` are the elements from `begin` on of
/// piece `first`. A part has at most `most` elements, a multiple of 32; of a rule that is not elementwise it may be
/// one larger parameter, as a whole.
template <class Visitor>
void in_blocks(Batch& batch, bool is_elementwise, std::int64_t most, Visitor&& visitor) {
  std::int64_t all = 0;
  for (const auto& piece : batch.parameters) all += piece.numel();
  if (all <= most) return visitor(batch, std::size_t{0}, std::int64_t{0});
  const std::size_t pieces = batch.parameters.size();
  for (std::size_t first = 0; first < pieces;) {
    const std::int64_t numel = batch.parameters[first].numel();
    const bool is_cut = is_elementwise && numel > most;
    std::size_t end = first;
    for (std::int64_t elements = 0; end < pieces; ++end) {
      elements += batch.parameters[end].numel();
      if (end > first && elements > most) break;
    }
    for (std::int64_t begin = 0; begin == 0 || (is_cut && begin < numel); begin += most) {
      Batch part;
      const auto take = [&](const std::vector<at::Tensor>& from, std::vector<at::Tensor>& to) {
        for (std::size_t k = first; k < end && k < from.size(); ++k)
          to.push_back(is_cut ? detail::slice(from[k], begin, std::min(most, numel - begin)) : from[k]);
      };
      take(batch.parameters, part.parameters);
      take(batch.gradients, part.gradients);
      part.states.resize(batch.states.size());
      for (std::size_t s = 0; s < batch.states.size(); ++s) take(batch.states[s], part.states[s]);
      take(batch.masters, part.masters);
      part.steps.assign(batch.steps.begin() + static_cast<std::ptrdiff_t>(first),
                        batch.steps.begin() + static_cast<std::ptrdiff_t>(end));
      part.members.assign(end - first, 0);
      if (batch.members.size() == pieces)
        part.members.assign(batch.members.begin() + static_cast<std::ptrdiff_t>(first),
                            batch.members.begin() + static_cast<std::ptrdiff_t>(end));
      part.count = batch.count;
      part.is_counted_on_device = batch.is_counted_on_device;
      part.has_begun = batch.has_begun;
      visitor(part, first, begin);
      batch.has_begun = part.has_begun;
    }
    first = end;
  }
}

}  // namespace accel::inline v0_1::optim
