// Mean, Perplexity, Regression, Auroc and Throughput against values by hand.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <torch/torch.h>

#include <accel/accelerator.hpp>
#include <accel/metrics/auroc.hpp>
#include <accel/metrics/mean.hpp>
#include <accel/metrics/perplexity.hpp>
#include <accel/metrics/regression.hpp>
#include <accel/metrics/throughput.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "one_rank.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::backend::Gloo;
using accel::metrics::Auroc;
using accel::metrics::Mean;
using accel::metrics::Perplexity;
using accel::metrics::Regression;
using accel::metrics::Throughput;
using accel::testing::check_refused;
using accel::testing::Group;
using accel::testing::not_a_number;
using accel::testing::on_ranks;
using accel::testing::one_rank;
using accel::testing::Rank;
using Catch::Matchers::WithinRel;

namespace {

namespace numbers {

double auroc(const accel::metrics::AurocOptions& options, const at::Tensor& scores, const at::Tensor& target) {
  Auroc auroc(options);
  auroc.update(scores, target);
  return auroc.compute(one_rank()).auroc;
}

}  // namespace numbers

}  // namespace

TEST_CASE("a mean over ranks of values, weighted values and means of batches", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Mean mean;
    CHECK(std::isnan(mean.compute(*group)));
    if (rank.rank == 0) {
      mean.update(torch::tensor({{1.0, 2.0}, {3.0, 100.0}, {not_a_number, not_a_number}}), 1);  // 1 and 2
      mean.update(torch::tensor({10.0F, static_cast<float>(not_a_number)}), torch::tensor({0.5, 0.0}));
      mean.update_mean(at::full({1, 1}, 4, at::kInt), 2);
      mean.update_mean(at::full({}, not_a_number), 0);
    }
    CHECK(mean.compute(*group) == (1 + 2 + 5 + 8) / 4.5);
    if (rank.rank == rank.world_size - 1) mean.update(at::full({3}, not_a_number), at::ones({3}), 1);
    CHECK(std::isnan(mean.compute(*group)));  // one that counts shows
  });
}

TEST_CASE("ten million losses of f32 add up without losing digits", "[metrics]") {
  Mean mean;
  const at::Tensor losses = at::full({1'000'000}, 0.1F);
  for (int i = 0; i < 10; ++i) mean.update(losses);
  CHECK_THAT(mean.compute(one_rank()), WithinRel(static_cast<double>(0.1F), 1e-13));
  Mean small;
  small.update_mean(at::full({}, 1e9F), 1);
  for (int i = 0; i < 1000; ++i) small.update_mean(at::full({}, 1e-3F), 1);  // f32 would not see them
  CHECK_THAT(small.compute(one_rank()), WithinRel((1e9 + 1000 * static_cast<double>(1e-3F)) / 1001, 1e-13));
}

TEST_CASE("what a mean cannot be made of is refused", "[metrics]") {
  using namespace numbers;
  Mean mean;
  check_refused([&] { mean.update(at::ones({})); }, "one row per sample, found f32[]; update_mean()");
  check_refused([&] { mean.update(at::Tensor()); }, "found undefined");
  check_refused([&] { mean.update(at::ones({2}, at::kComplexFloat)); }, "expected real values");
  check_refused([&] { mean.update(at::ones({2}), 3); }, "rows = 3 of a batch that has 2");
  check_refused([&] { mean.update(at::ones({2, 2}), at::ones({2})); }, "expected weights like the values f32[2, 2]");
  check_refused([&] { mean.update_mean(at::ones({2}), 1); }, "expected one real number, found f32[2]");
  check_refused([&] { mean.update_mean(at::ones({}), -1); }, "count of at least 0, found -1");
  CHECK(std::isnan(mean.compute(one_rank())));
  mean.update(at::ones({0}));
  mean.update(torch::tensor({3, 5}, at::kByte).transpose(0, 0));
  mean.update(torch::tensor({true, false}));
  CHECK(mean.compute(one_rank()) == 9.0 / 4);
}

