// The state of LibTorch's own optimizers, by name: each goes on from it as if nothing had happened.
#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/optim/torch_state.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/state_dict.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

namespace {

namespace torch_states {

namespace theirs = torch::optim;
using accel::CheckpointError;
using accel::optim::load_torch_state_dict;
using accel::optim::torch_state_dict;
using accel::tensor::Names;
using accel::tensor::StateDict;
using accel::testing::bits;
using accel::testing::Mlp;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

Names names_of(const Mlp& net) {
  std::vector<accel::tensor::NamedTensor> named;
  for (const auto& item : net.named_parameters()) named.push_back({item.key(), item.value()});
  Names names;
  names.add(named);
  return names;
}

std::unique_ptr<theirs::Adagrad> made(const Mlp& net, theirs::Adagrad*) {
  return std::make_unique<theirs::Adagrad>(net.parameters(), theirs::AdagradOptions(0.1).lr_decay(0.01));
}
std::unique_ptr<theirs::Adam> made(const Mlp& net, theirs::Adam*) {
  return std::make_unique<theirs::Adam>(net.parameters(), theirs::AdamOptions(0.01).amsgrad(true).betas({0.8, 0.9}));
}
std::unique_ptr<theirs::AdamW> made(const Mlp& net, theirs::AdamW*) {
  return std::make_unique<theirs::AdamW>(net.parameters(), theirs::AdamWOptions(0.01).weight_decay(0.1));
}
std::unique_ptr<theirs::LBFGS> made(const Mlp& net, theirs::LBFGS*) {
  return std::make_unique<theirs::LBFGS>(
      net.parameters(), theirs::LBFGSOptions(0.1).history_size(4).max_iter(3).line_search_fn("strong_wolfe"));
}
std::unique_ptr<theirs::RMSprop> made(const Mlp& net, theirs::RMSprop*) {
  return std::make_unique<theirs::RMSprop>(net.parameters(), theirs::RMSpropOptions(0.01).momentum(0.9).centered(true));
}
std::unique_ptr<theirs::SGD> made(const Mlp& net, theirs::SGD*) {
  return std::make_unique<theirs::SGD>(net.parameters(), theirs::SGDOptions(0.1).momentum(0.9).nesterov(true));
}

template <class Optimizer>
void steps(Mlp& net, Optimizer& optimizer, int from, int to) {
  for (int step = from; step < to; ++step) {
    torch::manual_seed(static_cast<std::uint64_t>(100 + step));
    const auto x = torch::randn({8, 5});
    (void)optimizer.step([&] {
      optimizer.zero_grad();
      const auto loss = net.forward(x).square().mean();
      loss.backward();
      return loss;
    });
    if (step == 1) optimizer.param_groups()[0].options().set_lr(0.5 * optimizer.param_groups()[0].options().get_lr());
  }
}

void copy(Mlp& to, const Mlp& from) {
  const torch::NoGradGuard no_grad;
  for (std::size_t k = 0; k < from.parameters().size(); ++k) to.parameters()[k].copy_(from.parameters()[k]);
}

}  // namespace torch_states

TEMPLATE_TEST_CASE("an optimizer of LibTorch's goes on from its state bit for bit, learning rate included",
                   "[torch_state]", torch::optim::Adagrad, torch::optim::Adam, torch::optim::AdamW, torch::optim::LBFGS,
                   torch::optim::RMSprop, torch::optim::SGD) {
  using namespace torch_states;
  Mlp net;
  const auto optimizer = made(net, static_cast<TestType*>(nullptr));
  steps(net, *optimizer, 0, 3);
  StateDict state;  // copies, since the optimizer goes on with its own
  const StateDict saved = torch_state_dict(*optimizer, names_of(net));
  for (const auto& [name, tensor] : saved.entries()) state.add(name, tensor.clone());
  CHECK_FALSE(state.below("state.").empty());
  CHECK(state.number("param_groups.0.lr") == optimizer->param_groups()[0].options().get_lr());

  Mlp other;
  copy(other, net);
  const auto its = made(other, static_cast<TestType*>(nullptr));
  load_torch_state_dict(*its, names_of(other), state);
  steps(net, *optimizer, 3, 6);
  steps(other, *its, 3, 6);
  CHECK(bits(other.parameters()) == bits(net.parameters()));

  // What does not fit is refused by name, and has changed nothing.
  const auto before = torch_state_dict(*its, names_of(other));
  StateDict more = state;
  more.add("state.third.weight.step", std::int64_t{1});
  CHECK_THAT(thrown_by<CheckpointError>([&] { load_torch_state_dict(*its, names_of(other), more); }),
             ContainsSubstring("third.weight"));
  CHECK_THROWS_AS(load_torch_state_dict(*its, names_of(other), StateDict()), CheckpointError);
  const auto after = torch_state_dict(*its, names_of(other));
  std::vector<torch::Tensor> ours, theirs;
  for (const auto& [name, tensor] : before.entries()) ours.push_back(tensor);
  for (const auto& [name, tensor] : after.entries()) theirs.push_back(tensor);
  CHECK(bits(ours) == bits(theirs));
}

TEST_CASE("the state of another shape is refused, with both", "[torch_state]") {
  using namespace torch_states;
  Mlp net(5, 7), wider(5, 9);
  const auto optimizer = made(net, static_cast<torch::optim::Adam*>(nullptr));
  steps(net, *optimizer, 0, 1);
  const auto its = made(wider, static_cast<torch::optim::Adam*>(nullptr));
  const auto state = torch_state_dict(*optimizer, names_of(net));
  CHECK_THAT(thrown_by<CheckpointError>([&] { load_torch_state_dict(*its, names_of(wider), state); }),
             ContainsSubstring("exp_avg of first.weight is f32[7, 5], expected the shape of f32[9, 5]"));
}

}  // namespace
