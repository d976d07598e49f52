#include "support/counting.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

const gradient::ReducerOptions many_buckets{.caps = {.bucket_cap = 1_B, .last_bucket_cap = 1_B}};

/// A branch that only some inputs take, and one that nobody takes.
struct Branches : torch::nn::Module {
  Branches() {
    for (auto* weight : {&always, &sometimes, &never}) *weight = torch::ones({3});
    register_parameter("always", always);
    register_parameter("sometimes", sometimes);
    register_parameter("never", never);
  }
  torch::Tensor forward(bool take) { return (take ? always * sometimes : always).sum(); }
  torch::Tensor always, sometimes, never;
};

}  // namespace

TEST_CASE("after backward every gradient is the mean over the ranks", "[reducer]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const auto& options : {gradient::ReducerOptions{}, many_buckets}) {
      Gloo accelerator({.gradient = options});
      auto model = accelerator.prepare(std::make_shared<Line>());
      accelerator.backward((model(torch::tensor({1.0})) * (rank.rank + 1)).sum());
      // 1 + 2 + .. + n over n
      REQUIRE(std::abs(model->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-12);
    }
  });
}

TEST_CASE("a bucket's reduction starts when it is full, while backward still runs", "[reducer]") {
  on_ranks({2, 3}, [](Rank) {
    for (const bool overlap : {true, false}) {
      Accelerator<CountingGloo, precision::Fp32>::Options options;
      options.gradient = many_buckets;
      options.gradient.overlap = overlap;
      Accelerator<CountingGloo, precision::Fp32> accelerator(options);
      auto model = accelerator.prepare(std::make_shared<Mlp>());
      const auto hidden = model->first(torch::ones({2, 5}));
      const auto loss = model->second(hidden).sum();
      int before_first_layer = -1;
      hidden.register_hook([&](const torch::Tensor&) { before_first_layer = CountingGloo::all_reduces; });
      CountingGloo::all_reduces = 0;
      accelerator.backward(loss);
      REQUIRE(CountingGloo::all_reduces == 5);  // two weights, two biases, each in a bucket of its own; who used what
      REQUIRE(before_first_layer == (overlap ? 2 : 0));
    }
  });
}

TEST_CASE("two backwards without zero_grad add up to the sum of the means, as in DDP", "[reducer]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    for (int i = 0; i < 3; ++i) accelerator.backward((model(torch::tensor({1.0})) * 6.0 * (rank.rank + 1)).sum());
    REQUIRE(std::abs(model->weight.grad().item<double>() - 3 * 6.0 * (rank.world_size + 1) / 2.0) < 1e-12);
  });
}

TEST_CASE("a parameter that one rank uses has a gradient on all, and one that nobody uses on none", "[reducer]") {
  on_ranks({2, 3}, [](Rank rank) {
    for (const auto& options : {gradient::ReducerOptions{}, many_buckets}) {
      Gloo accelerator({.gradient = options});
      auto model = accelerator.prepare(std::make_shared<Branches>());
      for (int step = 0; step < 2; ++step) {
        accelerator.backward(model->forward(rank.rank == 0));
        REQUIRE(torch::equal(model->always.grad(), torch::ones({3})));
        REQUIRE(torch::allclose(model->sometimes.grad(), torch::full({3}, 1.0 / rank.world_size)));
        REQUIRE_FALSE(model->never.grad().defined());
        for (auto& parameter : model->parameters()) parameter.mutable_grad().reset();
      }
    }
  });
}

TEST_CASE("under no_sync gradients stay on their rank, and the next backward reduces their sum", "[reducer]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    const auto loss = [&](double factor) { return (model(torch::tensor({1.0})) * factor * (rank.rank + 1)).sum(); };
    {
      auto local = accelerator.no_sync();
      accelerator.backward(loss(6.0));
      REQUIRE(std::abs(model->weight.grad().item<double>() - 6.0 * (rank.rank + 1) / rank.world_size) < 1e-12);
      const auto seen = accelerator.gather(model->weight.grad());
      REQUIRE((rank.world_size == 1 || seen[0].item<double>() != seen[1].item<double>()));
    }
    accelerator.backward(loss(12.0));
    REQUIRE(std::abs(model->weight.grad().item<double>() - 18.0 * (rank.world_size + 1) / 2.0) < 1e-12);
  });
}

