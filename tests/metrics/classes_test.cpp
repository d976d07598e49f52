// Accuracy, ConfusionMatrix and PrecisionRecallF1 against values by hand: shapes, dtypes, ties, and what does not count.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <torch/torch.h>

#include <accel/accelerator.hpp>
#include <accel/metrics/accuracy.hpp>
#include <accel/metrics/confusion_matrix.hpp>
#include <accel/metrics/precision_recall_f1.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>

#include "one_rank.hpp"

using accel::metrics::Accuracy;
using accel::metrics::Average;
using accel::metrics::ConfusionMatrix;
using accel::metrics::Normalize;
using accel::metrics::PrecisionRecallF1;
using accel::testing::check_refused;
using accel::testing::not_a_number;
using accel::testing::one_rank;

namespace {

namespace classes {

/// Of one update.
double accuracy(const accel::metrics::AccuracyOptions& options, const at::Tensor& prediction, const at::Tensor& target,
                std::optional<std::int64_t> rows = {}) {
  Accuracy accuracy(options);
  accuracy.update(prediction, target, rows);
  return accuracy.compute(one_rank());
}

at::Tensor matrix(const accel::metrics::ConfusionMatrixOptions& options, const at::Tensor& prediction,
                  const at::Tensor& target, std::optional<std::int64_t> rows = {}) {
  ConfusionMatrix matrix(options);
  matrix.update(prediction, target, rows);
  return matrix.compute(one_rank());
}

at::Tensor scores() {
  return torch::tensor({{0.1, 0.7, 0.2}, {0.5, 0.3, 0.2}, {0.0, 0.4, 0.6}, {0.3, 0.3, 0.4}});
}
at::Tensor truth() {
  return torch::tensor({1, 1, 2, 0});
}

}  // namespace classes

}  // namespace

TEST_CASE("top 1, 2 and 3 of four rows by hand", "[metrics]") {
  using namespace classes;
  CHECK(accuracy({}, scores(), truth()) == 0.5);
  CHECK(accuracy({.top_k = 2}, scores(), truth()) == 1.0);
  CHECK(accuracy({.top_k = 3}, scores(), truth()) == 1.0);
  // Row 3: the classes in order are 2, 0, 1, so that 1 is not among the first two.
  CHECK(accuracy({.top_k = 2}, scores(), torch::tensor({1, 1, 2, 1})) == 0.75);
  CHECK(accuracy({}, scores().argmax(1), truth()) == 0.5);
}

TEST_CASE("of equal scores the class of the lower number is before the other, for every k", "[metrics]") {
  using namespace classes;
  const at::Tensor equal = at::zeros({5, 5});  // a network that says nothing
  for (std::int64_t k = 1; k <= 5; ++k) {
    for (std::int64_t c = 0; c < 5; ++c)
      CHECK(accuracy({.top_k = k}, equal.slice(0, 0, 1), at::full({1}, c, at::kLong)) == (c < k ? 1.0 : 0.0));
    CHECK(accuracy({.top_k = k}, equal, at::arange(5)) == static_cast<double>(k) / 5);
  }
  const double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor masked = torch::tensor({{-infinity, 1.0, -infinity, infinity}});
  CHECK(accuracy({.top_k = 3}, masked, torch::tensor({0})) == 1.0);
  CHECK(accuracy({.top_k = 3}, masked, torch::tensor({2})) == 0.0);
}

TEST_CASE("accuracy is the diagonal of the confusion matrix, with ties, for any dtype and layout", "[metrics]") {
  using namespace classes;
  auto generator = at::detail::createCPUGenerator(3);
  const at::Tensor logits = at::randint(-2, 3, {60, 4, 3, 2}, generator, at::kDouble);  // many ties
  const at::Tensor target = at::randint(4, {60, 3, 2}, generator, at::kLong);
  const at::Tensor expected = matrix({.classes = 4}, logits, target);
  CHECK(expected.sum().item<std::int64_t>() == 360);
  const double right = expected.trace().item<double>() / 360;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16})
    for (const auto whole : {at::kLong, at::kInt, at::kShort, at::kChar, at::kByte}) {
      CHECK(accuracy({}, logits.to(dtype), target.to(whole)) == right);
      CHECK(matrix({.classes = 4}, logits.to(dtype), target.to(whole)).equal(expected));
    }
  const at::Tensor last = logits.movedim(1, -1).contiguous().movedim(-1, 1);
  REQUIRE_FALSE(last.is_contiguous());
  CHECK(accuracy({}, last, target) == right);
  CHECK(accuracy({.top_k = 2}, last, target) == accuracy({.top_k = 2}, logits, target));
  CHECK(matrix({.classes = 4}, last, target.transpose(1, 2).contiguous().transpose(1, 2)).equal(expected));
}

