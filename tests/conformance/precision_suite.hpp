// The laws of a Precision, on real ranks. A precision's own test file says
//
//   ACCEL_PRECISION_SUITE(accel::precision::Bf16, {1, 2, 3})
//
// and adds what only that precision has.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include "support/models.hpp"
#include "support/ranks.hpp"

namespace accel::testing::precision_suite {

/// Gives back more than a tensor.
struct Nested : torch::nn::Module {
  struct Output {
    torch::Tensor logits;
    std::vector<torch::Tensor> hidden;
    std::map<std::string, torch::Tensor> more;
    std::int64_t layers;
  };

  torch::Tensor hidden(const torch::Tensor& x) { return torch::tanh(first(x)); }
  Output forward(const torch::Tensor& x) {
    const auto inner = hidden(x);
    return {second(inner), {inner, inner.argmax(1)}, {{"again", second(inner)}}, 2};
  }

  torch::nn::Linear first{register_module("first", torch::nn::Linear(5, 32))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(32, 3))};
  torch::Tensor scale{register_buffer("scale", torch::ones({2}))};
  torch::Tensor count{register_buffer("count", torch::ones({2}, torch::kLong))};
};

/// What forward gives where nothing is said to the contrary.
template <class P>
torch::ScalarType output_dtype() {
  const P precision({}, c10::Device(c10::DeviceType::CPU));
  const auto dtype = precision.weights_dtype().value_or(torch::kFloat);
  return dtype == torch::kHalf || dtype == torch::kBFloat16 ? torch::kFloat : dtype;
}

template <class P>
void outputs() {
  Accelerator<backend::Gloo, P> accelerator;
  auto net = std::make_shared<Nested>();
  auto model = accelerator.prepare(net);
  const auto dtype = output_dtype<P>();
  const auto output = model(torch::randn({4, 5}));
  REQUIRE(output.logits.scalar_type() == dtype);
  REQUIRE(output.hidden[0].scalar_type() == dtype);
  REQUIRE(output.hidden[1].scalar_type() == torch::kLong);
  REQUIRE(output.more.at("again").scalar_type() == dtype);
  REQUIRE(output.layers == 2);
  REQUIRE(output.logits.requires_grad());
  const auto weights = accelerator.precision().weights_dtype().value_or(torch::kFloat);
  for (const auto& parameter : net->parameters()) REQUIRE(parameter.scalar_type() == weights);
  REQUIRE(net->scale.scalar_type() == weights);
  REQUIRE(net->count.scalar_type() == torch::kLong);
}

template <class P>
void nothing_left_behind() {
  Accelerator<backend::Gloo, P> accelerator;
  auto model = accelerator.prepare(std::make_shared<Nested>());
  const auto product = [] { return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type(); };
  const auto here = product();
  (void)model(torch::randn({4, 5}));
  REQUIRE(product() == here);
  const auto own = [&] {
    const auto region = accelerator.precision().autocast(/*enabled=*/true, /*cache=*/true);
    return product();
  }();
  {
    const auto region = accelerator.autocast();
    const auto inside = product();
    REQUIRE(inside == own);
    {
      const auto off = accelerator.autocast(false);
      REQUIRE(product() == torch::kFloat);
    }
    REQUIRE(product() == inside);
  }
  REQUIRE(product() == here);
}

/// The losses of a short training, and how often a step was skipped.
template <class P, class Make>
std::vector<double> losses(Rank rank, Make make, bool clips, int accumulation_steps) {
  torch::manual_seed(5);
  Accelerator<backend::Gloo, P> accelerator({.accumulation_steps = accumulation_steps});
  auto net = std::make_shared<Mlp>(5, 32, 3);
  auto [model, optimizer, loader] = accelerator.prepare(
      net, make(net->parameters()), data::DataLoader{Noise(20 * rank.world_size + 1), {.batch_size = 5}});
  std::vector<double> all;
  for (int epoch = 0; epoch < 40; ++epoch) {
    auto mean = accelerator.running_mean();
    for (auto& batch : loader) {
      auto micro_step = accelerator.accumulate(batch);
      auto loss = cross_entropy(model(batch.data), batch.target);
      accelerator.backward(loss);
      if (clips) accelerator.clip_grad_norm_(model, 1.0);
      optimizer.step();
      optimizer.zero_grad();
      mean.update(loss);
    }
    all.push_back(mean.compute());
  }
  for (const auto& parameter : net->parameters()) {
    const auto every = accelerator.gather(parameter.detach().reshape({1, -1}).contiguous());
    for (std::int64_t r = 0; r < every.size(0); ++r) REQUIRE(bits({every[r]}) == bits({every[0]}));
  }
  return all;
}

