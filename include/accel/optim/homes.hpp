// Homes: flat memory in which parameters lie as their gradients do, and their states as they do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <accel/tensor/flat.hpp>

namespace accel::inline v0_1::optim {

/// Equal strides, but for dimensions of one element, whose stride says nothing.
[[nodiscard]] inline bool are_laid_out_alike(const at::Tensor& a, const at::Tensor& b) {
  if (a.strides() == b.strides() || a.numel() == 0) return true;
  for (std::int64_t dim = 0; dim < a.dim(); ++dim)
    if (a.size(dim) != 1 && a.stride(dim) != b.stride(dim)) return false;
  return true;
}

/// A parameter's place in one of them, if it has one.
struct Place {
  bool is_at_home = false;
  std::size_t home = 0;
  std::int64_t offset = 0;  // elements
};

/// Parameters move into flat memory of the shape in which their gradients lie together, so that what is one range
/// there is one range here.
///
/// Memory   that of the parameters and states themselves; what aligns is less than 64 bytes each.
class Homes {
 public:
  /// Makes state s, of which there are `states`, for a parameter or the flat memory of many.
  using Initial = std::function<at::Tensor(std::size_t s, const at::Tensor& parameter)>;

  Homes(std::size_t states, Initial initial) : states_(states), initial_(std::move(initial)) {}

  /// Elements between the gradients of two parameters, from begin to begin, if they lie one behind the other
  /// in one storage with nothing between them but what aligns; else 0.
  [[nodiscard]] static std::int64_t distance(const at::Tensor& first, const at::Tensor& second) {
    const at::Tensor& a = first.grad();
    const at::Tensor& b = second.grad();
    if (a.storage().unsafeGetStorageImpl() != b.storage().unsafeGetStorageImpl()) return 0;
    if (a.scalar_type() != b.scalar_type() || first.scalar_type() != second.scalar_type()) return 0;
    if (a.scalar_type() != first.scalar_type()) return 0;
    if (!are_laid_out_alike(first, a) || !are_laid_out_alike(second, b)) return 0;
    if (!first.is_non_overlapping_and_dense() || !second.is_non_overlapping_and_dense()) return 0;
    const std::int64_t span = b.storage_offset() - a.storage_offset();
    const std::int64_t line = 64 / static_cast<std::int64_t>(a.element_size());
    return span > 0 && span >= a.numel() && span - a.numel() < line ? span : 0;
  }

  /// Moves parameters[which[k]] to offsets[k] of a new home; nobody else shares their memory.
  [[nodiscard]] std::vector<Place> move_in(const std::vector<at::Tensor>& parameters, const std::size_t* which,
                                           const std::vector<std::int64_t>& offsets) {
    const at::Tensor& last = parameters[which[offsets.size() - 1]];
    Home home{at::zeros({offsets.back() + last.numel()}, last.options().requires_grad(false)), {}, offsets.size()};
    const auto is_empty = [](const Home& one) { return one.members == 0; };
    const auto number = static_cast<std::size_t>(std::find_if(homes_.begin(), homes_.end(), is_empty) - homes_.begin());
    std::vector<Place> places;
    for (std::size_t k = 0; k < offsets.size(); ++k) {
      const at::Tensor& parameter = parameters[which[k]];
      const at::Tensor view = tensor::view_like(home.parameters, offsets[k], parameter).variable_data();
      view.copy_(parameter.detach());
      parameter.set_data(view);
      places.push_back({true, number, offsets[k]});
    }
    if (number == homes_.size()) homes_.emplace_back();
    homes_[number] = std::move(home);
    return places;
  }

  /// A parameter's gradient is elsewhere now, or, unless it `lies_there`, somebody gave it other memory. States
  /// are its own from now on; nobody else keeps what lies there.
  void leave(const at::Tensor& parameter, Place& place, std::vector<at::Tensor>& states, bool lies_there) {
    Home& home = homes_[place.home];
    for (auto& state : states) state = state.clone();
    place.is_at_home = false;
    const bool is_shared = home.parameters.storage().use_count() != 1 + home.members;
    if (lies_there && is_shared) return;  // it stays there, and so does who looks at it
    if (lies_there) parameter.set_data(parameter.detach().clone());
    --home.members;
  }

  /// A parameter is no longer in the list.
  void forget(const Place& place) {
    if (place.is_at_home) --homes_[place.home].members;
  }

  void drop_empty() {
    for (auto& home : homes_)
      if (home.members == 0) home = {};
  }

  /// Its states as parts of those of its home, filled with what it had. Each counts its own versions, which tell a
  /// snapshot whether it was written to.
  void make_states(const at::Tensor& parameter, const Place& place, std::vector<at::Tensor>& states) {
    Home& home = homes_[place.home];
    while (home.states.size() < states_) home.states.push_back(initial_(home.states.size(), home.parameters));
    std::vector<at::Tensor> views;
    for (std::size_t s = 0; s < states_; ++s) {
      views.push_back(tensor::view_like(home.states[s], place.offset, parameter).variable_data());
      if (s < states.size() && states[s].const_data_ptr() != views[s].const_data_ptr()) views[s].copy_(states[s]);
    }
    states = std::move(views);
  }

  /// `numel` elements of a home from `place` on: parameters, or their state s.
  [[nodiscard]] at::Tensor parameters(const Place& place, std::int64_t numel) const {
    return homes_[place.home].parameters.narrow(0, place.offset, numel);
  }
  [[nodiscard]] at::Tensor state(std::size_t s, const Place& place, std::int64_t numel) const {
    return homes_[place.home].states[s].narrow(0, place.offset, numel);
  }

 private:
  struct Home {
    at::Tensor parameters;
    std::vector<at::Tensor> states;
    std::size_t members = 0;
  };

  std::size_t states_;
  Initial initial_;
  std::vector<Home> homes_;
};

}  // namespace accel::inline v0_1::optim