TEST_CASE("the perplexity of even logits is the number of tokens, over all ranks", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Perplexity perplexity;
    CHECK(std::isnan(perplexity.compute(*group)));
    if (rank.rank == 0) perplexity.update(at::zeros({2, 8, 3}, at::kBFloat16), at::zeros({2, 3}, at::kInt));
    // The logarithm of f32.
    CHECK_THAT(perplexity.compute(*group), WithinRel(8.0, 1e-6));
    perplexity.reset();
    perplexity.update(at::zeros({2, 8, 3}, at::kDouble), at::full({2, 3}, -100), 1);  // none counts
    CHECK(std::isnan(perplexity.compute(*group)));
    // 3 tokens of 1 each on every rank, and on the last one 4 of none.
    perplexity.update_sum(at::full({}, 3.0F), 3);
    if (rank.rank == rank.world_size - 1) perplexity.update_sum(at::zeros({1}), at::full({}, 4, at::kInt));
    const double tokens = 3.0 * rank.world_size;
    CHECK_THAT(perplexity.compute(*group), WithinRel(std::exp(tokens / (tokens + 4)), 1e-15));
    perplexity.update_sum(at::full({}, not_a_number), 0);
    perplexity.update_sum(at::full({}, not_a_number), at::zeros({1}, at::kLong));
    CHECK_THAT(perplexity.compute(*group), WithinRel(std::exp(tokens / (tokens + 4)), 1e-15));
  });
}

TEST_CASE("perplexity is e to LibTorch's own cross entropy, with filler rows and ignored tokens", "[metrics]") {
  using namespace numbers;
  auto generator = at::detail::createCPUGenerator(4);
  const at::Tensor logits = at::randn({6, 11, 5}, generator, at::kDouble);
  const at::Tensor target = at::randint(11, {6, 5}, generator, at::kLong);
  target[0][1] = -100;
  const auto expected = [&](std::int64_t rows) {
    return at::cross_entropy_loss(logits.narrow(0, 0, rows), target.narrow(0, 0, rows)).exp().item<double>();
  };
  for (const std::int64_t rows : {1, 4, 6}) {
    Perplexity perplexity;
    perplexity.update(logits, target, rows);
    CHECK_THAT(perplexity.compute(one_rank()), WithinRel(expected(rows), 1e-13));
  }
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {  // as computed in f32 of what is given
    Perplexity low, exact;
    low.update(logits.to(dtype), target);
    exact.update(logits.to(dtype).to(at::kDouble), target);
    CHECK_THAT(low.compute(one_rank()), WithinRel(exact.compute(one_rank()), 1e-6));
  }
  Perplexity strict({.ignore_index = {}});
  strict.update(logits, target);
  check_refused([&] { (void)strict.compute(one_rank()); }, "perplexity: 1 target is below 0, or not below the number");
  check_refused([&] { strict.update(target, target); }, "expected logits [N, V, ...]");
  check_refused([&] { strict.update_sum(at::ones({2}), 1); }, "the sum of the losses");
  check_refused([&] { strict.update_sum(at::ones({}), -1); }, "at least 0 tokens");
  check_refused([&] { strict.update_sum(at::ones({}), at::ones({})); }, "one whole number of tokens, found f32[]");
  Perplexity shown;
  shown.update(logits * not_a_number, target);
  CHECK(std::isnan(shown.compute(one_rank())));
}

TEST_CASE("the errors of five numbers by hand", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Regression regression;
    CHECK(std::isnan(regression.compute(*group).mse));
    CHECK(std::isnan(regression.compute(*group).max_error));
    // Errors 0, 1, -1, 2, 0 of targets 1, 2, 3, 4, 5, dealt out.
    const at::Tensor target = torch::tensor({1.0F, 2.0F, 3.0F, 4.0F, 5.0F});
    const at::Tensor prediction = torch::tensor({1.0, 3.0, 2.0, 6.0, 5.0});
    for (std::int64_t i = rank.rank; i < 5; i += rank.world_size)
      regression.update(prediction.narrow(0, i, 1), target.narrow(0, i, 1));
    const auto result = regression.compute(*group);
    CHECK(result.count == 5);
    CHECK(result.mse == 1.2);
    CHECK(result.rmse == std::sqrt(1.2));
    CHECK(result.mae == 0.8);
    CHECK_THAT(result.mape, WithinRel((1 / 2.0 + 1 / 3.0 + 2 / 4.0) / 5, 1e-15));
    CHECK(result.max_error == 2);
    CHECK_THAT(result.r2, WithinRel(1 - 6 / 10.0, 1e-15));
    CHECK(result.outputs.size() == 1);
    if (rank.rank == 0) regression.update(at::full({1}, not_a_number), at::ones({1}));
    const auto shown = regression.compute(*group);
    CHECK((std::isnan(shown.mse) && std::isnan(shown.mae) && std::isnan(shown.max_error) && std::isnan(shown.r2)));
  });
}

