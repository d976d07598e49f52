// Scheduler and ReduceLROnPlateau: the rates and momenta of any optimizer, and how they go on where they stopped.
#include <torch/torch.h>

#include <accel/optim/adam.hpp>
#include <accel/optim/plateau.hpp>
#include <accel/optim/scheduler.hpp>
#include <accel/optim/sgd.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using namespace accel;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using optim::PlateauOptions;
using optim::ReduceLROnPlateau;
using optim::Scheduler;
namespace schedule = optim::schedule;

static_assert(tensor::Stateful<Scheduler<optim::AdamW>> && tensor::Stateful<Scheduler<torch::optim::Optimizer>>);

namespace {

torch::Tensor parameter() {
  return torch::zeros({1}, torch::requires_grad());
}

/// An optimizer with a group for each rate.
template <class Optimizer>
Optimizer with_rates(const std::vector<double>& rates) {
  if constexpr (requires(Optimizer& optimizer) { optimizer.param_groups()[0].options().lr; }) {
    std::vector<typename Optimizer::Group> groups;
    for (const double rate : rates) groups.push_back(typename Optimizer::Group({parameter()}, {.lr = rate}));
    return Optimizer(std::move(groups));
  } else {
    Optimizer optimizer(std::vector<torch::Tensor>{parameter()}, rates.front());
    for (std::size_t g = 1; g < rates.size(); ++g)
      optimizer.add_param_group(torch::optim::OptimizerParamGroup({parameter()}));
    for (std::size_t g = 0; g < rates.size(); ++g) optimizer.param_groups()[g].options().set_lr(rates[g]);
    return optimizer;
  }
}

template <class Optimizer>
std::vector<double> rates_of(Optimizer& optimizer) {
  std::vector<double> rates;
  for (auto& group : optimizer.param_groups()) rates.push_back(optim::rate_of(group.options()));
  return rates;
}

double momentum_of(const optim::SGD& optimizer) {
  return optimizer.param_groups()[0].options().momentum;
}
double momentum_of(const optim::AdamW& optimizer) {
  return optimizer.param_groups()[0].options().betas[0];
}
template <class Options>
double torch_momentum(const torch::optim::Optimizer& optimizer) {
  const auto& options = static_cast<const Options&>(optimizer.param_groups()[0].options());
  if constexpr (requires { options.betas(); })
    return std::get<0>(options.betas());
  else
    return options.momentum();
}
double momentum_of(const torch::optim::SGD& optimizer) {
  return torch_momentum<torch::optim::SGDOptions>(optimizer);
}
double momentum_of(const torch::optim::Adam& optimizer) {
  return torch_momentum<torch::optim::AdamOptions>(optimizer);
}
double momentum_of(const torch::optim::AdamW& optimizer) {
  return torch_momentum<torch::optim::AdamWOptions>(optimizer);
}
double momentum_of(const torch::optim::RMSprop& optimizer) {
  return torch_momentum<torch::optim::RMSpropOptions>(optimizer);
}

struct OwnSgd : torch::optim::SGD {
  using SGD::SGD;
};

auto says(const std::string& text) {
  return MessageMatches(ContainsSubstring(text));
}

using Rates = std::vector<double>;

}  // namespace

TEMPLATE_TEST_CASE("a scheduler takes the rates as base rates and sets those of step 0 at once", "[scheduler]",
                   optim::SGD, optim::AdamW, torch::optim::SGD, torch::optim::Adam, torch::optim::AdamW,
                   torch::optim::RMSprop, torch::optim::Adagrad, OwnSgd) {
  auto optimizer = with_rates<TestType>({1, 0.5});
  Scheduler scheduler(optimizer, schedule::linear({.warmup_steps = 1, .total_steps = 5}));
  REQUIRE(scheduler.base_rates() == Rates{1, 0.5});
  REQUIRE(rates_of(optimizer) == Rates{0, 0});
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{1, 0.5});
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{0.75, 0.375});
  REQUIRE(scheduler.last_lr() == Rates{0.75, 0.375});
  REQUIRE(scheduler.steps() == 2);
}

