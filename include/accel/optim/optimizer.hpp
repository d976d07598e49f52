// Optimizer: what the fused optimizers have in common: groups of parameters, their options and their state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/optim/flat_group.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::optim {

/// Parameters that are stepped with the same options.
template <class Options>
class ParamGroup {
 public:
  explicit ParamGroup(std::vector<at::Tensor> parameters) : parameters_(std::move(parameters)) {}
  ParamGroup(std::vector<at::Tensor> parameters, Options options)
      : parameters_(std::move(parameters)), options_(std::move(options)), has_options_(true) {}

  [[nodiscard]] std::vector<at::Tensor>& params() { return parameters_; }
  [[nodiscard]] const std::vector<at::Tensor>& params() const { return parameters_; }
  [[nodiscard]] Options& options() { return options_; }
  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] bool has_options() const { return has_options_; }

 private:
  std::vector<at::Tensor> parameters_;
  Options options_{};
  bool has_options_ = false;  // else the optimizer's defaults are taken
};

/// What an optimizer knows of one parameter.
struct ParameterState {
  at::Tensor parameter;
  std::int64_t step = 0;            // steps taken
  std::vector<at::Tensor> tensors;  // like the parameter
};

/// The part that does not depend on the rule. Steps what has a gradient, and nothing else.
///
/// `Rule` has Options, and for every batch of parameters apply(batch, options).
template <class Rule, class OptionsType>
class FusedOptimizer {
 public:
  using Options = OptionsType;
  using Group = ParamGroup<Options>;

  /// Throws   InvalidArgument for a tensor that cannot be stepped.
  void add_param_group(Group group) {
    if (!group.has_options()) group = Group(std::move(group.params()), defaults_);
    Rule::check(group.options());
    for (const auto& parameter : group.params())
      ACCEL_CHECK(parameter.defined() && parameter.is_leaf() && parameter.is_floating_point(), InvalidArgument,
                  Rule::name, ": expected a leaf tensor of floating point, found ", tensor::spec(parameter));
    groups_.push_back(std::move(group));
  }

  /// Order    after backward; with prepared models by the prepared optimizer, which sees to it that
  ///          gradients are means over the ranks.
  void step() {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      while (flat_.size() <= g) flat_.emplace_back(Rule::states(groups_[g].options()));
      for (Batch& batch : flat_[g].batches(groups_[g].params())) take(batch, g);
    }
  }

  /// Steps these alone, as far as they are its own and have a gradient.
  void step_some(std::span<const at::Tensor> some) {
    const c10::AutoGradMode no_grad(false);
    std::vector<std::vector<std::size_t>> which(groups_.size());
    for (const auto& parameter : some)
      if (const auto* place = place_of(parameter)) which[place->first].push_back(place->second);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      while (flat_.size() <= g) flat_.emplace_back(Rule::states(groups_[g].options()));
      if (which[g].empty()) continue;
      for (Batch& batch : flat_[g].batches_of(groups_[g].params(), which[g])) {
        take(batch, g);
        flat_[g].took(batch);
      }
    }
  }

  /// The loss of `closure`, then a step.
  template <class Closure>
  at::Tensor step(Closure&& closure) {
    at::Tensor loss;
    {
      const c10::AutoGradMode with_grad(true);
      loss = std::forward<Closure>(closure)();
    }
    step();
    return loss;
  }

  void zero_grad(bool set_to_none = true) {
    const c10::AutoGradMode no_grad(false);
    for (auto& group : groups_)
      for (auto& parameter : group.params()) {
        at::Tensor& gradient = parameter.mutable_grad();
        if (!gradient.defined()) continue;
        if (set_to_none)
          gradient.reset();
        else
          gradient.detach_().zero_();
      }
  }

  [[nodiscard]] std::vector<Group>& param_groups() { return groups_; }
  [[nodiscard]] const std::vector<Group>& param_groups() const { return groups_; }
  [[nodiscard]] Options& defaults() { return defaults_; }

  /// Of the parameters that have taken a step, in the order of the groups.
  [[nodiscard]] std::vector<ParameterState> state() const {
    std::vector<ParameterState> all;
    for (std::size_t g = 0; g < flat_.size(); ++g)
      for (std::size_t i = 0; i < groups_[g].params().size(); ++i)
        if (auto [tensors, steps] = flat_[g].state(i); steps > 0)
          all.push_back({groups_[g].params()[i], steps, std::move(tensors)});
    return all;
  }

 private:
  friend Rule;  // the constructor is for it alone

  FusedOptimizer(std::vector<Group> groups, Options defaults) : defaults_(std::move(defaults)) {
    for (auto& group : groups) add_param_group(std::move(group));
  }

  void take(Batch& batch, std::size_t g) {
    ++batch.count;
    const at::Tensor& step = batch.steps.front();
    if (step.is_cpu())
      *step.mutable_data_ptr<float>() = static_cast<float>(batch.count);
    else
      step.fill_(static_cast<double>(batch.count));
    Rule::apply(batch, groups_[g].options());
    // A piece is no view of its parameters: autograd is told that what a graph may have saved has changed.
    for (const std::size_t i : batch.members) groups_[g].params()[i].unsafeGetTensorImpl()->bump_version();
  }

  /// Group and number in it; null if it is not ours.
  [[nodiscard]] const std::pair<std::size_t, std::size_t>* place_of(const at::Tensor& parameter) {
    const auto look = [&]() -> const std::pair<std::size_t, std::size_t>* {
      const auto found = places_.find(parameter.unsafeGetTensorImpl());
      if (found == places_.end()) return nullptr;
      const auto& [g, i] = found->second;
      const auto& parameters = groups_[g].params();
      return i < parameters.size() && parameters[i].is_same(parameter) ? &found->second : nullptr;
    };
    if (const auto* place = look()) return place;
    std::size_t count = 0;
    for (const auto& group : groups_) count += group.params().size();
    if (count == places_.size()) return nullptr;
    places_.clear();  // a list is the user's to change
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (std::size_t i = 0; i < groups_[g].params().size(); ++i)
        places_[groups_[g].params()[i].unsafeGetTensorImpl()] = {g, i};
    return look();
  }

  Options defaults_;
  std::vector<Group> groups_;
  std::unordered_map<const c10::TensorImpl*, std::pair<std::size_t, std::size_t>> places_;
  std::vector<FlatGroup> flat_;  // by group
};

}  // namespace accel::inline v0_1::optim
