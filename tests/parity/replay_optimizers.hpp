// Replays one recorded run of an optimizer of torch.optim: a case of recorded/optimizers.json.
#pragma once

#include <torch/torch.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/adam.hpp>
#include <accel/optim/learning_rate.hpp>
#include <accel/optim/sgd.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace accel::testing {

/// What a case differs in, a line each.
using Differences = std::vector<std::string>;

namespace replayed {

/// `options` as they are recorded over the defaults of ours, which are PyTorch's.
template <class Options>
Options read_options(const nlohmann::json& recorded) {
  Options options;
  for (const auto& [key, value] : recorded.items()) {
    bool is_known = false;
    for_each_field(options, [&]<class Value>(std::string_view name, Value& own) {
      if (name != key) return;
      is_known = true;
      if constexpr (std::same_as<Value, optim::LearningRate>)
        own = value.template get<double>();
      else if constexpr (std::same_as<Value, bool> || std::same_as<Value, double> ||
                         std::same_as<Value, std::array<double, 2>>)
        own = value.template get<Value>();
      else
        is_known = false;
    });
    ACCEL_CHECK(is_known, InvalidArgument, "there is no option ", key, "; there are ", describe(options));
  }
  return options;
}

/// Theirs is not fused and rounds its intermediate results; ours rounds fewer of them.
template <class Optimizer>
Differences run(const nlohmann::json& recorded) {
  const auto options = read_options<typename Optimizer::Options>(recorded.at("options"));
  const auto floats = [](const nlohmann::json& numbers) { return torch::tensor(numbers.get<std::vector<float>>()); };
  const auto weights = floats(recorded.at("start")).requires_grad_();
  Optimizer optimizer(std::vector<torch::Tensor>{weights}, options);
  Differences differences;
  const auto& after = recorded.at("after");
  const auto& gradients = recorded.at("gradients");
  ACCEL_CHECK(after.size() == gradients.size() && !after.empty(), InvalidArgument, after.size(), " results of ",
              gradients.size(), " gradients");
  for (std::size_t step = 0; step < after.size(); ++step) {
    weights.mutable_grad() = floats(gradients[step]);
    const auto expected = after[step].get<std::vector<float>>();
    ACCEL_CHECK(
        weights.grad().sizes() == weights.sizes() && static_cast<std::int64_t>(expected.size()) == weights.numel(),
        InvalidArgument, "step ", step + 1, " has ", weights.grad().numel(), " gradients and ", expected.size(),
        " results for ", weights.numel(), " weights");
    optimizer.step();
    const auto* const values = static_cast<const float*>(weights.detach().const_data_ptr());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double found = static_cast<double>(values[i]);
      const double wanted = static_cast<double>(expected[i]);
      constexpr double ulps = 4;  // for each step
      const double bound = ulps * static_cast<double>(step + 1) *
                           static_cast<double>(std::numeric_limits<float>::epsilon()) *
                           std::max(std::abs(wanted), options.lr.value());
      if (!(std::abs(found - wanted) <= bound))
        differences.push_back(
            message("step ", step + 1, ", element ", i, ": expected ", shortest(wanted), ", found ", shortest(found)));
    }
  }
  return differences;
}

}  // namespace replayed

/// With step, element, expected and found. The names are adamw, adam and sgd.
///
/// Throws   where it cannot be replayed.
inline Differences replay_optimizer(const nlohmann::json& recorded) {
  const auto name = recorded.at("name").get<std::string>();
  if (name == "adamw") return replayed::run<optim::AdamW>(recorded);
  if (name == "adam") return replayed::run<optim::Adam>(recorded);
  if (name == "sgd") return replayed::run<optim::SGD>(recorded);
  throw InvalidArgument(message("there is no optimizer ", name, " here; there are: adamw, adam, sgd"));
}

}  // namespace accel::testing
