// The fused optimizers: what they compute, whatever lies where, and that few calls do it.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <functional>
#include <random>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

/// One fused call per parameter, as PyTorch's Python makes it: what ours must equal, bit for bit.
struct OneByOne {
  struct State {
    torch::Tensor first, second, third, steps;
  };
  using Call = std::function<void(const torch::Tensor& parameter, const torch::Tensor& gradient, const State& state)>;

  std::vector<torch::Tensor> parameters;
  Call call;
  std::vector<State> states = std::vector<State>(parameters.size());

  void step() {
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const torch::Tensor parameter = parameters[i].detach();
      const torch::Tensor gradient = parameters[i].grad();
      if (!gradient.defined()) continue;
      State& state = states[i];
      if (!state.first.defined())
        state = {torch::zeros_like(parameter), torch::zeros_like(parameter), torch::zeros_like(parameter),
                 torch::zeros({})};
      state.steps += 1;
      call(parameter, gradient, state);
    }
  }
};

OneByOne::Call fused(const optim::AdamWOptions& options) {
  return [=](const torch::Tensor& parameter, const torch::Tensor& gradient, const OneByOne::State& state) {
    const std::vector<torch::Tensor> largest(options.amsgrad ? 1 : 0, state.third);
    at::_fused_adamw_({parameter}, {gradient}, {state.first}, {state.second}, largest, {state.steps}, options.lr,
                      options.betas[0], options.betas[1], options.weight_decay, options.eps, options.amsgrad,
                      options.maximize);
  };
}
OneByOne::Call fused(const optim::SGDOptions& options) {
  return [=](const torch::Tensor& parameter, const torch::Tensor& gradient, const OneByOne::State& state) {
    const std::vector<torch::Tensor> momenta(options.momentum > 0 ? 1 : 0, state.first);
    // In f32: the kernel for bf16 is wrong, see SGD::apply_in_float().
    const auto wide = parameter.to(at::kFloat);
    std::vector<torch::Tensor> wide_momenta;
    for (const auto& momentum : momenta) wide_momenta.push_back(momentum.to(at::kFloat));
    at::_fused_sgd_({wide}, {gradient.to(at::kFloat)}, wide_momenta, options.weight_decay, options.momentum, options.lr,
                    options.dampening, options.nesterov, options.maximize, state.steps.item<float>() == 1);
    parameter.copy_(wide);
    if (options.momentum > 0) momenta[0].copy_(wide_momenta[0]);
  };
}
OneByOne::Call fused(const optim::AdagradOptions& options) {
  return [=](const torch::Tensor& parameter, const torch::Tensor& gradient, const OneByOne::State& state) {
    if (state.steps.item<float>() == 1) state.first.fill_(options.initial_accumulator_value);
    at::_fused_adagrad_({parameter}, {gradient}, {state.first}, {state.steps}, options.lr, options.lr_decay,
                        options.weight_decay, options.eps, options.maximize);
  };
}

std::vector<torch::Tensor> odd_parameters(at::ScalarType dtype = at::kFloat) {
  std::vector<torch::Tensor> all;
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{}, {1}, {3, 5}, {0}, {17}, {31, 33}, {2, 3, 5, 7}})
    all.push_back(torch::randn(shape));
  all.push_back(torch::randn({4, 3, 2, 5}).contiguous(torch::MemoryFormat::ChannelsLast));
  for (auto& parameter : all) parameter = parameter.to(dtype).requires_grad_();
  return all;
}

/// Gradients as a reducer leaves them: views of one storage, side by side.
void put_flat_gradients(const std::vector<torch::Tensor>& parameters, const torch::Tensor& memory) {
  std::int64_t offset = 0;
  for (const auto& parameter : parameters) {
    parameter.mutable_grad() = tensor::view_like(memory, offset, parameter).variable_data();
    offset = (offset + parameter.numel() + 15) / 16 * 16;
  }
}