TEST_CASE("scores of class 1 and flags are judged by the threshold", "[metrics]") {
  using namespace classes;
  const at::Tensor logits = torch::tensor({-1.0F, 0.0F, 0.25F, 3.0F});
  const at::Tensor flags = torch::tensor({0, 1, 1, 0}, at::kBool);
  CHECK(accuracy({}, logits, flags) == 0.5);  // 0 is not above 0
  CHECK(accuracy({.threshold = 0.5}, logits, flags) == 0.25);
  CHECK(accuracy({}, logits.gt(0), flags) == 0.5);
  CHECK(matrix({}, logits, flags).equal(torch::tensor({1, 1, 1, 1}).view({2, 2})));
  CHECK(matrix({.threshold = 0.5}, logits, flags.to(at::kByte)).equal(torch::tensor({1, 1, 2, 0}).view({2, 2})));
}

TEST_CASE("only the leading rows count, and none of none", "[metrics]") {
  using namespace classes;
  for (const std::int64_t rows : {0, 1, 2, 3, 4}) {
    const at::Tensor filled = scores().clone();
    filled.narrow(0, rows, 4 - rows).fill_(not_a_number);  // what a filler row holds is nobody's affair
    const at::Tensor padded = truth().clone();
    padded.narrow(0, rows, 4 - rows).fill_(1000);
    const double right =
        rows == 0 ? not_a_number : accuracy({}, scores().narrow(0, 0, rows), truth().narrow(0, 0, rows));
    const double found = accuracy({}, filled, padded, rows);
    CHECK((found == right || (rows == 0 && std::isnan(found))));
    CHECK(matrix({.classes = 3}, filled, padded, rows).sum().item<std::int64_t>() == rows);
  }
  CHECK(std::isnan(accuracy({}, at::ones({0, 3}), at::ones({0}, at::kLong))));
  CHECK(std::isnan(accuracy({}, at::ones({2, 3, 0}), at::ones({2, 0}, at::kLong))));
  check_refused([] { (void)accuracy({}, scores(), truth(), 5); }, "rows = 5 of a batch that has 4");
  check_refused([] { (void)accuracy({}, scores(), truth(), -1); }, "rows = -1");
  check_refused([] { (void)matrix({.classes = 3}, scores(), truth(), 5); }, "rows = 5 of a batch that has 4");
}

TEST_CASE("ignored targets do not count, whatever is predicted for them", "[metrics]") {
  using namespace classes;
  for (const std::int64_t ignored : {-100, 0, 2, 255}) {
    const at::Tensor target = torch::tensor({1, 1, 1, 1});
    target[1].fill_(ignored);
    const at::Tensor with_nan = scores().clone();
    with_nan[1].fill_(not_a_number);
    CHECK(accuracy({.ignore_index = ignored}, with_nan, target) == 1.0 / 3);
    CHECK(accuracy({.top_k = 2, .ignore_index = ignored}, with_nan, target) == 2.0 / 3);
    CHECK(matrix({.classes = 3, .ignore_index = ignored}, with_nan, target)
              .equal(torch::tensor({0, 0, 0, 0, 1, 2, 0, 0, 0}).view({3, 3})));
  }
  CHECK(std::isnan(accuracy({.ignore_index = 1}, scores(), at::ones({4}, at::kLong))));
}

