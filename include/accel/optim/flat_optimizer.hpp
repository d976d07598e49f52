// FlatOptimizer: what all optimizers of this library have in common: groups of parameters, their options and states.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/blocks.hpp>
#include <accel/optim/flat_group.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/options.hpp>
#include <accel/optim/param_group.hpp>
#include <accel/optim/rate.hpp>
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
  static constexpr bool copies_state = true;  // load_state_dict() keeps nothing of what it is given

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
  // A copy would step the same parameters with the same states.
  FlatOptimizer(const FlatOptimizer&) = delete;
  FlatOptimizer& operator=(const FlatOptimizer&) = delete;
  FlatOptimizer(FlatOptimizer&&) = default;
  FlatOptimizer& operator=(FlatOptimizer&&) = default;

  /// What a rule keeps begins with zeros like the parameter, unless it has an initial() of its own.
  [[nodiscard]] static at::Tensor initial(const Options&, std::size_t, const at::Tensor& parameter) {
    return at::zeros_like(parameter);
  }

  /// What a group lists twice, as a model its tied parameters, is stepped once.
  ///
  /// Throws   InvalidArgument for a tensor that cannot be stepped, or is in another group.
  void add_param_group(Group group) {
    if (!group.has_options()) group = Group(std::move(group.params()), defaults_);
    Rule::check(group.options());
    std::unordered_set<const c10::TensorImpl*> listed;
    tensor::drop_repeated(group.params(), listed);
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (const auto& parameter : groups_[g].params())
        ACCEL_CHECK(!listed.contains(parameter.unsafeGetTensorImpl()), InvalidArgument, Rule::name, ": a parameter ",
                    tensor::spec(parameter), " is in group ", g,
                    " already, and would be stepped twice; leave it out of one of them");
    for (const auto& parameter : group.params()) {
      ACCEL_CHECK(parameter.defined() && parameter.is_leaf() && parameter.is_floating_point(), InvalidArgument,
                  Rule::name, ": expected a leaf tensor of floating point, found ", tensor::spec(parameter));
      check_low_precision(parameter, group.options());
      if constexpr (requires { Rule::check_parameter(parameter); }) Rule::check_parameter(parameter);
    }
    groups_.push_back(std::move(group));
  }

  /// It was made without parameters, and nobody has bound it yet.
  [[nodiscard]] bool is_unbound() const { return groups_.empty(); }

  /// The names of its parameters, for its state.
  void name_parameters(std::span<const tensor::NamedTensor> named) { names_.add(named); }

  /// Order    after backward; with prepared models by the prepared optimizer, which sees to it that
  ///          gradients are means over the ranks.
  void step() { step(gradient::GradScale{}); }

  /// The same with gradients that are multiplied, or not finite. Afterwards they are divided, unless the step was
  /// skipped.
  void step(const gradient::GradScale& scale) {
    const c10::AutoGradMode no_grad(false);
    ACCEL_CHECK(!is_unbound(), InvalidArgument, Rule::name, ": it was made without parameters, and no prepare has ",
                "bound it; prepare it beside its model, or make it with net->parameters()");
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

  /// What step_some(some) writes to: those and their states, masters included. Nothing if that cannot be told, as it
  /// would move some of them to other memory first.
  [[nodiscard]] std::optional<std::vector<at::Tensor>> written_by(std::span<const at::Tensor> some) {
    std::vector<at::Tensor> all;
    for (const auto& parameter : some) {
      const auto* place = place_of(parameter);
      if (place == nullptr) continue;
      const auto& [g, i] = *place;
      if (!is_laid_out(g) || !flat_[g].add_written(parameter, i, all)) return std::nullopt;
    }
    return all;
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
    for (std::size_t g = 0; g < flat_.size(); ++g) {
      auto states = flat_[g].states(groups_[g].params());
      for (std::size_t i = 0; i < states.size(); ++i)
        if (auto& [tensors, master, steps] = states[i]; steps > 0)
          all.push_back({groups_[g].params()[i], steps, std::move(tensors), std::move(master)});
    }
    return all;
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict dict;
    std::size_t number = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto& parameters = groups_[g].params();
      const auto words = Rule::states(groups_[g].options());
      const auto states = g < flat_.size() ? flat_[g].states(parameters) : std::vector<FlatGroup::State>();
      for (std::size_t i = 0; i < parameters.size(); ++i, ++number) {
        if (i >= states.size() || states[i].steps == 0) continue;
        const std::string prefix = "state." + names_.of(parameters[i], number) + ".";
        dict.add(prefix + "step", states[i].steps);
        for (std::size_t s = 0; s < words.size(); ++s) {
          // An option may ask for more since the last step: that begins with the next one.
          const at::Tensor state = s < states[i].tensors.size()
                                       ? states[i].tensors[s]
                                       : Rule::initial(groups_[g].options(), s, stepped(parameters[i], g));
          if (state.defined()) dict.add(prefix + std::string(words[s]), state);
        }
        if (states[i].master.defined()) dict.add(prefix + "master", states[i].master);
      }
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) detail::save_options(groups_[g].options(), prefix_of(g), dict);
    return dict;
  }

  /// Throws   CheckpointError or InvalidArgument, before anything is changed, for a state of a parameter that is not
  ///          here or of another shape, and for options that lack or cannot be.
  void load_state_dict(const tensor::StateDict& dict) { load(dict, /*adopts=*/false); }

  /// The same from tensors that are nobody else's: keeps those that lie as its own would, in place of copies.
  void adopt_state_dict(const tensor::StateDict& dict) { load(dict, /*adopts=*/true); }

  /// Throws   what load_state_dict() would.
  void check_state_dict(const tensor::StateDict& dict) const {
    const c10::AutoGradMode no_grad(false);
    (void)read(dict);
  }

 private:
  struct Saved {
    std::vector<Options> options;                         // by group
    std::vector<std::vector<FlatGroup::State>> states{};  // by group and parameter; tensors are those of the dict
  };

  void load(const tensor::StateDict& dict, bool adopts) {
    const c10::AutoGradMode no_grad(false);
    auto [options, states] = read(dict);
    std::vector<double> rates;
    for (const Options& one : options) rates.push_back(one.lr.value());
    check_rates(groups_, rates);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      detail::set_options(groups_[g].options(), std::move(options[g]));
      if (g == flat_.size()) flat_.emplace_back(layout_of(groups_[g].options()));
      flat_[g].load(groups_[g].params(), states[g], layout_of(groups_[g].options()), adopts);
    }
  }

  [[nodiscard]] Saved read(const tensor::StateDict& dict) const {
    Saved result{{}, std::vector<std::vector<FlatGroup::State>>(groups_.size())};
    std::unordered_set<std::string> known;
    std::size_t number = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const Options& options =
          result.options.emplace_back(detail::load_options(groups_[g].options(), prefix_of(g), dict));
      Rule::check(options);
      tensor::StateDict saved;
      detail::save_options(options, prefix_of(g), saved);
      for (const auto& one : saved.entries()) known.insert(one.name);
      for (const auto& parameter : groups_[g].params())
        result.states[g].push_back(loaded(parameter, names_.of(parameter, number++), options, dict, known));
    }
    for (const auto& [name, tensor] : dict.entries())
      ACCEL_CHECK(known.contains(name), CheckpointError, Rule::name, ": ", name, ", ", tensor::spec(tensor),
                  ", belongs to none of the ", number, " parameters in ", groups_.size(), " groups that are here");
    return result;
  }

  [[nodiscard]] static GroupLayout layout_of(const Options& options) {
    return {.states = Rule::states(options).size(),
            .initial = [options](std::size_t s, const at::Tensor& own) { return Rule::initial(options, s, own); },
            .is_elementwise = Rule::is_elementwise,
            .low_precision = options.low_precision};
  }

  static void check_low_precision(const at::Tensor& parameter, const Options& options) {
    ACCEL_CHECK(parameter.scalar_type() != at::kHalf || options.low_precision != LowPrecision::stochastic_rounding,
                InvalidArgument, Rule::name, ": weights are rounded by chance to bf16 only, found ",
                tensor::spec(parameter), "; choose master_weights");
  }

  /// As its options are now.
  [[nodiscard]] bool is_laid_out(std::size_t g) const {
    if (g >= flat_.size()) return false;
    const Options& options = groups_[g].options();
    const auto& now = flat_[g].layout();
    return now.states == Rule::states(options).size() && now.low_precision == options.low_precision;
  }

  [[nodiscard]] FlatGroup& flat(std::size_t g) {
    for (std::size_t next = flat_.size(); next <= g; ++next) flat_.emplace_back(layout_of(groups_[next].options()));
    if (!is_laid_out(g)) {
      // Options are the user's to change.
      const Options& options = groups_[g].options();
      for (const auto& parameter : groups_[g].params()) check_low_precision(parameter, options);
      flat_[g].load(groups_[g].params(), flat_[g].states(groups_[g].params()), layout_of(options));
    }
    return flat_[g];
  }

  void take(Batch& batch, std::size_t g, const gradient::GradScale& scale) {
    const Options& options = groups_[g].options();
    count(batch, scale.on_device);
    const auto apply = [&](Batch& part) { apply_scaled(part, options, scale); };
    if (is_in_float(batch.parameters.front(), options.low_precision))
      step_in_float(batch, Rule::is_elementwise, options.low_precision, g, scale.scale.defined(), apply);
    else
      apply(batch);
    if (scale.on_device) batch.steps.front().sub_(scale.found_inf);
    flat_[g].wrote(groups_[g].params(), batch, scale.scale.defined());
  }

  static void count(Batch& batch, bool on_device) {
    ++batch.count;
    const at::Tensor& steps = batch.steps.front();
    if (batch.is_counted_on_device)
      steps.add_(1);
    else if (steps.is_cpu())
      *steps.mutable_data_ptr<float>() = static_cast<float>(batch.count);
    else
      steps.fill_(batch.count);
    batch.is_counted_on_device |= on_device;
  }

  static void apply_scaled(Batch& batch, const Options& options, const gradient::GradScale& scale) {
    if constexpr (FoldsScale<Rule>) {
      Rule::apply(batch, options, scale);
    } else {
      const at::Tensor is_skipped = scale.on_device ? scale.found_inf.to(at::kBool) : at::Tensor();
      if (scale.scale.defined()) {
        const at::Tensor factor = scale.scale.reciprocal();
        at::_foreach_mul_(batch.gradients, scale.on_device ? factor.masked_fill(is_skipped, 1) : factor);
      }
      if (scale.on_device)
        apply_unless(is_skipped, batch, options);
      else
        Rule::apply(batch, options);
    }
  }

  /// What a rule that knows nothing of flags has changed is put back where the step is skipped: the host, which would
  /// have to wait to know it, is not asked.
  ///
  /// Memory   copies of block_of() elements and their states at a time, or of one parameter that is stepped as a whole.
  static void apply_unless(const at::Tensor& is_skipped, Batch& batch, const Options& options)
    requires(!FoldsScale<Rule>)
  {
    in_blocks(batch, Rule::is_elementwise, block_of(batch), [&](Batch& part, std::size_t, std::int64_t) {
      std::vector<std::pair<at::Tensor, at::Tensor>> kept;
      const auto keep = [&](const std::vector<at::Tensor>& tensors) {
        for (const auto& tensor : tensors)
          if (tensor.defined()) kept.emplace_back(tensor, tensor.clone());
      };
      keep(part.parameters);
      for (const auto& states : part.states) keep(states);
      Rule::apply(part, options);
      for (const auto& [tensor, before] : kept) tensor.copy_(at::where(is_skipped, before, tensor));
    });
  }

  /// In the dtype in which it is stepped.
  [[nodiscard]] at::Tensor stepped(const at::Tensor& parameter, std::size_t g) const {
    const at::Tensor own = parameter.detach();
    return is_in_float(own, groups_[g].options().low_precision) ? own.to(at::kFloat) : own;
  }

  [[nodiscard]] static std::string prefix_of(std::size_t g) { return message("param_groups.", g, "."); }

  [[nodiscard]] static FlatGroup::State loaded(const at::Tensor& parameter, const std::string& name,
                                               const Options& options, const tensor::StateDict& dict,
                                               std::unordered_set<std::string>& known) {
    const std::string prefix = "state." + name + ".";
    FlatGroup::State state;
    if (!dict.has(prefix + "step")) return state;  // it has taken none, or its entries are left over
    state.steps = dict.integer(prefix + "step");
    known.insert(prefix + "step");
    const auto take = [&](std::string_view word, at::IntArrayRef sizes) {
      const at::Tensor& found = dict.tensor(prefix + std::string(word));
      ACCEL_CHECK(found.sizes() == sizes, CheckpointError, Rule::name, ": ", word, " of ", name, " is ",
                  tensor::spec(found), ", expected the shape ", sizes);
      known.insert(prefix + std::string(word));
      return found;
    };
    std::size_t s = 0;
    const at::Tensor like = detail::without_memory(parameter);
    for (const auto word : Rule::states(options)) {
      const at::Tensor expected = Rule::initial(options, s++, like);
      state.tensors.push_back(expected.defined() ? take(word, expected.sizes()) : at::Tensor());
    }
    if (dict.has(prefix + "master")) state.master = take("master", parameter.sizes());
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
    // A list is the user's to change: then its place is another one, or the number of all.
    if (count == places_.size() && !places_.contains(parameter.unsafeGetTensorImpl())) return nullptr;
    places_.clear();
    for (std::size_t g = 0; g < groups_.size(); ++g)
      for (std::size_t i = 0; i < groups_[g].params().size(); ++i)
        places_[groups_[g].params()[i].unsafeGetTensorImpl()] = {g, i};
    return look();
  }

  Options defaults_;
  std::vector<Group> groups_;
  std::unordered_map<const c10::TensorImpl*, std::pair<std::size_t, std::size_t>> places_;
  tensor::Names names_;
  std::vector<FlatGroup> flat_;  // by group
};

}  // namespace accel::inline v0_1::optim
