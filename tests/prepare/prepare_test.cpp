#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using torch::optim::SGD;

namespace {

struct WithBuffer : Mlp {
  WithBuffer() : counts(register_buffer("counts", torch::zeros({2}, torch::kLong))) {}
  torch::Tensor counts;
};

/// An encoder whose weight is the decoder's, too.
struct Tied : torch::nn::Module {
  Tied() : encoder(register_module("encoder", torch::nn::Linear(torch::nn::LinearOptions(3, 3).bias(false)))) {
    decoder = register_parameter("decoder", encoder->weight);
  }
  torch::Tensor forward(torch::Tensor x) { return encoder(std::move(x)).matmul(decoder.t()); }

  torch::nn::Linear encoder;
  torch::Tensor decoder;
};

/// Several arguments, several results, and another way in.
struct Many : torch::nn::Module {
  std::pair<torch::Tensor, int> forward(const torch::Tensor& x, double factor, int tag) {
    return {layer(x) * factor, tag};
  }
  torch::Tensor encode(const torch::Tensor& x) { return layer(x); }

  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
};

struct HolderImpl : torch::nn::Module {
  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
};
TORCH_MODULE(Holder);

}  // namespace

TEST_CASE("every rank has rank 0's parameters and buffers after prepare", "[prepare]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    torch::manual_seed(static_cast<std::uint64_t>(rank.rank));
    Gloo accelerator;
    auto net = std::make_shared<WithBuffer>();
    net->counts.fill_(rank.rank + 5);
    auto model = accelerator.prepare(net);
    torch::manual_seed(0);
    REQUIRE(bits(net->parameters()) == bits(WithBuffer().parameters()));
    REQUIRE(torch::equal(net->counts, torch::full({2}, 5, torch::kLong)));
  });
}

TEST_CASE("a tied parameter is one parameter: stepped, reduced and normed once", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.log = Log::Level::off});
    auto net = std::make_shared<Tied>();
    SGD sgd(net->parameters(), 1.0);
    REQUIRE(sgd.param_groups()[0].params().size() == 2);  // LibTorch would step it twice
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    REQUIRE(optimizer.param_groups()[0].params().size() == 1);
    REQUIRE(model.parameters().size() == 1);
    const auto before = net->decoder.detach().clone();
    accelerator.backward(model(torch::ones({2, 3})).sum());
    const auto gradient = net->decoder.grad().clone();
    const auto norm = accelerator.clip_grad_norm_(model, 1e9);
    REQUIRE(torch::allclose(norm, gradient.norm()));
    optimizer.step();
    REQUIRE(torch::allclose(net->decoder, before - gradient));
  });
}

TEST_CASE("one argument gives the object, several a tuple in their order", "[prepare]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto net = std::make_shared<Line>();
  auto [loader, optimizer, model] =
      accelerator.prepare(data::DataLoader{Doubles{4}, {.batch_size = 2}}, SGD(net->parameters(), 0.1), net);
  REQUIRE(loader.size() == 2);
  REQUIRE(optimizer.param_groups().size() == 1);
  REQUIRE(model(torch::ones({1}, torch::kDouble)).item<double>() == 0.0);
  REQUIRE(accelerator.unwrap_model(model) == net);
}

TEST_CASE("models come as shared_ptr, holder, value or reference", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    const auto x = torch::ones({3, 2});
    Holder holder;
    auto from_holder = accelerator.prepare(holder);
    accelerator.backward(from_holder(x).sum());
    REQUIRE(holder->layer->weight.grad().defined());

    auto from_value = accelerator.prepare(HolderImpl());
    accelerator.backward(from_value(x).sum());
    REQUIRE(from_value->layer->weight.grad().defined());

    HolderImpl own;
    auto from_reference = accelerator.prepare(own);
    accelerator.backward(from_reference(x).sum());
    REQUIRE(own.layer->weight.grad().defined());

    auto sequential =
        accelerator.prepare(torch::nn::Sequential(torch::nn::Linear(2, 4), torch::nn::ReLU(), torch::nn::Linear(4, 1)));
    accelerator.backward(sequential(x).sum());
    for (const auto& parameter : sequential.parameters()) REQUIRE(parameter.grad().defined());
  });
}

TEST_CASE("forward takes several arguments, and other entry points reduce as well", "[prepare]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Many>());
    const auto x = torch::full({1, 2}, rank.rank + 1.0);
    auto [y, tag] = model(x, 2.0, 7);
    REQUIRE(tag == 7);
    accelerator.backward(y.sum());
    const double mean = (rank.world_size + 1) / 2.0;
    REQUIRE(torch::equal(model->layer->weight.grad(), torch::full({1, 2}, 2 * mean)));
    model->layer->zero_grad();
    accelerator.backward(model->encode(x).sum());
    REQUIRE(torch::equal(model->layer->weight.grad(), torch::full({1, 2}, mean)));
  });
}

