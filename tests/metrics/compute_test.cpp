// Metrics over ranks: what crosses them, what must be equal, and what goes on after a resume.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <accel/accelerator.hpp>
#include <accel/metrics/accuracy.hpp>
#include <accel/metrics/auroc.hpp>
#include <accel/metrics/compute.hpp>
#include <accel/metrics/confusion_matrix.hpp>
#include <accel/metrics/mean.hpp>
#include <accel/metrics/perplexity.hpp>
#include <accel/metrics/precision_recall_f1.hpp>
#include <accel/metrics/regression.hpp>
#include <accel/metrics/throughput.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "one_rank.hpp"
#include "support/group.hpp"
#include "support/host_reads.hpp"
#include "support/ranks.hpp"

namespace metrics = accel::metrics;
using accel::CheckpointError;
using accel::InvalidArgument;
using accel::backend::Gloo;
using accel::testing::Group;
using accel::testing::HostReads;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

namespace {

/// A metric of one's own: how many values there are, and the largest of them.
class Largest : public metrics::Tally {
 public:
  Largest() : Tally("largest", 1, 1) {}

  void update(const at::Tensor& values) {
    const metrics::Unrecorded guard;
    use_device(values.device());
    counts_.add_(values.numel());
    numbers_.copy_(at::maximum(numbers_, values.to(at::kDouble).amax()));
  }

  template <class Ranks>
  [[nodiscard]] std::pair<std::int64_t, double> compute(Ranks& ranks) const {
    return metrics::compute(ranks, *this);
  }

  [[nodiscard]] std::pair<std::int64_t, double> result(const metrics::Totals& totals) const {
    double largest = 0;
    for (const auto& rank : totals.numbers) largest = std::max(largest, rank[0]);
    return {totals.counts[0], largest};
  }
};

static_assert(accel::Metric<Largest>);

/// Counts and numbers as a test says, and everybody's as they come.
class Given : public metrics::Tally {
 public:
  Given(const std::vector<std::int64_t>& counts, const std::vector<double>& numbers)
      : Tally("given", static_cast<std::int64_t>(counts.size()), static_cast<std::int64_t>(numbers.size())) {
    counts_ = torch::tensor(counts, at::kLong);
    numbers_ = torch::tensor(numbers, at::kDouble);
  }

  [[nodiscard]] metrics::Totals result(const metrics::Totals& totals) const { return totals; }
};

std::vector<std::uint64_t> bits_of(const std::vector<double>& numbers) {
  std::vector<std::uint64_t> bits;
  for (const double number : numbers) bits.push_back(std::bit_cast<std::uint64_t>(number));
  return bits;
}

/// Three batches of class scores, of binary scores and of numbers for each of all metrics.
struct AllMetrics {
  metrics::Mean mean;
  metrics::Accuracy accuracy{{.top_k = 2}};
  metrics::ConfusionMatrix matrix{{.classes = 5}};
  metrics::PrecisionRecallF1 f1{{.classes = 5, .average = metrics::Average::macro}};
  metrics::Perplexity perplexity;
  metrics::Regression regression;
  metrics::Auroc auroc{{.classes = 5, .bins = 101, .lowest = -8, .highest = 8}};
  metrics::Throughput throughput;

  static constexpr int batches = 4;

  void update(int batch, Rank rank) {
    auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 * rank.rank + batch));
    const at::Tensor logits = at::randn({9, 5}, generator, at::kFloat);
    const at::Tensor target = at::randint(5, {9}, generator, at::kLong);
    const at::Tensor values = at::randn({9}, generator, at::kFloat).add(1000.1);
    mean.update(values);
    accuracy.update(logits, target);
    matrix.update(logits, target);
    f1.update(logits, target);
    perplexity.update(logits, target);
    regression.update(values.add(at::randn({9}, generator, at::kFloat)), values);
    auroc.update(logits, target);
    throughput.update(9, accel::Seconds(0.25));
  }

  /// All values, as numbers.
  template <class Ranks>
  [[nodiscard]] std::vector<double> compute(Ranks& ranks) const {
    const auto [a, b, c, d, e, f, g, h] =
        metrics::compute(ranks, mean, accuracy, matrix, f1, perplexity, regression, auroc, throughput);
    std::vector<double> all{a,      b,     d.precision, d.recall, d.f_beta,    e,       f.mse,
                            f.rmse, f.mae, f.mape,      f.r2,     f.max_error, g.auroc, g.error_bound};
    all.insert(all.end(), {static_cast<double>(h.samples), h.seconds, h.samples_per_s, h.step_time_ms});
    const at::Tensor cells = c.to(at::kDouble);
    all.insert(all.end(), cells.const_data_ptr<double>(), cells.const_data_ptr<double>() + cells.numel());
    return all;
  }

  template <class Visitor>
  void each(AllMetrics& other, Visitor&& visit) {
    visit(mean, other.mean);
    visit(accuracy, other.accuracy);
    visit(matrix, other.matrix);
    visit(f1, other.f1);
    visit(perplexity, other.perplexity);
    visit(regression, other.regression);
    visit(auroc, other.auroc);
    visit(throughput, other.throughput);
  }
};

}  // namespace

