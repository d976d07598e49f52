// Metrics over ranks with unequal rows, one of them with none, against scikit-learn on all rows at once, run live.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <accel/accelerator.hpp>
#include <accel/metrics/accuracy.hpp>
#include <accel/metrics/auroc.hpp>
#include <accel/metrics/confusion_matrix.hpp>
#include <accel/metrics/mean.hpp>
#include <accel/metrics/perplexity.hpp>
#include <accel/metrics/precision_recall_f1.hpp>
#include <accel/metrics/regression.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

namespace scikit {

using namespace accel::metrics;
using accel::backend::Gloo;
using accel::testing::Folder;
using accel::testing::Group;
using accel::testing::Rank;
using Catch::Matchers::WithinRel;

constexpr std::int64_t rows = 157;
constexpr std::int64_t batch_size = 16;
constexpr double exact = 1e-12;  // relative

/// Equal in all processes.
struct Data {
  at::Generator generator = at::detail::createCPUGenerator(11);

  at::Tensor logits = normal({rows, 7}).to(at::kFloat);
  at::Tensor target = whole(7, {rows});
  at::Tensor sparse_target = torch::tensor({0, 1, 2, 4}).index_select(0, whole(4, {rows}));
  at::Tensor sparse_prediction = torch::tensor({0, 2, 3, 4, 5}).index_select(0, whole(5, {rows}));
  at::Tensor flags = whole(2, {rows});
  at::Tensor smooth = normal({rows}).add(flags).sigmoid();
  at::Tensor scores = smooth.mul(1000).round().div(1000);
  at::Tensor share_target = whole(4, {rows});
  at::Tensor shares = shared(normal({rows, 4}));
  at::Tensor tokens = normal({rows, 6, 3});
  at::Tensor token_target = whole(6, {rows, 3}).masked_fill(whole(5, {rows, 3}).eq(0), -100);
  at::Tensor truth = normal({rows, 3}).add(torch::tensor({0.0, 1e9, -3.0}));
  at::Tensor guess = truth.add(normal({rows, 3}).mul(0.3));
  at::Tensor weights = normal({rows}).abs();

  [[nodiscard]] std::map<std::string, at::Tensor> files() const {
    return {{"logits.float32", logits},
            {"target.int64", target},
            {"sparse_target.int64", sparse_target},
            {"sparse_prediction.int64", sparse_prediction},
            {"flags.int64", flags},
            {"smooth.float64", smooth},
            {"scores.float64", scores},
            {"share_target.int64", share_target},
            {"shares.float64", shares},
            {"tokens.float64", tokens},
            {"token_target.int64", token_target},
            {"truth.float64", truth},
            {"guess.float64", guess},
            {"weights.float64", weights}};
  }