TEST_CASE("frozen models, and models without an optimizer, are prepared", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto frozen = std::make_shared<Mlp>();
    for (auto& parameter : frozen->parameters()) parameter.requires_grad_(false);
    auto [teacher, student] = accelerator.prepare(frozen, std::make_shared<Mlp>());
    const auto x = torch::ones({2, 5});
    accelerator.backward((teacher(x) - student(x)).square().sum());
    for (const auto& parameter : student.parameters()) REQUIRE(parameter.grad().defined());
    for (const auto& parameter : teacher.parameters()) REQUIRE_FALSE(parameter.grad().defined());
  });
}

TEST_CASE("a parameter that is unfrozen after prepare is an error at step", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    net->first->bias.requires_grad_(false);
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    net->first->bias.requires_grad_(true);
    accelerator.backward(model(torch::ones({2, 5})).sum());
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("first.bias was frozen when it was prepared"));
  });
}

TEST_CASE("a model is prepared once", "[prepare]") {
  Accelerator<backend::Single, precision::Fp32> accelerator;
  auto net = std::make_shared<Line>();
  auto model = accelerator.prepare(net);
  REQUIRE_THROWS_WITH(accelerator.prepare(net), ContainsSubstring("prepare each model once"));
}

TEST_CASE("several models and optimizers train side by side", "[prepare]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto left = std::make_shared<Line>();
    auto right = std::make_shared<Line>();
    auto [a, b, for_a, for_b] =
        accelerator.prepare(left, right, SGD(left->parameters(), 1.0), SGD(right->parameters(), 1.0));
    const auto x = torch::tensor({1.0 + rank.rank}, torch::kDouble);
    const double mean = (rank.world_size + 1) / 2.0;
    for (int step = 1; step <= 3; ++step) {
      accelerator.backward(a(x).sum());
      for_a.step();
      for_a.zero_grad();
      accelerator.backward(b(2 * x).sum());
      for_b.step();
      for_b.zero_grad();
      REQUIRE(std::abs(left->weight.item<double>() + step * mean) < 1e-12);
      REQUIRE(std::abs(right->weight.item<double>() + step * 2 * mean) < 1e-12);
    }
  });
}

TEST_CASE("an optimizer made without parameters gets those of the model beside it, and their names", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    net->first->bias.set_requires_grad(false);
    auto [model, optimizer, ema] = accelerator.prepare(net, optim::AdamW{{.lr = 1e-2}}, optim::EMA{});
    REQUIRE(optimizer.param_groups().size() == 1);
    REQUIRE(optimizer.param_groups()[0].params().size() == 3);  // not the frozen one
    REQUIRE(ema->parameters().size() == 4);
    accelerator.backward(model(torch::ones({2, 5})).square().mean());
    optimizer.step();
    REQUIRE(optimizer->state_dict().has("state.second.weight.exp_avg_sq"));
    auto later = accelerator.prepare(optim::SGD{});  // the only model of this accelerator
    REQUIRE(later.param_groups()[0].params().size() == 3);
    // One for two models: their numbers are part of the names.
    auto other = std::make_shared<Mlp>();
    std::vector<torch::Tensor> all = net->parameters();
    for (const auto& parameter : other->parameters()) all.push_back(parameter);
    auto [other_model, both] = accelerator.prepare(other, optim::SGD(all, {.lr = 0.1, .momentum = 0.9}));
    accelerator.backward(model(torch::ones({2, 5})).sum() + other_model(torch::ones({2, 5})).sum());
    both.step();
    REQUIRE(both->state_dict().has("state.0/second.weight.momentum_buffer"));
    REQUIRE(both->state_dict().has("state.1/second.weight.momentum_buffer"));
  });
}

TEST_CASE("an optimizer made without parameters is refused where whose they should be is not known", "[prepare]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    REQUIRE_THROWS_WITH(accelerator.prepare(optim::AdamW{}),
                        ContainsSubstring("made without parameters") && ContainsSubstring("has 0 models"));
    auto one = std::make_shared<Mlp>();
    auto two = std::make_shared<Mlp>();
    REQUIRE_THROWS_WITH(accelerator.prepare(one, two, optim::AdamW{}),
                        ContainsSubstring("made without parameters") && ContainsSubstring("prepared with 2 models"));
    REQUIRE_THROWS_WITH(accelerator.prepare(one, two, optim::AdamW(one->parameters()), optim::EMA{}),
                        ContainsSubstring("made without parameters") && ContainsSubstring("prepared with 2 models"));
    auto prepared = accelerator.prepare(one, two);
    REQUIRE_THROWS_WITH(accelerator.prepare(optim::SGD{}),
                        ContainsSubstring("made without parameters") && ContainsSubstring("has 2 models"));
  });
}
