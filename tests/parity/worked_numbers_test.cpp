// The worked numbers of accumulation: y = 2 x, model w x, w = 0, mean squared error, plain SGD.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>

using namespace accel;
using namespace accel::testing;
using gradient::LossNormalization;

namespace {

struct Case {
  std::int64_t rows;
  std::int64_t batch_size;
  int steps;
  double rate;
  LossNormalization scale;
  std::vector<double> weights;  // after each optimizer step
  bool even_batches = false;
};

void check(const Case& expected) {
  Accelerator<backend::Gloo, precision::Fp32> accelerator(
      {.accumulation_steps = expected.steps, .loss_normalization = expected.scale});
  auto net = std::make_shared<Line>();
  auto [model, optimizer, loader] =
      accelerator.prepare(net, torch::optim::SGD(net->parameters(), expected.rate),
                          data::DataLoader{Doubles{expected.rows},
                                           {.batch_size = expected.batch_size, .even_batches = expected.even_batches}});
  std::vector<double> weights;
  for (auto& batch : loader) {
    auto micro_step = accelerator.accumulate(batch);
    accelerator.backward(squared_error(model(batch.x), batch.y));
    optimizer.step();
    optimizer.zero_grad();
    if (micro_step.synchronises()) weights.push_back(net->weight.item<double>());
  }
  CAPTURE(expected.rows, expected.batch_size, expected.steps, weights);
  REQUIRE(weights.size() == expected.weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) REQUIRE(std::abs(weights[i] - expected.weights[i]) < 5e-7);
}

constexpr auto by_length = LossNormalization::window_length;
constexpr auto by_steps = LossNormalization::fixed_steps;

}  // namespace

TEST_CASE("one rank: Accelerate's weights with fixed_steps, the true means with window_length", "[parity]") {
  on_ranks({1}, [](Rank) {
    for (const auto scale : {by_length, by_steps}) {
      check({8, 2, 4, 0.02, scale, {2.04}});
      check({8, 2, 2, 0.01, scale, {0.3, 1.779}});
      check({8, 2, 1, 0.005, scale, {0.05, 0.29375, 0.814156, 1.484158}});
    }
    check({6, 2, 2, 0.02, by_steps, {0.6, 1.454}});
    check({6, 2, 2, 0.02, by_length, {0.6, 2.308}});
    check({6, 2, 4, 0.02, by_steps, {0.91}});
    check({6, 2, 4, 0.02, by_length, {1.213333}});
    check({10, 2, 4, 0.01, by_steps, {1.02, 1.46345}});
    check({10, 2, 4, 0.01, by_length, {1.02, 2.7938}});
    check({7, 2, 2, 0.01, by_steps, {0.3, 1.6515}});
    check({7, 2, 2, 0.01, by_length, {0.3, 1.6515}});
  });
}

TEST_CASE("two ranks: Accelerate's weights over DDP", "[parity]") {
  on_ranks({2}, [](Rank) {
    for (const auto scale : {by_length, by_steps}) {
      check({16, 2, 2, 0.005, scale, {0.51, 2.91635}});
      check({8, 2, 1, 0.01, scale, {0.3, 1.779}});
    }
    check({10, 2, 2, 0.005, by_steps, {0.51, 0.856425}, /*even_batches=*/true});
  });
}

TEST_CASE("every row counts once: ranks and one process take the same steps to rounding", "[parity]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (std::int64_t rows = 1; rows <= 14; ++rows) {
      // One process with the global batch, by hand.
      const std::int64_t global = 2 * rank.world_size;
      double w = 0;
      std::vector<double> weights;
      for (std::int64_t begin = 0; begin < rows; begin += global) {
        double sum = 0;
        const auto end = std::min(rows, begin + global);
        for (auto x = begin + 1; x <= end; ++x) sum += 2 * (w - 2) * static_cast<double>(x * x);
        w -= 0.005 * sum / static_cast<double>(end - begin);
        weights.push_back(w);
      }
      check({rows, 2, 1, 0.005, by_length, weights});
    }
  });
}
