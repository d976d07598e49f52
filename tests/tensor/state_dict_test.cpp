// StateDict: names once, numbers as numbers, and what is said of what is missing.
#include <torch/torch.h>

#include <accel/tensor/state_dict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace accel;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using tensor::StateDict;

TEST_CASE("a state dict keeps tensors and numbers under their names, in order", "[state_dict]") {
  StateDict inner;
  inner.add("exp_avg", torch::ones({2}));
  inner.add("step", 7);
  StateDict all;
  all.add("lr", 0.1);
  all.add("state.weight.", inner);
  REQUIRE(all.entries().size() == 3);
  REQUIRE(all.entries().back().name == "state.weight.step");
  REQUIRE(all.number("lr") == 0.1);
  REQUIRE(all.integer("state.weight.step") == 7);
  REQUIRE(all.has("state.weight.exp_avg"));
  REQUIRE(all.below("state.weight.").tensor("exp_avg").is_same(inner.tensor("exp_avg")));
  REQUIRE(all.below("state.").entries().size() == 2);
}

TEST_CASE("a state dict refuses a name twice, and names what it lacks or holds of another kind", "[state_dict]") {
  StateDict state;
  state.add("scale", 2.0);
  const auto says = [](const char* text) { return MessageMatches(ContainsSubstring(text)); };
  REQUIRE_THROWS_MATCHES(state.add("scale", 1), CheckpointError, says("scale is there already"));
  REQUIRE_THROWS_MATCHES(state.tensor("tracker"), CheckpointError, says("tracker is missing; there are 1 entries"));
  REQUIRE_THROWS_MATCHES(state.integer("scale"), CheckpointError, says("scale is f64[], expected i64[]"));
}
