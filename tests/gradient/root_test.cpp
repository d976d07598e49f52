// What backward starts from, and what comes of it where a gradient is that very tensor or too narrow for the factor.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;

namespace {

/// Two numbers, and a loss in which autograd passes on what it starts from: their gradients are views of it.
struct Numbers : torch::nn::Module {
  Numbers()
      : a(register_parameter("a", torch::zeros({1}, torch::kDouble))),
        b(register_parameter("b", torch::zeros({1, 1}, torch::kDouble))) {}
  torch::Tensor forward() { return a.squeeze() + b.view(std::vector<std::int64_t>()); }

  torch::Tensor a, b;
};

}  // namespace

TEST_CASE("a number whose gradient is what backward starts from has a gradient of its own", "[root]") {
  on_ranks({1, 2, 3}, [](Rank) {
    for (const bool alone : {true, false}) {
      Gloo accelerator({.accumulation_steps = 2});
      auto net = std::make_shared<Numbers>();
      auto model = accelerator.prepare(net);
      for (int window = 0; window < 4; ++window) {
        for (int i = 0; i < 2; ++i) {
          auto micro_step = accelerator.accumulate();
          accelerator.backward(alone ? net->a.squeeze() : model());
        }
        REQUIRE(std::abs(net->a.grad().item<double>() - 1) < 1e-12);  // 1, 2, 4, 8 where they share memory
        if (!alone) REQUIRE(std::abs(net->b.grad().item<double>() - 1) < 1e-12);
        net->zero_grad();
      }
    }
  });
}

TEST_CASE("gradients that add up from step to step are not added to one another", "[root]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Numbers>();
    auto model = accelerator.prepare(net);
    for (int step = 1; step <= 4; ++step) {
      accelerator.backward(model());
      REQUIRE(std::abs(net->a.grad().item<double>() - step) < 1e-12);  // plain LibTorch: 1, 3, 5, 7
      REQUIRE(std::abs(net->b.grad().item<double>() - step) < 1e-12);
    }
  });
}

TEST_CASE("clipping one number's gradient leaves the next step's alone", "[root]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Numbers>();
    auto model = accelerator.prepare(net);
    for (int window = 0; window < 3; ++window) {
      for (int i = 0; i < 2; ++i) {
        auto micro_step = accelerator.accumulate();
        accelerator.backward(8 * net->a.squeeze() + 6 * net->b.squeeze());
        const double norm = accelerator.clip_grad_norm_(model, 1.0).item<double>();
        if (i == 1) REQUIRE(std::abs(norm - 10) < 1e-12);
      }
      REQUIRE(std::abs(net->a.grad().item<double>() - 0.8) < 1e-6);
      net->zero_grad();
    }
  });
}

TEST_CASE("a loss in few bits leaves the mean exact: what bf16 cannot hold is multiplied later", "[root]") {
  on_ranks({1, 2, 3}, [](Rank) {
    for (const auto dtype : {torch::kBFloat16, torch::kHalf, torch::kFloat}) {
      // Three micro-batches, and three ranks: 1/3 in bf16 is 0.33398.
      Gloo accelerator({.accumulation_steps = 3});
      auto net = std::make_shared<torch::nn::LinearImpl>(torch::nn::LinearOptions(4, 1).bias(false));
      auto model = accelerator.prepare(net);
      for (int i = 0; i < 3; ++i) {
        auto micro_step = accelerator.accumulate();
        accelerator.backward(model(torch::ones({1, 4})).sum().to(dtype));
      }
      REQUIRE(distance({net->weight.grad()}, {torch::ones({1, 4})}) < 1e-6);
      // A gradient of somebody else's backward is nothing to the accelerator.
      net->zero_grad();
      model(torch::ones({1, 4})).sum().to(dtype).backward();
      REQUIRE(torch::equal(net->weight.grad(), torch::ones({1, 4})));
    }
  });
}

TEST_CASE("few bits on the way from the loss to the weights leave the mean exact, too", "[root]") {
  on_ranks({1, 2, 3}, [](Rank) {
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      Gloo accelerator({.accumulation_steps = 3});
      auto net = std::make_shared<torch::nn::LinearImpl>(torch::nn::LinearOptions(4, 1).bias(false));
      auto model = accelerator.prepare(net);
      for (int i = 0; i < 3; ++i) {
        auto micro_step = accelerator.accumulate();
        accelerator.backward(net->weight.to(dtype).sum().to(torch::kFloat));
      }
      REQUIRE(distance({net->weight.grad()}, {torch::ones({1, 4})}) < 1e-6);
    }
  });
}

