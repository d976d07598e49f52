// Rate: the learning rate and the momentum of a parameter group, whoever wrote its optimizer.
#pragma once

#include <concepts>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>

// LibTorch's headers are heavy, and whoever has one of these optimizers has them.
namespace torch::optim {
class Adam;
class AdamW;
class RMSprop;
class SGD;
struct AdamOptions;
struct AdamWOptions;
struct RMSpropOptions;
struct SGDOptions;
}  // namespace torch::optim

namespace accel::inline v0_1::optim {

/// The learning rate in the options of a group: LibTorch's, ours, or what looks like either.
template <class Options>
[[nodiscard]] double rate_of(const Options& options) {
  if constexpr (requires { options.get_lr(); })
    return options.get_lr();
  else if constexpr (requires { options.lr.value(); })
    return options.lr.value();
  else
    return options.lr;
}

template <class Options>
void set_rate(Options& options, double rate) {
  if constexpr (requires { options.set_lr(rate); })
    options.set_lr(rate);
  else if constexpr (requires { options.lr.set(rate); })
    options.lr.set(rate);
  else
    options.lr = rate;
}

namespace detail {

/// One tensor is the rate of both.
template <class Options>
[[nodiscard]] bool share_rate(const Options& a, const Options& b) {
  if constexpr (requires { a.lr.tensor(); })
    return a.lr.is_tensor() && b.lr.is_tensor() && a.lr.tensor().is_alias_of(b.lr.tensor());
  else
    return false;
}

}  // namespace detail

/// Refuses two rates, by group, for groups that have one tensor for both.
template <class Groups>
void check_rates(const Groups& groups, const std::vector<double>& rates) {
  for (std::size_t g = 0; g < rates.size(); ++g)
    for (std::size_t h = 0; h < g; ++h)
      ACCEL_CHECK(rates[g] == rates[h] || !detail::share_rate(groups[g].options(), groups[h].options()),
                  InvalidArgument, "lr: groups ", h, " and ", g, " share one tensor for their rate, and would need ",
                  shortest(rates[h]), " and ", shortest(rates[g]), "; give each a tensor of its own");
}

/// By group.
///
/// Throws   as check_rates(), and nothing has changed.
template <class Groups>
void set_rates(Groups& groups, const std::vector<double>& rates) {
  check_rates(groups, rates);
  for (std::size_t g = 0; g < rates.size(); ++g) set_rate(groups[g].options(), rates[g]);
}

namespace detail {

/// What the groups of a LibTorch optimizer hold: its groups show the base class only.
template <class Optimizer>
struct GroupOptions {
  using Type = void;
};
template <std::derived_from<torch::optim::SGD> Optimizer>
struct GroupOptions<Optimizer> {
  using Type = torch::optim::SGDOptions;
};
template <std::derived_from<torch::optim::Adam> Optimizer>
struct GroupOptions<Optimizer> {
  using Type = torch::optim::AdamOptions;
};
template <std::derived_from<torch::optim::AdamW> Optimizer>
struct GroupOptions<Optimizer> {
  using Type = torch::optim::AdamWOptions;
};
template <std::derived_from<torch::optim::RMSprop> Optimizer>
struct GroupOptions<Optimizer> {
  using Type = torch::optim::RMSpropOptions;
};

/// beta1 where there are betas, as in PyTorch; null where there is no momentum at all.
template <class Options>
[[nodiscard]] double* momentum_in(Options& options) {
  if constexpr (requires { options.betas[0] = 0.0; })
    return &options.betas[0];
  else if constexpr (requires { std::get<0>(options.betas()); })
    return &std::get<0>(options.betas());
  else if constexpr (requires { options.momentum = 0.0; })
    return &options.momentum;
  else if constexpr (requires { options.momentum() = 0.0; })
    return &options.momentum();
  else
    return nullptr;
}

}  // namespace detail

/// Sets the momentum, or beta1, of a group of `Optimizer`.
///
/// Throws   InvalidArgument where there is none, or no telling where it is: in torch::optim, the momentum of SGD, Adam,
///          AdamW, RMSprop and of what derives from them can be set.
template <class Optimizer, class Group>
void set_momentum(Group& group, double momentum) {
  auto& options = group.options();
  double* found = nullptr;
  using Known = typename detail::GroupOptions<Optimizer>::Type;
  if constexpr (!std::is_void_v<Known>) {
    if (auto* known = dynamic_cast<Known*>(&options)) found = detail::momentum_in(*known);
  } else {
    found = detail::momentum_in(options);
  }
  ACCEL_CHECK(found != nullptr, InvalidArgument,
              "expected an optimizer with momentum or betas, found one with neither; ",
              "give the schedule .cycle_momentum = false");
  *found = momentum;
}

}  // namespace accel::inline v0_1::optim