TEST_CASE("a rate is a number, or an object that holds one", "[scheduler]") {
  struct Held {
    [[nodiscard]] double value() const { return number; }
    void set(double to) { number = to; }
    double number = 0.5;
  };
  struct {
    Held lr;
  } options;
  CHECK(optim::rate_of(options) == 0.5);
  optim::set_rate(options, 0.25);
  CHECK(options.lr.number == 0.25);
}

TEST_CASE("a rate that is a tensor is written to, and stays the same tensor", "[scheduler]") {
  const auto lr = torch::tensor(0.5);
  optim::AdamW optimizer({parameter()}, {.lr = lr});
  const auto halving = schedule::exponential({.gamma = 0.5});
  Scheduler scheduler(optimizer, halving);
  scheduler.step();
  CHECK(lr.item<float>() == 0.25F);
  const auto other_lr = torch::tensor(0.5);
  optim::AdamW other({parameter()}, {.lr = other_lr});
  Scheduler resumed(other, halving);
  resumed.load_state_dict(scheduler.state_dict());
  CHECK(other_lr.item<float>() == 0.25F);
  resumed.step();
  CHECK(other_lr.item<float>() == 0.125F);
  CHECK(other.param_groups()[0].options().lr.tensor().is_same(other_lr));
}

TEST_CASE("groups that share a tensor for their rate have one rate", "[scheduler]") {
  const auto lr = torch::tensor(1.0);
  using Group = optim::AdamW::Group;
  optim::AdamW optimizer({Group({parameter()}), Group({parameter()})}, {.lr = lr});
  ReduceLROnPlateau plateau(optimizer, {.factor = 0.5, .patience = 0});
  plateau.step(1);
  plateau.step(1);
  CHECK(lr.item<float>() == 0.5F);
  const auto refused = MessageMatches(ContainsSubstring("groups 0 and 1 share one tensor for their rate"));
  CHECK_THROWS_MATCHES(Scheduler(optimizer, {schedule::constant(), schedule::exponential({.gamma = 0.5})}).step(),
                       InvalidArgument, refused);
  CHECK(lr.item<float>() == 0.5F);
  optim::AdamW other({Group({parameter()}, {.lr = 0.5}), Group({parameter()}, {.lr = 0.25})});
  CHECK_THROWS_MATCHES(optimizer.load_state_dict(other.state_dict()), InvalidArgument, refused);
  optim::AdamW in_a_row({parameter()}, {.lr = torch::full({1}, 0.5)});
  CHECK(in_a_row.param_groups()[0].options().lr.tensor().dim() == 0);
}

TEST_CASE("groups may have a schedule each", "[scheduler]") {
  auto optimizer = with_rates<optim::SGD>({1, 2});
  Scheduler scheduler(optimizer, {schedule::linear({.total_steps = 2}), schedule::exponential({.gamma = 0.5})});
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{0.5, 1});
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{0, 0.5});
  REQUIRE(
      scheduler.describe() ==
      "after 2 steps; base rate 1, linear, warmup_steps = 0, total_steps = 2; base rate 2, exponential, gamma = 0.5");
  const std::vector<optim::Schedule> three(3, schedule::constant());
  REQUIRE_THROWS_MATCHES(Scheduler(optimizer, three), InvalidArgument, says("expected 2 schedules"));
}

