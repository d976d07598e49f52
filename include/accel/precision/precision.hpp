// Precision: in which dtype forward computes, what weights are kept in, and how the loss survives it.
#pragma once

#include <concepts>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <accel/core/fields.hpp>
#include <accel/core/named.hpp>
#include <accel/precision/loss_scaler.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/state_dict.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1 {

/// The contract, which grows only by what may be left out. A type P is a Precision if it is named, made from its
/// Options and the device it is for, Stateful, and
/// 1. P::scales_loss says at compile time whether backward runs on a scaled loss; then scaler() is not null;
/// 2. check(record) throws InvalidArgument, with the reason and the first parameter's name, for a model that cannot
///    be right in it; before anything is changed, and on every rank alike;
/// 3. weights_dtype() is what floating-point parameters and buffers become when a model is prepared; none: as they are;
/// 4. autocast(enabled, cache) returns a guard that lives around forward, in this thread;
/// 5. input(argument) is what forward is given for each of its arguments, and output(tree) what its result becomes.
///
/// Inherit precision::Passthrough and state what differs. tests/conformance/precision_suite.hpp is what every one
/// passes, and examples/by_feature/own_precision.cpp one of a user's.
template <class P>
concept Precision =
    Named<P> && std::movable<P> && HasFields<typename P::Options> && std::default_initializable<typename P::Options> &&
    std::constructible_from<P, const typename P::Options&, c10::Device> && tensor::Stateful<P> &&
    requires(P& precision, const P& self, const tensor::Record& record, at::Tensor tensor, bool flag) {
      { P::scales_loss } -> std::convertible_to<bool>;
      { self.check(record) } -> std::same_as<void>;
      { self.weights_dtype() } -> std::same_as<std::optional<c10::ScalarType>>;
      self.autocast(flag, flag);
      { self.input(tensor) } -> std::convertible_to<at::Tensor>;
      { self.output(tensor) } -> std::convertible_to<at::Tensor>;
      { precision.scaler() } -> std::same_as<precision::LossScaler*>;
    };

namespace precision {

struct NoOptions {
  static constexpr auto fields() { return std::tuple(); }
};

/// The defaults that change nothing. A precision inherits them and states what differs.
struct Passthrough {
  using Options = NoOptions;
  static constexpr bool scales_loss = false;

  explicit Passthrough(c10::Device on) : device(on) {}
  Passthrough(const NoOptions&, c10::Device on) : device(on) {}

  void check(const tensor::Record&) const {}
  [[nodiscard]] std::optional<c10::ScalarType> weights_dtype() const { return std::nullopt; }

  struct NoGuard {
    // Not trivial: a guard that is not used again is no unused variable.
    ~NoGuard() {}  // NOLINT(modernize-use-equals-default)
  };
  [[nodiscard]] NoGuard autocast(bool /*enabled*/, bool /*cache*/) const { return {}; }

  template <class Argument>
  [[nodiscard]] Argument&& input(Argument&& argument) const {
    return std::forward<Argument>(argument);
  }
  template <class Tree>
  [[nodiscard]] Tree output(Tree&& tree) const {
    return std::forward<Tree>(tree);
  }

  [[nodiscard]] LossScaler* scaler() { return nullptr; }

  [[nodiscard]] tensor::StateDict state_dict() const { return {}; }
  void load_state_dict(const tensor::StateDict&) {}

  c10::Device device;
};

/// Every tensor of `tree` of one of these dtypes as f32, with its graph; others as they are.
///
/// Source   accelerate.utils.convert_outputs_to_fp32: so that losses are computed in f32.
template <class Tree>
[[nodiscard]] std::remove_cvref_t<Tree> in_float(Tree&& tree) {
  return tensor::map(std::forward<Tree>(tree), [](const at::Tensor& tensor) {
    const auto dtype = tensor.scalar_type();
    return dtype == at::kHalf || dtype == at::kBFloat16 ? tensor.to(at::kFloat) : tensor;
  });
}

}  // namespace precision
}  // namespace accel::inline v0_1
