// Session: what an accelerator shares with the objects it has prepared.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/log.hpp>
#include <accel/data/position.hpp>
#include <accel/gradient/accumulation.hpp>
#include <accel/gradient/hooks.hpp>
#include <accel/launch/topology.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

/// A prepared model and who reduces its gradients.
struct PreparedModel {
  tensor::Record record;
  gradient::Watch* watch = nullptr;  // the reducer; null at one rank and for frozen models
};

/// One per accelerator; every wrapper shares it, so that the order of destruction does not matter.
struct Session {
  Session(launch::Topology own, c10::Device where, Log logger, gradient::Accumulation windows)
      : topology(own), device(where), log(std::move(logger)), accumulation(std::move(windows)) {}
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  launch::Topology topology;
  c10::Device device;
  Log log;
  gradient::Accumulation accumulation;
  data::InFlight in_flight;
  std::vector<std::shared_ptr<PreparedModel>> models;

  /// Whether some prepared model has this parameter.
  [[nodiscard]] bool prepared(const at::Tensor& tensor) const {
    for (const auto& model : models)
      if (model->record.holds(tensor)) return true;
    return false;
  }

  /// Refuses a step with gradients that are not what they should be.
  ///
  /// Cost     two comparisons per parameter.
  /// Throws   InvalidArgument after a plain loss.backward(), after net->to(...), or if the gradients
  ///          of this rank were not reduced.
  void check_before_step(bool has_gradients) {
    for (const auto& model : models) check_unchanged(*model);
    ACCEL_CHECK(!has_gradients || accumulation.backwards() > 0, InvalidArgument,
                "step: there are gradients, but accelerator.backward was never called; ", remedy);
    ACCEL_CHECK(!accumulation.unfinished(), InvalidArgument,
                "step: the last backward ran under no_sync, so the gradients are those of this rank only; ",
                "run the last backward of a step outside of no_sync");
  }

 private:
  void check_unchanged(PreparedModel& model) const {
    const tensor::Record& record = model.record;
    ACCEL_CHECK(model.watch == nullptr || !model.watch->take_stray(), InvalidArgument, "step: a backward of ",
                record.label, " did not go through accelerator.backward, so its gradients were not reduced; ", remedy);
    for (std::size_t i = 0; i < record.parameters.size(); ++i) {
      const auto& [name, tensor] = record.parameters[i];
      ACCEL_CHECK(tensor.device() == device && tensor.scalar_type() == record.dtypes[i], InvalidArgument,
                  "step: ", name, " was ", tensor::dtype_name(record.dtypes[i]), " on ", device.str(),
                  " when it was prepared and is ", tensor::dtype_name(tensor.scalar_type()), " on ",
                  tensor.device().str(), " now; ", to_remedy);
      ACCEL_CHECK(record.trainable[i] || !tensor.requires_grad(), InvalidArgument, "step: ", name,
                  " was frozen when it was prepared, so its gradient is not reduced; set requires_grad before prepare");
    }
    const std::string* lost = model.watch == nullptr ? nullptr : model.watch->lost_hook();
    ACCEL_CHECK(lost == nullptr, InvalidArgument, "step: autograd no longer reports the gradient of ", *lost,
                ", as after net->to(...); ", to_remedy);
  }

  static constexpr std::string_view remedy = "call accelerator.backward(loss) in place of loss.backward()";
  static constexpr std::string_view to_remedy =
      "call net->to(...) before accelerator.prepare, which moves to the device by itself";
};

}  // namespace accel::inline v0_1::prepare