TEST_CASE("R2 of targets with a large mean keeps its digits, in batches and over ranks", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    auto generator = at::detail::createCPUGenerator(5);
    // Multiples of 2^-20, so that they and their errors are exact beside 2^32.
    const at::Tensor spread = at::randn({300}, generator, at::kDouble).mul(0x1p20).round().div(0x1p20);
    const at::Tensor error = at::randn({300}, generator, at::kDouble).mul(0x1p18).round().div(0x1p20);
    Regression near, far;
    for (std::int64_t i = rank.rank; i < 30; i += rank.world_size) {
      const at::Tensor own = spread.narrow(0, 10 * i, 10);
      const at::Tensor wrong = error.narrow(0, 10 * i, 10);
      near.update(own.add(wrong), own);
      far.update(own.add(wrong).add(0x1p32), own.add(0x1p32));
    }
    const double r2 = near.compute(*group).r2;
    CHECK(r2 > 0.8);
    CHECK_THAT(1 - far.compute(*group).r2, WithinRel(1 - r2, 1e-12));
  });
}

TEST_CASE("R2 of equal targets is 1 without an error and 0 with one, also of tenths and in batches", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Regression regression;
    const at::Tensor tenths = at::full({7}, 0.1, at::kDouble);
    if (rank.rank != 1) regression.update(tenths, tenths);
    regression.update(tenths, tenths, 3 + rank.rank);
    CHECK(regression.compute(*group).r2 == 1);
    if (rank.rank == 0) regression.update(at::ones({1}), at::full({1}, 0.1, at::kDouble));
    CHECK(regression.compute(*group).r2 == 0);
    Regression single;
    if (rank.rank == 0) single.update(at::ones({1}), at::zeros({1}));
    CHECK(std::isnan(single.compute(*group).r2));
    CHECK(single.compute(*group).mse == 1);
  });
}

TEST_CASE("outputs are judged by themselves", "[metrics]") {
  using namespace numbers;
  auto generator = at::detail::createCPUGenerator(6);
  const at::Tensor target = at::randn({4, 5, 3}, generator, at::kFloat);
  const at::Tensor prediction = at::randn({4, 5, 3}, generator, at::kHalf);
  Regression all({.outputs = 3});
  all.update(prediction, target, 3);
  const auto result = all.compute(one_rank());
  CHECK(result.count == 15);
  double mean = 0;
  for (std::int64_t k = 0; k < 3; ++k) {
    Regression one;
    one.update(prediction.select(2, k), target.select(2, k), 3);
    const auto own = one.compute(one_rank());
    const auto& same = result.outputs[static_cast<std::size_t>(k)];
    CHECK_THAT(same.r2, WithinRel(own.r2, 1e-13));
    CHECK_THAT(same.mse, WithinRel(own.mse, 1e-13));
    CHECK(same.max_error == own.max_error);
    mean += own.rmse / 3;
  }
  CHECK_THAT(result.rmse, WithinRel(mean, 1e-13));
  CHECK(result.max_error ==
        std::max({result.outputs[0].max_error, result.outputs[1].max_error, result.outputs[2].max_error}));
  check_refused([&] { all.update(target.select(2, 0), target.select(2, 0)); },
                "[N, ..., 3] for as many outputs, found f32[4, 5]");
  check_refused([&] { all.update(target, target.select(2, 0)); }, "expected numbers of the target's shape");
  check_refused([] { Regression().update(at::ones({4, 1}), at::ones({4})); }, ".squeeze(1)");
  check_refused([] { Regression().update(at::ones({4}, at::kBool), at::ones({4})); }, "expected numbers");
  check_refused([] { Regression().update(at::ones({4}), at::ones({4}), 5); }, "rows = 5");
  check_refused([] { (void)Regression{{.outputs = 0}}; }, "expected 1 to 2^31 outputs, found 0");
}

