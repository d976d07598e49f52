// FlatOptimizer: what all optimizers of this library have in common: groups of parameters, their options and states.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/flat_group.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/options.hpp>
#include <accel/optim/param_group.hpp>
#include <accel/optim/update_rule.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::optim {

/// What an optimizer knows of one parameter.
struct ParameterState {
  at::Tensor parameter;
  std::int64_t step = 0;            // steps taken
  std::vector<at::Tensor> tensors;  // as Rule::states() names them
  at::Tensor master;                // f32, of a parameter of lower precision that has one
};

/// The part that does not depend on the rule. Steps what has a gradient, and nothing else. Made with parameters,
/// with groups of them, or with neither: then bound by accelerator.prepare to the model it is prepared with.
///
/// Memory   of each parameter its states: as many bytes per element as it has itself for each, 4 in low precision,
///          where master weights take 4 more.
/// State    by parameter name: `state.<name>.step` and those of the rule, as `state.<name>.exp_avg`; master weights
///          as `state.<name>.master`; the options of each group as `param_groups.<group>.<option>`. Names are the
///          prepared model's; of parameters that nobody has named the number, as in PyTorch.
template <class Rule, class OptionsType>
class FlatOptimizer {
 public:
  using Options = OptionsType;
  using Group = ParamGroup<Options>;

  /// Without parameters.
  explicit FlatOptimizer(Options options = {}) : defaults_(std::move(options)) {
    static_assert(UpdateRule<Rule>);
    Rule::check(defaults_);
  }

  // Of templates, so that `{.lr = 1e-3}` is no list of tensors to any compiler.
  template <std::same_as<at::Tensor> Tensor>
  explicit FlatOptimizer(std::vector<Tensor> parameters, Options options = {}) : FlatOptimizer(std::move(options)) {
    add_param_group(Group(std::move(parameters)));
  }
  template <std::same_as<Group> GroupOfThese>
  explicit FlatOptimizer(std::vector<GroupOfThese> groups, Options defaults = {}) : FlatOptimizer(std::move(defaults)) {
    for (auto& group : groups) add_param_group(std::move(group));
  }
  explicit FlatOptimizer(std::initializer_list<at::Tensor> parameters, Options options = {})
      : FlatOptimizer(std::vector<at::Tensor>(parameters), std::move(options)) {}
  explicit FlatOptimizer(std::initializer_list<Group> groups, Options defaults = {})
      : FlatOptimizer(std::vector<Group>(groups), std::move(defaults)) {}

  /// Throws   InvalidArgument for a tensor that cannot be stepped.
  void add_param_group(Group group) {
    if (!group.has_options()) group = Group(std::move(group.params()), defaults_);
    Rule::check(group.options());
    for (const auto& parameter : group.params()) {
      ACCEL_CHECK(parameter.defined() && parameter.is_leaf() && parameter.is_floating_point(), InvalidArgument,
                  Rule::name, ": expected a leaf tensor of floating point, found ", tensor::spec(parameter));
      if constexpr (requires { Rule::check_parameter(parameter); }) Rule::check_parameter(parameter);
    }
    groups_.push_back(std::move(group));
  }

  /// It was made without parameters, and nobody has bound it yet.
  [[nodiscard]] bool is_unbound() const { return groups_.empty(); }

  /// The names of its parameters, for its state.
  void name_parameters(std::span<const tensor::NamedTensor> named) {
    for (const auto& [name, parameter] : named) names_[parameter.unsafeGetTensorImpl()] = name;
  }

  /// Order    after backward; with prepared models by the prepared optimizer, which sees to it that
  ///          gradients are means over the ranks.
  void step() { step(gradient::GradScale{}); }

  /// The same with gradients that are multiplied, or not finite. Afterwards they are divided, unless the step was
  /// skipped.
  void step(const gradient::GradScale& scale) {
    const c10::AutoGradMode no_grad(false);
    if (scale.is_skipped()) return;
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (Batch& batch : flat(g).batches(groups_[g].params())) take(batch, g, scale);
  }

