// Every rule is held to the laws of all, and so is one that a user has written.
#include "conformance/optimizer_suite.hpp"

#include <accel/accelerator.hpp>

using namespace accel;

namespace {

// doc:begin own_rule
struct SignOptions {
  optim::LearningRate lr = 1e-2;
  bool maximize = false;
  optim::LowPrecision low_precision = optim::LowPrecision::master_weights;

  static constexpr auto fields() {
    using O = SignOptions;
    return std::tuple(Field{"lr", &O::lr}, Field{"maximize", &O::maximize}, Field{"low_precision", &O::low_precision});
  }
};

/// Steps of lr against the sign of the gradient, with nothing to remember.
struct SignDescent : optim::FlatOptimizer<SignDescent, SignOptions> {
  using FlatOptimizer::FlatOptimizer;
  static constexpr std::string_view name = "SignDescent";
  static constexpr bool is_elementwise = true;

  static void check(const SignOptions& options) {
    ACCEL_CHECK(options.lr >= 0, InvalidArgument, "lr = ", options.lr.value());
  }
  static std::span<const std::string_view> states(const SignOptions&) { return {}; }
  static at::Tensor initial(const SignOptions&, std::size_t, const at::Tensor&) { return {}; }
  static void apply(optim::Batch& batch, const SignOptions& options) {
    for (std::size_t k = 0; k < batch.parameters.size(); ++k)
      batch.parameters[k].sub_(batch.gradients[k].sign() *
                               (options.maximize ? -options.lr.value() : options.lr.value()));
  }
};
// doc:end own_rule

}  // namespace

ACCEL_OPTIMIZER_SUITE(SignDescent, {.lr = 1e-2})
ACCEL_OPTIMIZER_SUITE(optim::AdamW, {.lr = 1e-2},
                      {.lr = 1e-2, .betas = {0.8, 0.95}, .weight_decay = 0.3, .amsgrad = true, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Adam, {.lr = 1e-2, .weight_decay = 0.1},
                      {.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true})
ACCEL_OPTIMIZER_SUITE(optim::SGD, {.lr = 1e-2, .weight_decay = 0.1}, {.lr = 1e-2, .momentum = 0.9, .nesterov = true},
                      {.lr = 1e-2, .momentum = 0.9, .dampening = 0.2, .maximize = true})
ACCEL_OPTIMIZER_SUITE(
    optim::Adagrad, {.lr = 1e-2},
    {.lr = 1e-2, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.5, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Lion, {.lr = 1e-2}, {.lr = 1e-2, .weight_decay = 0.1, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::LAMB, {.lr = 1e-2}, {.lr = 1e-2, .weight_decay = 0},
                      {.lr = 1e-2, .weight_decay = 0, .always_adapt = true, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Adafactor, {.lr = 1e-2},
                      {.lr = 1e-2, .eps = {1e-5, 1e-2}, .d = 2, .weight_decay = 0.1, .maximize = true})
ACCEL_OPTIMIZER_SUITE(optim::Muon, {.lr = 1e-2},
                      {.lr = 1e-2, .nesterov = false, .ns_steps = 3, .adjust_lr_fn = optim::AdjustLr::match_rms_adamw})

TEST_CASE("matrices decay, biases and the weights of norms do not, and what is frozen or tied is in one group or none",
          "[optim]") {
  struct Net : torch::nn::Module {
    Net() { frozen->weight.set_requires_grad(false); }

    torch::nn::Linear first{register_module("first", torch::nn::Linear(3, 3))};
    torch::nn::LayerNorm norm{register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({3})))};
    torch::nn::Linear again{register_module("again", first)};  // tied
    torch::nn::Linear frozen{register_module("frozen", torch::nn::Linear(3, 3))};
    torch::Tensor temperature{register_parameter("temperature", torch::ones({}))};
  } net;
  REQUIRE(net.parameters().size() > 8);  // LibTorch lists what is tied twice
  optim::AdamW optimizer{optim::decay_groups(net, optim::AdamWOptions{.lr = 0.5, .weight_decay = 0.25})};
  const auto& groups = optimizer.param_groups();
  REQUIRE(groups.size() == 2);
  REQUIRE(groups[0].options().weight_decay == 0.25);
  REQUIRE(groups[1].options().weight_decay == 0);
  const auto are = [](const std::vector<torch::Tensor>& some, const std::vector<torch::Tensor>& expected) {
    return std::equal(some.begin(), some.end(), expected.begin(), expected.end(),
                      [](const auto& a, const auto& b) { return a.is_same(b); });
  };
  REQUIRE(are(groups[0].params(), {net.first->weight}));
  REQUIRE(
      are(groups[1].params(), {net.temperature, net.first->bias, net.norm->weight, net.norm->bias, net.frozen->bias}));
  const auto weights = testing::copies(net.parameters());
  for (auto& parameter : net.parameters()) parameter.mutable_grad() = torch::zeros_like(parameter.detach());
  optimizer.step();
  const auto now = net.parameters();
  for (std::size_t i = 0; i < now.size(); ++i)
    REQUIRE(torch::allclose(now[i], now[i].is_same(net.first->weight) ? weights[i] * 0.875 : weights[i]));
}

TEST_CASE("a parameter in two groups is refused", "[optim]") {
  const auto weight = torch::ones({2}).requires_grad_();
  optim::SGD sgd{{weight, weight}, {.lr = 1.0}};
  weight.mutable_grad() = torch::ones({2});
  sgd.step();
  REQUIRE(weight.sum().item<float>() == 0);  // once
  REQUIRE_THROWS_WITH(sgd.add_param_group(optim::SGD::Group({weight})),
                      Catch::Matchers::ContainsSubstring("is in group 0 already"));
}

TEST_CASE("what an option asks for since the last step is in the state", "[optim]") {
  const auto weight = torch::ones({2}, torch::kBFloat16).requires_grad_();
  optim::AdamW adamw{{weight}, {.lr = 0.1}};
  weight.mutable_grad() = torch::ones_like(weight.detach());
  adamw.step();
  adamw.param_groups()[0].options().amsgrad = true;
  adamw.load_state_dict(adamw.state_dict());
  REQUIRE(adamw.state().at(0).tensors.at(2).scalar_type() == torch::kFloat);
}

TEST_CASE("some parameters are stepped wherever they stand in the list now", "[optim]") {
  const auto a = torch::zeros({1}).requires_grad_();
  const auto b = torch::zeros({1}).requires_grad_();
  optim::SGD sgd{{a, b}, {.lr = 1.0}};
  for (const auto& one : {a, b}) one.mutable_grad() = torch::ones({1});
  sgd.step_some(std::vector<torch::Tensor>{a});
  std::swap(sgd.param_groups()[0].params()[0], sgd.param_groups()[0].params()[1]);
  sgd.step_some(std::vector<torch::Tensor>{a});
  sgd.step_some(std::vector<torch::Tensor>{b});
  REQUIRE(a.item<float>() == -2);
  REQUIRE(b.item<float>() == -1);
}

TEST_CASE("fp16 weights are rounded by chance by nobody, whenever that is asked for", "[optim]") {
  const auto weight = torch::ones({2}, torch::kHalf).requires_grad_();
  optim::SGD sgd{{weight}, {.lr = 0.1}};
  weight.mutable_grad() = torch::ones_like(weight.detach());
  sgd.step();
  sgd.param_groups()[0].options().low_precision = optim::LowPrecision::stochastic_rounding;
  REQUIRE_THROWS_WITH(sgd.step(), Catch::Matchers::ContainsSubstring("rounded by chance to bf16 only"));
}
