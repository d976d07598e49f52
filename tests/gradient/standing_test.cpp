// Gradients that stand when a backward begins: means of an earlier one, in the user's hands, or torn.
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

/// Two halves that a loss may use one by one.
struct Halves : torch::nn::Module {
  Halves()
      : left(register_module("left", torch::nn::Linear(5, 40))),
        right(register_module("right", torch::nn::Linear(5, 40))) {}

  torch::nn::Linear left, right;
};

torch::Tensor noise(int seed) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(seed));
  return torch::randn({6, 5}, generator);
}

/// Backward goes through `tensor` and throws there, or earlier.
torch::Tensor tearing(const torch::Tensor& tensor) {
  auto torn = tensor * 1;
  torn.register_hook([](const torch::Tensor&) { throw std::runtime_error("a user's hook"); });
  return torn;
}

}  // namespace

TEST_CASE("a mean that nothing is added to comes back bit for bit", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const Bytes cap : {25_MiB, 64_B}) {
      Gloo accelerator({.gradient = {.caps = {.bucket_cap = cap, .last_bucket_cap = cap}}});
      auto net = std::make_shared<Halves>();
      auto model = accelerator.prepare(net);
      accelerator.backward(net->left(noise(rank.rank)).square().mean());
      const auto left = bits({net->left->weight.grad(), net->left->bias.grad()});
      accelerator.backward(net->right(noise(rank.rank)).square().mean());
      REQUIRE(bits({net->left->weight.grad(), net->left->bias.grad()}) == left);  // m / 3 * 3 is not m
      const auto right = bits({net->right->weight.grad(), net->right->bias.grad()});
      {
        auto local = accelerator.no_sync();
        accelerator.backward(net->left(noise(9)).sum() * 0 + net->left(noise(rank.rank)).sum());
      }
      accelerator.backward(net->left(noise(rank.rank)).sum());
      REQUIRE(bits({net->right->weight.grad(), net->right->bias.grad()}) == right);
    }
  });
}

TEST_CASE("a mean of doubles stays one when buckets of another dtype take the place of its own", "[standing]") {
  struct Mixed : torch::nn::Module {
    torch::Tensor doubles = register_parameter("doubles", torch::zeros({16}, torch::kDouble));
    torch::Tensor floats = register_parameter("floats", torch::zeros({16}, torch::kFloat));
    torch::Tensor loss() {
      const auto last = floats.sum().to(torch::kDouble) * 0.1;  // its gradient, as it was made first
      return last + doubles.sum() * 0.1;
    }
  };
  on_ranks({2, 3}, [](Rank) {
    Gloo accelerator({.gradient = {.caps = {.bucket_cap = 8_B, .last_bucket_cap = 8_B}}});
    auto net = std::make_shared<Mixed>();
    auto model = accelerator.prepare(net);
    auto other = accelerator.prepare(std::make_shared<Line>());
    const auto pass_over = [&] {
      const auto before = bits({net->doubles.grad(), net->floats.grad()});
      const auto local = accelerator.no_sync();
      accelerator.backward(other(torch::ones({1}, torch::kDouble)).sum());
      REQUIRE(bits({net->doubles.grad(), net->floats.grad()}) == before);
    };
    const auto planned = accelerator.bucket_plan();
    accelerator.backward(net->loss());
    pass_over();
    accelerator.backward(net->loss());
    REQUIRE(accelerator.bucket_plan() != planned);
    pass_over();
  });
}

TEST_CASE("a mean to which one rank alone adds is a mean again", "[standing]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    accelerator.backward((model(torch::ones({1}, torch::kDouble)) * 6.0 * (rank.rank + 1)).sum());
    const double mean = net->weight.grad().item<double>();
    auto loss = model(torch::ones({1}, torch::kDouble)).sum() * 0;
    if (rank.rank == 0) loss = loss + 12 * model(torch::ones({1}, torch::kDouble)).sum();
    accelerator.backward(loss);
    REQUIRE(std::abs(net->weight.grad().item<double>() - (mean + 12.0 / rank.world_size)) < 1e-12);
  });
}

