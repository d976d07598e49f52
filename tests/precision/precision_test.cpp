// The precisions, held to the laws of all, and what is said of those that break them.
#include "conformance/precision_suite.hpp"

#define ACCEL_EXAMPLE_AS_HEADER
#include "../../examples/by_feature/own_precision.cpp"

#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace accel;
using namespace accel::testing;

ACCEL_PRECISION_SUITE(precision::Fp32, {1, 2})
ACCEL_PRECISION_SUITE(precision::Bf16, {1, 2, 3})
ACCEL_PRECISION_SUITE(precision::Fp16, {1, 2, 3})
ACCEL_PRECISION_SUITE(precision::Bf16Weights, {1, 2, 3})
ACCEL_PRECISION_SUITE(Fp64, {1, 2})

TEST_CASE("code outside of forward computes in the dtype of the precision", "[precision]") {
  const auto inside = []<class P>(std::type_identity<P>) {
    Accelerator<backend::Single, P> accelerator;
    const auto region = accelerator.autocast();
    return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type();
  };
  REQUIRE(inside(std::type_identity<precision::Fp32>{}) == torch::kFloat);
  REQUIRE(inside(std::type_identity<precision::Bf16>{}) == torch::kBFloat16);
  REQUIRE(inside(std::type_identity<precision::Fp16>{}) == torch::kHalf);
}

TEST_CASE("a model that cannot be right with a scaled loss is refused by its first parameter that cannot",
          "[precision]") {
  auto net = std::make_shared<Mlp>();
  const auto record = [&] { return tensor::record(*net, "model 0"); };
  const c10::Device cpu(c10::DeviceType::CPU), gpu(c10::DeviceType::CUDA, 0);
  const auto refused = [](const std::string& text) {
    return Catch::Matchers::MessageMatches(Catch::Matchers::ContainsSubstring(text));
  };
  for (auto& parameter : {net->first->bias, net->second->weight})
    parameter.set_data(parameter.detach().to(torch::kBFloat16));
  precision::Fp16::check(record(), cpu);
  REQUIRE_THROWS_MATCHES(precision::Fp16::check(record(), gpu), InvalidArgument,
                         refused("first.bias of model 0 is bf16") && refused("precision::Bf16"));
  for (auto& parameter : {net->first->bias, net->second->weight})
    parameter.set_data(parameter.detach().to(torch::kHalf));
  for (const auto device : {cpu, gpu})
    REQUIRE_THROWS_MATCHES(precision::Fp16::check(record(), device), InvalidArgument,
                           refused("first.bias of model 0 is f16"));
  net->first->bias.set_requires_grad(false);
  REQUIRE_THROWS_MATCHES(precision::Fp16::check(record(), cpu), InvalidArgument,
                         refused("second.weight of model 0 is f16"));
}

TEST_CASE("weights of bf16 are stepped by who keeps what bf16 has no bits for, and by nobody else", "[precision]") {
  on_ranks({1, 2}, [](Rank) {
    Accelerator<backend::Gloo, precision::Bf16Weights> accelerator;
    auto net = std::make_shared<Mlp>();
    REQUIRE_THROWS_MATCHES(accelerator.prepare(net, torch::optim::SGD(net->parameters(), 0.1)), InvalidArgument,
                           Catch::Matchers::MessageMatches(Catch::Matchers::ContainsSubstring("lost in rounding")));
    REQUIRE(net->first->weight.scalar_type() == torch::kFloat);  // what is refused stays as it is
    // Steps of 1/1000 of a weight: bf16 alone would lose each of them.
    torch::nn::init::constant_(net->first->weight, 1.0);
    auto [model, optimizer] = accelerator.prepare(net, optim::SGD{{.lr = 1e-3}});
    for (int step = 0; step < 100; ++step) {
      net->first->weight.mutable_grad() = torch::ones_like(net->first->weight);
      optimizer->step();
    }
    REQUIRE(std::abs(net->first->weight.to(torch::kFloat).mean().item<double>() - 0.9) < 0.005);
    // Weights that are written to without a word to autograd, as in a WGAN, are what they were written to.
    net->first->weight.data().clamp_(-0.01, 0.01);
    optimizer->step();
    REQUIRE(std::abs(net->first->weight.to(torch::kFloat).mean().item<double>() - 0.009) < 0.0001);
  });
}

TEST_CASE("a model that was made in bf16 is refused by nobody on the CPU, and its optimizer's masters are f32",
          "[precision]") {
  Accelerator<backend::Single, precision::Bf16Weights> accelerator;
  auto net = std::make_shared<Mlp>();
  auto [model, optimizer] = accelerator.prepare(net, optim::AdamW{});
  accelerator.backward(model(torch::randn({2, 5})).sum());
  optimizer.step();
  for (const auto& state : optimizer.state()) {
    REQUIRE(state.parameter.scalar_type() == torch::kBFloat16);
    REQUIRE(state.master.scalar_type() == torch::kFloat);
    for (const auto& tensor : state.tensors) REQUIRE(tensor.scalar_type() == torch::kFloat);
    REQUIRE(torch::equal(state.master.to(torch::kBFloat16), state.parameter));
  }
}
