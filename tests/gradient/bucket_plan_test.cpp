#include <accel/gradient/bucket_plan.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>

#include <algorithm>
#include <random>
#include <set>

using namespace accel;
using namespace accel::gradient;

namespace {

std::vector<ParameterSize> floats(const std::vector<std::int64_t>& numels) {
  std::vector<ParameterSize> sizes;
  for (const auto numel : numels) sizes.push_back({.numel = numel});
  return sizes;
}

std::vector<PlannedBucket> plan_of(const std::vector<ParameterSize>& sizes, const BucketCaps& caps = {},
                                   std::vector<std::uint8_t> used = {}) {
  used.resize(sizes.size(), 1);
  return plan_buckets(lay_out(sizes, reverse_registration(sizes.size())), caps, used);
}

std::vector<std::vector<std::size_t>> parameters_of(const std::vector<PlannedBucket>& plan) {
  std::vector<std::vector<std::size_t>> parameters;
  for (const auto& bucket : plan) parameters.push_back(bucket.parameters);
  return parameters;
}

}  // namespace

TEST_CASE("a model without parameters has no buckets", "[bucket_plan]") {
  REQUIRE(plan_of({}).empty());
}

TEST_CASE("a small model is one bucket, in the reverse of its registration", "[bucket_plan]") {
  const auto layout = lay_out(floats({10, 20, 30}), reverse_registration(3));
  REQUIRE(layout.places[2].offset == 0);
  REQUIRE(layout.places[1].offset == 32);  // 64 bytes are 16 floats
  REQUIRE(layout.places[0].offset == 64);
  const auto plan = plan_of(floats({10, 20, 30}));
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{2, 1, 0}});
  REQUIRE(plan[0].begin == 0);
  REQUIRE(plan[0].end == 74);
}

TEST_CASE("the last bucket is small and holds the first layers", "[bucket_plan]") {
  // 400-byte parameters; caps of 1,000 and 500 bytes: two fit the one, one fits the other.
  const auto plan = plan_of(floats({100, 100, 100, 100, 100}), {.bucket_cap = 1000_B, .last_bucket_cap = 500_B});
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{4, 3}, {2, 1}, {0}});
}

TEST_CASE("caps may be a list, of which the last holds for the rest", "[bucket_plan]") {
  const auto plan =
      plan_of(floats({100, 100, 100, 100, 100, 100}), {.bucket_cap = {400_B, 800_B, 1200_B}, .last_bucket_cap = 1_B});
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{5}, {4, 3}, {2, 1}, {0}});
}

TEST_CASE("without a cap a large model has about eight buckets, and a small one is not cut", "[bucket_plan]") {
  REQUIRE(plan_of(floats(std::vector<std::int64_t>(64, 1 << 17))).size() == 9);  // 32 MiB in 4 MiB, the last of 1 MiB
  REQUIRE(plan_of(floats(std::vector<std::int64_t>(64, 1 << 10))).size() == 1);  // 256 KiB
}

TEST_CASE("a parameter above the cap has a bucket of its own", "[bucket_plan]") {
  const auto plan = plan_of(floats({10, 5000, 200}), {.bucket_cap = 1000_B, .last_bucket_cap = 1000_B});
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{2}, {1}, {0}});
}

TEST_CASE("a bucket that is not half full takes along what follows", "[bucket_plan]") {
  // Weights of the cap and their biases: each pair travels together.
  const auto plan = plan_of(floats({250, 10, 250, 10, 250, 10}), {.bucket_cap = 1000_B, .last_bucket_cap = 1000_B});
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{5, 4}, {3, 2}, {1, 0}});
}

TEST_CASE("a bucket ends where a parameter follows that is not used", "[bucket_plan]") {
  const auto plan = plan_of(floats({10, 10, 10, 10}), {}, {1, 0, 1, 1});
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{3, 2}, {0}});
  REQUIRE(plan_of(floats({10, 10}), {}, {0, 0}).empty());
}

TEST_CASE("dtypes and models do not share a bucket, and buckets are listed as they fill", "[bucket_plan]") {
  std::vector<ParameterSize> sizes{
      {.numel = 4}, {.numel = 4, .dtype = at::kDouble}, {.numel = 4}, {.numel = 4, .dtype = at::kDouble}};
  REQUIRE(parameters_of(plan_of(sizes)) == std::vector<std::vector<std::size_t>>{{3, 1}, {2, 0}});
  sizes[2].model = 1;
  REQUIRE(parameters_of(plan_of(sizes)) == std::vector<std::vector<std::size_t>>{{2}, {3, 1}, {0}});
}

TEST_CASE("an order other than that of registration decides who travels together", "[bucket_plan]") {
  const auto layout = lay_out(floats({100, 100, 100, 100}), {0, 2, 1, 3});
  const auto plan =
      plan_buckets(layout, {.bucket_cap = 800_B, .last_bucket_cap = 400_B}, std::vector<std::uint8_t>(4, 1));
  REQUIRE(parameters_of(plan) == std::vector<std::vector<std::size_t>>{{0, 2}, {1}, {3}});
}

TEST_CASE("every plan holds every used parameter once, in its place, under its cap", "[bucket_plan]") {
  std::mt19937 generator(GENERATE(range(0U, 50U)));
  const auto random = [&] { return static_cast<std::int64_t>(generator()); };
  std::vector<ParameterSize> sizes(static_cast<std::size_t>(random() % 40));
  for (auto& size : sizes) size = {.numel = random() % 300, .dtype = random() % 4 == 0 ? at::kHalf : at::kFloat};
  std::vector<std::uint8_t> used(sizes.size());
  for (auto& one : used) one = random() % 5 == 0 ? 0 : 1;
  std::vector<std::size_t> order = reverse_registration(sizes.size());
  std::shuffle(order.begin(), order.end(), generator);
  const Bytes cap{random() % 2000 + 1};
  const Bytes last_cap{random() % 500 + 1};
  const auto layout = lay_out(sizes, order);
  std::set<std::size_t> seen;
  for (const auto& bucket : plan_buckets(layout, {.bucket_cap = cap, .last_bucket_cap = last_cap}, used)) {
    std::int64_t end = bucket.begin;
    std::int64_t bytes = 0;
    for (const std::size_t i : bucket.parameters) {
      REQUIRE(used[i] == 1);
      REQUIRE(seen.insert(i).second);
      REQUIRE(layout.places[i].segment == bucket.segment);
      REQUIRE(layout.places[i].offset >= end);
      REQUIRE(layout.places[i].offset - end < 32);  // nothing else between them
      end = layout.places[i].end();
      bytes += sizes[i].bytes();
    }
    REQUIRE(bucket.end == end);
    const auto before = bytes - sizes[bucket.parameters.back()].bytes();
    REQUIRE((bucket.parameters.size() == 1 || bytes <= cap.count + last_cap.count || 2 * before < cap.count));
  }
  REQUIRE(seen.size() == static_cast<std::size_t>(std::count(used.begin(), used.end(), 1)));
}
