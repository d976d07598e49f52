// SavedParts: prepared objects as parts of a checkpoint.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <accel/checkpoint/part.hpp>
#include <accel/core/error.hpp>
#include <accel/launch/peer.hpp>
#include <accel/optim/torch_state.hpp>
#include <accel/precision/autocast.hpp>
#include <accel/prepare/prepared_model.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/copy_all.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare {

namespace detail {

[[nodiscard]] inline bool fits(const at::Tensor& saved, const at::Tensor& own) {
  return saved.sizes() == own.sizes() && saved.scalar_type() == own.scalar_type();
}

/// What does not fit, in words: `missing: a, b; unexpected: c; w is f32[3,4] there and f32[4,4] here`.
[[nodiscard]] inline std::string mismatch(std::span<const tensor::NamedTensor> own, const tensor::StateDict& saved) {
  std::vector<std::string> missing, unexpected;
  std::string text, shapes;
  for (const auto& [name, tensor] : own) {
    if (!saved.has(name))
      missing.push_back(name);
    else if (!fits(saved.tensor(name), tensor))
      shapes +=
          message("; ", name, " is ", tensor::spec(saved.tensor(name)), " there and ", tensor::spec(tensor), " here");
  }
  for (const auto& [name, tensor] : saved.entries())
    if (std::none_of(own.begin(), own.end(), [&](const auto& one) { return one.name == name; }))
      unexpected.push_back(name);
  if (!missing.empty()) text += message("; missing: ", launch::listed(missing));
  if (!unexpected.empty()) text += message("; unexpected: ", launch::listed(unexpected));
  text += shapes;
  return text.empty() ? text : text.substr(2);
}

[[nodiscard]] inline tensor::StateDict state_of(std::span<const tensor::NamedTensor> tensors) {
  tensor::StateDict state;
  for (const auto& [name, tensor] : tensors) state.add(name, tensor.detach());
  return state;
}

/// `turn` orders what is loaded: see checkpoint::Part.
enum Turn : int { first, weights, states, gradients, users, random };

/// Of tensors that a model has.
[[nodiscard]] inline checkpoint::Part tensors_part(const std::shared_ptr<PreparedModel>& model,
                                                   std::vector<tensor::NamedTensor> tensor::Record::* which) {
  checkpoint::Part part;
  part.turn = Turn::weights;
  part.state = [model, which] { return state_of(model->record.*which); };
  part.mismatch = [model, which](const checkpoint::SavedPart& saved) {
    return mismatch(model->record.*which, saved.own());
  };
  part.takes_what_fits = true;
  part.load = [model, which](const checkpoint::SavedPart& saved) -> std::string {
    const c10::AutoGradMode no_grad(false);
    std::vector<tensor::Copy> copies;
    for (const auto& [name, own] : model->record.*which)
      if (saved.own().has(name) && fits(saved.own().tensor(name), own))
        copies.push_back({own.detach(), saved.own().tensor(name)});
    tensor::copy_all(copies);
    precision::forget_casts();
    return {};
  };
  return part;
}

}  // namespace detail

/// The parameters of a model, tied ones once.
[[nodiscard]] inline checkpoint::Part weights_part(const std::shared_ptr<PreparedModel>& model) {
  auto part = detail::tensors_part(model, &tensor::Record::parameters);
  part.sharing = checkpoint::Sharing::replicated;
  return part;
}

/// Its buffers. Those of a rank that was not there are rank 0's.
[[nodiscard]] inline checkpoint::Part buffers_part(const std::shared_ptr<PreparedModel>& model, Session& session) {
  auto part = detail::tensors_part(model, &tensor::Record::buffers);
  part.state = [model, &session, state = std::move(part.state)] {
    session.put_buffers(*model);  // as the next forward would
    return state();
  };
  part.load = [model, &session, load = std::move(part.load)](const checkpoint::SavedPart& saved) {
    session.put_buffers(*model);  // what is on its way must not come later
    (void)load(saved);
    const int ranks = session.topology.world_size, then = saved.ranks_then();
    if (!saved.is_own()) return message("rank ", session.topology.rank, " has those of rank 0");
    if (saved.is_shared() || then <= ranks) return std::string();
    return message("each rank had its own, and those of ranks ", ranks, " to ", then - 1, " are left out");
  };
  return part;
}