TEST_CASE("what cannot be counted is an error of compute, until the reset", "[metrics]") {
  using namespace classes;
  const auto bad_target = torch::tensor({1, -100, 3, 0});
  check_refused([&] { (void)accuracy({}, scores(), bad_target); }, "accuracy: 2 targets are below 0, or not below");
  check_refused([&] { (void)accuracy({.top_k = 2}, scores(), bad_target); }, "accuracy: 2 targets are below 0");
  check_refused([&] { (void)accuracy({.ignore_index = -100}, scores(), bad_target); }, "accuracy: 1 target is below 0");
  check_refused([&] { (void)matrix({.classes = 3}, scores(), bad_target); },
                "confusion matrix: 2 targets are outside of 0..2");
  const at::Tensor huge = at::full({4}, std::numeric_limits<std::int64_t>::max());
  check_refused([&] { (void)matrix({.classes = 3}, scores(), huge); }, "4 targets are outside of 0..2");
  check_refused([&] { (void)matrix({.classes = 3}, huge, truth()); }, "4 predictions are NaN or outside of 0..2");
  const at::Tensor bad_scores = scores().clone();
  bad_scores[2][0] = not_a_number;
  for (const std::int64_t k : {1, 2})
    check_refused([&] { (void)accuracy({.top_k = k}, bad_scores, truth()); }, "accuracy: 1 prediction is NaN");
  check_refused([&] { (void)matrix({.classes = 3}, bad_scores, truth()); }, "1 prediction is NaN or outside of 0..2");
  check_refused([&] { (void)accuracy({}, at::full({2}, not_a_number), torch::tensor({0, 1})); },
                "2 predictions are NaN");
  check_refused([&] { (void)accuracy({}, at::ones({2}), torch::tensor({0, 2})); }, "1 target is below 0, or not below");
  check_refused([&] { (void)accuracy({}, torch::tensor({0, -1}), torch::tensor({0, 1})); },
                "1 prediction is NaN or a label below");

  ConfusionMatrix counted({.classes = 3});
  counted.update(scores(), bad_target);
  counted.update(scores(), truth());
  check_refused([&] { (void)counted.compute(one_rank()); }, "2 targets");
  counted.reset();
  counted.update(scores(), truth());
  CHECK(counted.compute(one_rank()).sum().item<std::int64_t>() == 4);
}

TEST_CASE("shapes and dtypes that say nothing clear are refused at once", "[metrics]") {
  using namespace classes;
  Accuracy accuracy;
  const auto update_refused = [&](const at::Tensor& prediction, const at::Tensor& target, const std::string& why) {
    check_refused([&] { accuracy.update(prediction, target); }, why);
  };
  update_refused(at::ones({4, 3}), at::ones({4}), "expected a target of classes");
  update_refused(at::ones({4, 3}), at::ones({4}, at::kUInt16), "expected a target of classes");
  update_refused(at::ones({4, 3}), at::ones({3}, at::kLong), "found f32[4, 3] and i64[3]");
  update_refused(at::ones({4, 1}), at::ones({4}, at::kLong), "found f32[4, 1] and i64[4]");
  update_refused(at::ones({4, 5, 3}), at::ones({4, 5}, at::kLong), "move them with .movedim(-1, 1)");
  update_refused(at::ones({4, 3}, at::kLong), at::ones({4}, at::kLong), "found i64[4, 3] and i64[4]");
  update_refused(at::ones({4}, at::kComplexFloat), at::ones({4}, at::kLong), "found c64[4]");
  update_refused(at::ones({}), at::ones({}, at::kLong), ".unsqueeze(0)");
  update_refused(at::Tensor(), at::ones({4}, at::kLong), "found undefined");
  update_refused(at::ones({4, 3}, at::device(at::kMeta)), at::ones({4}, at::kLong), "on meta, the target on cpu");
  CHECK(std::isnan(accuracy.compute(one_rank())));
  check_refused([] { (void)Accuracy{{.top_k = 0}}; }, "top_k of at least 1");
  check_refused([] { Accuracy{{.top_k = 4}}.update(scores(), truth()); }, "no top 4 of f32[4, 3]");
  check_refused([] { Accuracy{{.top_k = 2}}.update(truth(), truth()); }, "no top 2 of i64[4]");
  check_refused([] { (void)ConfusionMatrix{{.classes = 1}}; }, "expected 2 to 32768 classes, found 1");
  check_refused([] { (void)ConfusionMatrix{{.classes = std::numeric_limits<std::int64_t>::max()}}; }, "expected 2 to");
  check_refused([] { ConfusionMatrix{{.classes = 4}}.update(scores(), truth()); },
                "say how many there are: {.classes = 3}");
  check_refused([] { ConfusionMatrix{{.classes = 4}}.update(at::ones({4}), truth()); }, "expected scores of 4 classes");
}

