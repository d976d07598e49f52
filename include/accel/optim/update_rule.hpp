// UpdateRule: what an optimizer's arithmetic is asked, and what it is given to step in one call.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/fields.hpp>
#include <accel/core/named.hpp>
#include <accel/gradient/grad_scale.hpp>

namespace accel::inline v0_1::optim {

/// What is stepped in one call: pieces of flat memory, or whole parameters, with equal counts of steps.
///
/// Shape    of one dtype, on one device, dense. A piece, its gradient and the states of an elementwise rule are laid
///          out alike. A whole parameter has the shape and strides that its model gave it.
struct Batch {
  std::vector<at::Tensor> parameters, gradients;
  std::vector<std::vector<at::Tensor>> states;  // [state][piece]
  std::vector<at::Tensor> steps;                // f32[] on the device, one for each piece: all the same tensor
  std::int64_t count = 0;                       // of steps, this one among them; see `is_counted_on_device`
  bool is_counted_on_device = false;            // whether some were skipped, `steps` alone knows
  bool has_begun = false;                       // is_first() has found that it is not

  std::vector<at::Tensor> masters;   // f32, of pieces of lower precision that have them
  std::vector<std::size_t> members;  // which parameters these are

  /// Steps taken, this one among them.
  ///
  /// Cost     the host waits if they are counted on a GPU.
  [[nodiscard]] std::int64_t taken() const {
    return is_counted_on_device ? static_cast<std::int64_t>(steps.front().item<float>()) : count;
  }

  /// Whether none was taken before this one.
  ///
  /// Cost     as taken(), until one was.
  [[nodiscard]] bool is_first() {
    if (!has_begun) {
      const std::int64_t now = taken();
      has_begun = now > 1;
      return now == 1;
    }
    return false;
  }
};

/// A rule that divides gradients by a GradScale's scale while it reads them, and leaves everything as it is where its
/// flag on the device is 1, as LibTorch's fused operators do. Others are given divided gradients, and are undone.
template <class R>
concept FoldsScale = requires(Batch& batch, const typename R::Options& options, const gradient::GradScale& scale) {
  { R::apply(batch, options, scale) } -> std::same_as<void>;
};

/// The arithmetic of an optimizer; what it has in common with others is FlatOptimizer's, of which R is derived:
/// `class R : public FlatOptimizer<R, ROptions>`. A type R is an UpdateRule if it is named and
/// 1. R::Options lists its fields, `lr` and `low_precision` among them, and R::check(options) throws for what
///    cannot be; R::check_parameter(parameter), if there is one, for a parameter that it cannot step;
/// 2. R::is_elementwise says that an element is stepped by what is at its place in gradient and states, alone. Then
///    parameters are stepped in flat memory, several as one piece, and in slices. The result may not depend on it, to
///    the last bit where slices begin at multiples of 64 bytes. Otherwise each is stepped as a whole;
/// 3. R::states(options) names what it keeps of each parameter, in PyTorch's words, and R::initial(options, s,
///    parameter), zeros unless R has its own, makes the s-th before the first step: with the layout of the parameter
///    if R is elementwise, else of any shape, or undefined where this parameter has none. It is also asked with a
///    parameter on the meta device, which has no values, for the layout alone;
/// 4. R::apply(batch, options), or R::apply(batch, options, scale) if it FoldsScale, takes the step: it writes to
///    parameters and states, and to nothing else. Gradients are not recorded.
///
/// A rule whose arithmetic needs the number of steps takes it from `batch.steps` where parameters are on a GPU, whose
/// host would wait for `batch.taken()`. tests/conformance/optimizer_suite.hpp tests any rule.
template <class R>
concept UpdateRule =
    Named<R> && HasFields<typename R::Options> &&
    requires(Batch& batch, const typename R::Options& options, std::size_t s, const at::Tensor& parameter) {
      { R::is_elementwise } -> std::convertible_to<bool>;
      options.lr;
      options.low_precision;
      { R::check(options) } -> std::same_as<void>;
      { R::states(options) } -> std::same_as<std::span<const std::string_view>>;
      { R::initial(options, s, parameter) } -> std::same_as<at::Tensor>;
    } && (FoldsScale<R> || requires(Batch& batch, const typename R::Options& options) {
      { R::apply(batch, options) } -> std::same_as<void>;
    });

}  // namespace accel::inline v0_1::optim
