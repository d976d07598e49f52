// The rules that PyTorch does not have, against their papers' formulas in double.
#include "support/models.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <functional>

using namespace accel;
using namespace accel::testing;

namespace {

namespace formulas {

struct State {
  torch::Tensor w, m, v;  // f64
  std::int64_t t = 0;
};

/// 40 steps of ours in f64 and in f32, and of a formula.
template <class Optimizer>
void compare(const typename Optimizer::Options& options,
             const std::function<void(State& state, const torch::Tensor& gradient)>& formula) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    torch::manual_seed(11);
    std::vector<torch::Tensor> ours;
    std::vector<State> states;
    for (const std::vector<std::int64_t>& shape :
         std::vector<std::vector<std::int64_t>>{{7, 5}, {33}, {}, {2, 3, 4}, {200, 401}}) {
      const auto w = torch::randn(shape, torch::kDouble);
      ours.push_back(w.to(dtype, false, true).requires_grad_());
      states.push_back({w.clone(), torch::zeros_like(w), torch::zeros_like(w)});
    }
    Optimizer optimizer(ours, options);
    for (int step = 0; step < 40; ++step) {
      for (std::size_t i = 0; i < ours.size(); ++i) {
        const auto gradient = torch::randn_like(states[i].w);
        ours[i].mutable_grad() = gradient.to(dtype);
        ++states[i].t;
        formula(states[i], gradient);
      }
      optimizer.step();
    }
    const double bound = dtype == at::kDouble ? 1e-13 : 1e-5;  // 40 roundings, and of sums in norms
    for (std::size_t i = 0; i < ours.size(); ++i)
      REQUIRE(distance({ours[i].detach().to(at::kDouble)}, {states[i].w}) < bound);
  }
}

}  // namespace formulas

}  // namespace

TEST_CASE("Lion is algorithm 2 of its paper", "[optim]") {
  for (const double decay : {0.0, 0.1})
    formulas::compare<optim::Lion>({.lr = 1e-3, .weight_decay = decay},
                                   [&](formulas::State& s, const torch::Tensor& g) {
                                     const auto c = 0.9 * s.m + 0.1 * g;
                                     s.w = s.w - 1e-3 * (c.sign() + decay * s.w);
                                     s.m = 0.99 * s.m + 0.01 * g;
                                   });
}

TEST_CASE("LAMB is algorithm 2 of its paper, and Adam where nothing decays", "[optim]") {
  struct Case {
    double decay;
    bool always_adapt;
  };
  for (const auto& [decay, always_adapt] : {Case{0.05, false}, Case{0.0, true}, Case{0.0, false}}) {
    formulas::compare<optim::LAMB>(
        {.lr = 1e-2, .weight_decay = decay, .always_adapt = always_adapt},
        [&](formulas::State& s, const torch::Tensor& g) {
          s.m = 0.9 * s.m + 0.1 * g;
          s.v = 0.999 * s.v + 0.001 * g * g;
          const auto m = s.m / (1 - std::pow(0.9, s.t));
          const auto v = s.v / (1 - std::pow(0.999, s.t));
          const auto u = m / (v.sqrt() + 1e-6) + decay * s.w;
          const bool adapts = decay > 0 || always_adapt;
          s.w = s.w - 1e-2 * (adapts ? s.w.norm() / u.norm() : torch::ones({}, torch::kDouble)) * u;
        });
  }
}

TEST_CASE("LAMB takes a step of ratio 1 from weights that are 0", "[optim]") {
  const auto weights = torch::zeros({4, 4}).requires_grad_();
  optim::LAMB optimizer(std::vector<torch::Tensor>{weights}, {.lr = 0.5});
  weights.mutable_grad() = torch::ones({4, 4});
  optimizer.step();
  REQUIRE(torch::allclose(weights.detach(), torch::full({4, 4}, -0.5), 1e-5));
  weights.mutable_grad().zero_();
}

TEST_CASE("Muon's step has singular values near 1, whatever the gradient's are", "[optim]") {
  torch::manual_seed(2);
  for (const auto& [rows, columns] : {std::pair(24, 24), std::pair(8, 40), std::pair(40, 8)}) {
    const auto weights = torch::zeros({rows, columns}).requires_grad_();
    optim::Muon optimizer(std::vector<torch::Tensor>{weights}, {.lr = 1.0});
    weights.mutable_grad() = torch::randn({rows, columns}) * 1e-4;
    optimizer.step();
    const auto values = at::linalg_svdvals(weights.detach() / std::sqrt(std::max(1.0, 1.0 * rows / columns)));
    // Jordan 2024: from 0.5 to 1.5, for what is not far smaller than the largest.
    REQUIRE(values.max().item<double>() < 1.5);
    REQUIRE(values.median().item<double>() > 0.6);
  }
}
