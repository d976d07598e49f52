// Precision: in which dtype forward computes and how the loss survives it.
#pragma once

#include <concepts>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <accel/core/named.hpp>

namespace accel::inline v0_1 {

/// A type P is a Precision if it is named, default-constructible, and
/// 1. P::scales_loss says at compile time whether backward runs on a scaled loss;
/// 2. autocast(device) returns a guard that lives around forward;
/// 3. output(tree) is what forward's result becomes.
template <class P>
concept Precision = Named<P> && std::default_initializable<P> && std::movable<P> &&
                    requires(P& precision, c10::Device device, at::Tensor tensor) {
                      { P::scales_loss } -> std::convertible_to<bool>;
                      precision.autocast(device);
                      { precision.output(std::move(tensor)) } -> std::same_as<at::Tensor>;
                    };

namespace precision {

/// The defaults that change nothing. A precision inherits them and states what differs.
struct Passthrough {
  static constexpr bool scales_loss = false;

  struct NoGuard {
    // Not trivial: a guard that is not used again is no unused variable.
    ~NoGuard() {}  // NOLINT(modernize-use-equals-default)
  };
  [[nodiscard]] NoGuard autocast(c10::Device) const { return {}; }

  template <class Tree>
  [[nodiscard]] Tree output(Tree&& tree) const {
    return std::forward<Tree>(tree);
  }
};

}  // namespace precision
}  // namespace accel::inline v0_1