TEST_CASE("LibTorch's optimizers are scheduled by their base class, too", "[scheduler]") {
  torch::optim::LBFGS lbfgs(std::vector<torch::Tensor>{parameter()}, 1.0);
  torch::optim::Optimizer& optimizer = lbfgs;
  Scheduler scheduler(optimizer, [](std::int64_t step) { return 1 / (1 + static_cast<double>(step)); });
  scheduler.step();
  REQUIRE(rates_of(lbfgs) == Rates{0.5});
  REQUIRE_THROWS_MATCHES(Scheduler(optimizer, schedule::one_cycle({.max_lr = 1, .total_steps = 9})), InvalidArgument,
                         says("found one with neither; give the schedule .cycle_momentum = false"));
  REQUIRE(rates_of(lbfgs) == Rates{0.5});
}

TEMPLATE_TEST_CASE("one cycle moves the momentum, or beta1", "[scheduler]", optim::SGD, optim::AdamW, torch::optim::SGD,
                   torch::optim::Adam, torch::optim::AdamW, torch::optim::RMSprop, OwnSgd) {
  auto optimizer = with_rates<TestType>({1});
  const auto cycle = schedule::one_cycle({.max_lr = 2, .total_steps = 5});
  Scheduler scheduler(optimizer, cycle);
  for (std::int64_t step = 0;; ++step) {
    REQUIRE(rates_of(optimizer) == Rates{cycle(step, 1)});
    REQUIRE(momentum_of(optimizer) == cycle.momentum(step));
    if (step == 5) break;
    scheduler.step();
  }
  const auto state = scheduler.state_dict();
  REQUIRE_THROWS_MATCHES(scheduler.step(), InvalidArgument, says("at most total_steps = 5, found 6"));
  REQUIRE(scheduler.steps() == 5);  // nothing has changed
  REQUIRE(rates_of(optimizer) == Rates{cycle(5, 1)});
  // What is saved puts both back.
  auto other = with_rates<TestType>({3});
  Scheduler resumed(other, cycle);
  resumed.load_state_dict(state);
  REQUIRE(rates_of(other) == rates_of(optimizer));
  REQUIRE(momentum_of(other) == momentum_of(optimizer));
}

TEST_CASE("an optimizer without momentum is refused by one cycle, unless that leaves it alone", "[scheduler]") {
  auto optimizer = with_rates<torch::optim::Adagrad>({1});
  schedule::OneCycleOptions options{
      .max_lr = 1, .total_steps = 5, .anneal_strategy = schedule::Anneal::linear, .div_factor = 4};
  REQUIRE_THROWS_MATCHES(Scheduler(optimizer, schedule::one_cycle(options)), InvalidArgument, says("cycle_momentum"));
  REQUIRE(rates_of(optimizer) == Rates{1});
  options.cycle_momentum = false;
  Scheduler scheduler(optimizer, schedule::one_cycle(options));
  REQUIRE(rates_of(optimizer) == Rates{0.25});
  REQUIRE(scheduler.total_steps() == 5);
}

TEST_CASE("a schedule that ends above the base rate is refused when the scheduler is made", "[scheduler]") {
  auto optimizer = with_rates<optim::SGD>({1e-8});
  REQUIRE_THROWS_MATCHES(Scheduler(optimizer, schedule::polynomial({.total_steps = 5})), InvalidArgument,
                         says("expected lr_end below the base rate 1e-08, found 1e-07"));
  REQUIRE(rates_of(optimizer) == Rates{1e-8});
}

TEST_CASE("a group that is added behind a scheduler's back is refused", "[scheduler]") {
  auto optimizer = with_rates<optim::SGD>({1});
  Scheduler scheduler(optimizer, schedule::linear({.total_steps = 5}));
  optimizer.add_param_group(optim::SGD::Group({parameter()}));
  REQUIRE_THROWS_MATCHES(scheduler.step(), InvalidArgument,
                         says("has 2 groups, and had 1 when this was made; make it after"));
  REQUIRE(scheduler.steps() == 0);
}