TEST_CASE("with several models a mean of one survives the backward of another", "[standing]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto one = std::make_shared<Mlp>();
    auto other = std::make_shared<Mlp>();
    auto [first, second] = accelerator.prepare(one, other);
    accelerator.backward(first(noise(rank.rank)).square().mean());
    const auto before = bits(gradients(one->parameters()));
    for (int i = 0; i < 2; ++i) {
      accelerator.backward(second(noise(rank.rank + i)).square().mean());
      REQUIRE(bits(gradients(one->parameters())) == before);
    }
  });
}

TEST_CASE("a gradient in the user's hands is never written to by a later backward", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    std::vector<torch::Tensor> handles, aliases;
    std::vector<std::vector<std::string>> seen;
    const auto step = [&](int seed) {
      net->zero_grad();
      accelerator.backward(model(noise(seed * 3 + rank.rank)).square().mean());
    };
    const void* memory = nullptr;
    for (int seed = 0; seed < 4; ++seed) {
      step(seed);
      // The bucket stays where it is, as a backend may have registered it with the other ranks.
      if (rank.world_size > 1 && seed > 0) REQUIRE(net->parameters()[0].grad().const_data_ptr() == memory);
      memory = net->parameters()[0].grad().const_data_ptr();
      for (const auto& parameter : net->parameters()) {
        handles.push_back(parameter.grad());
        aliases.push_back(parameter.grad().detach().view({-1}));
      }
      seen.push_back(bits(handles));
      REQUIRE(bits(aliases) == seen.back());
    }
    step(4);
    REQUIRE(bits(handles) == seen.back());
    REQUIRE(bits(aliases) == seen.back());
    for (std::size_t i = 0; i < seen.front().size(); ++i) REQUIRE(seen.back()[i] == seen.front()[i]);
  });
}

TEST_CASE("a handle of a gradient that is added to follows it, as at one rank", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    const auto loss = [&] { return (model(torch::ones({1}, torch::kDouble)) * 6.0 * (rank.rank + 1)).sum(); };
    {
      auto local = accelerator.no_sync();
      accelerator.backward(loss());
    }
    const auto handle = net->weight.grad();  // LibTorch's own memory: no bucket has seen it
    accelerator.backward(loss());
    REQUIRE(handle.item<double>() == net->weight.grad().item<double>());
    accelerator.backward(loss());
    REQUIRE(handle.item<double>() == net->weight.grad().item<double>());
  });
}

TEST_CASE("the memory of a bucket is kept as long as nobody else holds it", "[standing]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    const void* memory = nullptr;
    for (int i = 0; i < 5; ++i) {
      accelerator.backward(model(noise(rank.rank)).square().mean());
      const void* now = net->first->weight.grad().storage().data();
      REQUIRE((memory == nullptr || memory == now));
      memory = now;
      net->zero_grad();
    }
  });
}

TEST_CASE("a backward under no_sync that throws half-way cannot become a step", "[torn]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    const auto all = [&] {
      return net->left(noise(rank.rank)).square().mean() + net->right(noise(rank.rank)).square().mean();
    };
    accelerator.backward(all());
    const auto before = copies(net->parameters());
    {
      auto local = accelerator.no_sync();
      auto hidden = tearing(net->left(noise(rank.rank)));
      // The right half is done when the left one's hook throws.
      REQUIRE_THROWS_WITH(accelerator.backward(net->right(hidden.narrow(1, 0, 5)).sum()),
                          ContainsSubstring("a user's hook"));
    }
    REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("threw half-way") && ContainsSubstring("zero_grad"));
    REQUIRE_THROWS_WITH(accelerator.clip_grad_norm_(model, 1.0), ContainsSubstring("threw half-way"));
    {
      auto local = accelerator.no_sync();
      REQUIRE_THROWS_WITH(accelerator.backward(all()), ContainsSubstring("threw half-way"));
    }
    REQUIRE(bits(net->parameters()) == bits(before));
    optimizer.zero_grad();
    REQUIRE_FALSE(net->right->weight.grad().defined());
    accelerator.backward(all());
    optimizer.step();
    for (const auto& parameter : net->parameters())
      REQUIRE(bits({accelerator.broadcast(parameter.detach().clone())}) == bits({parameter}));
  });
}

