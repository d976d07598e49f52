// What an optimizer's step costs: weights and gradients that are there, and nothing around them.
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

#include "models.hpp"
#include "workload.hpp"

namespace bench {

/// rank.py holds the same ones: equal weights and gradients, bit for bit.
template <class Optimizer>
class OptimizerStep : public Workload {
 public:
  template <class Options>
  OptimizerStep(const Case& c, const Options& options)
      : weights_(make_weights(c)), optimizer_(std::vector<torch::Tensor>(weights_), options) {
    std::int64_t numel = 0;
    for (const auto& weight : weights_) numel += aligned(weight.numel());
    const auto memory = torch::zeros({numel});
    std::int64_t offset = 0;
    for (auto& weight : weights_) {
      const auto gradient = torch::randn(weight.sizes());
      if (c.value("flat", false)) {  // as a reducer leaves them
        weight.mutable_grad() = memory.narrow(0, offset, weight.numel()).view(weight.sizes()).copy_(gradient);
        offset += aligned(weight.numel());
      } else {
        weight.mutable_grad() = gradient;
      }
    }
  }

  torch::Tensor step(Phases&) override {
    optimizer_.step();
    return {};
  }

  /// The mean of all squares.
  torch::Tensor probe(Phases& phases) override {
    step(phases);
    const torch::NoGradGuard no_grad;
    auto sum = torch::zeros({}, torch::kDouble);
    for (const auto& weight : weights_) sum += weight.to(torch::kDouble).square().mean();
    return sum / static_cast<double>(weights_.size());
  }

 private:
  static std::int64_t aligned(std::int64_t numel) { return (numel + 15) / 16 * 16; }

  static std::vector<torch::Tensor> make_weights(const Case& c) {
    torch::manual_seed(1);
    std::vector<torch::Tensor> weights;
    for (const auto& shape : c.at("shapes"))
      weights.push_back(torch::randn(shape.get<std::vector<std::int64_t>>()).requires_grad_());
    return weights;
  }

  std::vector<torch::Tensor> weights_;
  Optimizer optimizer_;
};

/// Reads and writes as many bytes as a step, in one pass: what memory allows. Not a copy, for which the cache also
/// reads what is written.
class MoveBytes : public Workload {
 public:
  explicit MoveBytes(const Case& c)
      : from_(torch::ones({c.at("moved_bytes").get<std::int64_t>() / 12})), to_(torch::zeros_like(from_)) {}

  torch::Tensor step(Phases&) override { return to_.add_(from_); }
  torch::Tensor probe(Phases& phases) override { return step(phases).mean(); }

 private:
  torch::Tensor from_, to_;  // of 4 bytes: two are read and one is written
};

/// As accel has it, or LibTorch.
inline std::unique_ptr<Workload> optimizer_step(const Case& c, bool is_accel) {
  const std::string name = c.at("optimizer");
  if (is_accel) {
    using namespace accel::optim;
    if (name == "AdamW") return std::make_unique<OptimizerStep<AdamW>>(c, AdamWOptions{});
    if (name == "SGD") return std::make_unique<OptimizerStep<SGD>>(c, SGDOptions{.momentum = 0.9});
    if (name == "Adagrad") return std::make_unique<OptimizerStep<Adagrad>>(c, AdagradOptions{});
    if (name == "Adafactor") return std::make_unique<OptimizerStep<Adafactor>>(c, AdafactorOptions{});
    if (name == "Muon") return std::make_unique<OptimizerStep<Muon>>(c, MuonOptions{});
    if (name == "Lion") return std::make_unique<OptimizerStep<Lion>>(c, LionOptions{});
    if (name == "LAMB") return std::make_unique<OptimizerStep<LAMB>>(c, LAMBOptions{});
  } else {
    using namespace torch::optim;
    if (name == "AdamW") return std::make_unique<OptimizerStep<AdamW>>(c, AdamWOptions());
    if (name == "SGD") return std::make_unique<OptimizerStep<SGD>>(c, SGDOptions(1e-3).momentum(0.9));
    if (name == "Adagrad") return std::make_unique<OptimizerStep<Adagrad>>(c, AdagradOptions());
  }
  throw std::invalid_argument("there is no optimizer \"" + name + "\"");
}

}  // namespace bench