TEMPLATE_TEST_CASE("stopped, saved, loaded and continued is as never stopped", "[scheduler]", optim::AdamW,
                   torch::optim::SGD) {
  const std::vector<optim::Schedule> schedules{schedule::cosine({.warmup_steps = 3, .total_steps = 20}),
                                               schedule::polynomial({.total_steps = 20, .power = 2})};
  auto whole = with_rates<TestType>({0.1, 0.7});
  Scheduler never_stopped(whole, schedules);
  std::vector<Rates> expected{rates_of(whole)};
  for (int step = 0; step < 20; ++step) {
    never_stopped.step();
    expected.push_back(rates_of(whole));
  }
  for (const std::size_t stop : {0U, 2U, 3U, 11U, 20U}) {
    tensor::StateDict saved;
    {
      auto optimizer = with_rates<TestType>({0.1, 0.7});
      Scheduler scheduler(optimizer, schedules);
      for (std::size_t step = 0; step < stop; ++step) scheduler.step();
      saved = scheduler.state_dict();
    }
    auto optimizer = with_rates<TestType>({5, 5});  // the base rates come from the state
    Scheduler scheduler(optimizer, schedules);
    scheduler.load_state_dict(saved);
    REQUIRE(rates_of(optimizer) == expected[stop]);
    REQUIRE(scheduler.last_lr() == expected[stop]);
    for (std::size_t step = stop; step < 20; ++step) {
      scheduler.step();
      REQUIRE(rates_of(optimizer) == expected[step + 1]);
    }
  }
}

TEST_CASE("a rate that was set by hand is in the state, until the next step", "[scheduler]") {
  auto optimizer = with_rates<optim::SGD>({1});
  Scheduler scheduler(optimizer, schedule::linear({.total_steps = 4}));
  optim::set_rate(optimizer.param_groups()[0].options(), 7);
  const auto saved = scheduler.state_dict();
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{0.75});
  scheduler.load_state_dict(saved);
  REQUIRE(rates_of(optimizer) == Rates{7});
  scheduler.step();
  REQUIRE(rates_of(optimizer) == Rates{0.75});
}

TEST_CASE("the state of another number of groups is refused, and changes nothing", "[scheduler]") {
  auto one = with_rates<optim::SGD>({1});
  auto two = with_rates<optim::SGD>({1, 2});
  Scheduler for_one(one, schedule::linear({.total_steps = 4}));
  Scheduler for_two(two, schedule::linear({.total_steps = 4}));
  for_one.step();
  REQUIRE_THROWS_MATCHES(for_two.load_state_dict(for_one.state_dict()), CheckpointError,
                         says("expected the state of 2 groups, found that of 1"));
  REQUIRE_THROWS_MATCHES(for_one.load_state_dict({}), CheckpointError, says("found that of 0"));
  REQUIRE(rates_of(two) == Rates{1, 2});
  REQUIRE(for_one.steps() == 1);
  const ReduceLROnPlateau plateau_of_two(two);
  ReduceLROnPlateau plateau_of_one(one);
  REQUIRE_THROWS_MATCHES(plateau_of_one.load_state_dict(plateau_of_two.state_dict()), CheckpointError,
                         says("expected the state of 1 groups, found that of 2"));
}

// ---- plateaus -----------------------------------------------------------------------------------

namespace {

/// The rates after each value, of one group that begins with 1.
Rates judged(PlateauOptions options, const std::vector<double>& values) {
  auto optimizer = with_rates<optim::SGD>({1});
  ReduceLROnPlateau plateau(optimizer, std::move(options));
  Rates rates;
  for (const double value : values) {
    plateau.step(value);
    rates.push_back(rates_of(optimizer)[0]);
  }
  return rates;
}

}  // namespace