 private:
  [[nodiscard]] at::Tensor normal(at::IntArrayRef shape) const { return at::randn(shape, generator, at::kDouble); }
  [[nodiscard]] at::Tensor whole(std::int64_t below, at::IntArrayRef shape) const {
    return at::randint(below, shape, generator, at::kLong);
  }
  /// Whole thousandths, whose sum is 1 in each row.
  [[nodiscard]] at::Tensor shared(const at::Tensor& of) const {
    const at::Tensor raised = of.add(at::one_hot(share_target, 4));
    const at::Tensor thousandths = raised.softmax(1).mul(1000).floor();
    thousandths.select(1, 0).add_(1000 - thousandths.sum(1));
    return thousandths.div(1000);
  }
};

/// By name, what Python says; the first call runs it, for all tests of this folder.
const std::map<std::string, std::vector<double>>& expected() {
  constexpr const char* variable = "ACCEL_TEST_SCIKIT_FOLDER";
  static std::optional<Folder> own;  // of the test program; its ranks are told where it is
  static std::map<std::string, std::vector<double>> values;
  if (std::string(ACCEL_TEST_PYTHON).empty())
    accel::testing::skip_without("scikit-learn", "no Python with torch was found, so none with scikit-learn either");
  if (std::getenv("RANK") == nullptr && !own) {
    own.emplace();
    for (const auto& [name, tensor] : Data().files()) {
      const at::Tensor dense = tensor.contiguous();
      std::ofstream(own->path() / name, std::ios::binary)
          .write(static_cast<const char*>(dense.const_data_ptr()), static_cast<std::streamsize>(dense.nbytes()));
    }
    const auto result = accel::testing::run_program(
        {ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/metrics/scikit_learn.py", own->path().string()},
        {.deadline = accel::testing::Seconds(600), .variables = {{"OMP_NUM_THREADS", "1"}}});
    if (!result.succeeded()) own.reset();
    if (result.exit_code == 3)
      accel::testing::skip_without("scikit-learn", "the Python of the tests cannot import scikit-learn");
    INFO(result.output);
    REQUIRE(result.succeeded());
  }
  if (own) ::setenv(variable, own->path().c_str(), 1);  // until the end of the test case
  if (!values.empty()) return values;
  std::ifstream file(std::filesystem::path(std::getenv(variable)) / "expected.txt");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, word;
    words >> name;
    while (words >> word) values[name].push_back(std::strtod(word.c_str(), nullptr));  // reads "nan", too
  }
  REQUIRE(values.size() > 80);
  return values;
}

/// The rows of a rank: at three ranks the second has none.
std::pair<std::int64_t, std::int64_t> part(Rank rank) {
  if (rank.world_size == 1) return {0, rows};
  const std::int64_t cut = rank.world_size == 2 ? 100 : 90;
  if (rank.rank == 0) return {0, cut};
  return {rank.rank == rank.world_size - 1 ? cut : rows, rows};
}

/// Rows [begin, end) and behind them what must not count: NaN, or a class that there is none of.
at::Tensor filled(const at::Tensor& tensor, std::int64_t begin, std::int64_t end) {
  auto shape = tensor.sizes().vec();
  shape[0] = batch_size - (end - begin);
  const at::Tensor filler = tensor.is_floating_point() ? at::full(shape, std::nan(""), tensor.options())
                                                       : at::full(shape, 1000000, tensor.options());
  return at::cat({tensor.slice(0, begin, end), filler});
}

/// Gives `metric` this rank's rows, in batches of which the last is filled up, and one of fillers only.
template <class M, class... Tensors>
M fed(M metric, Rank rank, const Tensors&... tensors) {
  const auto [begin, end] = part(rank);
  for (std::int64_t from = begin; from < end; from += batch_size) {
    const std::int64_t to = std::min(from + batch_size, end);
    metric.update(filled(tensors, from, to)..., to - from);
  }
  if (begin < end) metric.update(filled(tensors, 0, 0)..., 0);
  return metric;
}

void compare(const std::string& name, const std::vector<double>& found, double tolerance = exact) {
  INFO(name);
  const auto& wanted = expected().at(name);
  REQUIRE(found.size() == wanted.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    INFO("value " << i);
    if (std::isnan(wanted[i]))
      CHECK(std::isnan(found[i]));
    else
      CHECK_THAT(found[i], WithinRel(wanted[i], tolerance));
  }
}

void compare(const std::string& name, const at::Tensor& found, double tolerance = exact) {
  const at::Tensor flat = found.to(at::kDouble).contiguous();
  compare(name, std::vector<double>(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()),
          tolerance);
}

std::vector<double> numbers_of(const PrecisionRecallF1Result& result) {
  std::vector<double> numbers{result.precision, result.recall, result.f_beta};
  for (const auto& one : result.classes) numbers.push_back(one.precision);
  for (const auto& one : result.classes) numbers.push_back(one.recall);
  for (const auto& one : result.classes) numbers.push_back(one.f_beta);
  for (const auto& one : result.classes) numbers.push_back(static_cast<double>(one.support));
  return numbers;
}

void compare_scores(const std::string& name, Rank rank, Gloo& group, const at::Tensor& prediction,
                    const at::Tensor& target, PrecisionRecallF1Options options,
                    const std::map<std::string, Average>& averages) {
  for (const auto& [word, average] : averages)
    for (const auto& [beta, beta_word] : {std::pair{1.0, "1"}, {0.5, "0.5"}, {2.0, "2"}})
      for (const auto& [value, value_word] : {std::pair{0.0, "0"}, {1.0, "1"}, {std::nan(""), "nan"}}) {
        options.average = average;
        options.beta = beta;
        options.zero_division = value;
        compare(name + "." + word + "." + beta_word + "." + value_word,
                numbers_of(fed(PrecisionRecallF1(options), rank, prediction, target).compute(group)));
      }
}

std::vector<double> numbers_of(const RegressionErrors& errors) {
  return {errors.mse, errors.rmse, errors.mae, errors.mape, errors.max_error, errors.r2};
}

/// Ranks do not start where there is nothing to compare with.
void on_ranks(const std::function<void(Rank, Gloo&, const Data&)>& body) {
  (void)expected();
  accel::testing::on_ranks({1, 2, 3}, [&](Rank rank) {
    Group<Gloo> group;
    body(rank, *group, Data());
  });
}

}  // namespace scikit

}  // namespace