TEST_CASE("the area of scores by hand: pairs that are won, ties half", "[metrics]") {
  using namespace numbers;
  const at::Tensor target = torch::tensor({0, 0, 1, 1});
  CHECK(auroc({}, torch::tensor({0.1, 0.4, 0.35, 0.8}), target) == 0.75);
  CHECK(auroc({}, torch::tensor({0.1F, 0.2F, 0.3F, 1.0F}), target) == 1.0);
  CHECK(auroc({}, torch::tensor({1.0, 0.9, 0.1, 0.0}), target) == 0.0);
  CHECK(auroc({}, at::full({4}, 0.5), target) == 0.5);
  CHECK(auroc({}, torch::tensor({0.1, 0.5, 0.5, 0.9}), target.to(at::kBool)) == 3.5 / 4);
  CHECK(auroc({.lowest = -8, .highest = 8}, torch::tensor({-7.9, 2.0, 1.0, 3.0}), target) == 0.75);
  CHECK(std::isnan(auroc({}, at::full({4}, 0.5), at::ones({4}, at::kLong))));
  CHECK(std::isnan(Auroc().compute(one_rank()).auroc));
  // Three classes, each against the others: 1, 1 and 0.75.
  const at::Tensor scores = torch::tensor({{0.9, 0.1, 0.0}, {0.2, 0.8, 0.0}, {0.3, 0.3, 0.4}, {0.6, 0.1, 0.3}});
  Auroc three({.classes = 3});
  three.update(scores, torch::tensor({0, 1, 2, 0}));
  const auto result = three.compute(one_rank());
  REQUIRE(result.classes.size() == 3);
  CHECK(result.classes[0].auroc == 1);
  CHECK(result.classes[1].auroc == 1);
  CHECK(result.classes[2].auroc == 1);
  three.update(scores, torch::tensor({0, 1, 1, 2}));
  CHECK(three.compute(one_rank()).classes[2].auroc == 10.0 / 12);
}

TEST_CASE("every multiple of a bin has one of its own, in f32 and in f64", "[metrics]") {
  using namespace numbers;
  for (const std::int64_t bins : {2, 11, 101, 1001, 4096}) {
    const at::Tensor grid = at::arange(bins, at::kDouble).div(bins - 1);
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      // Each pair of neighbours, the upper one positive: won, not tied.
      Auroc auroc({.bins = bins});
      auroc.update(grid.to(dtype), at::arange(bins).eq(bins - 1));
      CHECK(auroc.compute(one_rank()).auroc == 1.0);
      CHECK(auroc.compute(one_rank()).error_bound == 0.0);
      const at::Tensor cells = auroc.counts().narrow(0, 0, 2 * bins).view({2, bins}).sum(0);
      CHECK(cells.equal(at::ones({bins}, at::kLong)));
    }
  }
}

TEST_CASE("the area of continuous scores is off by no more than is said, and that shrinks with the bins", "[metrics]") {
  using namespace numbers;
  auto generator = at::detail::createCPUGenerator(7);
  const at::Tensor target = at::randint(2, {400}, generator, at::kLong);
  const at::Tensor scores = at::randn({400}, generator, at::kDouble).add(target).sigmoid();
  const at::Tensor positives = scores.masked_select(target.eq(1)).unsqueeze(1);
  const at::Tensor negatives = scores.masked_select(target.eq(0)).unsqueeze(0);
  const double exact = positives.gt(negatives).to(at::kDouble).mean().item<double>();
  double last = 1;
  for (const std::int64_t bins : {2, 5, 17, 129, 4097, 1 << 22}) {
    Auroc auroc({.bins = bins});
    auroc.update(scores, target);
    const auto result = auroc.compute(one_rank());
    INFO(bins << " bins: " << result.auroc << " within " << result.error_bound << " of " << exact);
    CHECK(std::abs(result.auroc - exact) <= result.error_bound + 1e-15);
    CHECK(result.error_bound <= last);
    last = result.error_bound;
  }
  CHECK(last < 1e-4);
}

