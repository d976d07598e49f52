// TorchState: the state of LibTorch's own optimizers by name, as those of this library tell theirs.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

// LibTorch's headers are heavy, and whoever has one of these optimizers has them.
namespace torch::optim {
class Adagrad;
class Adam;
class AdamW;
class LBFGS;
class RMSprop;
class SGD;
struct AdagradOptions;
struct AdagradParamState;
struct AdamOptions;
struct AdamParamState;
struct AdamWOptions;
struct AdamWParamState;
struct LBFGSOptions;
struct LBFGSParamState;
struct RMSpropOptions;
struct RMSpropParamState;
struct SGDOptions;
struct SGDParamState;
}  // namespace torch::optim

namespace accel::inline v0_1::optim {

namespace detail {

/// What a kind of optimizer keeps.
template <class ParamState, class OptionsType>
struct TorchKind {
  using State = ParamState;
  using Options = OptionsType;
};

/// Of an optimizer that is one of LibTorch's, or derives from one.
template <class Optimizer>
consteval auto torch_kind() {
  namespace theirs = ::torch::optim;  // this library has some of the same names
  if constexpr (std::derived_from<Optimizer, theirs::Adam>)
    return TorchKind<theirs::AdamParamState, theirs::AdamOptions>();
  else if constexpr (std::derived_from<Optimizer, theirs::AdamW>)
    return TorchKind<theirs::AdamWParamState, theirs::AdamWOptions>();
  else if constexpr (std::derived_from<Optimizer, theirs::SGD>)
    return TorchKind<theirs::SGDParamState, theirs::SGDOptions>();
  else if constexpr (std::derived_from<Optimizer, theirs::RMSprop>)
    return TorchKind<theirs::RMSpropParamState, theirs::RMSpropOptions>();
  else if constexpr (std::derived_from<Optimizer, theirs::Adagrad>)
    return TorchKind<theirs::AdagradParamState, theirs::AdagradOptions>();
  else if constexpr (std::derived_from<Optimizer, theirs::LBFGS>)
    return TorchKind<theirs::LBFGSParamState, theirs::LBFGSOptions>();
}

// LibTorch's members by the names that PyTorch gives them: `visit(name, value&)`, of what is there.

#define ACCEL_TORCH_MEMBER(name) \
  if constexpr (requires { object.name(); }) visit(std::string_view(#name), object.name())

template <class State, class Visit>
void for_each_torch_state(State& object, Visit&& visit) {
  ACCEL_TORCH_MEMBER(step);
  ACCEL_TORCH_MEMBER(exp_avg);
  ACCEL_TORCH_MEMBER(exp_avg_sq);
  ACCEL_TORCH_MEMBER(max_exp_avg_sq);
  ACCEL_TORCH_MEMBER(momentum_buffer);
  ACCEL_TORCH_MEMBER(square_avg);
  ACCEL_TORCH_MEMBER(grad_avg);
  ACCEL_TORCH_MEMBER(sum);
  ACCEL_TORCH_MEMBER(func_evals);
  ACCEL_TORCH_MEMBER(n_iter);
  ACCEL_TORCH_MEMBER(t);
  ACCEL_TORCH_MEMBER(prev_loss);
  ACCEL_TORCH_MEMBER(d);
  ACCEL_TORCH_MEMBER(H_diag);
  ACCEL_TORCH_MEMBER(prev_flat_grad);
  ACCEL_TORCH_MEMBER(old_dirs);
  ACCEL_TORCH_MEMBER(old_stps);
  ACCEL_TORCH_MEMBER(ro);
  ACCEL_TORCH_MEMBER(al);
}

template <class Options, class Visit>
void for_each_torch_option(Options& object, Visit&& visit) {
  ACCEL_TORCH_MEMBER(lr);
  ACCEL_TORCH_MEMBER(betas);
  ACCEL_TORCH_MEMBER(eps);
  ACCEL_TORCH_MEMBER(weight_decay);
  ACCEL_TORCH_MEMBER(amsgrad);
  ACCEL_TORCH_MEMBER(momentum);
  ACCEL_TORCH_MEMBER(dampening);
  ACCEL_TORCH_MEMBER(nesterov);
  ACCEL_TORCH_MEMBER(alpha);
  ACCEL_TORCH_MEMBER(centered);
  ACCEL_TORCH_MEMBER(lr_decay);
  ACCEL_TORCH_MEMBER(initial_accumulator_value);
  ACCEL_TORCH_MEMBER(max_iter);
  ACCEL_TORCH_MEMBER(max_eval);
  ACCEL_TORCH_MEMBER(tolerance_grad);
  ACCEL_TORCH_MEMBER(tolerance_change);
  ACCEL_TORCH_MEMBER(history_size);
}

#undef ACCEL_TORCH_MEMBER

// One of these as entries of a state, and back.

inline void save_member(const std::string& name, const at::Tensor& value, tensor::StateDict& dict) {
  if (value.defined()) dict.add(name, value);
}
template <class Number>
  requires std::is_arithmetic_v<Number>
void save_member(const std::string& name, const Number& value, tensor::StateDict& dict) {
  dict.add(name, value);
}
inline void save_member(const std::string& name, const std::tuple<double, double>& value, tensor::StateDict& dict) {
  dict.add(name + ".0", std::get<0>(value));
  dict.add(name + ".1", std::get<1>(value));
}
template <class List>
  requires requires(const List& list) {
    { list.front() } -> std::convertible_to<at::Tensor>;
  }
void save_member(const std::string& name, const List& list, tensor::StateDict& dict) {
  dict.add(name + ".count", list.size());
  for (std::size_t k = 0; k < list.size(); ++k) save_member(message(name, ".", k), list[k], dict);
}
template <class Value>
void save_member(const std::string& name, const std::optional<Value>& value, tensor::StateDict& dict) {
  if (value) save_member(name, *value, dict);
}

inline void load_member(const std::string& name, at::Tensor& value, const tensor::StateDict& dict) {
  value = dict.has(name) ? dict.tensor(name).clone() : at::Tensor();
}
template <class Number>
  requires std::is_arithmetic_v<Number>
void load_member(const std::string& name, Number& value, const tensor::StateDict& dict) {
  if constexpr (std::integral<Number>)
    value = static_cast<Number>(dict.integer(name));
  else
    value = dict.number(name);
}
inline void load_member(const std::string& name, std::tuple<double, double>& value, const tensor::StateDict& dict) {
  value = {dict.number(name + ".0"), dict.number(name + ".1")};
}
template <class List>
  requires requires(const List& list) {
    { list.front() } -> std::convertible_to<at::Tensor>;
  }
void load_member(const std::string& name, List& list, const tensor::StateDict& dict) {
  list.clear();
  const std::int64_t count = dict.integer(name + ".count");
  // Where one is missing that is a tensor which was not there, as `al` has them.
  for (std::int64_t k = 0; k < count; ++k) load_member(message(name, ".", k), list.emplace_back(), dict);
}
template <class Value>
void load_member(const std::string& name, std::optional<Value>& value, const tensor::StateDict& dict) {
  constexpr bool is_number = std::is_arithmetic_v<Value>;
  if (!dict.has(is_number ? name : name + ".count")) return value.reset();
  load_member(name, value.emplace(), dict);
}

}  // namespace detail

/// Whether its state can be told by name: it is one of torch::optim's, or derives from one and keeps what that does.
template <class Optimizer>
concept TorchOptimizer = !std::is_void_v<decltype(detail::torch_kind<Optimizer>())>;

/// By parameter name, in the words of PyTorch: `state.<name>.exp_avg`, `param_groups.<group>.lr`.
template <TorchOptimizer Optimizer>
[[nodiscard]] tensor::StateDict torch_state_dict(Optimizer& optimizer, const tensor::Names& names) {
  using Kind = decltype(detail::torch_kind<Optimizer>());
  tensor::StateDict dict;
  std::size_t number = 0;
  for (auto& group : optimizer.param_groups()) {
    for (const auto& parameter : group.params()) {
      const std::string prefix = "state." + names.of(parameter, number++) + ".";
      const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
      if (found == optimizer.state().end()) continue;
      detail::for_each_torch_state(static_cast<typename Kind::State&>(*found->second),
                                   [&](std::string_view name, const auto& value) {
                                     detail::save_member(prefix + std::string(name), value, dict);
                                   });
    }
  }
  for (std::size_t g = 0; g < optimizer.param_groups().size(); ++g)
    detail::for_each_torch_option(static_cast<typename Kind::Options&>(optimizer.param_groups()[g].options()),
                                  [&](std::string_view name, const auto& value) {
                                    detail::save_member(message("param_groups.", g, ".", name), value, dict);
                                  });
  return dict;
}

namespace detail {

/// What such an optimizer has, read and not yet given to it.
template <class Kind>
struct TorchState {
  std::vector<std::pair<void*, std::unique_ptr<typename Kind::State>>> states{};  // by parameter; null: no step yet
  std::vector<typename Kind::Options> options{};                                  // by group
};

template <class Optimizer>
[[nodiscard]] auto read_torch_state(Optimizer& optimizer, const tensor::Names& names, const tensor::StateDict& dict) {
  using Kind = decltype(torch_kind<Optimizer>());
  const c10::AutoGradMode no_grad(false);
  auto& groups = optimizer.param_groups();
  tensor::StateDict known;  // what the same state would be saved as
  TorchState<Kind> result;
  auto& [states, options] = result;
  std::size_t number = 0;
  for (auto& group : groups) {
    for (const auto& parameter : group.params()) {
      const std::string name = names.of(parameter, number++);
      const std::string prefix = "state." + name + ".";
      const tensor::StateDict own = dict.below(prefix);
      auto& [of, state] = states.emplace_back(parameter.unsafeGetTensorImpl(), nullptr);
      if (own.empty()) continue;  // it has taken no step
      state = std::make_unique<typename Kind::State>();
      detail::for_each_torch_state(*state, [&](std::string_view word, auto& value) {
        detail::load_member(std::string(word), value, own);
        if constexpr (std::is_same_v<std::remove_reference_t<decltype(value)>, at::Tensor>) {
          constexpr bool is_flat = std::is_same_v<typename Kind::State, torch::optim::LBFGSParamState>;
          ACCEL_CHECK(is_flat || !value.defined() || value.sizes() == parameter.sizes(), CheckpointError,
                      "optimizer: ", word, " of ", name, " is ", tensor::spec(value), ", expected the shape of ",
                      tensor::spec(parameter));
          if (value.defined()) value = value.to(parameter.device());
        }
        detail::save_member(prefix + std::string(word), value, known);
      });
    }
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    options.push_back(static_cast<typename Kind::Options&>(groups[g].options()));
    detail::for_each_torch_option(options.back(), [&](std::string_view word, auto& value) {
      detail::load_member(message("param_groups.", g, ".", word), value, dict);
      detail::save_member(message("param_groups.", g, ".", word), value, known);
    });
  }
  for (const auto& [name, tensor] : dict.entries())
    ACCEL_CHECK(known.has(name), CheckpointError, "optimizer: ", name, ", ", tensor::spec(tensor),
                ", belongs to none of the ", number, " parameters in ", groups.size(), " groups that are here");
  return result;
}

}  // namespace detail

/// Throws   CheckpointError for a state of a parameter that is not here, of another shape or of another kind of
///          optimizer.
template <TorchOptimizer Optimizer>
void check_torch_state_dict(Optimizer& optimizer, const tensor::Names& names, const tensor::StateDict& dict) {
  (void)detail::read_torch_state(optimizer, names, dict);
}

/// Throws   as check_torch_state_dict(); then nothing has changed.
template <TorchOptimizer Optimizer>
void load_torch_state_dict(Optimizer& optimizer, const tensor::Names& names, const tensor::StateDict& dict) {
  using Kind = decltype(detail::torch_kind<Optimizer>());
  auto [states, options] = detail::read_torch_state(optimizer, names, dict);
  for (auto& [of, state] : states)
    if (state == nullptr)
      optimizer.state().erase(of);
    else
      optimizer.state()[of] = std::move(state);
  auto& groups = optimizer.param_groups();
  for (std::size_t g = 0; g < groups.size(); ++g)
    static_cast<typename Kind::Options&>(groups[g].options()) = std::move(options[g]);
}

}  // namespace accel::inline v0_1::optim