TEST_CASE("accuracy, top k and the confusion matrix of all ranks are scikit-learn's on all rows", "[metrics]") {
  using namespace scikit;
  scikit::on_ranks([](Rank rank, Gloo& group, const Data& data) {
    compare("accuracy", {fed(Accuracy(), rank, data.logits, data.target).compute(group)}, 0);
    compare("accuracy", {fed(Accuracy(), rank, data.logits.argmax(1), data.target.to(at::kInt)).compute(group)}, 0);
    for (const std::int64_t k : {2, 3})
      compare("top" + std::to_string(k), {fed(Accuracy{{.top_k = k}}, rank, data.logits, data.target).compute(group)},
              0);
    const auto matrix = fed(ConfusionMatrix{{.classes = 7}}, rank, data.logits, data.target).compute(group);
    compare("matrix", matrix, 0);
    compare("matrix.target", normalized(matrix, Normalize::target));
    compare("matrix.prediction", normalized(matrix, Normalize::prediction));
    compare("matrix.all", normalized(matrix, Normalize::all));
    const ConfusionMatrix sparse =
        fed(ConfusionMatrix{{.classes = 9}}, rank, data.sparse_prediction, data.sparse_target);
    compare("sparse.matrix", sparse.compute(group), 0);
    compare("binary.accuracy", {fed(Accuracy{{.threshold = 0.5}}, rank, data.scores, data.flags).compute(group)}, 0);
    compare("tokens.accuracy",
            {fed(Accuracy{{.ignore_index = -100}}, rank, data.tokens, data.token_target).compute(group)}, 0);
  });
}

TEST_CASE("precision, recall and F of all ranks are scikit-learn's on all rows, for every average", "[metrics]") {
  using namespace scikit;
  scikit::on_ranks([](Rank rank, Gloo& group, const Data& data) {
    const std::map<std::string, Average> averages{
        {"macro", Average::macro}, {"weighted", Average::weighted}, {"micro", Average::micro}};
    compare_scores("dense", rank, group, data.logits, data.target, {.classes = 7}, averages);
    compare_scores("sparse", rank, group, data.sparse_prediction, data.sparse_target, {.classes = 9}, averages);
    compare_scores("binary", rank, group, data.scores, data.flags, {.threshold = 0.5},
                   {{"binary", Average::binary}, {"macro", Average::macro}, {"weighted", Average::weighted}});
  });
}

TEST_CASE("areas of all ranks are scikit-learn's on all rows, or within what is said", "[metrics]") {
  using namespace scikit;
  scikit::on_ranks([](Rank rank, Gloo& group, const Data& data) {
    compare("auroc.binary", {fed(Auroc(), rank, data.scores, data.flags).compute(group).auroc});
    const auto smooth = fed(Auroc(), rank, data.smooth, data.flags).compute(group);
    CHECK(std::abs(smooth.auroc - expected().at("auroc.smooth").front()) <= smooth.error_bound + 1e-15);
    CHECK((smooth.error_bound > 0 && smooth.error_bound < 1e-3));
    const auto shares = fed(Auroc{{.classes = 4}}, rank, data.shares, data.share_target).compute(group);
    compare("auroc.shares", {shares.auroc});
    compare("auroc.classes",
            {shares.classes[0].auroc, shares.classes[1].auroc, shares.classes[2].auroc, shares.classes[3].auroc});
  });
}

TEST_CASE("perplexity, regression and mean of all ranks are scikit-learn's and numpy's on all rows", "[metrics]") {
  using namespace scikit;
  scikit::on_ranks([](Rank rank, Gloo& group, const Data& data) {
    compare("perplexity", {fed(Perplexity(), rank, data.logits.to(at::kDouble), data.target).compute(group)});
    compare("perplexity", {fed(Perplexity(), rank, data.logits, data.target).compute(group)}, 1e-6);  // f32
    compare("tokens", {fed(Perplexity(), rank, data.tokens, data.token_target).compute(group)});
    const auto all = fed(Regression{{.outputs = 3}}, rank, data.guess, data.truth).compute(group);
    compare("regression", numbers_of(all));
    for (std::int64_t k = 0; k < 3; ++k) {
      const auto name = "regression." + std::to_string(k);
      compare(name, numbers_of(all.outputs[static_cast<std::size_t>(k)]));
      const Regression one = fed(Regression(), rank, data.guess.select(1, k), data.truth.select(1, k));
      compare(name, numbers_of(one.compute(group)));
    }
    compare("mean", {fed(Mean(), rank, data.truth.select(1, 0), data.weights).compute(group)});
  });
}