TEST_CASE("forward under no_sync and backward outside reduces: backward decides", "[reducer]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    torch::Tensor loss;
    {
      auto local = accelerator.no_sync();
      loss = (model(torch::tensor({1.0})) * (rank.rank + 1)).sum();
    }
    accelerator.backward(loss);
    REQUIRE(model->weight.grad().item<double>() == 1.5);
  });
}

TEST_CASE("only the model that backward touches is reduced", "[reducer]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto [left, right] = accelerator.prepare(std::make_shared<Line>(), std::make_shared<Line>());
    accelerator.backward((left(torch::tensor({1.0})) * (rank.rank + 1)).sum());
    REQUIRE(std::abs(left->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-12);
    REQUIRE_FALSE(right->weight.grad().defined());
    accelerator.backward((right(torch::tensor({2.0})) * (rank.rank + 1)).sum());
    REQUIRE(std::abs(right->weight.grad().item<double>() - (rank.world_size + 1)) < 1e-12);
    REQUIRE(std::abs(left->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-12);
  });
}

TEST_CASE("several models are reduced in one order, whatever order a rank's backward takes", "[reducer]") {
  on_ranks({2, 3}, [](Rank rank) {
    for (const auto& options : {gradient::ReducerOptions{}, many_buckets}) {
      Gloo accelerator({.gradient = options});
      auto [left, right, other] =
          accelerator.prepare(std::make_shared<Branches>(), std::make_shared<Branches>(), std::make_shared<Branches>());
      for (int step = 0; step < 2; ++step) {
        // Rank 0 alone uses right, and a branch of left; nobody uses other.
        auto loss = left->forward(rank.rank == 0) * 2;
        if (rank.rank == 0) loss = loss + right->forward(true) * 6;
        accelerator.backward(loss);
        REQUIRE(torch::allclose(left->always.grad(), torch::full({3}, 2.0)));
        REQUIRE(torch::allclose(left->sometimes.grad(), torch::full({3}, 2.0 / rank.world_size)));
        REQUIRE(torch::allclose(right->always.grad(), torch::full({3}, 6.0 / rank.world_size)));
        REQUIRE_FALSE(other->always.grad().defined());
        left->zero_grad();
        right->zero_grad();
      }
    }
  });
}

TEST_CASE("a backward that throws on one rank after a reduction has begun gives up the group", "[reducer]") {
  on_ranks({2}, [](Rank rank) {
    Gloo::Options options{.gradient = many_buckets};
    options.backend.timeout_s = 2;
    Gloo accelerator(options);
    auto model = accelerator.prepare(std::make_shared<Mlp>());
    auto x = torch::ones({2, 5});
    auto inner = model->first(x);
    if (rank.rank == 1) inner.register_hook([](const torch::Tensor&) { throw std::runtime_error("a user's hook"); });
    const auto loss = model->second(inner).sum();
    if (rank.rank == 1)
      REQUIRE_THROWS_WITH(accelerator.backward(loss), ContainsSubstring("a user's hook"));
    else
      REQUIRE_THROWS_AS(accelerator.backward(loss), CommError);
    REQUIRE_THROWS_WITH(accelerator.backward(model(x).sum()), ContainsSubstring("given up earlier"));
  });
}

TEST_CASE("a backward that throws before anything was sent gives up the group, too", "[reducer]") {
  on_ranks({2}, [](Rank rank) {
    for (const bool two_models : {false, true}) {
      Gloo::Options options;
      options.backend.timeout_s = 1;
      Gloo accelerator(options);
      auto model = accelerator.prepare(std::make_shared<Mlp>());
      if (two_models) (void)accelerator.prepare(std::make_shared<Mlp>());
      auto loss = model(torch::ones({2, 5})).sum();
      if (rank.rank == 1) loss.register_hook([](const torch::Tensor&) { throw std::runtime_error("a user's hook"); });
      if (rank.rank == 1)
        REQUIRE_THROWS_WITH(accelerator.backward(loss), ContainsSubstring("a user's hook"));
      else
        REQUIRE_THROWS_AS(accelerator.backward(loss), CommError);
      // Its next gradients must not be taken for those of this step.
      REQUIRE_THROWS_WITH(accelerator.backward(model(torch::ones({2, 5})).sum()),
                          ContainsSubstring("given up earlier"));
    }
  });
}