TEST_CASE("scores and targets that have no bin are an error, ignored ones not", "[metrics]") {
  using namespace numbers;
  const at::Tensor target = torch::tensor({0, 1, -100, 1});
  const at::Tensor scores = torch::tensor({0.5, not_a_number, not_a_number, 1.5});
  Auroc strict;
  strict.update(scores, target);
  check_refused([&] { (void)strict.compute(one_rank()); }, "auroc: 1 target is outside of 0..1");
  Auroc ignoring({.ignore_index = -100});
  ignoring.update(scores, target);
  check_refused([&] { (void)ignoring.compute(one_rank()); }, "auroc: scores of 2 rows are outside of [0, 1]");
  ignoring.reset();
  ignoring.update(scores, torch::tensor({1, -100, -100, -100}));
  ignoring.update(torch::tensor({0.1, not_a_number}), torch::tensor({0, 7}), 1);
  CHECK(ignoring.compute(one_rank()).auroc == 1.0);
  check_refused([] { Auroc().update(at::rand({4, 2}), at::ones({4}, at::kLong)); },
                "give the scores of class 1: .select(1, 1)");
  check_refused([] { Auroc({.classes = 3}).update(at::rand({4, 4}), at::ones({4}, at::kLong)); },
                "of 3 classes, found f32[4, 4]");
  check_refused([] { Auroc().update(at::ones({4}, at::kLong), at::ones({4}, at::kLong)); }, "expected scores [N, ...]");
  check_refused([] { (void)Auroc{{.classes = 1}}; }, "at least 2 classes and 2 bins");
  check_refused([] { (void)Auroc{{.bins = 1}}; }, "at least 2 classes and 2 bins");
  check_refused([] { (void)Auroc{{.classes = 1 << 20, .bins = 1 << 20}}; }, "a product of at most");
  check_refused([] { (void)Auroc{{.lowest = 1, .highest = 1}}; }, "expected lowest below highest");
  check_refused([] { (void)Auroc{{.lowest = not_a_number}}; }, "expected lowest below highest");
}

TEST_CASE("throughput is all samples over the time of the slowest rank", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Throughput throughput;
    auto result = throughput.compute(*group);
    CHECK((result.samples == 0 && std::isnan(result.samples_per_s) && std::isnan(result.step_time_ms)));
    // Rank r takes (r + 1) / 4 s for each of two steps; rank 1 takes a third of no rows.
    for (int step = 0; step < 2; ++step) throughput.update(8, accel::Seconds(0.25 * (rank.rank + 1)));
    if (rank.rank == 1) throughput.update(0, accel::Seconds(0));
    result = throughput.compute(*group);
    CHECK(result.samples == 16 * rank.world_size);
    CHECK(result.seconds == 0.5 * rank.world_size);
    CHECK(result.samples_per_s == 32);
    // The slowest rank's: with three ranks rank 2's, with two rank 1's, which made a step more.
    CHECK_THAT(result.step_time_ms, WithinRel(rank.world_size == 2 ? 1000.0 / 3 : 250.0 * rank.world_size, 1e-15));
  });
}

TEST_CASE("the clock of throughput runs between updates, and not from the last one to start", "[metrics]") {
  using namespace numbers;
  Throughput throughput;
  const accel::testing::Stopwatch all;
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  throughput.update(4);
  const double until_update = throughput.compute(one_rank()).seconds;
  CHECK(until_update >= 0.03);
  CHECK(until_update <= all.seconds() + 0.001);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));  // an evaluation
  throughput.start();
  throughput.update(4);
  CHECK(throughput.compute(one_rank()).seconds <= all.seconds() - 0.03 + 0.001);
  CHECK(throughput.compute(one_rank()).samples == 8);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  throughput.reset();
  const accel::testing::Stopwatch since_reset;
  throughput.update(1);
  CHECK(throughput.compute(one_rank()).seconds <= since_reset.seconds() + 0.001);
  check_refused([&] { throughput.update(-1); }, "rows and seconds of at least 0");
  check_refused([&] { throughput.update(1, accel::Seconds(not_a_number)); }, "rows and seconds of at least 0");
}
