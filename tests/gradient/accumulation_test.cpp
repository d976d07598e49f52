#include <accel/gradient/accumulation.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string>

using namespace accel;
using namespace accel::gradient;

namespace {

data::Position batch(std::int64_t index, std::int64_t length) {
  return {.index = index, .length = length, .rows = 1};
}

/// What a backward is that runs now, on one rank.
MicroStep now(const Accumulation& accumulation) {
  return accumulation.micro_step(data::InFlight(), 1.0);
}

/// 1 where a micro-step synchronises, for whole epochs of a loader.
std::string pattern(int steps, std::int64_t batches, int epochs) {
  Accumulation accumulation(steps, LossNormalization::window_length);
  std::string flags;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    for (std::int64_t i = 0; i < batches; ++i) {
      accumulation.begin(batch(i, batches));
      flags += accumulation.synchronises() ? '1' : '0';
      accumulation.after_backward();
      accumulation.end();
    }
    flags += '/';
  }
  return flags;
}

}  // namespace

TEST_CASE("the windows of an epoch are Accelerate's, the last one flushed", "[accumulation]") {
  REQUIRE(pattern(1, 3, 2) == "111/111/");
  REQUIRE(pattern(2, 5, 2) == "01011/01011/");
  REQUIRE(pattern(2, 4, 2) == "0101/0101/");
  REQUIRE(pattern(3, 7, 2) == "0010011/0010011/");
  REQUIRE(pattern(4, 10, 2) == "0001000101/0001000101/");
  REQUIRE(pattern(4, 3, 2) == "001/001/");
  REQUIRE(pattern(4, 8, 2) == "00010001/00010001/");
}

TEST_CASE("without a loader windows have their full length and go on", "[accumulation]") {
  Accumulation accumulation(3, LossNormalization::window_length);
  std::string flags;
  for (int i = 0; i < 7; ++i) {
    accumulation.begin(std::nullopt);
    flags += accumulation.synchronises() ? '1' : '0';
    accumulation.after_backward();
    accumulation.end();
  }
  REQUIRE(flags == "0010010");
}

TEST_CASE("a short last window is divided by its length, or by all steps as an option", "[accumulation]") {
  Accumulation by_length(4, LossNormalization::window_length);
  Accumulation by_steps(4, LossNormalization::fixed_steps);
  for (std::int64_t i = 0; i < 6; ++i) {
    by_length.begin(batch(i, 6));
    by_steps.begin(batch(i, 6));
    REQUIRE(now(by_length).length == (i < 4 ? 4 : 2));
    REQUIRE(now(by_steps).length == 4);
    REQUIRE(now(by_length).correction == 1.0);
    by_length.end();
    by_steps.end();
  }
}

TEST_CASE("a window that break left open goes on with the next batch", "[accumulation]") {
  Accumulation accumulation(3, LossNormalization::window_length);
  accumulation.begin(batch(0, 10));
  accumulation.after_backward();
  accumulation.end();  // break
  accumulation.begin(batch(0, 10));
  REQUIRE_FALSE(accumulation.synchronises());
  accumulation.end();
  accumulation.begin(batch(1, 10));
  REQUIRE(accumulation.synchronises());
  REQUIRE(now(accumulation).length == 3);
}

TEST_CASE("a window that ends early corrects what it has added up", "[accumulation]") {
  Accumulation accumulation(4, LossNormalization::window_length);
  accumulation.begin(batch(0, 10));  // begun for 4
  accumulation.end();
  accumulation.begin(batch(0, 1));  // the last batch of a shorter epoch ends it after 2
  REQUIRE(accumulation.synchronises());
  REQUIRE(now(accumulation).length == 2);
  REQUIRE(now(accumulation).correction == 2.0);  // 1/4 became 1/2
  accumulation.after_backward();
  REQUIRE(now(accumulation).length == 2);  // of a second loss in the same micro-step
  REQUIRE(now(accumulation).correction == 1.0);
}

TEST_CASE("no_sync holds back what accumulate would reduce", "[accumulation]") {
  Accumulation accumulation(1, LossNormalization::window_length);
  accumulation.enter_no_sync();
  REQUIRE_FALSE(accumulation.synchronises());
  accumulation.leave_no_sync();
  REQUIRE(accumulation.synchronises());
}

TEST_CASE("a micro-step inside of another is refused, and the outer one stays what it is", "[accumulation]") {
  Accumulation accumulation(2, LossNormalization::window_length);
  accumulation.begin(batch(0, 4));
  REQUIRE(accumulation.only_adds_up());
  REQUIRE_THROWS_AS(accumulation.begin(batch(1, 4)), InvalidArgument);
  REQUIRE(accumulation.only_adds_up());
  accumulation.end();
  REQUIRE_THROWS_AS(accumulation.check_window_is_over(), InvalidArgument);
  accumulation.begin(batch(1, 4));
  REQUIRE(accumulation.synchronises());
  accumulation.end();
  accumulation.check_window_is_over();
}

TEST_CASE("a backward takes a value: index, length, whether it synchronises, and the rank's share", "[accumulation]") {
  Accumulation accumulation(3, LossNormalization::window_length);
  REQUIRE_THROWS_AS(now(accumulation), InvalidArgument);  // outside of a micro-step
  accumulation.begin(data::Position{.index = 0, .length = 2, .rows = 1, .weight_rows = 1, .round_rows = 4});
  MicroStep step = now(accumulation);
  REQUIRE((step.index == 0 && step.length == 2 && !step.synchronises && step.share == 0.25));
  REQUIRE(step.factor() == 0.125);
  accumulation.after_backward();
  accumulation.end();
  accumulation.begin(std::nullopt);
  step = now(accumulation);
  REQUIRE((step.index == 1 && step.length == 2 && step.synchronises && step.share == 1.0));
  accumulation.enter_no_sync();
  REQUIRE_FALSE(now(accumulation).synchronises);
  accumulation.leave_no_sync();
  accumulation.backward_threw();
  REQUIRE_THROWS_AS(now(accumulation), InvalidArgument);  // the mean would lack a micro-batch
  accumulation.end();
  accumulation.give_up();
  accumulation.begin(std::nullopt);
  REQUIRE(now(accumulation).index == 0);
}

TEST_CASE("outside of micro-steps a backward is a whole step, of the rank's even share", "[accumulation]") {
  const MicroStep step = Accumulation(1, LossNormalization::window_length).micro_step(data::InFlight(), 0.5);
  REQUIRE((step.index == 0 && step.length == 1 && step.synchronises && step.share == 0.5 && step.correction == 1.0));
}

TEST_CASE("fewer than one step is refused", "[accumulation]") {
  REQUIRE_THROWS_AS(Accumulation(0, LossNormalization::window_length), ConfigError);
}
