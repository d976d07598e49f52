// UpdateRule: what an optimizer's arithmetic is asked, and what it is given to step in one call.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/fields.hpp>
#include <accel/core/named.hpp>
#include <accel/gradient/grad_scale.hpp>

namespace accel::inline v0_1::optim {

/// What is stepped in one call: pieces of flat memory, or whole parameters, with equal counts of steps.
///
/// Shape    of one dtype, on one device. A piece, its gradient and the states of an elementwise rule have one
///          shape and equal strides.
struct Batch {
  std::vector<at::Tensor> parameters, gradients;
  std::vector<std::vector<at::Tensor>> states;  // [state][piece]
  std::vector<at::Tensor> steps;                // f32[] on the device, one for each piece: all the same tensor
  std::int64_t count = 0;                       // of steps, this one among them; see `is_counted_on_device`
  bool is_counted_on_device = false;            // whether some were skipped, `steps` alone knows

  std::vector<at::Tensor> masters;   // f32, of pieces of lower precision that have them
  std::vector<std::size_t> members;  // which parameters these are

  /// Steps taken, this one among them.
  ///
  /// Cost     the host waits if they are counted on a GPU.
  [[nodiscard]] std::int64_t taken() const {
    return is_counted_on_device ? static_cast<std::int64_t>(steps.front().item<float>()) : count;
  }
};

/// The arithmetic of an optimizer. A type R is an UpdateRule if it is named and
/// 1. R::Options lists its fields, `lr` among them, and R::check(options) refuses what cannot be;
/// 2. R::is_elementwise says that an element is stepped by what is at its place in gradient and states alone: then
///    parameters are stepped in flat memory and in any slices; otherwise each as a whole;
/// 3. R::folds_scale says that apply() divides gradients by a GradScale's scale and obeys its flag, as LibTorch's
///    fused operators do; otherwise they come divided, and are only there if the step is to be taken;
/// 4. R::states(options) names what it keeps of each parameter, in PyTorch's words, and
///    R::initial(options, s, parameter) makes the s-th of them before the first step;
/// 5. R::apply(batch, options, scale) takes the step, without gradients being recorded.
template <class R>
concept UpdateRule = Named<R> && HasFields<typename R::Options> &&
                     requires(Batch& batch, const typename R::Options& options, const gradient::GradScale& scale,
                              std::size_t s, const at::Tensor& parameter) {
                       { R::is_elementwise } -> std::convertible_to<bool>;
                       { R::folds_scale } -> std::convertible_to<bool>;
                       options.lr;
                       options.low_precision;
                       { R::check(options) } -> std::same_as<void>;
                       { R::states(options) } -> std::same_as<std::vector<std::string_view>>;
                       { R::initial(options, s, parameter) } -> std::same_as<at::Tensor>;
                       { R::apply(batch, options, scale) } -> std::same_as<void>;
                     };

}  // namespace accel::inline v0_1::optim
