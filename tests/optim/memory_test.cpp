// What each optimizer keeps, in bytes: the Memory fields of the headers and the table of the README.
#include <accel/accelerator.hpp>
#include <catch2/catch_test_macros.hpp>

#include "support/models.hpp"

using namespace accel;

namespace {

namespace memory {

constexpr std::int64_t rows = 256, columns = 512;
constexpr double numel = rows * columns;

/// Bytes of the storages behind states and master weights, per element of one matrix.
template <class Optimizer>
double bytes_per_parameter(typename Optimizer::Options options, at::ScalarType dtype, optim::LowPrecision mode) {
  options.low_precision = mode;
  const auto weights = torch::ones({rows, columns}, dtype).requires_grad_();
  Optimizer optimizer(std::vector<torch::Tensor>{weights}, options);
  for (int step = 0; step < 2; ++step) {
    weights.mutable_grad() = torch::ones({rows, columns}, dtype);
    optimizer.step();
  }
  std::vector<torch::Tensor> held;
  for (const auto& state : optimizer.state()) {
    held.insert(held.end(), state.tensors.begin(), state.tensors.end());
    held.push_back(state.master);
  }
  return testing::storage_bytes(held) / numel;
}

/// `of_states` in f32; bf16 with masters takes 4 more, rounded by chance none, as it is half.
template <class Optimizer>
void has(double of_states, const typename Optimizer::Options& options = {}) {
  INFO(Optimizer::name);
  using enum optim::LowPrecision;
  REQUIRE(bytes_per_parameter<Optimizer>(options, at::kFloat, master_weights) == of_states);
  REQUIRE(bytes_per_parameter<Optimizer>(options, at::kBFloat16, master_weights) == of_states + 4);
  REQUIRE(bytes_per_parameter<Optimizer>(options, at::kBFloat16, stochastic_rounding) == of_states);
  REQUIRE(bytes_per_parameter<Optimizer>(options, at::kBFloat16, as_it_is) == of_states / 2);
}

}  // namespace memory

}  // namespace

TEST_CASE("states take the bytes that the headers say", "[optim]") {
  using memory::has;
  has<optim::AdamW>(8);
  has<optim::AdamW>(12, {.amsgrad = true});
  has<optim::Adam>(8);
  has<optim::SGD>(0);
  has<optim::SGD>(4, {.momentum = 0.9});
  has<optim::Adagrad>(4);
  has<optim::Lion>(4);
  has<optim::LAMB>(8);
  has<optim::Adafactor>(4.0 * (memory::rows + memory::columns) / memory::numel);
  has<optim::Muon>(4);
}

TEST_CASE("states of flat memory take no more than what aligns them", "[optim]") {
  std::vector<torch::Tensor> parameters;
  for (const std::int64_t numel : {1, 16, 33, 100}) parameters.push_back(torch::zeros({numel}).requires_grad_());
  const auto gradients = torch::zeros({16 + 16 + 48 + 100});
  for (std::int64_t i = 0, offset = 0; i < 4;
       offset += (parameters[static_cast<std::size_t>(i++)].numel() + 15) / 16 * 16) {
    auto& one = parameters[static_cast<std::size_t>(i)];
    one.mutable_grad() = gradients.narrow(0, offset, one.numel());
  }
  optim::Lion optimizer(parameters);
  optimizer.step();
  const auto states = optimizer.state();
  REQUIRE(states.size() == 4);
  for (const auto& state : states) {
    REQUIRE(state.tensors[0].storage().unsafeGetStorageImpl() == states[0].tensors[0].storage().unsafeGetStorageImpl());
    REQUIRE(state.tensors[0].storage().nbytes() == gradients.nbytes());
  }
}
