// Finite: inf and NaN are found wherever they are, and nothing else is taken for them.
#include <torch/torch.h>

#include <accel/gradient/clip.hpp>
#include <accel/gradient/finite.hpp>

#include <catch2/catch_test_macros.hpp>

#include <limits>

#include "support/host_reads.hpp"
#include "support/models.hpp"

using namespace accel;
using gradient::is_finite;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

float flag_of(const std::vector<torch::Tensor>& gradients) {
  const auto flag = torch::full({}, 7.0F);
  gradient::find_inf(gradients, flag);
  return flag.item<float>();
}

}  // namespace

TEST_CASE("one element that is not finite is found at every place of every dtype", "[finite]") {
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kHalf, torch::kBFloat16})
    for (const std::int64_t numel : {1, 2, 3, 5, 8, 9, 31, 64, 67})
      for (std::int64_t at = 0; at < numel; ++at)
        for (const double value : {inf, -inf, not_a_number, -not_a_number}) {
          auto gradient = torch::randn({numel}).to(dtype);
          REQUIRE(is_finite(gradient));
          gradient[at] = value;
          REQUIRE_FALSE(is_finite(gradient));
          REQUIRE_FALSE(is_finite(gradient.narrow(0, at, 1)));
          REQUIRE(is_finite(gradient.narrow(0, 0, at)));
        }
}

TEST_CASE("the largest numbers, the smallest and zeros are finite", "[finite]") {
  const auto check = [](auto zero, torch::ScalarType dtype) {
    using Limits = std::numeric_limits<decltype(zero)>;
    for (const double value : {static_cast<double>(Limits::max()), static_cast<double>(Limits::lowest()),
                               static_cast<double>(Limits::denorm_min()), 0.0, -0.0})
      REQUIRE(is_finite(torch::full({9}, value, dtype)));
  };
  check(0.0F, torch::kFloat);
  check(0.0, torch::kDouble);
  check(c10::Half{}, torch::kHalf);
  check(c10::BFloat16{}, torch::kBFloat16);
}

TEST_CASE("views with gaps, sparse, complex, expanded and empty gradients are looked through", "[finite]") {
  auto wide = torch::ones({6, 4});
  wide.index_put_({2, 1}, inf);
  REQUIRE(is_finite(wide.slice(1, 2, 4)));
  REQUIRE_FALSE(is_finite(wide.slice(1, 1, 3)));
  REQUIRE_FALSE(is_finite(wide.t()));
  REQUIRE_FALSE(is_finite(wide.to_sparse()));
  REQUIRE(is_finite(torch::ones({3}, torch::kComplexFloat)));
  REQUIRE_FALSE(is_finite(torch::ones({3}, torch::kComplexFloat) * inf));
  REQUIRE(is_finite(torch::ones({}).expand({5, 7})));
  REQUIRE_FALSE(is_finite(torch::full({}, inf).expand({5, 7})));
  REQUIRE(is_finite(torch::empty({0})));
  const auto large = torch::zeros({3 << 20});  // several threads' share
  REQUIRE(is_finite(large));
  large[-1] = not_a_number;
  REQUIRE_FALSE(is_finite(large));
}

TEST_CASE("the flag is 1 if any gradient has one, else 0", "[finite]") {
  REQUIRE(flag_of({}) == 0);
  REQUIRE(flag_of({torch::ones({3}), torch::ones({2}, torch::kDouble)}) == 0);
  REQUIRE(flag_of({torch::ones({3}), torch::full({2}, not_a_number, torch::kDouble)}) == 1);
}

TEST_CASE("clipping scaled gradients equals unscaling first and clipping then, bit for bit", "[finite]") {
  for (const double max_norm : {0.5, 1e9}) {
    const std::vector<torch::Tensor> gradients{torch::randn({13, 5}), torch::randn({5})};
    std::vector<torch::Tensor> scaled;
    for (const auto& one : gradients) scaled.push_back(one * 1024);
    const auto found = torch::zeros({});
    const auto norm = gradient::clip_scaled_to_norm_(scaled, torch::tensor(1024.0F), found, max_norm);
    const auto expected = gradient::clip_to_norm_(gradients, max_norm);
    REQUIRE(norm.item<float>() == expected.item<float>());
    REQUIRE(testing::bits(scaled) == testing::bits(gradients));
    REQUIRE(found.item<float>() == 0);
  }
}

TEST_CASE("finite gradients with an infinite norm are no overflow; others are, and stay", "[finite]") {
  std::vector<torch::Tensor> large{torch::full({8}, 1e30F)};  // its squares are not in f32
  const auto found = torch::zeros({});
  const auto norm = gradient::clip_scaled_to_norm_(large, torch::tensor(0x1p60F), found, 1.0);
  REQUIRE(found.item<float>() == 0);
  REQUIRE(torch::allclose(norm, torch::tensor(1e30F * 0x1p-60F * std::sqrt(8.0F))));
  REQUIRE(torch::allclose(large[0], torch::full({8}, 1 / std::sqrt(8.0F))));
  for (const double norm_type : {2.0, 1.0, inf, 0.0}) {
    const std::vector<torch::Tensor> bad{torch::ones({3}),
                                         torch::tensor({1.0F, -std::numeric_limits<float>::infinity()})};
    const auto before = testing::bits(bad);
    (void)gradient::clip_scaled_to_norm_(bad, torch::tensor(8.0F), found, 1.0, norm_type);
    REQUIRE(found.item<float>() == 1);
    REQUIRE(testing::bits(bad) == before);
  }
}

TEST_CASE("what a GPU does by itself finds the same, clips the same, and asks the host nothing", "[finite]") {
  const auto flag = torch::full({}, 7.0F);
  const auto found = [&](const std::vector<torch::Tensor>& gradients) {
    gradient::detail::find_inf_on_device(gradients, flag);
    return flag.item<float>();
  };
  {
    const testing::HostReads reads;
    gradient::detail::find_inf_on_device({torch::ones({8}), torch::full({2}, inf)}, flag);
    (void)gradient::detail::clip_scaled_on_device({torch::ones({8})}, torch::tensor(64.0F), flag, 1.0, 2.0);
    REQUIRE(reads.count() == 0);
  }
  REQUIRE(found({}) == 0);
  REQUIRE(found({torch::full({8}, 3e38F), torch::ones({2}, torch::kDouble)}) == 0);  // their squares are not in f32
  REQUIRE(found({torch::ones({8}), torch::full({2}, not_a_number)}) == 1);
  REQUIRE(found({torch::full({1}, -inf).to(torch::kHalf), torch::ones({2})}) == 1);
  for (const double norm_type : {2.0, 1.0, inf})
    for (const double max_norm : {0.5, 1e9}) {
      const std::vector<torch::Tensor> one{torch::randn({13, 5}) * 64, torch::randn({5}) * 64};
      std::vector<torch::Tensor> other{one[0].clone(), one[1].clone()};
      const auto scale = torch::tensor(64.0F);
      const auto norm = gradient::detail::clip_scaled_on_device(one, scale, flag, max_norm, norm_type);
      REQUIRE(flag.item<float>() == 0);
      REQUIRE(torch::allclose(norm, gradient::clip_scaled_to_norm_(other, scale, flag, max_norm, norm_type)));
      for (std::size_t i = 0; i < one.size(); ++i) REQUIRE(torch::allclose(one[i], other[i], 1e-6));
      one[1][2] = inf;
      (void)gradient::detail::clip_scaled_on_device(one, scale, flag, max_norm, norm_type);
      REQUIRE(flag.item<float>() == 1);
    }
}
