// replay_recorded FILE...: replays the recorded behaviour of other libraries against accel.
//
// A file is JSON as in tests/parity/recorded: its `kind` says what was recorded, its `cases` are replayed one by one.
// What differs is printed with file and case, and the last line counts cases: "42 passed, 0 failed". A file that cannot
// be read counts as a failed case; kinds that are not in the table below are named and skipped.
#include <torch/torch.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/adam.hpp>
#include <accel/optim/plateau.hpp>
#include <accel/optim/schedule.hpp>
#include <accel/optim/scheduler.hpp>
#include <accel/optim/sgd.hpp>
#include <accel/precision/loss_scaler.hpp>

#include <nlohmann/json.hpp>

#include "parity/replay_data.hpp"
#include "parity/replay_optimizers.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using accel::message;
using accel::shortest;
using Json = nlohmann::json;

using accel::testing::Differences;

/// The settings of a case. One that nobody asks for would be left out of the replay without a word.
class Settings {
 public:
  explicit Settings(const Json& values) : values_(values) {}

  template <class T>
  [[nodiscard]] T get(const std::string& name, const T& fallback) const {
    asked_.insert(name);
    return values_.value(name, fallback);
  }
  template <class T>
  [[nodiscard]] T get(const std::string& name) const {
    asked_.insert(name);
    return values_.at(name).get<T>();
  }
  /// Of a word, what it stands for.
  template <class T>
  [[nodiscard]] T choice(const std::string& name, const T& fallback, const std::map<std::string, T>& words) const {
    asked_.insert(name);
    return values_.contains(name) ? words.at(values_.at(name).get<std::string>()) : fallback;
  }
  [[nodiscard]] bool has(const std::string& name) const {
    asked_.insert(name);
    return values_.contains(name) && !values_.at(name).is_null();  // Python's None
  }

  void check_all_asked() const {
    for (const auto& [name, value] : values_.items())
      if (!asked_.contains(name)) throw std::runtime_error(message("the option ", name, " is not known here"));
  }

 private:
  const Json& values_;
  mutable std::set<std::string> asked_;
};

/// `tolerance` is relative, and for what shall be 0 a part of `unit`.
void compare(std::string_view what, const std::vector<double>& found, const std::vector<double>& expected,
             double tolerance, double unit, Differences& differences) {
  if (expected.empty()) differences.push_back(message(what, " is empty"));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double bound = tolerance * std::abs(expected[i] == 0 ? unit : expected[i]);
    if (!(std::abs(found[i] - expected[i]) <= bound))
      differences.push_back(
          message(what, "[", i, "]: expected ", shortest(expected[i]), ", found ", shortest(found[i])));
  }
}

// ---- schedules ----------------------------------------------------------------------------------

namespace schedule = accel::optim::schedule;

schedule::OneCycleOptions one_cycle(const Json& one, const Settings& options) {
  schedule::OneCycleOptions result{.max_lr = one.at("max_lr").get<double>(),
                                   .total_steps = one.at("total_steps").get<std::int64_t>()};
  using schedule::Anneal;
  result.pct_start = options.get("pct_start", result.pct_start);
  result.anneal_strategy =
      options.choice("anneal_strategy", Anneal::cosine, {{"cos", Anneal::cosine}, {"linear", Anneal::linear}});
  result.cycle_momentum = options.get("cycle_momentum", result.cycle_momentum);
  result.base_momentum = options.get("base_momentum", result.base_momentum);
  result.max_momentum = options.get("max_momentum", result.max_momentum);
  result.div_factor = options.get("div_factor", result.div_factor);
  result.final_div_factor = options.get("final_div_factor", result.final_div_factor);
  result.three_phase = options.get("three_phase", result.three_phase);
  return result;
}

schedule::MinLrOptions min_lr(std::int64_t warmup, std::int64_t total, const Settings& options) {
  schedule::MinLrOptions result{.warmup_steps = warmup, .total_steps = total};
  result.num_cycles = options.get("num_cycles", result.num_cycles);
  if (options.has("min_lr")) result.min_lr = options.get<double>("min_lr");
  if (options.has("min_lr_rate")) result.min_lr_ratio = options.get<double>("min_lr_rate");
  return result;
}

schedule::WarmupStableDecayOptions warmup_stable_decay(std::int64_t warmup, std::int64_t total,
                                                       const Settings& options) {
  using schedule::Ramp;
  const std::map<std::string, Ramp> ramps{
      {"linear", Ramp::linear}, {"cosine", Ramp::cosine}, {"1-sqrt", Ramp::one_minus_sqrt}};
  schedule::WarmupStableDecayOptions result{.warmup_steps = warmup};
  result.decay_steps = options.get<std::int64_t>("num_decay_steps");
  if (options.has("num_stable_steps"))
    result.stable_steps = options.get<std::int64_t>("num_stable_steps");
  else
    result.total_steps = total;
  result.warmup_type = options.choice("warmup_type", result.warmup_type, ramps);
  result.decay_type = options.choice("decay_type", result.decay_type, ramps);
  result.min_lr_ratio = options.get("min_lr_ratio", result.min_lr_ratio);
  result.num_cycles = options.get("num_cycles", result.num_cycles);
  return result;
}