template <class Optimizer>
void equals_one_by_one(typename Optimizer::Options options) {
  torch::manual_seed(3);
  std::mt19937 random(3);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    if (dtype == at::kBFloat16) options.low_precision = optim::LowPrecision::as_it_is;
    for (const bool flat : {true, false}) {
      const auto ours = odd_parameters(dtype);
      std::vector<torch::Tensor> theirs;
      for (const auto& one : ours) theirs.push_back(one.detach().clone());
      Optimizer optimizer(ours, options);
      OneByOne reference{theirs, fused(options)};
      torch::Tensor memory = torch::zeros({4096}, dtype);
      for (int step = 0; step < 30; ++step) {
        if (step == 10) memory = torch::zeros({4096}, dtype);  // other memory: everything moves
        if (flat) put_flat_gradients(ours, memory);
        for (std::size_t i = 0; i < ours.size(); ++i) {
          const auto gradient = torch::randn_like(ours[i].detach());
          const bool unused = step > 4 && random() % 4 == 0;
          if (unused)
            ours[i].mutable_grad().reset();
          else if (flat)
            ours[i].mutable_grad().copy_(gradient);
          else
            ours[i].mutable_grad() = gradient;
          theirs[i].mutable_grad() = unused ? torch::Tensor() : gradient.clone();
        }
        if (step == 15) ours[3].set_data(ours[3].detach().clone());  // its owner moves one
        optimizer.step();
        reference.step();
        REQUIRE((bits(ours) == bits(theirs)));
      }
      for (const auto& state : optimizer.state()) REQUIRE(state.step > 0);
    }
  }
}

}  // namespace

TEST_CASE("the fused optimizers equal one fused call per parameter, bit for bit, in f32 and bf16", "[optim]") {
  equals_one_by_one<optim::AdamW>({.lr = 1e-2});
  equals_one_by_one<optim::AdamW>(
      {.lr = 1e-2, .betas = {0.8, 0.95}, .weight_decay = 0.3, .amsgrad = true, .maximize = true});
  equals_one_by_one<optim::SGD>({.lr = 1e-2, .weight_decay = 0.1});
  equals_one_by_one<optim::SGD>({.lr = 1e-2, .momentum = 0.9, .nesterov = true});
  equals_one_by_one<optim::SGD>({.lr = 1e-2, .momentum = 0.9, .dampening = 0.2, .maximize = true});
  equals_one_by_one<optim::Adagrad>({.lr = 1e-2});
  equals_one_by_one<optim::Adagrad>(
      {.lr = 1e-2, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.5, .maximize = true});
}

TEST_CASE("the fused optimizers follow those of LibTorch", "[optim]") {
  const auto trained = [](auto make) {
    torch::manual_seed(5);
    Mlp net;
    auto optimizer = make(net.parameters());
    for (int step = 0; step < 50; ++step) {
      optimizer.zero_grad();
      net.forward(torch::randn({4, 5})).square().mean().backward();
      optimizer.step();
    }
    return copies(net.parameters());
  };
  using Parameters = std::vector<torch::Tensor>;
  REQUIRE(distance(trained([](Parameters p) { return optim::AdamW(std::move(p), {.lr = 1e-2}); }),
                   trained([](const Parameters& p) { return torch::optim::AdamW(p, 1e-2); })) < 1e-5);
  REQUIRE(distance(trained([](Parameters p) { return optim::SGD(std::move(p), {.lr = 1e-2, .momentum = 0.9}); }),
                   trained([](const Parameters& p) {
                     return torch::optim::SGD(p, torch::optim::SGDOptions(1e-2).momentum(0.9));
                   })) < 1e-6);
}

TEST_CASE("parameters whose gradients lie together are one piece, and keep their identity", "[optim]") {
  optim::FlatGroup group(
      {.states = 1, .initial = [](std::size_t, const torch::Tensor& own) { return torch::zeros_like(own); }});
  std::vector<torch::Tensor> parameters;
  for (const std::int64_t rows : {1, 2, 3, 4}) parameters.push_back(torch::randn({rows, 16}, torch::requires_grad()));
  parameters.push_back(torch::randn({5, 3}, torch::requires_grad()));  // a ragged end: its own last elements
  parameters.push_back(torch::randn({16}, torch::requires_grad()));
  put_flat_gradients(parameters, torch::zeros({4096}));
  const auto before = bits(parameters);
  auto& batches = group.batches(parameters);
  REQUIRE(batches.size() == 1);
  REQUIRE(batches[0].parameters.size() == 2);
  REQUIRE(batches[0].parameters[0].numel() == 10 * 16 + 15);
  REQUIRE((bits(parameters) == before));
  // One without a gradient parts them; nothing is copied for that.
  const void* const memory = parameters[2].const_data_ptr();
  parameters[1].mutable_grad().reset();
  REQUIRE(group.batches(parameters)[0].parameters.size() == 3);
  REQUIRE(parameters[2].const_data_ptr() == memory);
}