TEST_CASE("weights that are added are clipped and added to one by one", "[root]") {
  on_ranks({1, 2}, [](Rank) {
    // As the embeddings of position and type: autograd gives both one gradient, of which each is a view.
    struct Added : torch::nn::Module {
      torch::Tensor position = register_parameter("position", torch::zeros({3}));
      torch::Tensor type = register_parameter("type", torch::zeros({3}));
    };
    Gloo accelerator;
    auto net = std::make_shared<Added>();
    auto model = accelerator.prepare(net);
    const auto x = torch::tensor({1.0F, 2.0F, 2.0F});
    const auto backward = [&] {
      accelerator.backward(((net->position.unsqueeze(0) + net->type.unsqueeze(0)) * x).sum());
    };
    backward();
    backward();
    REQUIRE(torch::equal(net->position.grad(), 2 * x));  // plain LibTorch: 3 x
    REQUIRE(torch::equal(net->type.grad(), 2 * x));
    net->zero_grad();
    backward();
    REQUIRE(std::abs(accelerator.clip_grad_norm_(model, 1.0).item<double>() - std::sqrt(18.0)) < 1e-6);
    REQUIRE(distance({net->position.grad()}, {x / std::sqrt(18.0)}) < 1e-6);  // scaled twice where memory is shared
  });
}

namespace {

/// x * w, computed again in backward, as a checkpoint of activations is; its gradients are asked for, or
/// `arrives_by_itself`: that of the weight arrives by a backward within the backward.
template <bool arrives_by_itself>
struct Again : torch::autograd::Function<Again<arrives_by_itself>> {
  using List = torch::autograd::variable_list;
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& w) {
    context->save_for_backward({x, w});
    return x * w;
  }
  static List backward(torch::autograd::AutogradContext* context, const List& gradients) {
    const torch::AutoGradMode with_grad(true);
    const auto saved = context->get_saved_variables();
    const auto x = saved[0].detach().requires_grad_(true);
    const auto y = x * saved[1];
    if (!arrives_by_itself) return torch::autograd::grad({y}, {x, saved[1]}, {gradients[0]});
    y.backward(gradients[0]);
    return {x.grad(), torch::Tensor()};
  }
};

template <class P>
void counts_each_contribution_once() {
  Accelerator<backend::Gloo, P> accelerator;
  auto net = std::make_shared<Line>();
  torch::nn::init::constant_(net->weight, 3.0);
  auto model = accelerator.prepare(net);
  const auto x = torch::ones({1}, torch::kDouble).requires_grad_();
  const auto gradient = [&] {
    accelerator.unscale_gradients();
    return net->weight.grad().template item<double>();
  };
  for (int i = 1; i <= 2; ++i) {
    accelerator.backward(Again<false>::apply(x, net->weight).sum());
    REQUIRE(std::abs(gradient() - i) < 1e-12);
  }
  net->zero_grad();
  {
    auto no_sync = accelerator.no_sync();
    accelerator.backward(Again<false>::apply(x, net->weight).sum());
  }
  accelerator.backward(Again<false>::apply(x, net->weight).sum());
  REQUIRE(std::abs(gradient() - 2) < 1e-12);
  net->zero_grad();
  // d/dw of x w w, in two contributions, is 2 x w; and once more, in one.
  {
    auto no_sync = accelerator.no_sync();
    accelerator.backward(Again<true>::apply(Again<true>::apply(x, net->weight), net->weight).sum());
  }
  accelerator.backward(Again<false>::apply(x, net->weight).sum());
  REQUIRE(std::abs(gradient() - 7) < 1e-12);
}

}  // namespace

TEST_CASE("what is computed again within a backward is multiplied once, as often as it arrives", "[root]") {
  on_ranks({1, 2, 3}, [](Rank) {
    counts_each_contribution_once<precision::Fp32>();
    counts_each_contribution_once<precision::Fp16>();
  });
}

TEST_CASE("a loss in f64 has a root in f64: a third is not that of f32", "[root]") {
  on_ranks({1, 3}, [](Rank) {
    Accelerator<backend::Gloo, precision::Fp16> accelerator({.accumulation_steps = 3});
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    for (int i = 0; i < 3; ++i) {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(model(torch::ones({1}, torch::kDouble)).sum());
    }
    accelerator.unscale_gradients();
    REQUIRE(std::abs(net->weight.grad().item<double>() - 1) < 1e-15);
  });
}