TEST_CASE("a metric of one's own counts and merges over the ranks, with ranks that have nothing", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    Largest largest;
    CHECK(largest.compute(*group) == std::pair<std::int64_t, double>(0, 0.0));
    if (rank.rank == rank.world_size - 1) largest.update(torch::tensor({1.5F, 4.5F, 2.0F}));
    CHECK(largest.compute(*group) == std::pair<std::int64_t, double>(3, 4.5));
    largest.update(at::full({2}, 10 + rank.rank));
    const std::pair<std::int64_t, double> expected(3 + 2 * rank.world_size, 9 + rank.world_size);
    CHECK(largest.compute(*group) == expected);
    CHECK(largest.compute(*group) == expected);  // asking changes nothing
    largest.reset();
    CHECK(largest.compute(*group) == std::pair<std::int64_t, double>(0, 0.0));
  });
}

TEST_CASE("counts stay exact beyond 2^53, and numbers arrive bit for bit, by rank", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    constexpr std::int64_t large = (std::int64_t{1} << 60) + 1;
    const auto own = [](int of) {
      return std::vector<double>{
          of + 0.1, -0.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
          -5e-324,  1e308};
    };
    const Given given({large + rank.rank, 7}, own(rank.rank));
    const auto totals = metrics::compute(*group, given);
    const std::int64_t ranks = rank.world_size;
    CHECK(totals.counts == std::vector<std::int64_t>{large * ranks + ranks * (ranks - 1) / 2, 7 * ranks});
    REQUIRE(totals.numbers.size() == static_cast<std::size_t>(ranks));
    for (int r = 0; r < rank.world_size; ++r)
      CHECK(bits_of(totals.numbers[static_cast<std::size_t>(r)]) == bits_of(own(r)));
  });
}

TEST_CASE("metrics with counts only or numbers only, together and alone", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const Given counts({1, 2}, {});
    const Given numbers({}, {0.5 + rank.rank});
    const auto [first, second, third] = metrics::compute(*group, numbers, counts, numbers);
    CHECK(second.counts == std::vector<std::int64_t>{rank.world_size, 2 * rank.world_size});
    for (const auto& totals : {first, third, metrics::compute(*group, numbers)}) {
      CHECK(totals.counts.empty());
      CHECK(totals.numbers.back() == std::vector<double>{rank.world_size - 0.5});
    }
    CHECK(first.sum(0) == rank.world_size * rank.world_size / 2.0);
  });
}

TEST_CASE("however many metrics there are, they take one all_reduce", "[metrics]") {
  on_ranks({2}, [](Rank rank) {
    Group<accel::backend::Traced<Gloo>> group;
    AllMetrics all;
    all.update(0, rank);
    CHECK(group->rows().empty());  // an update is of this rank alone
    (void)all.compute(*group);
    REQUIRE(group->rows().size() == 1);
    CHECK(group->rows().front().operation == "all_reduce");
    CHECK(group->rows().front().calls == 1);
  });
}

TEST_CASE("no update waits for a number of the device", "[metrics]") {
  AllMetrics all;
  metrics::Accuracy labels{{.ignore_index = 0}};
  metrics::Auroc binary;
  const at::Tensor flags = at::ones({4}, at::kBool);
  const HostReads reads;
  for (int batch = 0; batch < 2; ++batch) {
    all.update(batch, {0, 1});
    all.mean.update(at::ones({4}), at::ones({4}), 3);
    all.mean.update_mean(at::full({}, 2.5F), 3);
    all.perplexity.update_sum(at::full({}, 2.5F), at::full({}, 3, at::kInt));
    labels.update(at::ones({4}, at::kLong), flags, 2);
    binary.update(at::rand({4}), flags, 2);
  }
  CHECK(reads.count() == 0);
}