template <class P>
void trains(Rank rank) {
  const auto ours = [](auto parameters) { return optim::AdamW(parameters, {.lr = 2e-2}); };
  const auto reference = losses<precision::Fp32>(rank, ours, true, 2);
  const auto check = [&](const std::vector<double>& found) {
    REQUIRE(found.back() < 0.7 * found.front());
    // While they go the same way: of 8 bits of mantissa the last is 0.4 %, and a step may be skipped until a loss
    // scale is found. Later all of them know the noise by heart, each in its own way.
    for (std::size_t epoch = 0; epoch < 8; ++epoch)
      REQUIRE(std::abs(found[epoch] - reference[epoch]) < 0.05 * reference.front());
  };
  check(losses<P>(rank, ours, true, 2));
  REQUIRE(losses<P>(rank, ours, false, 1).back() < 0.7 * reference.front());
  if (P({}, c10::Device(c10::DeviceType::CPU)).weights_dtype().value_or(torch::kFloat) == torch::kFloat)
    check(losses<P>(rank, [](const auto& parameters) { return torch::optim::AdamW(parameters, 2e-2); }, true, 2));
}

/// Gradients, unscaled, are those of f32 but for the rounding of 8 bits.
template <class P>
void gradients_of() {
  const auto found = []<class Q>(std::type_identity<Q>) {
    torch::manual_seed(9);
    Accelerator<backend::Gloo, Q> accelerator;
    auto net = std::make_shared<Mlp>(5, 32, 3);
    auto model = accelerator.prepare(net);
    accelerator.backward(model(torch::linspace(-1, 1, 20).view({4, 5})).square().mean());
    accelerator.unscale_gradients();
    std::vector<torch::Tensor> all;
    for (const auto& gradient : gradients(net->parameters())) all.push_back(gradient.to(torch::kFloat));
    return all;
  };
  const auto ours = found(std::type_identity<P>{});
  const auto exact = found(std::type_identity<precision::Fp32>{});
  for (std::size_t i = 0; i < ours.size(); ++i)
    REQUIRE((ours[i] - exact[i]).norm().template item<double>() <= 0.03 * exact[i].norm().template item<double>());
}

template <class P>
void keeps_its_state() {
  const c10::Device cpu(c10::DeviceType::CPU);
  P one({}, cpu);
  P other({}, cpu);
  if (auto* scaler = one.scaler()) {
    scaler->update(torch::tensor(1.0F));
    scaler->update(torch::tensor(0.0F));
  }
  REQUIRE((one.scaler() != nullptr) == P::scales_loss);
  other.load_state_dict(one.state_dict());
  const auto state = [](P& precision) {
    std::vector<std::string> text;
    const auto dict = precision.state_dict();
    for (const auto& [name, tensor] : dict.entries()) text.push_back(name + bits({tensor})[0]);
    return text;
  };
  REQUIRE(state(one) == state(other));
  P moved(std::move(one));
  REQUIRE(state(moved) == state(other));
}

}  // namespace accel::testing::precision_suite

#define ACCEL_PRECISION_SUITE(Type, ...)                                                                              \
  static_assert(accel::Precision<Type>);                                                                              \
  TEST_CASE(#Type ": what forward gives is f32, or what weights are, in nested structures too", "[precision]") {      \
    accel::testing::on_ranks(__VA_ARGS__,                                                                             \
                             [](accel::testing::Rank) { accel::testing::precision_suite::outputs<Type>(); });         \
  }                                                                                                                   \
  TEST_CASE(#Type ": a region nests, and leaves the thread as it was", "[precision]") {                               \
    accel::testing::on_ranks(                                                                                         \
        {1}, [](accel::testing::Rank) { accel::testing::precision_suite::nothing_left_behind<Type>(); });             \
  }                                                                                                                   \
  TEST_CASE(#Type ": trains as f32 does, and all ranks alike", "[precision]") {                                       \
    accel::testing::on_ranks(__VA_ARGS__,                                                                             \
                             [](accel::testing::Rank rank) { accel::testing::precision_suite::trains<Type>(rank); }); \
  }                                                                                                                   \
  TEST_CASE(#Type ": unscaled gradients are those of f32, rounded", "[precision]") {                                  \
    accel::testing::on_ranks(__VA_ARGS__,                                                                             \
                             [](accel::testing::Rank) { accel::testing::precision_suite::gradients_of<Type>(); });    \
  }                                                                                                                   \
  TEST_CASE(#Type ": its state goes from one to another", "[precision]") {                                            \
    accel::testing::precision_suite::keeps_its_state<Type>();                                                         \
  }