  /// Steps these alone, as far as they are its own and have a gradient.
  void step_some(std::span<const at::Tensor> some) {
    const c10::AutoGradMode no_grad(false);
    std::vector<std::vector<std::size_t>> which(groups_.size());
    for (const auto& parameter : some)
      if (const auto* place = place_of(parameter)) which[place->first].push_back(place->second);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      FlatGroup& own = flat(g);
      if (which[g].empty()) continue;
      for (Batch& batch : own.batches_of(groups_[g].params(), which[g])) {
        take(batch, g, {});
        own.took(batch);
      }
    }
  }

  /// The loss of `closure`, then a step.
  template <class Closure>
    requires std::is_invocable_v<Closure>
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
        if (auto [tensors, master, steps] = flat_[g].state(i); steps > 0)
          all.push_back({groups_[g].params()[i], steps, std::move(tensors), std::move(master)});
    return all;
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict dict;
    std::size_t number = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto words = Rule::states(groups_[g].options());
      for (std::size_t i = 0; i < groups_[g].params().size(); ++i, ++number) {
        const auto [tensors, master, steps] = g < flat_.size() ? flat_[g].state(i) : FlatGroup::State{};
        if (steps == 0) continue;
        const std::string prefix = "state." + name_of_parameter(groups_[g].params()[i], number) + ".";
        dict.add(prefix + "step", steps);
        for (std::size_t s = 0; s < tensors.size(); ++s)
          if (tensors[s].defined()) dict.add(prefix + std::string(words[s]), tensors[s]);
        if (master.defined()) dict.add(prefix + "master", master);
      }
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) detail::save_options(groups_[g].options(), prefix_of(g), dict);
    return dict;
  }

  /// Throws   CheckpointError, before anything is changed, for a state of a parameter that is not here or of
  ///          another shape, and for options that lack.
  void load_state_dict(const tensor::StateDict& dict) {
    const c10::AutoGradMode no_grad(false);
    std::vector<Options> options;
    for (std::size_t g = 0; g < groups_.size(); ++g)
      options.push_back(detail::load_options(groups_[g].options(), prefix_of(g), dict));
    std::vector<std::vector<FlatGroup::State>> states(groups_.size());
    std::size_t number = 0;
    std::size_t used = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (const auto& parameter : groups_[g].params())
        states[g].push_back(loaded(parameter, name_of_parameter(parameter, number++), options[g], dict, used));
    const auto all = dict.below("state.");
    ACCEL_CHECK(used == all.entries().size(), CheckpointError, Rule::name, ": the state has ", all.entries().size(),
                " entries of parameters, and ", used, " of them are of parameters that are here; the first is ",
                all.entries().front().name);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      groups_[g].options() = std::move(options[g]);
      for (std::size_t i = 0; i < states[g].size(); ++i) flat(g).load(groups_[g].params(), i, states[g][i]);
    }
  }

 private:
  [[nodiscard]] FlatGroup& flat(std::size_t g) {
    for (std::size_t next = flat_.size(); next <= g; ++next) {
      const Options& options = groups_[next].options();
      flat_.emplace_back(GroupLayout{
          .states = Rule::states(options).size(),
          .initial = [options](std::size_t s, const at::Tensor& own) { return Rule::initial(options, s, own); },
          .is_elementwise = Rule::is_elementwise,
          .low_precision = options.low_precision});
    }
    return flat_[g];
  }

  void take(Batch& batch, std::size_t g, const gradient::GradScale& scale) {
    const Options& options = groups_[g].options();
    const bool in_float = options.low_precision != LowPrecision::as_it_is && is_low_precision(batch.parameters.front());
    const bool folds = Rule::folds_scale && !in_float;
    if (scale.scale.defined() && !folds) at::_foreach_mul_(batch.gradients, scale.scale.reciprocal());
    gradient::GradScale left = scale;
    if (!folds) left.scale.reset();
    count(batch, left);
    const auto apply = [&](Batch& one) {
      if (Rule::folds_scale || !left.on_device)
        Rule::apply(one, options, left);
      else
        apply_unless(left.found_inf, one, [&] { Rule::apply(one, options, {}); });
    };
    if (in_float)
      step_in_float(batch, options.low_precision, g, apply);
    else
      apply(batch);
    if (left.on_device) batch.steps.front().sub_(left.found_inf);
    flat_[g].wrote(groups_[g].params(), batch, scale.scale.defined());
  }

  static void count(Batch& batch, const gradient::GradScale& scale) {
    ++batch.count;
    const at::Tensor& steps = batch.steps.front();
    if (!scale.on_device && !batch.is_counted_on_device && steps.is_cpu()) {
      *steps.mutable_data_ptr<float>() = static_cast<float>(batch.count);
      return;
    }
    if (!batch.is_counted_on_device) steps.fill_(static_cast<double>(batch.count - 1));
    steps.add_(1);
    batch.is_counted_on_device |= scale.on_device;
  }

  /// What a rule that knows nothing of flags has changed is put back where `found_inf` is 1: the host, which would
  /// have to wait for it, is not asked.
  ///
  /// Memory   a copy of the parameters and states of the batch, while it is stepped.
  template <class Apply>
  static void apply_unless(const at::Tensor& found_inf, Batch& batch, Apply&& apply) {
    std::vector<std::pair<at::Tensor, at::Tensor>> kept;
    const auto keep = [&](const std::vector<at::Tensor>& tensors) {
      for (const auto& tensor : tensors)
        if (tensor.defined()) kept.emplace_back(tensor, tensor.clone());
    };
    keep(batch.parameters);
    for (const auto& states : batch.states) keep(states);
    apply();
    const at::Tensor is_skipped = found_inf.to(at::kBool);
    for (auto& [tensor, before] : kept) tensor.copy_(at::where(is_skipped, before, tensor));
  }

  [[nodiscard]] static std::string prefix_of(std::size_t g) { return message("param_groups.", g, "."); }

  [[nodiscard]] std::string name_of_parameter(const at::Tensor& parameter, std::size_t number) const {
    const auto found = names_.find(parameter.unsafeGetTensorImpl());
    return found == names_.end() ? std::to_string(number) : found->second;
  }

  [[nodiscard]] static FlatGroup::State loaded(const at::Tensor& parameter, const std::string& name,
                                               const Options& options, const tensor::StateDict& dict,
                                               std::size_t& used) {
    const auto own = dict.below("state." + name + ".");
    FlatGroup::State state;
    if (!own.has("step")) return state;  // it has taken none, or its entries are left over
    state.steps = own.integer("step");
    ++used;
    const auto words = Rule::states(options);
    for (std::size_t s = 0; s < words.size(); ++s) {
      const at::Tensor expected = Rule::initial(options, s, parameter.detach());
      state.tensors.emplace_back();
      if (!expected.defined()) continue;
      const at::Tensor& found = own.tensor(words[s]);
      ACCEL_CHECK(found.sizes() == expected.sizes(), CheckpointError, Rule::name, ": ", words[s], " of ", name, " is ",
                  tensor::spec(found), ", expected the shape of ", tensor::spec(expected));
      state.tensors.back() = found;
      ++used;
    }
    if (own.has("master")) {
      state.master = own.tensor("master");
      ACCEL_CHECK(state.master.sizes() == parameter.sizes(), CheckpointError, Rule::name, ": master of ", name, " is ",
                  tensor::spec(state.master), ", expected the shape of ", tensor::spec(parameter));
      ++used;
    }
    return state;
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
  std::unordered_map<const c10::TensorImpl*, std::string> names_;
  std::vector<FlatGroup> flat_;  // by group
};

}  // namespace accel::inline v0_1::optim