TEST_CASE("gradients from before the first reduction are averaged with the rest", "[reducer]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    (net->forward(torch::ones({1}, torch::kDouble)) * (10.0 * (rank.rank + 1))).sum().backward();
    auto model = accelerator.prepare(net);
    accelerator.backward((model(torch::ones({1}, torch::kDouble)) * (rank.rank + 1)).sum());
    REQUIRE(std::abs(net->weight.grad().item<double>() - 11 * (rank.world_size + 1) / 2.0) < 1e-12);  // as DDP
  });
}

TEST_CASE("a parameter may be frozen after prepare", "[reducer]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 0.1));
    for (int step = 0; step < 3; ++step) {
      if (step == 1) net->first->weight.requires_grad_(false);
      const auto before = net->first->weight.clone();
      accelerator.backward(model(torch::full({2, 5}, rank.rank + 1.0)).sum());
      optimizer.step();
      optimizer.zero_grad();
      REQUIRE(torch::equal(net->first->weight, before) == (step > 0));
    }
  });
}

TEST_CASE("a forward for evaluation arms nothing", "[reducer]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    {
      torch::NoGradGuard no_grad;
      for (int i = 0; i <= rank.rank; ++i) (void)model(torch::tensor({1.0}));  // as often as a rank likes
    }
    for (int i = 0; i <= rank.rank; ++i) (void)model(torch::tensor({1.0}));
    accelerator.backward((model(torch::tensor({1.0})) * (rank.rank + 1)).sum());
    REQUIRE(model->weight.grad().item<double>() == 1.5);
  });
}

TEST_CASE("a backward that throws where nothing is reduced leaves the model usable", "[reducer]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Line>());
    const auto loss = (model(torch::tensor({1.0})) * (rank.rank + 1)).sum();
    accelerator.backward(loss);
    {
      auto local = accelerator.no_sync();
      REQUIRE_THROWS(accelerator.backward(loss));  // LibTorch: the graph is freed
    }
    REQUIRE(model->weight.grad().item<double>() == (rank.world_size + 1) / 2.0);
    model->weight.mutable_grad().reset();
    accelerator.backward((model(torch::tensor({1.0})) * (rank.rank + 1)).sum());
    REQUIRE(model->weight.grad().item<double>() == (rank.world_size + 1) / 2.0);
  });
}

TEST_CASE("the gradients of one rank carry no hooks, and their memory is LibTorch's", "[reducer]") {
  using torch::autograd::impl::post_acc_grad_hooks;
  on_ranks({1}, [](Rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Mlp>());
    for (const auto& parameter : model.parameters()) REQUIRE(post_acc_grad_hooks(parameter) == nullptr);
  });
  on_ranks({2}, [](Rank) {
    auto net = std::make_shared<Mlp>();
    {
      Gloo accelerator;
      auto model = accelerator.prepare(net);
      for (const auto& parameter : model.parameters()) REQUIRE(post_acc_grad_hooks(parameter) != nullptr);
      accelerator.backward(model(torch::ones({2, 5})).sum());
      // Views of one buffer, that LibTorch's own zero_grad accepts.
      const auto parameters = model.parameters();
      REQUIRE(parameters[0].grad().storage().data() == parameters[1].grad().storage().data());
      net->zero_grad();
    }
    for (const auto& parameter : net->parameters())  // gone with the accelerator
      REQUIRE(post_acc_grad_hooks(parameter) == nullptr);
  });
}

TEST_CASE("a hook that stands at a parameter is called, too, and stands there again afterwards", "[reducer]") {
  struct Count final : torch::autograd::PostAccumulateGradHook {
    explicit Count(int& number) : calls(&number) {}
    void operator()(const torch::Tensor&) override { ++*calls; }
    int* calls;
  };
  on_ranks({1, 2}, [](Rank) {
    int calls = 0;
    auto net = std::make_shared<Line>();
    torch::autograd::impl::set_post_acc_grad_hooks(net->weight, std::make_unique<Count>(calls));
    {
      Gloo accelerator;
      auto model = accelerator.prepare(net);
      accelerator.backward(model(torch::ones({1}, torch::kDouble)).sum());
      REQUIRE(calls == 1);
    }
    net->forward(torch::ones({1}, torch::kDouble)).sum().backward();
    REQUIRE(calls == 2);
  });
}