TEST_CASE("together or one by one, the values are the same bits on every rank", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    AllMetrics all;
    for (int batch = 0; batch < AllMetrics::batches; ++batch) all.update(batch, rank);
    const auto values = all.compute(*group);
    CHECK(bits_of(values) == bits_of(all.compute(*group)));
    CHECK(bits_of({all.mean.compute(*group), all.accuracy.compute(*group)}) == bits_of({values[0], values[1]}));
    CHECK(all.perplexity.compute(*group) == values[5]);
    std::string text;
    for (const auto bits : bits_of(values)) text += std::to_string(bits) + " ";
    for (const auto& theirs : group->control().all_gather("values", text, accel::Deadline::in(accel::Seconds(10))))
      CHECK(theirs == text);
  });
}

TEST_CASE("an epoch that is resumed in its middle gives the same bits", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    AllMetrics whole, first, second;
    for (int batch = 0; batch < AllMetrics::batches; ++batch) whole.update(batch, rank);
    for (int batch = 0; batch < 2; ++batch) first.update(batch, rank);
    second.update(3, rank);  // is forgotten
    std::vector<accel::tensor::StateDict> states;
    first.each(second, [&](auto& saved, auto&) { states.push_back(saved.state_dict()); });
    for (int time = 0; time < 2; ++time) {
      first.update(0, rank);  // a state shares nothing with where it is from, nor with where it was loaded
      std::size_t next = 0;
      first.each(second, [&](auto&, auto& loaded) { loaded.load_state_dict(states[next++]); });
      for (int batch = 2; batch < AllMetrics::batches; ++batch) second.update(batch, rank);
      CHECK(bits_of(second.compute(*group)) == bits_of(whole.compute(*group)));
    }
    // And that of one that has never counted.
    AllMetrics unused;
    unused.each(second, [](auto& saved, auto& loaded) { loaded.load_state_dict(saved.state_dict()); });
    CHECK(bits_of(second.compute(*group)) == bits_of(unused.compute(*group)));
  });
}

TEST_CASE("a state of other options, shapes or counts is refused, and nothing changes", "[metrics]") {
  auto& single = accel::testing::one_rank();
  metrics::Accuracy accuracy{{.top_k = 2}};
  accuracy.update(at::eye(3), torch::tensor({0, 1, 0}));
  const double before = accuracy.compute(single);
  const auto refused = [&](const accel::tensor::StateDict& state, const std::string& why) {
    CHECK_THAT(thrown_by<CheckpointError>([&] { accuracy.load_state_dict(state); }), ContainsSubstring(why));
    CHECK(accuracy.compute(single) == before);
  };
  refused(metrics::Accuracy().state_dict(), "expected the state of accuracy, top_k = 2");
  refused(metrics::Accuracy().state_dict(), "found that of accuracy, top_k = 1");
  refused(metrics::Mean().state_dict(), "found that of mean");
  refused({}, "options is missing");
  const auto with = [&](const std::string& name, const at::Tensor& tensor) {
    accel::tensor::StateDict state;
    const auto saved = accuracy.state_dict();
    for (const auto& [own, kept] : saved.entries()) state.add(own, own == name ? tensor : kept);
    return state;
  };
  refused(with("options", at::zeros({3})), "options is f32[3]");
  refused(with("counts", at::zeros({5}, at::kLong)), "counts of accuracy");
  refused(with("counts", at::zeros({4})), "is f32[4], expected i64[4]");
  refused(with("counts", at::full({4}, -1, at::kLong)), "below 0");
  refused(with("counts", at::Tensor()), "is undefined");
  refused(with("numbers", at::zeros({1}, at::kDouble)), "is f64[1], expected f64[0]");
  accuracy.load_state_dict(accuracy.state_dict());
  CHECK(accuracy.compute(single) == before);
}