TEST_CASE("a backward under no_sync that throws before it has added anything changes nothing", "[torn]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    accelerator.backward(net->left(noise(rank.rank)).square().mean());
    const auto before = bits(gradients(net->parameters()));
    {
      auto local = accelerator.no_sync();
      REQUIRE_THROWS_WITH(accelerator.backward(tearing(net->left(noise(0)).sum())), ContainsSubstring("a user's hook"));
    }
    REQUIRE(bits(gradients(net->parameters())) == before);
    optimizer.step();
  });
}

TEST_CASE("a torn window that is reduced all the same ends the group, with the reason", "[torn]") {
  on_ranks({2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    auto model = accelerator.prepare(net);
    if (rank.rank == 1) {
      auto local = accelerator.no_sync();
      auto hidden = tearing(net->left(noise(0)));
      REQUIRE_THROWS(accelerator.backward(net->right(hidden.narrow(1, 0, 5)).sum()));
    }
    const auto loss = net->right(noise(1)).sum();
    if (rank.rank == 1)
      REQUIRE_THROWS_WITH(accelerator.backward(loss), ContainsSubstring("threw half-way"));
    else
      REQUIRE_THROWS_WITH(accelerator.backward(loss),
                          ContainsSubstring("rank 1") && ContainsSubstring("threw half-way"));
  });
}

TEST_CASE("a rank that cannot go backward where the others do ends the group, with its reason", "[torn]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    accelerator.backward(net->left(noise(rank.rank)).sum());
    optimizer.step();
    optimizer.zero_grad();
    const auto before = bits(net->parameters());
    auto loss = net->left(noise(rank.rank)).sum();
    if (rank.rank == 1) loss = loss.detach();
    if (rank.rank == 1)
      REQUIRE_THROWS_WITH(accelerator.backward(loss), ContainsSubstring("depends on no parameter"));
    else
      REQUIRE_THROWS_WITH(accelerator.backward(loss),
                          ContainsSubstring("rank 1") && ContainsSubstring("depends on no parameter"));
    // A loop that caught this would give a step of one rank to another step of the others.
    REQUIRE_THROWS_WITH(accelerator.backward(net->left(noise(0)).sum()), ContainsSubstring("given up earlier"));
    REQUIRE(bits(net->parameters()) == before);
  });
}

TEST_CASE("an alias of a gradient that is not cleared follows it, as at one rank", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    const auto loss = [&] { return (model(torch::ones({1}, torch::kDouble)) * 6.0 * (rank.rank + 1)).sum(); };
    accelerator.backward(loss());
    const auto alias = net->weight.grad().detach();
    for (int i = 0; i < 2; ++i) {
      accelerator.backward(loss());
      REQUIRE(alias.item<double>() == net->weight.grad().item<double>());
    }
  });
}

TEST_CASE("gradients set by hand are means: expanded, shared, or of strides of their own", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    accelerator.backward(model(noise(0)).sum() * 0);
    const auto one = torch::ones({1});
    net->first->weight.mutable_grad() = one.expand({7, 5});
    net->second->weight.mutable_grad() = torch::ones({7, 3}).t();
    net->first->bias.mutable_grad() = torch::ones({7});
    net->second->bias.mutable_grad() = net->first->bias.grad().narrow(0, 0, 3);
    {
      auto local = accelerator.no_sync();
      accelerator.backward(net->first(noise(1)).sum() * 0);
    }
    accelerator.backward(model(noise(2)).sum() * 0);
    for (const auto& parameter : net->parameters())
      REQUIRE(distance({parameter.grad()}, {torch::ones_like(parameter)}) < 1e-6);
    REQUIRE(one.item<float>() == 1);
  });
}

