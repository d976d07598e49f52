// Optimizers against torch.optim, run live, alone and on two ranks.
#include "files.hpp"
#include "support/folder.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>

using namespace accel;
using namespace accel::testing;

namespace {

namespace optimizers {

constexpr std::int64_t steps = 200;
constexpr std::array<std::int64_t, 4> shown = {1, 10, 100, 200};

using Shapes = std::vector<std::vector<std::int64_t>>;
const Shapes all = {{}, {1}, {3, 5}, {17}, {31, 33}, {2, 3, 5, 7}, {64}, {16, 4}, {1, 9}};
const Shapes matrices = {{3, 5}, {31, 33}, {16, 4}, {1, 9}};

/// Weights that are given, and a loss whose gradients are.
struct Holder : torch::nn::Module {
  Holder(const Shapes& shapes, const torch::Tensor& start) {
    std::int64_t offset = 0;
    for (const auto& shape : shapes) {
      const auto numel = c10::multiply_integers(shape);
      weights.push_back(
          register_parameter("w" + std::to_string(weights.size()), start.narrow(0, offset, numel).view(shape).clone()));
      offset += numel;
    }
  }
  torch::Tensor forward(const torch::Tensor& gradients) {
    std::vector<torch::Tensor> flat;
    for (const auto& one : weights) flat.push_back(one.flatten());
    return (torch::cat(flat) * gradients).sum();
  }
  std::vector<torch::Tensor> weights;
};

/// What both sides are given: equal on all ranks.
struct Given {
  explicit Given(const Shapes& shapes) {
    auto generator = at::detail::createCPUGenerator(17);
    std::int64_t numel = 0;
    for (const auto& shape : shapes) numel += c10::multiply_integers(shape);
    start = torch::randn({numel}, generator);
    for (auto& one : gradients) one = torch::randn({steps, numel}, generator);
  }
  torch::Tensor start;
  std::array<torch::Tensor, 2> gradients;  // of each rank, f32[steps, numel]
};

/// Weights after each step that is shown.
template <class Optimizer>
torch::Tensor train(const Shapes& shapes, const typename Optimizer::Options& options, Rank rank) {
  const Given given(shapes);
  Accelerator<backend::Gloo, precision::Fp32> accelerator;
  const auto net = std::make_shared<Holder>(shapes, given.start);
  auto [model, optimizer] = accelerator.prepare(net, Optimizer(net->parameters(), options));
  std::vector<torch::Tensor> found;
  for (std::int64_t step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    accelerator.backward(model(given.gradients[static_cast<std::size_t>(rank.rank)][step]));
    optimizer.step();
    if (std::find(shown.begin(), shown.end(), step + 1) != shown.end()) found.push_back(flat(net->weights).clone());
  }
  return torch::cat(found);
}

struct Case {
  std::string name;        // of torch.optim
  nlohmann::json options;  // as Python is given them
  const Shapes* shapes;
  std::function<torch::Tensor(Rank)> train;
  double bound;  // of the largest difference; 0: bit for bit
};

template <class Optimizer>
Case make(const typename Optimizer::Options& options, nlohmann::json more, const Shapes& shapes = all,
          double bound = 0) {
  for_each_field(options, [&]<class Value>(std::string_view name, const Value& value) {
    const std::string key(name);
    if constexpr (std::same_as<Value, optim::LearningRate>)
      more[key] = value.value();
    else if constexpr (std::same_as<Value, optim::AdjustLr>)
      more[key] = name_of(value);
    else if constexpr (!std::same_as<Value, optim::LowPrecision>)
      more[key] = value;
    if (Optimizer::name == "Adafactor" && key == "eps" && more[key][0] == 0) more[key][0] = nullptr;
  });
  return {std::string(Optimizer::name), std::move(more), &shapes,
          [=, &shapes](Rank rank) { return train<Optimizer>(shapes, options, rank); }, bound};
}

std::vector<Case> cases() {
  using namespace accel::optim;
  const nlohmann::json fused = {{"fused", true}}, foreach = {{"foreach", true}}, plain = {{"foreach", false}},
                       none = nlohmann::json::object();
  const AdafactorOptions adafactor{
      .lr = 3e-2, .beta2_decay = -0.7, .eps = {1e-5, 1e-2}, .d = 1.5, .weight_decay = 0.1, .maximize = true};
  return {
      make<AdamW>({.lr = 1e-2}, fused),
      make<AdamW>({.lr = 3e-3, .betas = {0.8, 0.95}, .weight_decay = 0.3, .amsgrad = true, .maximize = true}, fused),
      make<Adam>({.lr = 1e-2, .weight_decay = 0.1}, fused),
      make<Adam>({.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true, .amsgrad = true}, fused),
      make<SGD>({.lr = 1e-2, .weight_decay = 0.1}, fused),
      make<SGD>({.lr = 1e-2, .momentum = 0.9, .nesterov = true}, fused),
      make<SGD>({.lr = 1e-2, .momentum = 0.9, .dampening = 0.2, .weight_decay = 0.1, .maximize = true}, fused),
      make<Adagrad>({.lr = 1e-1}, fused),
      make<Adagrad>(
          {.lr = 1e-1, .lr_decay = 1e-2, .weight_decay = 0.1, .initial_accumulator_value = 0.3, .maximize = true},
          fused),
      make<Adafactor>({}, foreach),
      make<Adafactor>(adafactor, foreach),
      // Not foreach, the step is scaled and added in one rounding in place of two: half a unit in the last place of a
      // step, 200 times, and what follows from it. Measured: 4.8e-7.
      make<Adafactor>({}, plain, all, 5e-6),
      make<Adafactor>(adafactor, plain, all, 5e-6),
      make<Muon>({.lr = 1e-2}, none, matrices),
      make<Muon>({.lr = 1e-2,
                  .weight_decay = 0.01,
                  .momentum = 0.8,
                  .nesterov = false,
                  .ns_coefficients = {3, -3.2, 1.2},
                  .ns_steps = 3,
                  .adjust_lr_fn = AdjustLr::match_rms_adamw},
                 none, matrices),
  };
}

void run_python(const std::filesystem::path& folder) {
  for (const auto& [name, shapes] : {std::pair("all", &all), std::pair("matrices", &matrices)}) {
    const Given given(*shapes);
    const auto& [first, second] = given.gradients;
    write_raw(folder / (std::string(name) + ".start"), given.start);
    write_raw(folder / (std::string(name) + ".1"), first);
    write_raw(folder / (std::string(name) + ".2"), first / 2 + second / 2);
  }
  nlohmann::json list = nlohmann::json::array();
  for (const auto& one : cases())
    list.push_back({{"name", one.name},
                    {"options", one.options},
                    {"shapes", one.shapes == &all ? "all" : "matrices"},
                    {"sizes", *one.shapes}});
  std::ofstream(folder / "cases.json") << list;
  const auto result = run_program({ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/parity/optimizers.py", folder.string()},
                                  {.deadline = Seconds(600), .variables = {{"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  REQUIRE(result.succeeded());
}

}  // namespace optimizers

}  // namespace

TEST_CASE("200 steps of each optimizer are those of torch.optim, bit for bit where it calls what we call", "[parity]") {
  if (std::string(ACCEL_TEST_PYTHON).empty()) skip_without("torchrun", "no Python with torch was found");
  constexpr const char* variable = "ACCEL_TEST_OPTIMIZERS_FOLDER";
  std::optional<Folder> own;  // of the test; its ranks are told where it is
  if (std::getenv("RANK") == nullptr) {
    own.emplace();
    optimizers::run_python(own->path());
    ::setenv(variable, own->path().c_str(), 1);
  }
  const std::filesystem::path folder = std::getenv(variable);
  on_ranks({1, 2}, [&](Rank rank) {
    const auto cases = optimizers::cases();
    for (std::size_t i = 0; i < cases.size(); ++i) {
      INFO(cases[i].name << " " << cases[i].options);
      const auto ours = cases[i].train(rank);
      const auto theirs = read_raw(folder / message(i, ".", rank.world_size));
      CAPTURE(distance({ours}, {theirs}));
      if (cases[i].bound == 0)
        REQUIRE((bits({ours}) == bits({theirs})));
      else
        REQUIRE(distance({ours}, {theirs}) < cases[i].bound);
    }
  });
}
