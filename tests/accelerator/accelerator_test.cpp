#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Single = Accelerator<backend::Single, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;
using torch::optim::SGD;

TEST_CASE("describe says what was detected, from where, and every default in force", "[accelerator]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator({.accumulation_steps = 3});
    const auto text = accelerator.describe();
    const auto world = std::to_string(rank.world_size);
    const std::vector<std::string> parts{"launched by: environment variables",
                                         "rank: " + std::to_string(rank.rank) + " of " + world,
                                         "WORLD_SIZE=" + world,
                                         "backend: gloo",
                                         "timeout_s = 600",
                                         "precision: fp32",
                                         "accumulation_steps: 3",
                                         "scheduler_stepping: PerUpdate",
                                         "buckets of an eighth of the gradients (1 to 25 MiB), the last of 1 MiB",
                                         "rendezvous timeout: 300 s",
                                         "intra-op threads: 1",
                                         "log: info",
                                         "LibTorch 2."};
    for (const auto& part : parts) REQUIRE_THAT(text, ContainsSubstring(part));
  });
}

TEST_CASE("ranks know who they are", "[accelerator]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    REQUIRE(accelerator.rank() == rank.rank);
    REQUIRE(accelerator.world_size() == rank.world_size);
    REQUIRE(accelerator.is_main_process() == (rank.rank == 0));
    REQUIRE(accelerator.is_local_main_process() == (rank.rank == 0));
    REQUIRE(accelerator.device() == torch::kCPU);
  });
}

TEST_CASE("print writes once per host, and errors say who speaks", "[accelerator]") {
  const auto results = run_ranks(2, [](Rank) {
    Gloo accelerator;
    accelerator.print("loss ", 0.5);
    accelerator.log().info("only the main rank");
    accelerator.log().warning("every rank");
    try {
      accelerator.backward(torch::ones({3}));
    } catch (const InvalidArgument& error) {
      std::cout << "caught " << error.what() << std::endl;
    }
  });
  if (results.front().output.empty()) return;  // inside a rank
  REQUIRE_THAT(results[0].output, ContainsSubstring("loss 0.5\n") &&
                                      ContainsSubstring("accel: [rank 0/2] only the main rank\n") &&
                                      ContainsSubstring("accel: [rank 0/2] warning: every rank\n"));
  REQUIRE_THAT(results[1].output,
               !ContainsSubstring("loss 0.5") && !ContainsSubstring("only the main rank") &&
                   ContainsSubstring("accel: [rank 1/2] warning: every rank\n") &&
                   ContainsSubstring("caught [rank 1/2] backward: expected a loss of one number, found f32[3]"));
}

TEST_CASE("Single refuses several ranks at once, without waiting for them", "[accelerator]") {
  on_ranks({2}, [](Rank rank) {
    if (rank.rank == 0) REQUIRE_THROWS_WITH(Single(), ContainsSubstring("backend::Single is for one rank"));
  });
}

TEST_CASE("a loss that cannot be differentiated is refused before anything is sent", "[accelerator]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator;
    auto model = accelerator.prepare(std::make_shared<Mlp>());
    accelerator.wait_for_everyone();  // the first to be refused ends the group
    REQUIRE_THROWS_WITH(accelerator.backward(torch::Tensor()), ContainsSubstring("found undefined"));
    REQUIRE_THROWS_WITH(accelerator.backward(model(torch::ones({2, 5}))), ContainsSubstring("f32[2, 3]"));
    torch::NoGradGuard no_grad;
    REQUIRE_THROWS_WITH(accelerator.backward(model(torch::ones({2, 5})).sum()),
                        ContainsSubstring("depends on no parameter"));
  });
}

TEST_CASE("backward outside of accumulate is an error where there is something to accumulate", "[accelerator]") {
  Single accelerator({.accumulation_steps = 2});
  auto model = accelerator.prepare(std::make_shared<Mlp>());
  REQUIRE_THROWS_WITH(accelerator.backward(model(torch::ones({2, 5})).sum()), ContainsSubstring("accumulate(batch)"));
}

TEST_CASE("two accelerators in one process do not meet", "[accelerator]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo first;
    Gloo second;
    auto a = first.prepare(std::make_shared<Line>());
    auto b = second.prepare(std::make_shared<Line>());
    const auto x = torch::tensor({1.0 + rank.rank}, torch::kDouble);
    const double mean = (rank.world_size + 1) / 2.0;
    second.backward(b(2 * x).sum());
    first.backward(a(x).sum());
    REQUIRE(std::abs(a->weight.grad().item<double>() - mean) < 1e-12);
    REQUIRE(std::abs(b->weight.grad().item<double>() - 2 * mean) < 1e-12);
  });
}

TEST_CASE("destroying an accelerator and making another works, wrappers may outlive it", "[accelerator]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    auto net = std::make_shared<Line>();
    for (int i = 0; i < 4; ++i) {
      auto accelerator = std::make_unique<Gloo>();
      auto [model, optimizer] = accelerator->prepare(net, SGD(net->parameters(), 0.0));
      accelerator->backward(model(torch::tensor({1.0 + rank.rank}, torch::kDouble)).sum());
      REQUIRE(std::abs(net->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-12);
      accelerator.reset();
      optimizer.step();
      optimizer.zero_grad();
    }
  });
}

TEST_CASE("clipping bounds the norm of the mean, once per optimizer step", "[accelerator]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator({.accumulation_steps = 2});
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    const auto x = torch::tensor({8.0 * (1 + rank.rank)}, torch::kDouble);
    const double mean = 8.0 * (rank.world_size + 1) / 2.0;
    for (int i = 0; i < 2; ++i) {
      auto micro_step = accelerator.accumulate();
      accelerator.backward(model(x).sum());
      const double norm = accelerator.clip_grad_norm_(model, 1.0).item<double>();
      if (i == 0) {
        REQUIRE(std::isnan(norm));
        REQUIRE(std::abs(net->weight.grad().item<double>()) > 1.0);
      } else {
        REQUIRE(norm == mean);
        REQUIRE(std::abs(net->weight.grad().item<double>() - 1.0) < 1e-6);
      }
    }
  });
}

TEST_CASE("a batch size that backward cannot weigh with two loaders in flight is refused", "[accelerator]") {
  on_ranks({2}, [](Rank) {
    for (const bool says_which : {true, false}) {
      Gloo accelerator;
      auto [model, one, two] =
          accelerator.prepare(std::make_shared<Line>(), data::DataLoader{Doubles{3}, {.batch_size = 2}},
                              data::DataLoader{Doubles{4}, {.batch_size = 2}});
      auto a = one.begin();
      auto b = two.begin();
      if (says_which) {
        auto micro_step = accelerator.accumulate(*a);  // rows 2 and 1 of 3
        accelerator.backward(model((*a).x).mean());
        // (1 + 2) / 2 * 2/3 + 3 * 1/3
        REQUIRE(std::abs(model->weight.grad().item<double>() - 2.0) < 1e-12);
      } else {
        REQUIRE_THROWS_WITH(accelerator.backward(model((*a).x).sum()), ContainsSubstring("accumulate(batch)"));
      }
    }
  });
}
