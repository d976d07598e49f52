// LowPrecision: how weights of 16 bits take steps that are smaller than their last bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/optim/blocks.hpp>
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

/// It is stepped in f32.
[[nodiscard]] inline bool is_in_float(const at::Tensor& parameter, LowPrecision mode) {
  return mode != LowPrecision::as_it_is && is_low_precision(parameter);
}

namespace detail {

/// A master is what rounds to its weight; where it does not, somebody has written to the weight, and it is the new one.
inline void follow_weights(const at::Tensor& weights, const at::Tensor& master) {
  const at::Tensor rounded = master.to(weights.scalar_type());
  if (weights.is_cpu() && rounded.equal(weights)) return;  // a GPU does not tell without being waited for
  master.copy_(at::where(rounded.eq(weights), master, weights.to(at::kFloat)));
}

/// Copies f32 `exact` to bf16 `rounded`: of the two neighbours in bf16 the nearer one with the larger probability,
/// so that the mean over many roundings is `exact`. Equal seeds round equally.
///
/// Source   Zamirai et al. 2020, Revisiting BFloat16 Training.
inline void round_stochastically(const at::Tensor& exact, std::uint64_t seed, const at::Tensor& rounded) {
  // A generator of its own: the user's goes on as if there were no rounding, and every rank draws the same.
  at::Generator generator = at::globalContext().defaultGenerator(exact.device()).clone();
  generator.set_current_seed(seed);
  const at::Tensor drawn = at::empty({(exact.numel() + 3) / 4}, exact.options().dtype(at::kLong));
  drawn.random_(std::numeric_limits<std::int64_t>::min(), std::nullopt, generator);
  // Four times the 16 bits that bf16 has not.
  const at::Tensor chance =
      drawn.view(at::kShort).as_strided(exact.sizes(), exact.strides()).to(at::kInt).bitwise_and_(0xffff);
  const at::Tensor sum = chance.add_(exact.view(at::kInt)).bitwise_and_(static_cast<std::int64_t>(~0xffff));
  const at::Tensor is_number = exact.eq(exact);  // the bits of what is none may become one
  rounded.copy_(at::where(is_number, sum.view(at::kFloat), exact));
}

}  // namespace detail

/// Takes the step of a batch of low precision in f32, in `apply(part)`; its states are f32 already. `group` is the
/// number of its group, for rounding by chance. With `divided` gradients apply() divides them, too.
///
/// Memory   f32 copies of block_of() elements at a time, or of one parameter that is stepped as a whole.
/// Cost     by chance, the host waits if steps are counted on a GPU, as they are with a loss scale: that is for fp16.
template <class Apply>
void step_in_float(Batch& batch, bool is_elementwise, LowPrecision mode, std::size_t group, bool divided,
                   Apply&& apply) {
  const bool by_chance = mode == LowPrecision::stochastic_rounding;
  const std::int64_t step = by_chance ? batch.taken() : 0;
  in_blocks(batch, is_elementwise, block_of(batch), [&](Batch& part, std::size_t, std::int64_t begin) {
    Batch exact;
    exact.states = part.states;
    exact.steps = part.steps;
    exact.count = part.count;
    exact.is_counted_on_device = part.is_counted_on_device;
    exact.has_begun = part.has_begun;
    for (std::size_t k = 0; k < part.parameters.size(); ++k) {
      if (!part.masters.empty()) detail::follow_weights(part.parameters[k], part.masters[k]);
      exact.parameters.push_back(part.masters.empty() ? part.parameters[k].to(at::kFloat) : part.masters[k]);
      exact.gradients.push_back(part.gradients[k].to(at::kFloat));
    }
    apply(exact);
    part.has_begun = exact.has_begun;
    if (divided) at::_foreach_copy_(part.gradients, exact.gradients);
    if (!by_chance) return at::_foreach_copy_(part.parameters, exact.parameters);
    for (std::size_t k = 0; k < part.parameters.size(); ++k)
      detail::round_stochastically(
          exact.parameters[k], fnv1a(message(group, " ", step, " ", part.members[k], " ", begin)), part.parameters[k]);
  });
}

}  // namespace accel::inline v0_1::optim