TEST_CASE("gradients that have a graph, by create_graph, are reduced and cleared as others are", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    auto [model, optimizer] = accelerator.prepare(net, SGD(net->parameters(), 0.1));
    const auto loss = [&] { return net->left(noise(rank.rank)).square().mean(); };
    const auto penalty = [&] {
      return torch::autograd::grad({loss()}, {net->left->weight}, {}, true, /*create_graph=*/true)[0].square().sum();
    };
    const auto& weight = net->left->weight;
    accelerator.backward(penalty());
    const auto expected = bits({weight.grad(), net->left->bias.grad()});

    loss().backward({}, std::nullopt, /*create_graph=*/true);  // the user's own: another tensor takes its place
    REQUIRE(weight.grad().requires_grad());
    if (rank.world_size > 1) REQUIRE_THROWS_WITH(optimizer.step(), ContainsSubstring("did not run"));
    optimizer.zero_grad();
    accelerator.backward(penalty());
    REQUIRE(bits({weight.grad(), net->left->bias.grad()}) == expected);

    const auto mean = weight.grad().clone();
    const auto leaf = torch::ones_like(mean).requires_grad_();
    weight.mutable_grad() = leaf * 2;
    accelerator.backward(penalty());
    REQUIRE(torch::allclose(weight.grad(), mean + 2));
    REQUIRE(torch::equal(leaf, torch::ones_like(mean)));
  });
}

TEST_CASE("what stood before the first reduction is averaged, also where nobody adds to it", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Halves>();
    net->left->bias.mutable_grad() = torch::full({40}, rank.rank + 1.0);
    auto model = accelerator.prepare(net);
    accelerator.backward(net->right(noise(rank.rank)).sum());
    REQUIRE(distance({net->left->bias.grad()}, {torch::full({40}, (rank.world_size + 1) / 2.0)}) < 1e-6);
  });
}

TEST_CASE("zero_grad lets means go on every rank, also where one of them waits", "[standing]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Line>();
    auto [model, second, optimizer] = accelerator.prepare(net, other, SGD(net->parameters(), 1.0));
    const auto one = torch::ones({1}, torch::kDouble);
    accelerator.backward(10 * model(one).sum());
    {
      auto local = accelerator.no_sync();
      auto loss = second(one).sum();
      if (rank.rank == 0) loss = loss + model(one).sum() * rank.world_size;
      accelerator.backward(loss);
    }
    optimizer.zero_grad();
    accelerator.backward(model(one).sum());
    REQUIRE(std::abs(net->weight.grad().item<double>() - 2) < 1e-12);  // 1 that waited, and 1; not the 10
  });
}

TEST_CASE("zero_grad lets torn gradients go where those of another model wait", "[torn]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto other = std::make_shared<Halves>();
    auto [model, second, optimizer] =
        accelerator.prepare(net, other, SGD({net->weight, other->left->weight, other->right->weight}, 1.0));
    const auto one = torch::ones({1}, torch::kDouble);
    {
      auto local = accelerator.no_sync();
      accelerator.backward(model(one).sum());
      auto hidden = tearing(other->left(noise(0)));
      REQUIRE_THROWS(accelerator.backward(other->right(hidden.narrow(1, 0, 5)).sum()));
    }
    optimizer.zero_grad();
    REQUIRE(net->weight.grad().defined());  // it waits
    REQUIRE_FALSE(other->right->weight.grad().defined());
    accelerator.backward(model(one).sum() + other->left(noise(0)).sum());
    optimizer.step();
    REQUIRE(net->weight.item<double>() == -2);
  });
}
