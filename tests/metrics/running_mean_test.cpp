// RunningMean: the mean over all rows of all ranks.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

using accel::InvalidArgument;
using accel::backend::Gloo;
using accel::data::DataLoader;
using accel::metrics::RunningMean;
using accel::testing::Group;
using accel::testing::on_ranks;
using accel::testing::Rank;
using Catch::Matchers::WithinRel;
using Accelerator = accel::Accelerator<Gloo, accel::precision::Fp32>;

namespace {

/// Row i holds the square of i.
struct Squares {
  std::int64_t rows;

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] at::Tensor get_batch(const at::Tensor& indices) const { return indices.square().to(at::kDouble); }
};

}  // namespace

TEST_CASE("every value counts by its weight, over all ranks", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    RunningMean<Gloo> mean(*group);
    // Rank r adds r + 1 with weight 1, 2 and 4.
    for (const int weight : {1, 2, 4}) mean.update(at::full({}, rank.rank + 1.0), weight);
    const double expected = (rank.world_size + 1) / 2.0;
    CHECK_THAT(mean.compute(), WithinRel(expected, 1e-15));
    CHECK_THAT(mean.compute(), WithinRel(expected, 1e-15));  // asking changes nothing
    // Rank 0 alone adds 9 once more, with the weight of everything so far.
    if (rank.rank == 0) mean.update(at::full({1, 1}, 9, at::kInt), 7 * rank.world_size);
    CHECK_THAT(mean.compute(), WithinRel((expected + 9) / 2, 1e-15));
    mean.reset();
    CHECK(std::isnan(mean.compute()));
    mean.update(at::full({}, 5.0F), 3);
    CHECK(mean.compute() == 5.0);
  });
}

TEST_CASE("the mean of nothing is NaN, and of one rank's value is that value", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Group<Gloo> group;
    RunningMean<Gloo> mean(*group);
    CHECK(std::isnan(mean.compute()));
    if (rank.rank == rank.world_size - 1) mean.update(at::full({}, 0.25), 1);
    CHECK(mean.compute() == 0.25);
  });
}

TEST_CASE("a value of weight 0 does not count, even if it is not a number", "[metrics]") {
  on_ranks({1, 2}, [](Rank) {
    Group<Gloo> group;
    RunningMean<Gloo> mean(*group);
    mean.update(at::full({}, std::numeric_limits<double>::quiet_NaN()), 0);
    CHECK(std::isnan(mean.compute()));
    mean.update(at::full({}, 2.0), 3);
    mean.update(at::full({}, std::numeric_limits<double>::quiet_NaN()), 0);
    CHECK(mean.compute() == 2.0);
    mean.update(at::full({}, std::numeric_limits<double>::quiet_NaN()), 1);
    CHECK(std::isnan(mean.compute()));  // a real one must show
  });
}

TEST_CASE("what is not one number is refused", "[metrics]") {
  on_ranks({1}, [](Rank) {
    Group<Gloo> group;
    RunningMean<Gloo> mean(*group);
    CHECK_THROWS_AS(mean.update(at::ones({2}), 1), InvalidArgument);
    CHECK_THROWS_AS(mean.update(at::ones({0}), 1), InvalidArgument);
    CHECK_THROWS_AS(mean.update(at::Tensor(), 1), InvalidArgument);
    CHECK(std::isnan(mean.compute()));
  });
}

TEST_CASE("a loss with history is added without it, and stays as it is", "[metrics]") {
  on_ranks({1, 2}, [](Rank) {
    Group<Gloo> group;
    RunningMean<Gloo> mean(*group);
    const at::Tensor leaf = at::full({}, 3.0).requires_grad_(true);
    const at::Tensor loss = leaf * 2;
    mean.update(loss, 2);
    CHECK(mean.compute() == 6.0);
    loss.backward();
    CHECK(leaf.grad().item<double>() == 2.0);
  });
}

TEST_CASE("the running mean of a loader's losses is the mean over all rows", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Accelerator accelerator;
    for (const std::int64_t rows : {1, 2, 7, 22, 99}) {
      for (const std::int64_t batch_size : {1, 4, 16}) {
        for (const bool shuffle : {false, true}) {
          auto loader =
              accelerator.prepare(DataLoader{Squares{rows}, {.batch_size = batch_size, .shuffle = shuffle, .seed = 1}});
          auto mean = accelerator.running_mean();
          for (auto& batch : loader) mean.update(batch.mean());
          // The mean of 0, 1, 4, ..., (n - 1)^2.
          const auto n = static_cast<double>(rows);
          const double expected = (n - 1) * (2 * n - 1) / 6;
          CHECK_THAT(mean.compute(), WithinRel(expected, 1e-12));
        }
      }
    }
  });
}

TEST_CASE("a filler batch does not count, even if its loss is not a number", "[metrics]") {
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator accelerator;
    auto loader = accelerator.prepare(DataLoader{Squares{1}, {.batch_size = 4}});  // all but rank 0 get a filler
    auto mean = accelerator.running_mean();
    int batches = 0;
    for (auto& batch : loader) {
      ++batches;
      mean.update(rank.rank == 0 ? batch.mean() + 3 : batch.mean() * std::numeric_limits<double>::quiet_NaN());
    }
    CHECK(batches == 1);
    CHECK(mean.compute() == 3.0);
  });
}

TEST_CASE("outside of a loader a value counts once", "[metrics]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Accelerator accelerator;
    auto mean = accelerator.running_mean();
    mean.update(at::full({}, rank.rank));
    CHECK_THAT(mean.compute(), WithinRel((rank.world_size - 1) / 2.0, 1e-15));
  });
}