TEST_CASE("a matrix is normalised by rows, columns or all, and an empty one is 0", "[metrics]") {
  using namespace classes;
  const at::Tensor counts = torch::tensor({3, 1, 0, 0, 0, 0, 1, 0, 4}).view({3, 3});
  const auto expect = [&](Normalize by, const std::vector<double>& cells) {
    CHECK(accel::metrics::normalized(counts, by).equal(torch::tensor(cells, at::kDouble).view({3, 3})));
  };
  expect(Normalize::target, {0.75, 0.25, 0, 0, 0, 0, 0.2, 0, 0.8});
  expect(Normalize::prediction, {0.75, 1, 0, 0, 0, 0, 0.25, 0, 1});
  expect(Normalize::all, {3.0 / 9, 1.0 / 9, 0, 0, 0, 0, 1.0 / 9, 0, 4.0 / 9});
  const at::Tensor none = ConfusionMatrix{{.classes = 3}}.compute(one_rank());
  for (const auto by : {Normalize::target, Normalize::prediction, Normalize::all})
    CHECK(accel::metrics::normalized(none, by).equal(at::zeros({3, 3}, at::kDouble)));
}

TEST_CASE("precision, recall and F1 of two classes by hand", "[metrics]") {
  using namespace classes;
  PrecisionRecallF1 f1;
  f1.update(torch::tensor({1, 1, 1, 0, 0, 0, 0, 0}), torch::tensor({1, 1, 0, 1, 1, 0, 0, 0}));
  const auto result = f1.compute(one_rank());
  CHECK(result.precision == 2.0 / 3);
  CHECK(result.recall == 0.5);
  CHECK(result.f_beta == 4.0 / 7);
  CHECK(result.support == 4);
  REQUIRE(result.classes.size() == 2);
  CHECK(result.classes[0].precision == 0.6);
  CHECK(result.classes[0].recall == 0.75);
  CHECK(result.classes[0].support == 4);
}

TEST_CASE("without anything to divide by, a score is what zero_division says; without anything at all NaN",
          "[metrics]") {
  using namespace classes;
  for (const double value : {0.0, 1.0, not_a_number}) {
    const auto is_value = [&](double score) { return score == value || (std::isnan(value) && std::isnan(score)); };
    for (const auto average : {Average::binary, Average::macro, Average::weighted, Average::micro}) {
      PrecisionRecallF1 f1({.average = average, .zero_division = value});
      const auto empty = f1.compute(one_rank());
      CHECK((std::isnan(empty.precision) && std::isnan(empty.recall) && std::isnan(empty.f_beta)));
      CHECK(empty.support == 0);
      f1.update(torch::tensor({0, 0}), torch::tensor({0, 0}));
      const auto result = f1.compute(one_rank());
      if (average == Average::binary) {
        CHECK((is_value(result.precision) && is_value(result.recall) && is_value(result.f_beta)));
      } else {
        CHECK((result.precision == 1 && result.recall == 1 && result.f_beta == 1));
        CHECK(result.support == 2);
      }
      CHECK(is_value(result.classes[1].f_beta));
    }
  }
}

TEST_CASE("options of precision and recall that make no sense are refused", "[metrics]") {
  using namespace classes;
  check_refused([] { (void)PrecisionRecallF1{{.classes = 1}}; }, "expected 2 to 2^31 classes, found 1");
  check_refused([] { (void)PrecisionRecallF1{{.classes = 3}}; }, "choose macro, weighted or micro for more, found 3");
  check_refused([] { (void)PrecisionRecallF1{{.beta = -1}}; }, "beta of at least 0");
  check_refused([] { (void)PrecisionRecallF1{{.beta = not_a_number}}; }, "beta of at least 0");
  check_refused([] { (void)PrecisionRecallF1{{.zero_division = 0.5}}; }, "zero_division 0, 1 or NaN");
  PrecisionRecallF1 f1({.classes = 3, .average = Average::macro});
  f1.update(scores(), torch::tensor({1, 3, -1, 0}));
  check_refused([&] { (void)f1.compute(one_rank()); }, "precision, recall and F1: 2 targets are outside of 0..2");
  f1.reset();
  f1.update(torch::tensor({0, 5, 1, 2}), truth());
  check_refused([&] { (void)f1.compute(one_rank()); }, "1 prediction is NaN or outside of 0..2");
}