/// By the names of transformers' get_scheduler, and those of PyTorch's own.
accel::optim::Schedule schedule_of(const Json& one, const Settings& options) {
  const auto name = one.at("name").get<std::string>();
  const auto warmup = one.value("warmup_steps", std::int64_t{0});
  const auto total = one.value("total_steps", std::int64_t{0});
  if (name == "constant") return schedule::constant();
  if (name == "constant_with_warmup") return schedule::constant_with_warmup({.warmup_steps = warmup});
  if (name == "linear") return schedule::linear({.warmup_steps = warmup, .total_steps = total});
  if (name == "cosine")
    return schedule::cosine(
        {.warmup_steps = warmup, .total_steps = total, .num_cycles = options.get("num_cycles", 0.5)});
  if (name == "cosine_with_restarts")
    return schedule::cosine_with_restarts(
        {.warmup_steps = warmup, .total_steps = total, .num_cycles = options.get("num_cycles", std::int64_t{1})});
  if (name == "cosine_with_min_lr") return schedule::cosine_with_min_lr(min_lr(warmup, total, options));
  if (name == "polynomial")
    return schedule::polynomial({.warmup_steps = warmup,
                                 .total_steps = total,
                                 .lr_end = options.get("lr_end", 1e-7),
                                 .power = options.get("power", 1.0)});
  if (name == "inverse_sqrt") {
    schedule::InverseSqrtOptions result{.warmup_steps = warmup};
    if (options.has("timescale")) result.timescale = options.get<std::int64_t>("timescale");
    return schedule::inverse_sqrt(result);
  }
  if (name == "warmup_stable_decay") return schedule::warmup_stable_decay(warmup_stable_decay(warmup, total, options));
  if (name == "one_cycle") return schedule::one_cycle(one_cycle(one, options));
  if (name == "step")
    return schedule::step({.step_size = options.get<std::int64_t>("step_size"), .gamma = options.get("gamma", 0.1)});
  if (name == "multi_step")
    return schedule::multi_step(
        {.milestones = options.get<std::vector<std::int64_t>>("milestones"), .gamma = options.get("gamma", 0.1)});
  if (name == "exponential") return schedule::exponential({.gamma = options.get<double>("gamma")});
  throw std::runtime_error(message("there is no schedule named ", name));
}

accel::optim::PlateauOptions plateau_options(const Settings& options) {
  using accel::optim::Better;
  using accel::optim::Threshold;
  accel::optim::PlateauOptions result;
  result.mode = options.choice("mode", result.mode, {{"min", Better::min}, {"max", Better::max}});
  result.factor = options.get("factor", result.factor);
  result.patience = options.get("patience", result.patience);
  result.threshold = options.get("threshold", result.threshold);
  result.threshold_mode =
      options.choice("threshold_mode", result.threshold_mode, {{"rel", Threshold::rel}, {"abs", Threshold::abs}});
  result.cooldown = options.get("cooldown", result.cooldown);
  result.min_lr = {options.get("min_lr", 0.0)};
  result.eps = options.get("eps", result.eps);
  return result;
}

/// Before each step.
struct Course {
  std::vector<double> rates, momenta;
};

template <class Optimizer>
Course course(const Json& one, const Settings& options, Optimizer optimizer, std::size_t length) {
  Course found;
  const auto follow = [&](auto& scheduler, auto step) {
    options.check_all_asked();
    for (std::size_t i = 0; i < length; ++i) {
      if (i > 0) step(scheduler, i);
      const auto& group = optimizer.param_groups()[0].options();
      found.rates.push_back(accel::optim::rate_of(group));
      if constexpr (requires { group.betas; })
        found.momenta.push_back(group.betas[0]);
      else
        found.momenta.push_back(group.momentum);
    }
  };
  if (one.at("name") == "reduce_on_plateau") {
    const auto metrics = one.at("metrics").get<std::vector<double>>();
    accel::optim::ReduceLROnPlateau plateau(optimizer, plateau_options(options));
    follow(plateau, [&](auto& scheduler, std::size_t i) { scheduler.step(metrics.at(i - 1)); });
  } else {
    accel::optim::Scheduler scheduler(optimizer, schedule_of(one, options));
    follow(scheduler, [](auto& itself, std::size_t) { itself.step(); });
  }
  return found;
}

