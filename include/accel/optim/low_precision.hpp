// LowPrecision: how weights of 16 bits take steps that are smaller than their last bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/optim/update_rule.hpp>

namespace accel::inline v0_1::optim {

/// Where a weight is bf16 or fp16 an optimizer's step is mostly lost in its rounding: 1 + 0.001 is 1 in bf16.
enum class LowPrecision {
  master_weights,       // f32 copies are stepped, and weights are these, rounded: 4 bytes per parameter more
  stochastic_rounding,  // steps are taken in f32 and rounded up or down by chance, right on average; bf16 only
  as_it_is,             // steps are taken in the weights' own dtype, as by PyTorch's fused optimizers
};

[[nodiscard]] inline std::string_view name_of(LowPrecision mode) {
  if (mode == LowPrecision::master_weights) return "master_weights";
  return mode == LowPrecision::stochastic_rounding ? "stochastic_rounding" : "as_it_is";
}

[[nodiscard]] inline bool is_low_precision(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

namespace detail {

/// Copies f32 `exact` to bf16 `rounded`: of the two neighbours in bf16 the nearer one with the larger probability,
/// so that the mean over many roundings is `exact`. Equal seeds round equally.
///
/// Source   Zamirai et al. 2020, Revisiting BFloat16 Training.
inline void round_stochastically(const at::Tensor& exact, std::uint64_t seed, const at::Tensor& rounded) {
  // A generator of its own: the user's goes on as if there were no rounding, and every rank draws the same.
  at::Generator generator = at::globalContext().defaultGenerator(exact.device()).clone();
  generator.set_current_seed(seed);
  const at::Tensor bits = exact.contiguous().view(at::kInt);
  at::Tensor chance = at::empty_like(bits).random_(0, 1 << 16, generator);  // the 16 bits that bf16 has not
  const at::Tensor sum = chance.add_(bits).bitwise_and_(static_cast<std::int64_t>(~0xffff)).view(at::kFloat);
  rounded.copy_(at::where(at::isfinite(exact), sum, exact));
}

}  // namespace detail

/// Takes the step of a batch of low precision in f32, in `apply(batch)`; its states are f32 already. `seed` is the
/// one of its group, for rounding by chance.
///
/// Memory   f32 copies of at most 2^22 elements at a time, or of one piece.
template <class Apply>
void step_in_float(Batch& batch, LowPrecision mode, std::uint64_t seed, Apply&& apply) {
  constexpr std::int64_t most = std::int64_t{1} << 22;  // 16 MiB: what an allocator gives again without new pages
  const std::size_t pieces = batch.parameters.size();
  for (std::size_t begin = 0; begin < pieces;) {
    Batch run;
    run.states.resize(batch.states.size());
    run.count = batch.count;
    run.is_counted_on_device = batch.is_counted_on_device;
    std::size_t end = begin;
    for (std::int64_t elements = 0; end < pieces; ++end) {
      elements += batch.parameters[end].numel();
      if (end > begin && elements > most) break;
      run.parameters.push_back(batch.masters.empty() ? batch.parameters[end].to(at::kFloat) : batch.masters[end]);
      run.gradients.push_back(batch.gradients[end].to(at::kFloat));
      for (std::size_t s = 0; s < batch.states.size(); ++s) run.states[s].push_back(batch.states[s][end]);
      run.steps.push_back(batch.steps[end]);
      run.members.push_back(batch.members[end]);
    }
    apply(run);
    const at::TensorList weights(&batch.parameters[begin], end - begin);
    if (mode == LowPrecision::master_weights)
      at::_foreach_copy_(weights, run.parameters);
    else
      for (std::size_t k = 0; k < run.parameters.size(); ++k)
        detail::round_stochastically(run.parameters[k], fnv1a(message(seed, " ", batch.count, " ", run.members[k])),
                                     weights[k]);
    begin = end;
  }
}

}  // namespace accel::inline v0_1::optim