TEST_CASE("a plateau lowers the rate after more than `patience` values that are no better", "[scheduler]") {
  using optim::Better;
  using optim::Threshold;
  CHECK(judged({.factor = 0.5, .patience = 1}, {3, 3, 3, 3, 3, 2, 2, 2}) ==
        Rates{1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125});
  CHECK(judged({.mode = Better::max, .factor = 0.5, .patience = 0}, {3, 2, 4, 4}) == Rates{1, 0.5, 0.5, 0.25});
  // Better by less than the threshold is not better.
  CHECK(judged({.factor = 0.5, .patience = 0, .threshold = 0.25}, {4, 3.5, 3.01, 2.99}) == Rates{1, 0.5, 0.25, 0.25});
  CHECK(judged({.mode = Better::max, .factor = 0.5, .patience = 0, .threshold = 0.25}, {4, 4.99, 5.01}) ==
        Rates{1, 0.5, 0.5});
  CHECK(judged({.factor = 0.5, .patience = 0, .threshold = 1, .threshold_mode = Threshold::abs}, {4, 3.01, 2.99}) ==
        Rates{1, 0.5, 0.5});
  // While it cools down nothing counts as bad.
  CHECK(judged({.factor = 0.5, .patience = 0, .cooldown = 2}, {1, 1, 1, 1, 1, 1}) ==
        Rates{1, 0.5, 0.5, 0.5, 0.25, 0.25});
  // There is a lowest rate, and a smallest reduction.
  CHECK(judged({.factor = 0.5, .patience = 0, .min_lr = {0.3}}, {1, 1, 1, 1}) == Rates{1, 0.5, 0.3, 0.3});
  CHECK(judged({.factor = 0.5, .patience = 0, .eps = 0.3}, {1, 1, 1, 1}) == Rates{1, 0.5, 0.5, 0.5});
  // What is no number is no better.
  CHECK(judged({.factor = 0.5, .patience = 0}, {1, NAN, 0.5, NAN}) == Rates{1, 0.5, 0.5, 0.25});
}

TEST_CASE("a plateau goes on where it stopped", "[scheduler]") {
  const PlateauOptions options{.factor = 0.5, .patience = 1, .cooldown = 1, .min_lr = {0.01, 0.02}};
  const std::vector<double> values{5, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 2.5, 9, 9, 9, 9};
  auto whole = with_rates<torch::optim::Adam>({1, 0.1});
  ReduceLROnPlateau never_stopped(whole, options);
  std::vector<Rates> expected{rates_of(whole)};
  for (const double value : values) {
    never_stopped.step(value);
    expected.push_back(rates_of(whole));
  }
  REQUIRE(expected.back() != expected.front());
  for (std::size_t stop = 0; stop <= values.size(); ++stop) {
    auto first = with_rates<torch::optim::Adam>({1, 0.1});
    ReduceLROnPlateau begun(first, options);
    for (std::size_t i = 0; i < stop; ++i) begun.step(values[i]);
    auto second = with_rates<torch::optim::Adam>({3, 3});
    ReduceLROnPlateau resumed(second, options);
    resumed.load_state_dict(begun.state_dict());
    REQUIRE(resumed.best() == begun.best());
    REQUIRE(resumed.last_lr() == expected[stop]);
    for (std::size_t i = stop; i < values.size(); ++i) {
      resumed.step(values[i]);
      REQUIRE(rates_of(second) == expected[i + 1]);
    }
  }
}

TEST_CASE("a plateau refuses options that make no sense", "[scheduler]") {
  auto optimizer = with_rates<optim::SGD>({1, 2});
  const auto refuses = [&](PlateauOptions options, const std::string& text) {
    CHECK_THROWS_MATCHES(ReduceLROnPlateau(optimizer, std::move(options)), InvalidArgument, says(text));
  };
  refuses({.factor = 1}, "expected factor in [0, 1), found 1");
  refuses({.patience = -1}, "expected patience of at least 0, found -1");
  refuses({.threshold = -1}, "expected threshold of at least 0, found -1");
  refuses({.cooldown = -1}, "expected cooldown of at least 0, found -1");
  refuses({.min_lr = {1, 2, 3}}, "expected one min_lr, or 2, one for each group of the optimizer, found 3");
  refuses({.eps = -1}, "expected eps of at least 0, found -1");
}