/// The rate, and where it is moved the momentum, or beta1, of the case's `optimizer`.
Differences schedules(const Json& one) {
  const Json none = Json::object();
  const Settings options(one.contains("options") ? one.at("options") : none);
  const double base_rate = one.at(one.contains("base_lr") ? "base_lr" : "max_lr").get<double>();
  const auto rates = one.at("lr").get<std::vector<double>>();
  const auto momenta = one.value("momentum", std::vector<double>{});
  const auto length = std::max(rates.size(), momenta.size());
  const auto optimizer = one.value("optimizer", "sgd");
  if (optimizer != "sgd" && optimizer != "adamw")
    throw std::runtime_error(message("there is no optimizer named ", optimizer));
  const std::vector<torch::Tensor> parameters{torch::zeros({1}, torch::requires_grad())};
  const Course found =
      optimizer == "sgd"
          ? course(one, options, accel::optim::SGD(parameters, {.lr = base_rate, .momentum = 0.5}), length)
          : course(one, options, accel::optim::AdamW(parameters, {.lr = base_rate}), length);
  Differences differences;
  compare("lr", found.rates, rates, 1e-12, base_rate, differences);
  if (!momenta.empty()) compare("momentum", found.momenta, momenta, 1e-12, 1, differences);
  return differences;
}

// ---- loss_scale ---------------------------------------------------------------------------------

/// The scale and its tracker after every update, exactly.
Differences loss_scale(const Json& one) {
  using accel::precision::LossScaler;
  const LossScaler defaults({}, c10::Device(c10::DeviceType::CPU));
  LossScaler scaler({.init_scale = one.value("init_scale", defaults.options().init_scale),
                     .growth_factor = one.value("growth_factor", defaults.options().growth_factor),
                     .backoff_factor = one.value("backoff_factor", defaults.options().backoff_factor),
                     .growth_interval = one.value("growth_interval", defaults.options().growth_interval),
                     .min_scale = 0,  // GradScaler has no bounds
                     .max_skipped = 0},
                    c10::Device(c10::DeviceType::CPU));
  std::vector<double> scales, trackers;
  for (const auto& found_inf : one.at("found_inf")) {
    scaler.update(torch::tensor(found_inf.get<float>()));
    scales.push_back(scaler.value());
    trackers.push_back(static_cast<double>(scaler.growth_tracker()));
  }
  Differences differences;
  const auto check = [&](const char* what, const std::vector<double>& found) {
    const auto expected = one.at(what).get<std::vector<double>>();
    if (expected.size() != found.size())
      differences.push_back(message(what, " has ", expected.size(), " numbers, found_inf ", found.size()));
    else
      compare(what, found, expected, 0, 0, differences);
  };
  check("scale", scales);
  check("growth_tracker", trackers);
  return differences;
}

// ---- optimizers ---------------------------------------------------------------------------------

// ---- kinds, files and the count -----------------------------------------------------------------

/// What there is to replay: a function of one case for each kind of file.
const std::map<std::string, Differences (*)(const Json&)> kinds{
    {"batch_sampler_shard", accel::testing::replay_batch_sampler_shard},
    {"iterable_shard", accel::testing::replay_iterable_shard},
    {"loss_scale", loss_scale},
    {"optimizers", accel::testing::replay_optimizer},
    {"schedules", schedules},
    {"shuffle", accel::testing::replay_shuffle},
    {"split_between_processes", accel::testing::replay_split}};

struct Count {
  std::size_t passed = 0, failed = 0;  // cases
};

void replay(const std::string& path, Count& count) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("it cannot be read");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const Json recorded = Json::parse(text);
  const auto name = recorded.at("kind").get<std::string>();
  const auto kind = kinds.find(name);
  if (kind == kinds.end()) {
    std::cout << path << ": skipped, no replay of kind \"" << name << "\" is known\n";
    return;
  }
  const Json& cases = recorded.at("cases");
  if (!cases.is_array()) throw std::runtime_error("its cases are no list");
  for (std::size_t i = 0; i < cases.size(); ++i) {
    Differences differences;
    try {
      differences = kind->second(cases[i]);
    } catch (const std::exception& error) {
      differences.push_back(accel::first_line(error));
    }
    for (const auto& difference : differences) std::cout << path << ": case " << i << ": " << difference << "\n";
    ++(differences.empty() ? count.passed : count.failed);
  }
}

}  // namespace

int main(int argc, char* argv[]) {
  const std::vector<std::string> paths(argv + 1, argv + argc);
  if (paths.empty()) {
    std::cerr << "usage: replay_recorded FILE...\n";
    return 2;
  }
  Count count;
  for (const auto& path : paths) {
    try {
      replay(path, count);
    } catch (const std::exception& error) {
      std::cout << path << ": not replayed: " << accel::first_line(error) << "\n";
      ++count.failed;
    }
  }
  std::cout << count.passed << " passed, " << count.failed << " failed\n";
  return count.failed == 0 ? 0 : 1;
}