namespace detail {

/// A type that says of itself that load_state_dict() keeps nothing of what it is given.
template <class T>
concept CopiesState = T::copies_state;

/// A type that has load_state_dict() twice: once for tensors that are nobody else's.
template <class T>
concept AdoptsState = requires(T& object, const tensor::StateDict& state) { object.adopt_state_dict(state); };

/// Of what has a state itself. One that has check_state_dict() says so before anything changes if it does not fit.
/// `copies`: it keeps nothing of what it is loaded from, which need not be memory of its own then.
template <tensor::Stateful T>
[[nodiscard]] checkpoint::Part stateful_part(const std::weak_ptr<T>& object, bool copies = CopiesState<T>) {
  checkpoint::Part part;
  part.keeps = !copies;
  part.state = [object] { return std::as_const(*object.lock()).state_dict(); };
  if constexpr (requires(const T& own, const tensor::StateDict& state) { own.check_state_dict(state); })
    part.mismatch = [object](const checkpoint::SavedPart& saved) {
      return error_of([&] { object.lock()->check_state_dict(saved.own()); });
    };
  part.load = [object, keeps = part.keeps](const checkpoint::SavedPart& saved) -> std::string {
    if constexpr (AdoptsState<T>)
      if (keeps) {
        object.lock()->adopt_state_dict(saved.own());
        return {};
      }
    object.lock()->load_state_dict(saved.own());
    return {};
  };
  return part;
}

template <class O>
[[nodiscard]] std::vector<at::Tensor> parameters_of(O& optimizer) {
  std::vector<at::Tensor> all;
  for (auto& group : optimizer.param_groups()) all.insert(all.end(), group.params().begin(), group.params().end());
  return all;
}

/// A checkpoint has no place for gradients that are reduced and wait for step(). `stepped`: how many backwards there
/// had been at the last one.
template <class O>
void refuse_unused_gradients(O& optimizer, Session& session, std::int64_t stepped) {
  if (session.accumulation.backwards() <= stepped) return;
  const auto parameters = parameters_of(optimizer);
  const bool stand = std::any_of(parameters.begin(), parameters.end(), [&](const at::Tensor& parameter) {
    const auto model = session.model_of(parameter);
    return parameter.grad().defined() && model != nullptr && !model->ledger.waiting();
  });
  if (!stand) return;
  constexpr std::string_view words = "gradients wait for step(), and are not saved; save behind step() and zero_grad()";
  // With several optimizers they may be those that another one's backward has left behind.
  ACCEL_CHECK(session.optimizers > 1, CheckpointError, words);
  session.log.warning("save_state: ", words, ", if an optimizer is to step with them");
}

}  // namespace detail

/// An optimizer, as far as it can tell its state: those of accel::optim and of torch::optim can. `stepped`: see
/// refuse_unused_gradients().
template <class O>
[[nodiscard]] checkpoint::Part optimizer_part(const std::shared_ptr<O>& optimizer, Session& session,
                                              std::shared_ptr<const std::int64_t> stepped) {
  checkpoint::Part part;
  const std::weak_ptr<O> weak = optimizer;
  if constexpr (tensor::Stateful<O>) {
    const bool adopts = detail::AdoptsState<O> && session.device.is_cpu();
    part = detail::stateful_part(weak, detail::CopiesState<O> && !adopts);
  } else if constexpr (optim::TorchOptimizer<O>) {
    const auto names = [&session](O& own) {
      const auto models = session.models_of(detail::parameters_of(own));
      tensor::Names result;
      for (std::size_t m = 0; m < models.size(); ++m) {
        auto named = models[m]->record.parameters;
        for (auto& one : named)
          if (models.size() > 1) one.name.insert(0, message(m, "/"));
        result.add(named);
      }
      return result;
    };
    part.state = [weak, names] {
      const auto own = weak.lock();
      return optim::torch_state_dict(*own, names(*own));
    };
    part.mismatch = [weak, names](const checkpoint::SavedPart& saved) {
      const auto own = weak.lock();
      return error_of([&] { optim::check_torch_state_dict(*own, names(*own), saved.own()); });
    };
    part.load = [weak, names](const checkpoint::SavedPart& saved) -> std::string {
      const auto own = weak.lock();
      optim::load_torch_state_dict(*own, names(*own), saved.own());
      return {};
    };
  } else {
    part.state = []() -> tensor::StateDict {
      throw CheckpointError(
          "an optimizer of a type of its own cannot be saved; give it state_dict() and "
          "load_state_dict(), as tensor::Stateful has them");
    };
    part.load = [](const checkpoint::SavedPart&) -> std::string {
      throw CheckpointError("an optimizer of a type of its own cannot be loaded; give it load_state_dict()");
    };
  }
  part.sharing = checkpoint::Sharing::replicated;
  part.turn = detail::Turn::states;
  part.state = [weak, &session, stepped = std::move(stepped), state = std::move(part.state)] {
    detail::refuse_unused_gradients(*weak.lock(), session, *stepped);
    return state();
  };
  return part;
}

