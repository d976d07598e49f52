#include "support/models.hpp"

#include <accel/gradient/clip.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <limits>

using namespace accel;
using accel::testing::bits;

namespace {

std::vector<at::Tensor> with_gradients(const std::vector<at::Tensor>& gradients) {
  std::vector<at::Tensor> parameters;
  for (const auto& gradient : gradients) {
    parameters.push_back(torch::zeros_like(gradient).requires_grad_());
    parameters.back().mutable_grad() = gradient.clone();
  }
  return parameters;
}

}  // namespace

TEST_CASE("3 and 4 have the norm 5 and are scaled to 0.6 and 0.8", "[clip]") {
  const auto parameters = with_gradients({torch::tensor({3.0F}), torch::tensor({4.0F})});
  const auto norm = gradient::clip_grad_norm_(parameters, 1.0);
  REQUIRE(norm.item<float>() == 5.0F);
  REQUIRE_THAT(parameters[0].grad().item<float>(), Catch::Matchers::WithinAbs(0.6, 1e-6));
  REQUIRE_THAT(parameters[1].grad().item<float>(), Catch::Matchers::WithinAbs(0.8, 1e-6));
}

TEST_CASE("gradients within the bound keep every bit", "[clip]") {
  const auto gradient = torch::randn({7, 3}) * 0.01;
  const auto parameters = with_gradients({gradient});
  (void)gradient::clip_grad_norm_(parameters, 10.0);
  REQUIRE(bits({parameters[0].grad()}) == bits({gradient}));
}

TEST_CASE("clipping equals LibTorch's own within a rounding", "[clip]") {
  const std::vector<at::Tensor> gradients{torch::randn({13, 5}), torch::randn({5}), torch::randn({1})};
  const auto ours = with_gradients(gradients);
  const auto theirs = with_gradients(gradients);
  const double norm = gradient::clip_grad_norm_(ours, 0.5).item<double>();
  REQUIRE_THAT(norm, Catch::Matchers::WithinRel(torch::nn::utils::clip_grad_norm_(theirs, 0.5), 1e-6));
  for (std::size_t i = 0; i < ours.size(); ++i) REQUIRE(torch::allclose(ours[i].grad(), theirs[i].grad(), 1e-6, 1e-7));
}

TEST_CASE("the infinity norm is the largest element", "[clip]") {
  const auto parameters = with_gradients({torch::tensor({3.0F, -7.0F}), torch::tensor({4.0F})});
  REQUIRE(
      gradient::norm_of(gradient::gradients_of(parameters), std::numeric_limits<double>::infinity()).item<float>() ==
      7.0F);
}

TEST_CASE("parameters without gradients are passed over; none at all has the norm 0", "[clip]") {
  auto parameters = with_gradients({torch::tensor({3.0F})});
  parameters.push_back(torch::zeros({2}).requires_grad_());
  REQUIRE(gradient::clip_grad_norm_(parameters, 10.0).item<float>() == 3.0F);
  REQUIRE(gradient::clip_grad_norm_({}, 1.0).item<float>() == 0.0F);
}

TEST_CASE("a bound that is not above 0 is refused", "[clip]") {
  REQUIRE_THROWS_AS(gradient::clip_grad_norm_({}, 0.0), InvalidArgument);
}
