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

}  // namespace

TEST_CASE("a model without parameters has no buckets", "[bucket_plan]") {
  REQUIRE(plan_buckets({}).empty());
}

TEST_CASE("a small model is one bucket, in the reverse of its registration", "[bucket_plan]") {
  const auto plan = plan_buckets(floats({10, 20, 30}));
  REQUIRE(plan.size() == 1);
  REQUIRE(plan[0].parameters == std::vector<std::size_t>{2, 1, 0});
  REQUIRE(plan[0].offsets == std::vector<std::int64_t>{0, 30, 50});
  REQUIRE(plan[0].numel == 60);
}

TEST_CASE("the last bucket is small and holds the first layers", "[bucket_plan]") {
  // 400-byte parameters; caps of 1,000 and 500 bytes: two fit the one, one fits the other.
  const auto plan = plan_buckets(floats({100, 100, 100, 100, 100}), {.bucket_cap = 1000_B, .last_bucket_cap = 500_B});
  std::vector<std::vector<std::size_t>> buckets;
  for (const auto& bucket : plan) buckets.push_back(bucket.parameters);
  REQUIRE(buckets == std::vector<std::vector<std::size_t>>{{4, 3}, {2, 1}, {0}});
}

TEST_CASE("a parameter above the cap has a bucket of its own", "[bucket_plan]") {
  const auto plan = plan_buckets(floats({10, 5000, 10}), {.bucket_cap = 1000_B, .last_bucket_cap = 1000_B});
  REQUIRE(plan.size() == 3);
  REQUIRE(plan[0].parameters == std::vector<std::size_t>{2});
  REQUIRE(plan[1].parameters == std::vector<std::size_t>{1});
  REQUIRE(plan[2].parameters == std::vector<std::size_t>{0});
}

TEST_CASE("dtypes do not share a bucket, and buckets are listed as they fill", "[bucket_plan]") {
  const std::vector<ParameterSize> sizes{
      {.numel = 4}, {.numel = 4, .dtype = at::kDouble}, {.numel = 4}, {.numel = 4, .dtype = at::kDouble}};
  const auto plan = plan_buckets(sizes);
  REQUIRE(plan.size() == 2);
  REQUIRE(plan[0].dtype == at::kDouble);
  REQUIRE(plan[0].parameters == std::vector<std::size_t>{3, 1});
  REQUIRE(plan[1].parameters == std::vector<std::size_t>{2, 0});
}

TEST_CASE("every plan holds every parameter once, without overlap, under its cap", "[bucket_plan]") {
  std::mt19937 generator(GENERATE(range(0U, 50U)));
  const auto random = [&] { return static_cast<std::int64_t>(generator()); };
  std::vector<ParameterSize> sizes(static_cast<std::size_t>(random() % 40));
  for (auto& size : sizes) size = {.numel = random() % 300, .dtype = random() % 4 == 0 ? at::kHalf : at::kFloat};
  const BucketCaps caps{.bucket_cap = {random() % 2000 + 1}, .last_bucket_cap = {random() % 500 + 1}};
  const auto plan = plan_buckets(sizes, caps);
  std::set<std::size_t> seen;
  for (std::size_t b = 0; b < plan.size(); ++b) {
    const auto& bucket = plan[b];
    std::int64_t end = 0;
    for (std::size_t k = 0; k < bucket.parameters.size(); ++k) {
      const auto i = bucket.parameters[k];
      REQUIRE(seen.insert(i).second);
      REQUIRE(sizes[i].dtype == bucket.dtype);
      REQUIRE(bucket.offsets[k] == end);
      end += sizes[i].numel;
    }
    REQUIRE(bucket.numel == end);
    const auto bytes = bucket.numel * static_cast<std::int64_t>(c10::elementSize(bucket.dtype));
    const auto cap = std::max(caps.bucket_cap.count, caps.last_bucket_cap.count);
    REQUIRE((bucket.parameters.size() == 1 || bytes <= cap));
    REQUIRE(std::is_sorted(bucket.parameters.rbegin(), bucket.parameters.rend()));
    if (b > 0) REQUIRE(plan[b - 1].parameters.back() > bucket.parameters.back());
  }
  REQUIRE(seen.size() == sizes.size());
}