TEST_CASE("options or metrics that differ between ranks are an error on all of them", "[metrics]") {
  on_ranks({2, 3}, [](Rank rank) {
    Group<Gloo> group;
    const bool is_last = rank.rank == rank.world_size - 1;
    const metrics::ConfusionMatrix matrix{{.classes = is_last ? 12 : 10}};
    const std::string last = std::to_string(rank.world_size - 1);
    CHECK_THAT(thrown_by<InvalidArgument>([&] { (void)matrix.compute(*group); }),
               ContainsSubstring("rank 0 has confusion matrix, classes = 10") &&
                   ContainsSubstring("rank " + last + " has confusion matrix, classes = 12"));
    const metrics::Mean mean;
    const metrics::Accuracy accuracy;
    CHECK_THAT(thrown_by<InvalidArgument>([&] {
                 if (is_last)
                   (void)metrics::compute(*group, mean);
                 else
                   (void)metrics::compute(*group, mean, accuracy);
               }),
               ContainsSubstring("rank " + last + " has nothing"));
    CHECK(std::isnan(mean.compute(*group)));  // the group is whole
  });
}

TEST_CASE("an accelerator's ranks say who they are in what goes wrong", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    accel::Accelerator<Gloo, accel::precision::Fp32> accelerator;
    metrics::ConfusionMatrix matrix{{.classes = 10}};
    if (rank.rank == 0) matrix.update(torch::tensor({1, 2, 3, 4}), torch::tensor({10, 2, -1, 99}));
    const auto error = thrown_by<InvalidArgument>([&] { (void)matrix.compute(accelerator); });
    CHECK_THAT(error, ContainsSubstring("confusion matrix: 3 targets are outside of 0..9"));
    CHECK(error.starts_with(accelerator.topology().label()));
    matrix.reset();
    CHECK(matrix.compute(accelerator).sum().item<std::int64_t>() == 0);
  });
}

TEST_CASE("an update inside of InferenceMode goes on outside of it, and the other way round", "[metrics]") {
  auto& single = accel::testing::one_rank();
  AllMetrics plain, mixed;
  for (int batch = 0; batch < AllMetrics::batches; ++batch) {
    plain.update(batch, {0, 1});
    const c10::InferenceMode guard(batch % 2 == 0);
    mixed.update(batch, {0, 1});
  }
  CHECK(bits_of(plain.compute(single)) == bits_of(mixed.compute(single)));
  AllMetrics loaded;
  {
    const c10::InferenceMode guard;
    mixed.each(loaded, [](auto& saved, auto& into) { into.load_state_dict(saved.state_dict()); });
    CHECK(bits_of(plain.compute(single)) == bits_of(loaded.compute(single)));
  }
  loaded.update(0, {0, 1});
  plain.update(0, {0, 1});
  CHECK(bits_of(plain.compute(single)) == bits_of(loaded.compute(single)));
}

TEST_CASE("an update inside of autocast computes as outside of it", "[metrics]") {
  accel::Accelerator<accel::backend::Single, accel::precision::Bf16> accelerator;
  AllMetrics plain, mixed;
  for (int batch = 0; batch < AllMetrics::batches; ++batch) {
    plain.update(batch, {0, 1});
    const auto guard = accelerator.autocast();
    mixed.update(batch, {0, 1});
  }
  CHECK(bits_of(plain.compute(accelerator)) == bits_of(mixed.compute(accelerator)));
}

TEST_CASE("what requires a gradient is counted without history, and stays as it is", "[metrics]") {
  auto& single = accel::testing::one_rank();
  const at::Tensor logits = torch::tensor({{1.0, 2.0, 0.0}, {0.0, 1.0, 3.0}}, torch::kDouble).requires_grad_(true);
  const at::Tensor target = torch::tensor({1, 2});
  const at::Tensor loss = at::cross_entropy_loss(logits, target);
  metrics::Mean mean;
  metrics::Perplexity perplexity;
  metrics::Regression regression;
  mean.update_mean(loss, 2);
  perplexity.update(logits, target);
  regression.update(logits, at::zeros({2, 3}));
  CHECK_FALSE(mean.numbers().requires_grad());
  CHECK_FALSE(perplexity.numbers().requires_grad());
  CHECK_FALSE(regression.numbers().requires_grad());
  loss.backward();
  CHECK(logits.grad().defined());
  CHECK(std::abs(std::log(perplexity.compute(single)) - mean.compute(single)) < 1e-15);
}
