// Autocast: what is computed in which dtype, and that nothing is left behind.
#include <torch/torch.h>

#include <accel/precision/autocast.hpp>

#include <catch2/catch_test_macros.hpp>

#include <stdexcept>
#include <thread>

using accel::precision::Autocast;

namespace {

torch::ScalarType product_dtype() {
  return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type();
}

}  // namespace

TEST_CASE("a region computes products in its dtype, an inner one that is off in f32, and afterwards nobody",
          "[autocast]") {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    {
      const Autocast outer(c10::DeviceType::CPU, dtype);
      REQUIRE(product_dtype() == dtype);
      {
        const Autocast inner(c10::DeviceType::CPU, dtype, /*enabled=*/false);
        REQUIRE(product_dtype() == torch::kFloat);
        const Autocast innermost(c10::DeviceType::CPU, torch::kBFloat16);
        REQUIRE(product_dtype() == torch::kBFloat16);
      }
      REQUIRE(product_dtype() == dtype);
      std::thread([] { REQUIRE(product_dtype() == torch::kFloat); }).join();
    }
    REQUIRE(product_dtype() == torch::kFloat);
  }
}

TEST_CASE("an exception leaves the thread as it was", "[autocast]") {
  const auto dtype = at::autocast::get_autocast_dtype(c10::DeviceType::CPU);
  const bool cache = at::autocast::is_autocast_cache_enabled();
  try {
    const Autocast region(c10::DeviceType::CPU, torch::kHalf, true, false);
    throw std::runtime_error("forward");
  } catch (const std::runtime_error&) {
  }
  REQUIRE_FALSE(at::autocast::is_autocast_enabled(c10::DeviceType::CPU));
  REQUIRE(at::autocast::get_autocast_dtype(c10::DeviceType::CPU) == dtype);
  REQUIRE(at::autocast::is_autocast_cache_enabled() == cache);
  REQUIRE(at::autocast::increment_nesting() == 1);
  at::autocast::decrement_nesting();
}

TEST_CASE("casts of weights are kept within the outermost region, and not beyond it", "[autocast]") {
  auto weight = torch::ones({2, 2}, torch::requires_grad());
  const auto sum = [&] { return torch::mm(torch::ones({2, 2}), weight).sum().item<float>(); };
  for (const bool cache : {true, false}) {
    torch::NoGradGuard no_grad;
    weight.fill_(1);
    {
      const torch::AutoGradMode grad(true);
      const Autocast outer(c10::DeviceType::CPU, torch::kBFloat16, true, cache);
      {
        const Autocast inner(c10::DeviceType::CPU, torch::kBFloat16, true, cache);
        REQUIRE(sum() == 8);
      }
      weight.data().fill_(2);
      REQUIRE(sum() == (cache ? 8 : 16));  // the cast of before, where casts are kept
    }
    const torch::AutoGradMode grad(true);
    const Autocast next(c10::DeviceType::CPU, torch::kBFloat16, true, cache);
    REQUIRE(sum() == 16);
  }
}