TEST_CASE("a parameter whose memory somebody shares stays where it is", "[optim]") {
  const auto parameters = odd_parameters();
  const auto alias = parameters[5].detach();
  put_flat_gradients(parameters, torch::ones({4096}));
  optim::SGD optimizer(parameters, {.lr = 1.0});
  const auto before = alias.clone();
  optimizer.step();
  REQUIRE(bits({alias}) == bits({parameters[5]}));
  REQUIRE(torch::equal(alias, before - 1));
}

TEST_CASE("a state that options ask for later begins then", "[optim]") {
  const auto ours = odd_parameters();
  optim::SGD optimizer(ours, {.lr = 0.5});
  put_flat_gradients(ours, torch::ones({4096}));
  optimizer.step();
  REQUIRE(optimizer.state()[0].tensors.empty());
  optimizer.param_groups()[0].options().momentum = 0.9;
  optimizer.step();
  optimizer.step();
  const auto state = optimizer.state()[2];
  REQUIRE(state.step == 3);
  REQUIRE(torch::allclose(state.tensors.at(0), torch::full({3, 5}, 1.9)));
  optimizer.param_groups()[0].options().momentum = 0;
  optimizer.step();
  REQUIRE(optimizer.state()[2].tensors.empty());
}

TEST_CASE("an optimizer does not keep gradients alive", "[optim]") {
  auto parameters = odd_parameters();
  optim::AdamW optimizer(parameters);
  for (auto& parameter : parameters) parameter.mutable_grad() = torch::ones_like(parameter);
  const c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> weak(parameters[4].grad().getIntrusivePtr());
  optimizer.step();
  optimizer.zero_grad();
  REQUIRE(weak.expired());
}

TEST_CASE("what cannot be stepped is refused", "[optim]") {
  const std::vector<torch::Tensor> some{torch::ones({2})};
  REQUIRE_THROWS_WITH(optim::AdamW(some, {.lr = -1}), ContainsSubstring("lr = -1"));
  REQUIRE_THROWS_WITH(optim::AdamW(some, {.betas = {0.9, 1.0}}), ContainsSubstring("beta = 1"));
  REQUIRE_THROWS_WITH(optim::SGD(some, {.nesterov = true}), ContainsSubstring("nesterov"));
  REQUIRE_THROWS_WITH(optim::SGD({torch::ones({2}, torch::kLong)}), ContainsSubstring("i64[2]"));
  REQUIRE_THROWS_WITH(optim::Muon({torch::ones({2, 3}), torch::ones({2})}),
                      ContainsSubstring("f32[2]") && ContainsSubstring("AdamW"));
  REQUIRE_THROWS_WITH(
      optim::AdamW({torch::ones({2}, torch::kHalf)}, {.low_precision = optim::LowPrecision::stochastic_rounding}),
      ContainsSubstring("f16[2]") && ContainsSubstring("bf16 only"));
}

TEST_CASE("prepared, on any number of ranks, they train as one by one calls do", "[optim]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    const auto train = [&]<class Optimizer>(const Optimizer*, const typename Optimizer::Options& options) {
      torch::manual_seed(7);
      auto net = std::make_shared<Mlp>();
      auto twin = std::make_shared<Mlp>();
      for (std::size_t i = 0; i < net->parameters().size(); ++i)
        twin->parameters()[i].set_data(net->parameters()[i].detach().clone());
      OneByOne reference{twin->parameters(), fused(options)};
      auto [model, optimizer] = accelerator.prepare(net, Optimizer(net->parameters(), options));
      for (int step = 0; step < 20; ++step) {
        accelerator.backward(model(torch::full({2, 5}, 0.1 * step + rank.rank)).square().mean());
        twin->zero_grad();
        for (std::size_t i = 0; i < net->parameters().size(); ++i)
          twin->parameters()[i].mutable_grad() = net->parameters()[i].grad().clone();
        optimizer.step();
        reference.step();
        optimizer.zero_grad();
        REQUIRE((bits(net->parameters()) == bits(twin->parameters())));
      }
      REQUIRE(optimizer.state().size() == 4);
    };
    train(static_cast<optim::AdamW*>(nullptr), {.lr = 1e-2});
    train(static_cast<optim::SGD*>(nullptr), {.lr = 1e-2, .momentum = 0.9});
    train(static_cast<optim::Adagrad*>(nullptr), {.lr = 1e-2});
  });
}

TEST_CASE("options of the fused optimizers that differ between ranks are refused", "[optim]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    REQUIRE_THROWS_WITH(accelerator.prepare(net, optim::AdamW(net->parameters(), {.lr = rank.rank == 0 ? 1e-3 : 2e-3})),
                        ContainsSubstring("lr = 0.001") && ContainsSubstring("lr = 0.002"));
  });
}
