// WaitingPart: gradients that wait for the end of their window, as a part of a checkpoint.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <c10/core/GradMode.h>

#include <accel/checkpoint/part.hpp>
#include <accel/core/error.hpp>
#include <accel/prepare/prepared_model.hpp>
#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare {

/// The gradients that wait for the last micro-step of a window, each rank's own.
[[nodiscard]] inline checkpoint::Part waiting_part(Session& session) {
  const auto prefix = [](const PreparedModel& model) { return message(model.number, "/"); };
  checkpoint::Part part;
  part.sharing = checkpoint::Sharing::own;
  part.turn = detail::Turn::gradients;
  part.state = [&session, prefix] {
    tensor::StateDict state;
    for (const auto& model : session.models) {
      ACCEL_CHECK(!model->ledger.torn(), CheckpointError, Session::torn(*model));
      if (!model->ledger.waiting()) continue;
      ACCEL_CHECK(!model->ledger.has_means_below(), CheckpointError, "the gradients of ", model->record.label,
                  " that wait for the end of their window stand on means of an earlier step; clear those before the ",
                  "window, or save at its end");
      const auto parameters = model->record.trainable_parameters();
      for (const auto& [name, parameter] : parameters)
        if (parameter.grad().defined()) state.add(prefix(*model) + name, parameter.grad());
      if (session.scaler != nullptr)
        state.add(prefix(*model) + "scaled/", model->scaled.state_dict(session.scaler->updates()));
    }
    return state;
  };
  // Those of this rank; at another number of ranks all, on rank 0: they are shares of means, and their sum over the
  // ranks is what it was.
  const auto whose = [&session](const checkpoint::SavedPart& saved) {
    if (saved.ranks_then() == session.topology.world_size) return std::vector<int>{session.topology.rank};
    std::vector<int> ranks;
    for (int rank = 0; session.topology.rank == 0 && rank < saved.ranks_then(); ++rank) ranks.push_back(rank);
    return ranks;
  };
  // What they are multiplied by: this rank's, or that of those who had some.
  const auto scaled_of = [&session, prefix](const checkpoint::SavedPart& saved, const PreparedModel& model) {
    const std::string below = prefix(model) + "scaled/";
    if (saved.ranks_then() == session.topology.world_size) return saved.own().below(below);
    tensor::StateDict found;
    for (int rank = 0; rank < saved.ranks_then(); ++rank) {
      auto own = saved.of(rank).below(below);
      if (own.empty()) continue;
      ACCEL_CHECK(found.empty() || at::equal(found.tensor("scale"), own.tensor("scale")), CheckpointError,
                  "the gradients of ", model.record.label, " that wait are scaled otherwise on rank ", rank,
                  ", and cannot be added up; load it at ", saved.ranks_then(), " ranks");
      found = std::move(own);
    }
    return found;
  };
  part.mismatch = [&session, prefix, whose, scaled_of](const checkpoint::SavedPart& saved) -> std::string {
    return error_of([&] {
      for (const auto& model : session.models) {
        for (const int rank : whose(saved))
          for (const auto& [name, parameter] : model->record.trainable_parameters()) {
            const auto& state = saved.of(rank);
            const std::string full = prefix(*model) + name;
            ACCEL_CHECK(!state.has(full) || state.tensor(full).sizes() == parameter.sizes(), CheckpointError,
                        "the gradient of ", name, " that waits is ", tensor::spec(state.tensor(full)), " there and ",
                        tensor::spec(parameter), " here");
          }
        (void)scaled_of(saved, *model);
      }
    });
  };
  part.load = [&session, prefix, whose, scaled_of](const checkpoint::SavedPart& saved) -> std::string {
    const c10::AutoGradMode no_grad(false);
    bool moved = false;
    for (const auto& model : session.models) {
      const auto parameters = model->record.trainable_parameters();
      std::vector<at::Tensor> gradients(parameters.size());
      for (const int rank : whose(saved)) {
        const tensor::StateDict& state = saved.of(rank);
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          const std::string name = prefix(*model) + parameters[i].name;
          if (!state.has(name)) continue;
          const at::Tensor gradient = state.tensor(name).to(parameters[i].tensor.device());
          gradients[i] = gradients[i].defined() ? gradients[i].add(gradient) : gradient.clone();
        }
      }
      if (std::any_of(gradients.begin(), gradients.end(), [](const auto& one) { return one.defined(); })) {
        model->ledger.load_waiting(gradients);
        moved = saved.ranks_then() != session.topology.world_size;
      } else {
        model->ledger.let_go();
      }
      if (session.scaler != nullptr) model->scaled.load_state_dict(scaled_of(saved, *model), session.scaler->updates());
    }
    return moved ? "those that waited for the end of their window are now rank 0's, in one sum" : "";
  };
  return part;
}

}  // namespace accel::inline v0_1::prepare
