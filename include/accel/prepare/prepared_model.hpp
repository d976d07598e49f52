// PreparedModel: a model as its accelerator knows it.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>

#include <accel/gradient/ledger.hpp>
#include <accel/gradient/scaled.hpp>
#include <accel/gradient/stepper.hpp>
#include <accel/gradient/watch.hpp>
#include <accel/tensor/record.hpp>

namespace accel::inline v0_1::prepare {

/// A prepared model, what its gradients are, and who reduces them.
struct PreparedModel {
  tensor::Record record;
  std::size_t number = 0;  // among those of its session
  gradient::Ledger ledger;
  gradient::Scaled scaled;                                   // by the loss scale, where there is one
  std::unique_ptr<gradient::Watch> watch;                    // null for frozen models, and at one rank without a scaler
  std::vector<std::weak_ptr<gradient::Stepper>> steppers{};  // optimizers of it that step inside of backward
  at::Tensor norm = at::full({}, std::numeric_limits<double>::quiet_NaN());  // what clipping has found last

  /// The name of one of `parameters` whose gradient comes from a backward that the accelerator did not run.
  [[nodiscard]] std::optional<std::string> stray(std::span<const at::Tensor> parameters) const {
    const auto found = watch == nullptr ? std::nullopt : watch->stray(parameters);
    return found ? std::optional(record.trainable_name(*found)) : std::nullopt;
  }
};

}  // namespace accel::inline v0_1::prepare
