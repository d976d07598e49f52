// Overflow: on which rank, and in which parameter, gradients were not finite.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/gradient/finite.hpp>
#include <accel/prepare/prepared_model.hpp>
#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::prepare {

/// Where gradients that were not finite came from.
struct Overflow {
  int rank = 0;           // the first on which one was not finite
  std::string parameter;  // the first of that rank as backward came to them
};

/// What this rank knows, for the others: `arrived <parameter>`, `stands <parameter>`, or nothing. Of what stands,
/// as where somebody has written to gradients, it is the last of a model: backward goes from there.
[[nodiscard]] inline std::string overflow_of(std::span<const std::shared_ptr<PreparedModel>> of,
                                             std::span<const at::Tensor> parameters) {
  std::string standing;
  for (const auto& model : of) {
    const auto name = [&](std::size_t k) { return model->record.trainable_name(k) + " of " + model->record.label; };
    const auto arrived = model->watch == nullptr ? std::nullopt : model->watch->take_overflow();
    const auto& own = model->ledger.parameters();
    if (arrived && tensor::is_among(own[*arrived], parameters)) return "arrived " + name(*arrived);
    for (std::size_t k = own.size(); standing.empty() && k-- > 0;)
      if (own[k].grad().defined() && tensor::is_among(own[k], parameters) && !gradient::is_finite(own[k].grad()))
        standing = "stands " + name(k);
  }
  return standing;
}

/// Of what all ranks know, by rank. What arrived on a rank tells more than what stands there now, which others may
/// have brought.
[[nodiscard]] inline std::optional<Overflow> first_overflow(const std::vector<std::string>& texts) {
  auto first = std::find_if(texts.begin(), texts.end(), [](const auto& text) { return text.starts_with("arrived "); });
  if (first == texts.end())
    first = std::find_if(texts.begin(), texts.end(), [](const auto& text) { return !text.empty(); });
  if (first == texts.end()) return std::nullopt;
  return Overflow{static_cast<int>(first - texts.begin()), first->substr(first->find(' ') + 1)};
}

}  // namespace accel::inline v0_1::prepare