/// What a scheduler without a state of its own has been told, to be told again.
struct Told {
  std::int64_t steps = 0;
  std::vector<double> values;  // by those that judge values
};

/// A scheduler.
template <class S>
[[nodiscard]] checkpoint::Part scheduler_part(const std::shared_ptr<S>& scheduler, const std::shared_ptr<Told>& told) {
  checkpoint::Part part;
  const std::weak_ptr<S> weak = scheduler;
  if constexpr (tensor::Stateful<S>) {
    part = detail::stateful_part(weak);
    part.mismatch = [weak](const checkpoint::SavedPart& saved) { return checkpoint::tried(*weak.lock(), saved.own()); };
  } else {
    part.state = [told] {
      tensor::StateDict state;
      state.add("steps", told->steps);
      const at::Tensor values = at::empty({static_cast<std::int64_t>(told->values.size())}, at::kDouble);
      std::copy(told->values.begin(), told->values.end(), values.mutable_data_ptr<double>());
      state.add("values", values);
      return state;
    };
    part.mismatch = [told](const checkpoint::SavedPart& saved) {
      return error_of([&] {
        const std::int64_t steps = saved.own().integer("steps");
        const at::Tensor& values = saved.own().tensor("values");
        const bool goes_on = told->steps <= steps && static_cast<std::int64_t>(told->values.size()) <= values.numel() &&
                             std::equal(told->values.begin(), told->values.end(), values.const_data_ptr<double>());
        ACCEL_CHECK(goes_on, CheckpointError, "it has no state, so its steps are taken again, and it has taken ",
                    told->steps, " others already; make it anew before load_state");
      });
    };
    part.load = [weak, told](const checkpoint::SavedPart& saved) -> std::string {
      const auto own = weak.lock();
      const std::int64_t steps = saved.own().integer("steps");
      const auto* const begin = saved.own().tensor("values").const_data_ptr<double>();
      if constexpr (requires { own->step(); }) {
        for (; told->steps < steps; ++told->steps) own->step();
      } else {
        for (; told->steps < steps; ++told->steps) {
          const double value = begin[told->values.size()];
          if constexpr (requires { own->step({value}); })
            own->step(value);
          else
            own->step(static_cast<float>(value));
          told->values.push_back(value);
        }
      }
      return {};
    };
  }
  part.turn = detail::Turn::first;  // what it does to learning rates the optimizers put right
  return part;
}

/// An average of weights.
template <class T>
[[nodiscard]] checkpoint::Part average_part(const std::shared_ptr<T>& average) {
  const std::weak_ptr<T> weak = average;
  auto part = detail::stateful_part(weak);
  part.sharing = checkpoint::Sharing::replicated;
  part.turn = detail::Turn::states;
  if constexpr (requires { average->is_swapped_in(); }) {
    part.load_obstacle = [weak]() -> std::string {
      return weak.lock()->is_swapped_in() ? "the average is in the weights' place; end what swap_in() gave first" : "";
    };
    part.state = [why = part.load_obstacle, state = std::move(part.state)] {
      const std::string obstacle = why();  // weights of which training does not go on
      ACCEL_CHECK(obstacle.empty(), CheckpointError, obstacle);
      return state();
    };
  }
  return part;
}

}  // namespace accel::inline v0_1::prepare
