// LossScaler: GradScaler's trajectory, bounds at both ends, and its state.
#include <torch/torch.h>

#include <accel/precision/loss_scaler.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <fstream>
#include <nlohmann/json.hpp>

using namespace accel;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using precision::LossScaler;
using precision::LossScalerOptions;

namespace {

const c10::Device cpu(c10::DeviceType::CPU);

void update(LossScaler& scaler, bool overflow) {
  scaler.update(torch::tensor(overflow ? 1.0F : 0.0F));
}

std::vector<double> scales(LossScaler& scaler, const std::vector<int>& overflows) {
  std::vector<double> all;
  for (const int overflow : overflows) {
    update(scaler, overflow != 0);
    all.push_back(scaler.value());
  }
  return all;
}

}  // namespace

TEST_CASE("the scale takes the way of GradScaler's", "[loss_scaler]") {
  LossScaler short_interval({.init_scale = 8, .growth_interval = 2}, cpu);
  REQUIRE(scales(short_interval, {0, 0, 0, 1, 0, 0, 1, 1, 0}) == std::vector<double>{8, 16, 16, 8, 8, 16, 8, 4, 4});
  LossScaler usual({}, cpu);
  REQUIRE(usual.value() == 65536);
  REQUIRE(scales(usual, {1, 1, 0}) == std::vector<double>{32768, 16384, 16384});
  REQUIRE(usual.growth_tracker() == 1);
  LossScaler patient({}, cpu);
  REQUIRE(scales(patient, std::vector<int>(1999, 0)).back() == 65536);
  REQUIRE(scales(patient, {0, 0}) == std::vector<double>{131072, 131072});
}

TEST_CASE("the scale stays between its bounds, and in what f32 can hold", "[loss_scaler]") {
  LossScaler bounded({.init_scale = 4, .growth_interval = 1, .min_scale = 2, .max_scale = 6}, cpu);
  REQUIRE(scales(bounded, {0, 0, 1, 1, 1, 0}) == std::vector<double>{6, 6, 3, 2, 2, 4});
  LossScaler huge({.init_scale = 0x1p127, .growth_interval = 1}, cpu);
  REQUIRE(scales(huge, {0, 0, 1}) == std::vector<double>{0x1p127, 0x1p127, 0x1p126});
}

TEST_CASE("too many skipped steps in a row end the training, with the scale that they came to", "[loss_scaler]") {
  LossScaler scaler({.max_skipped = 3}, cpu);
  REQUIRE(scales(scaler, {1, 1, 0, 1, 1}).back() == 4096);
  REQUIRE_THROWS_MATCHES(update(scaler, true), OverflowError,
                         MessageMatches(ContainsSubstring("3 steps in a row were skipped") &&
                                        ContainsSubstring("2048") && ContainsSubstring("name_overflow")));
  LossScaler patient({.max_skipped = 0}, cpu);
  REQUIRE(scales(patient, std::vector<int>(200, 1)).back() == 0x1p-126);
  LossScaler unbounded({.min_scale = 0, .max_skipped = 0}, cpu);
  REQUIRE(scales(unbounded, std::vector<int>(200, 1)).back() == 0);
}

TEST_CASE("options that cannot be are refused", "[loss_scaler]") {
  const auto refuses = [](LossScalerOptions options, const char* text) {
    REQUIRE_THROWS_MATCHES(LossScaler(options, cpu), ConfigError, MessageMatches(ContainsSubstring(text)));
  };
  refuses({.init_scale = 0}, "init_scale = 0");
  refuses({.init_scale = 1e300}, "init_scale = 1e+300");
  refuses({.growth_factor = 1}, "growth_factor = 1");
  refuses({.backoff_factor = 1}, "backoff_factor = 1");
  refuses({.growth_interval = 0}, "growth_interval = 0");
  refuses({.min_scale = -1}, "min_scale = -1");
  refuses({.min_scale = 1e6}, "between min_scale = 1e+06");
  refuses({.max_scale = 2}, "max_scale = 2");
  refuses({.init_scale = 1e-60, .min_scale = 0}, "init_scale = 1e-60");
  refuses({.max_skipped = -1}, "max_skipped = -1");
}

TEST_CASE("a scaler goes on from the state of another as that would have", "[loss_scaler]") {
  const LossScalerOptions options{.init_scale = 1024, .growth_factor = 3, .backoff_factor = 0.25, .growth_interval = 4};
  LossScaler one(options, cpu);
  scales(one, {0, 0, 1, 0, 0, 0});
  LossScaler other({}, cpu);
  other.load_state_dict(one.state_dict());
  REQUIRE(scales(one, {0, 0, 1, 0}) == scales(other, {0, 0, 1, 0}));
  tensor::StateDict damaged;
  const auto state = one.state_dict();
  for (const auto& [name, tensor] : state.entries())
    damaged.add(name, name == "scale" ? torch::tensor(-1.0, torch::kDouble) : tensor);
  const double before = other.value();
  REQUIRE_THROWS_AS(other.load_state_dict(damaged), ConfigError);
  REQUIRE(other.value() == before);
}

TEST_CASE("a scale at a bound that f32 has to round is loaded again", "[loss_scaler]") {
  LossScaler scaler({.growth_interval = 1, .max_scale = 100000.1}, cpu);
  update(scaler, false);
  const double bound = scaler.value();
  REQUIRE(bound > 100000.1);
  scaler.load_state_dict(scaler.state_dict());
  REQUIRE(scaler.value() == bound);
}

TEST_CASE("several optimizers share a scale, and one that skips brings it down once", "[loss_scaler]") {
  LossScaler scaler({.growth_interval = 2}, cpu);
  const auto d = scaler.join();
  const auto g = scaler.join();
  const auto yes = torch::tensor(1.0F);
  const auto no = torch::tensor(0.0F);
  scaler.stepped(*d, yes);
  REQUIRE(scaler.value() == 65536);  // the round is not over
  scaler.stepped(*g, no);
  REQUIRE(scaler.value() == 32768);
  scaler.stepped(*d, yes);
  scaler.stepped(*g, yes);
  REQUIRE(scaler.value() == 16384);  // once for both
  for (int round = 0; round < 2; ++round) {
    scaler.stepped(*d, no);
    scaler.stepped(*g, no);
  }
  REQUIRE(scaler.value() == 32768);
  REQUIRE(scaler.updates() == 4);
}
