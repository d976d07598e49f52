// The laws of an optimizer: what all rules promise, whatever their arithmetic. A rule's own test file says
//
//   ACCEL_OPTIMIZER_SUITE(accel::optim::Lion, {.lr = 1e-2}, {.lr = 1e-2, .maximize = true})
//
// with some options, and adds what its numbers must be.
#pragma once

#include <accel/gradient/grad_scale.hpp>
#include <accel/optim/flat_optimizer.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/state_dict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/host_reads.hpp"
#include "support/models.hpp"

namespace accel::testing::optimizer_suite {

using Catch::Matchers::ContainsSubstring;
using Tensors = std::vector<torch::Tensor>;

template <class O>
bool takes(const torch::Tensor& parameter) {
  try {
    if constexpr (requires { O::check_parameter(parameter); }) O::check_parameter(parameter);
  } catch (const InvalidArgument&) {
    return false;
  }
  return true;
}

/// One element, none, odd sizes, whole cache lines, several dimensions, other orders in memory, and a part of a larger
/// tensor, as far as O takes them. Equal for equal seeds.
template <class O>
Tensors odd_parameters(at::ScalarType dtype = at::kFloat) {
  auto generator = at::detail::createCPUGenerator(3);
  const auto random = [&](const std::vector<std::int64_t>& shape) { return torch::randn(shape, generator).to(dtype); };
  Tensors all;
  for (const std::vector<std::int64_t>& shape : std::vector<std::vector<std::int64_t>>{
           {}, {1}, {3, 5}, {0}, {0, 4}, {17}, {32}, {16, 4}, {31, 33}, {1, 9}, {9, 1}, {2, 3, 5, 7}})
    all.push_back(random(shape));
  all.push_back(random({4, 3, 2, 5}).contiguous(torch::MemoryFormat::ChannelsLast));
  all.push_back(random({6, 5}).t());
  all.push_back(random({5, 8}).narrow(1, 2, 3));
  std::erase_if(all, [](const torch::Tensor& one) { return !takes<O>(one); });
  for (auto& one : all) one = one.detach().requires_grad_();
  return all;
}

inline Tensors twins(const Tensors& parameters) {
  Tensors all = copies(parameters);
  for (auto& one : all) one.requires_grad_();
  return all;
}

/// The same gradients for the same step, each in memory of its own.
inline Tensors gradients_of(const Tensors& parameters, int step) {
  auto generator = at::detail::createCPUGenerator(100 + static_cast<std::uint64_t>(step));
  Tensors all;
  for (const auto& one : parameters) all.push_back(torch::randn(one.sizes(), generator).to(one.scalar_type()));
  return all;
}

/// Memory for gradients: side by side as a reducer leaves them, or each by itself, as autograd does.
class Memory {
 public:
  explicit Memory(bool flat) : flat_(flat) {}

  void give(const Tensors& parameters, const Tensors& gradients) {
    if (flat_ && !memory_.defined()) memory_ = torch::zeros({1 << 17}, parameters[0].options().requires_grad(false));
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      at::Tensor& own = parameters[i].mutable_grad();
      if (flat_) own = tensor::view_like(memory_, offset, parameters[i]).variable_data();
      if (!flat_) own = torch::empty_like(parameters[i].detach());
      own.copy_(gradients[i]);
      offset = (offset + own.numel() + 31) / 32 * 32;  // 64 bytes of 2, 4 or 8 each
    }
  }
  void move() { memory_.reset(); }

 private:
  bool flat_;
  torch::Tensor memory_;
};

/// Every bit of weights, states, counts and options.
template <class O>
std::vector<std::string> everything(const O& optimizer, const Tensors& parameters) {
  auto all = bits(parameters);
  const auto dict = optimizer.state_dict();
  for (const auto& [name, tensor] : dict.entries()) all.push_back(name + bits({tensor})[0]);
  return all;
}

inline tensor::StateDict copy_of(const tensor::StateDict& dict) {
  tensor::StateDict copy;
  for (const auto& [name, tensor] : dict.entries()) copy.add(name, tensor.clone());
  return copy;
}

/// Without the entry `left_out`, or with `replacement` in its place.
inline tensor::StateDict changed(const tensor::StateDict& dict, const std::string& left_out,
                                 const torch::Tensor& replacement = {}) {
  tensor::StateDict copy;
  for (const auto& [name, tensor] : dict.entries())
    if (name != left_out)
      copy.add(name, tensor);
    else if (replacement.defined())
      copy.add(name, replacement);
  return copy;
}

inline gradient::GradScale scaled_by(double factor, bool found_inf = false, bool on_device = false) {
  return {.scale = factor == 1 ? torch::Tensor() : torch::tensor(static_cast<float>(factor)),
          .found_inf = torch::tensor(found_inf ? 1.0F : 0.0F),
          .on_device = on_device};
}

template <class O>
void take_steps(O& optimizer, const Tensors& parameters, Memory& memory, int from, int to) {
  for (int step = from; step < to; ++step) {
    memory.give(parameters, gradients_of(parameters, step));
    optimizer.step();
  }
}

// ---- the laws -----------------------------------------------------------------------------------

/// Gradients lie together or not, some are missing, all move, one is laid out otherwise, and somebody gives
/// a parameter other memory: each is stepped as if it were alone.
template <class O>
void steps_each_as_if_it_were_alone(const typename O::Options& options) {
  for (const bool flat : {true, false}) {
    const Tensors ours = odd_parameters<O>();
    const Tensors theirs = twins(ours);
    O optimizer(ours, options);
    std::vector<O> alone;
    for (const auto& one : theirs) alone.emplace_back(Tensors{one}, options);
    Memory memory(flat), theirs_memory(false);
    for (int step = 0; step < 16; ++step) {
      if (step == 6) memory.move();
      if (step == 9) ours[0].set_data(ours[0].detach().clone());
      const Tensors gradients = gradients_of(ours, step);
      memory.give(ours, gradients);
      theirs_memory.give(theirs, gradients);
      if (step == 12)
        for (const auto& one : ours)
          if (one.dim() == 2) one.mutable_grad() = one.grad().t().contiguous().t();
      for (std::size_t i = 0; step > 3 && i < ours.size(); ++i)
        if ((static_cast<std::size_t>(step) + 3 * i) % 4 == 0) {
          ours[i].mutable_grad().reset();
          theirs[i].mutable_grad().reset();
        }
      optimizer.step();
      for (auto& one : alone) one.step();
      REQUIRE((bits(ours) == bits(theirs)));
    }
    const auto states = optimizer.state();
    REQUIRE(states.size() == ours.size());
    for (std::size_t i = 0; i < states.size(); ++i) {
      const auto other = alone[i].state().at(0);
      REQUIRE(states[i].step == other.step);
      REQUIRE((bits(states[i].tensors) == bits(other.tensors)));
    }
  }
}

/// What lies in flat memory may be cut anywhere; at a cache line it makes no difference to the last bit. (LibTorch's
/// loops for the CPU round what fills no vector otherwise.)
template <class O>
void steps_slices_as_the_whole(const typename O::Options& options) {
  const auto line_of = [](at::ScalarType dtype) { return 64 / static_cast<std::int64_t>(c10::elementSize(dtype)); };
  for (const auto& [dtype, unit] :
       std::vector<std::pair<at::ScalarType, std::int64_t>>{{at::kFloat, line_of(at::kFloat)},
                                                            {at::kDouble, line_of(at::kDouble)},
                                                            {at::kBFloat16, line_of(at::kBFloat16)},
                                                            {at::kFloat, 1},
                                                            {at::kDouble, 1}}) {
    constexpr std::int64_t numel = 1003;
    auto generator = at::detail::createCPUGenerator(5);
    const auto batch_of = [&](const torch::Tensor& parameter, const torch::Tensor& gradient) {
      optim::Batch batch;
      batch.parameters = {parameter};
      batch.gradients = {gradient};
      for (std::size_t s = 0; s < O::states(options).size(); ++s)
        batch.states.push_back({O::initial(options, s, parameter)});
      batch.steps = {torch::zeros({})};
      return batch;
    };
    const auto whole_parameter = torch::randn({numel}, generator).to(dtype);
    const auto sliced_parameter = whole_parameter.clone();
    const auto gradient = torch::empty_like(whole_parameter);
    auto whole = batch_of(whole_parameter, gradient);
    std::vector<optim::Batch> slices;
    for (std::int64_t begin = 0, units = 1; begin < numel; begin += units++ * unit) {
      const std::int64_t length = std::min(units * unit, numel - begin);
      slices.push_back(batch_of(sliced_parameter.narrow(0, begin, length), gradient.narrow(0, begin, length)));
    }
    for (int step = 1; step <= 4; ++step) {
      gradient.copy_(torch::randn({numel}, generator));
      const auto apply = [&](optim::Batch& batch) {
        batch.steps[0].fill_(step);
        batch.count = step;
        if constexpr (optim::FoldsScale<O>)
          O::apply(batch, options, {});
        else
          O::apply(batch, options);
      };
      apply(whole);
      for (auto& slice : slices) apply(slice);
      if (unit > 1)
        REQUIRE((bits({whole_parameter}) == bits({sliced_parameter})));
      else
        REQUIRE(torch::allclose(whole_parameter, sliced_parameter, 1e-6, 1e-7));
    }
  }
}

/// A scale that is a power of two is as good as none; gradients come back without it.
template <class O>
void divides_by_the_scale(const typename O::Options& options) {
  for (const bool flat : {true, false}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const Tensors ours = odd_parameters<O>(dtype);
      const Tensors theirs = twins(ours);
      O optimizer(ours, options), plain(theirs, options);
      Memory memory(flat), plain_memory(flat);
      for (int step = 0; step < 4; ++step) {
        const Tensors gradients = gradients_of(ours, step);
        memory.give(ours, gradients);
        for (const auto& one : ours) one.mutable_grad().mul_(1024);
        plain_memory.give(theirs, gradients);
        optimizer.step(scaled_by(1024, false, step % 2 == 1));
        plain.step();
        REQUIRE((everything(optimizer, ours) == everything(plain, theirs)));
        REQUIRE((bits(accel::testing::gradients(ours)) == bits(gradients)));
      }
    }
  }
}

/// In fp16 a divided gradient may be 0, and is stepped with all the same.
template <class O>
void divides_small_gradients_exactly(const typename O::Options& options) {
  Tensors halves = odd_parameters<O>(at::kHalf), floats;
  for (const auto& one : halves) floats.push_back(one.detach().to(at::kFloat).requires_grad_());
  O optimizer(halves, options), exact(floats, options);
  for (const auto& one : halves) one.mutable_grad() = torch::full_like(one.detach(), 65536e-8);
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i].mutable_grad() = halves[i].grad().to(at::kFloat) / 65536;
  optimizer.step(scaled_by(65536));
  exact.step();
  const auto states = optimizer.state();
  for (std::size_t i = 0; i < states.size(); ++i) REQUIRE((bits({states[i].master}) == bits({floats[i]})));
}

/// A step that is skipped, as the host knows or only the device, has never been.
template <class O>
void skips_what_is_not_finite(const typename O::Options& options) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool flat : {true, false}) {
      for (const bool on_device : {true, false}) {
        const Tensors ours = odd_parameters<O>(dtype);
        const Tensors theirs = twins(ours);
        O optimizer(ours, options), plain(theirs, options);
        Memory memory(flat), plain_memory(flat);
        for (int step = 0; step < 5; ++step) {
          if (step == 0 || step == 3) {
            const auto before = everything(optimizer, ours);
            const Tensors gradients = gradients_of(ours, 50 + step);
            for (const auto& one : gradients) one.fill_(step == 0 ? INFINITY : NAN);
            memory.give(ours, gradients);
            optimizer.step(scaled_by(8, true, on_device));
            REQUIRE((everything(optimizer, ours) == before));
          }
          const Tensors gradients = gradients_of(ours, step);
          memory.give(ours, gradients);
          plain_memory.give(theirs, gradients);
          optimizer.step(scaled_by(1, false, on_device));
          plain.step();
          REQUIRE((everything(optimizer, ours) == everything(plain, theirs)));
        }
      }
    }
  }
}

/// A tensor is a number that others can change.
template <class O>
void reads_lr_from_a_tensor(typename O::Options options) {
  const Tensors ours = odd_parameters<O>();
  const Tensors theirs = twins(ours);
  options.lr = 0.0078125;
  O plain(theirs, options);
  const auto lr = torch::tensor(0.0078125);
  options.lr = lr;
  O optimizer(ours, options);
  Memory memory(true), plain_memory(true);
  take_steps(optimizer, ours, memory, 0, 5);
  take_steps(plain, theirs, plain_memory, 0, 5);
  if constexpr (optim::FoldsScale<O>)
    REQUIRE((bits(ours) == bits(theirs)));
  else
    for (std::size_t i = 0; i < ours.size(); ++i)  // a product is rounded once more
      REQUIRE(torch::allclose(ours[i], theirs[i], 1e-6, 1e-7));
  lr.zero_();
  const auto before = bits(ours);
  take_steps(optimizer, ours, memory, 5, 6);
  REQUIRE((bits(ours) == before));
  optimizer.load_state_dict(plain.state_dict());
  REQUIRE(lr.item<double>() == 0.0078125);
  REQUIRE(optimizer.param_groups()[0].options().lr.tensor().is_same(lr));
}

template <class O>
void steps_groups_with_their_own_options(const typename O::Options& options) {
  const Tensors ours = odd_parameters<O>();
  const Tensors theirs = twins(ours);
  const auto half = static_cast<std::ptrdiff_t>(ours.size() / 2);
  const auto first = [&](const Tensors& all) { return Tensors(all.begin(), all.begin() + half); };
  const auto second = [&](const Tensors& all) { return Tensors(all.begin() + half, all.end()); };
  auto other = options;
  other.lr = 0.3 * options.lr.value();
  if constexpr (requires { other.weight_decay; }) other.weight_decay = options.weight_decay + 0.2;
  if constexpr (requires { other.betas; }) other.betas = {0.7, 0.9};
  using Group = typename O::Group;
  O optimizer({Group(first(ours)), Group(second(ours), other)}, options);
  O one(first(theirs), options), two(second(theirs), other);
  Memory memory(true), theirs_memory(true);
  for (int step = 0; step < 4; ++step) {
    memory.give(ours, gradients_of(ours, step));
    theirs_memory.give(theirs, gradients_of(theirs, step));
    optimizer.step();
    one.step();
    two.step();
    REQUIRE((bits(ours) == bits(theirs)));
    optimizer.param_groups()[1].options().lr = two.param_groups()[0].options().lr = 0.1 * (step + 1);
  }
  const Tensors again = twins(ours);
  O resumed({Group(first(again)), Group(second(again))}, options);
  resumed.load_state_dict(copy_of(optimizer.state_dict()));
  REQUIRE(describe(resumed.param_groups()[1].options()) == describe(optimizer.param_groups()[1].options()));
  Memory again_memory(true);
  take_steps(optimizer, ours, memory, 4, 6);
  take_steps(resumed, again, again_memory, 4, 6);
  REQUIRE((everything(resumed, again) == everything(optimizer, ours)));
}

/// From its third step on, as long as gradients lie where they did: on a GPU the host would wait.
template <class O>
void asks_the_host_nothing(const typename O::Options& options) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensors ours{torch::ones({32, 16}, dtype).requires_grad_(), torch::ones({16, 3}, dtype).requires_grad_()};
    O optimizer(ours, options);
    Memory memory(true);
    int asked = 0;
    for (int step = 0; step < 5; ++step) {
      memory.give(ours, gradients_of(ours, step));
      const auto scale = scaled_by(8, step == 3, /*on_device=*/true);
      const HostReads reads;
      optimizer.step(scale);
      if (step > 1) asked += reads.count();
    }
    REQUIRE(asked == 0);
  }
}

template <class O>
void maximizes(const typename O::Options& options) {
  if constexpr (requires { options.maximize; }) {
    const Tensors ours = odd_parameters<O>();
    const Tensors theirs = twins(ours);
    O optimizer(ours, options);
    auto opposite = options;
    opposite.maximize = !options.maximize;
    O other(theirs, opposite);
    Memory memory(true), theirs_memory(true);
    for (int step = 0; step < 4; ++step) {
      memory.give(ours, gradients_of(ours, step));
      theirs_memory.give(theirs, gradients_of(theirs, step));
      for (const auto& one : theirs) one.mutable_grad().neg_();
      optimizer.step();
      other.step();
      const auto a = optimizer.state(), b = other.state();
      REQUIRE((bits(ours) == bits(theirs)));
      for (std::size_t i = 0; i < a.size(); ++i) REQUIRE((bits(a[i].tensors) == bits(b[i].tensors)));
    }
  }
}

/// Out of one optimizer into another that was made with other options and whose memory is another.
template <class O>
void goes_on_from_its_state(const typename O::Options& options) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto mode : {optim::LowPrecision::master_weights, optim::LowPrecision::stochastic_rounding,
                            optim::LowPrecision::as_it_is}) {
      for (const bool flat : {true, false}) {
        auto own = options;
        own.low_precision = mode;
        const Tensors ours = odd_parameters<O>(dtype);
        O optimizer(ours, own);
        Memory memory(flat);
        take_steps(optimizer, ours, memory, 0, 3);
        const Tensors theirs = twins(ours);
        O resumed(theirs);
        Memory other_memory(!flat);
        if (flat) take_steps(resumed, theirs, other_memory, 0, 1);  // it may have begun
        for (std::size_t i = 0; i < ours.size(); ++i) theirs[i].detach().copy_(ours[i].detach());
        resumed.load_state_dict(copy_of(optimizer.state_dict()));
        REQUIRE(describe(resumed.param_groups()[0].options()) == describe(own));
        REQUIRE((everything(resumed, theirs) == everything(optimizer, ours)));
        take_steps(optimizer, ours, memory, 3, 6);
        take_steps(resumed, theirs, other_memory, 3, 6);
        REQUIRE((everything(resumed, theirs) == everything(optimizer, ours)));
      }
    }
  }
}

template <class O>
void refuses_a_state_of_others(const typename O::Options& options) {
  const Tensors ours = odd_parameters<O>();
  O optimizer(ours, options);
  Memory memory(true);
  take_steps(optimizer, ours, memory, 0, 2);
  const auto good = copy_of(optimizer.state_dict());
  take_steps(optimizer, ours, memory, 2, 3);
  const auto before = everything(optimizer, ours);
  const auto refuses = [&](const tensor::StateDict& bad, const std::string& part) {
    REQUIRE_THROWS_WITH(optimizer.load_state_dict(bad), ContainsSubstring(part));
    REQUIRE((everything(optimizer, ours) == before));
  };
  std::string state;  // of the last parameter, of more than its count
  for (const auto& [name, tensor] : good.entries())
    if (name.starts_with("state.") && !name.ends_with(".step")) state = name;
  if (!state.empty()) {
    refuses(changed(good, "state.0.step"), "state.0.");
    refuses(changed(good, state), state.substr(state.rfind('.') + 1));
    refuses(changed(good, state, torch::zeros({2, 77})), "f32[2, 77]");
  }
  refuses(changed(good, "param_groups.0.lr"), "lr");
  refuses(changed(good, "param_groups.0.lr", torch::tensor(-1.0, torch::kDouble)), "lr = -1");
  auto more = copy_of(good);
  more.add("state.another.step", std::int64_t{4});
  refuses(more, "state.another.step");
  auto groups = copy_of(good);
  groups.add("param_groups.1.lr", 0.1);
  refuses(groups, "param_groups.1.lr");
  optimizer.load_state_dict(good);
  for (const auto& one : optimizer.state()) REQUIRE(one.step == 2);
}

/// States go by the names of the prepared model, so that their order does not matter.
template <class O>
void names_its_states(const typename O::Options& options) {
  const Tensors ours = odd_parameters<O>();
  const std::vector<tensor::NamedTensor> names{{"first.weight", ours[0]}, {"second.weight", ours[1]}};
  O optimizer(ours, options), resumed(Tensors{ours[1], ours[0]}, options);
  optimizer.name_parameters(names);
  resumed.name_parameters(names);
  Memory memory(true);
  memory.give(ours, gradients_of(ours, 0));
  for (std::size_t i = 2; i < ours.size(); ++i) ours[i].mutable_grad().reset();
  optimizer.step();
  REQUIRE(optimizer.state_dict().integer("state.first.weight.step") == 1);
  resumed.load_state_dict(optimizer.state_dict());
  const auto a = optimizer.state(), b = resumed.state();
  REQUIRE((bits(a.at(0).tensors) == bits(b.at(1).tensors)));
  REQUIRE(b.at(1).parameter.is_same(ours[0]));
}

template <class O>
void calls_closures_and_clears_gradients(const typename O::Options& options) {
  const Tensors ours = odd_parameters<O>();
  O optimizer(ours, options);
  const auto before = bits(ours);
  const auto loss = optimizer.step([&] {
    auto sum = torch::zeros({});
    for (const auto& one : ours) sum = sum + one.square().sum();
    sum.backward();
    return sum;
  });
  REQUIRE(loss.requires_grad());
  REQUIRE((bits(ours) != before));
  const torch::Tensor gradient = ours[0].grad();
  optimizer.zero_grad(/*set_to_none=*/false);
  REQUIRE(ours[0].grad().is_same(gradient));
  REQUIRE(gradient.abs().sum().item<float>() == 0);
  const c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> weak(gradient.getIntrusivePtr());
  optimizer.step();
  optimizer.zero_grad();
  REQUIRE(!ours[0].grad().defined());
  REQUIRE(weak.use_count() == 1);  // our own
}

/// bf16 weights with masters are those of a run in f32, rounded; who writes to them is followed.
template <class O>
void follows_the_run_in_f32(typename O::Options options) {
  options.low_precision = optim::LowPrecision::master_weights;
  for (const bool flat : {true, false}) {
    Tensors ours = odd_parameters<O>(at::kBFloat16);
    ours.push_back(torch::ones({260, 260}, at::kBFloat16).requires_grad_());  // more than a block
    Tensors exact;
    for (const auto& one : ours) exact.push_back(one.detach().to(at::kFloat).requires_grad_());
    O optimizer(ours, options), reference(exact, options);
    Memory memory(flat), exact_memory(flat);
    for (int step = 0; step < 8; ++step) {
      // Some elements are written to, as by who loads weights. (What rounds to the new weight anyway would stay.)
      if (step == 3) {
        for (const auto& one : ours)
          if (one.dim() > 0 && one.numel() > 0) one.detach().select(0, 0).fill_(64);
        for (const auto& one : exact)
          if (one.dim() > 0 && one.numel() > 0) one.detach().select(0, 0).fill_(64);
      }
      if (step == 5) {
        ours[0].set_data(torch::full_like(ours[0].detach(), 32));
        exact[0].set_data(torch::full_like(exact[0].detach(), 32));
      }
      const Tensors gradients = gradients_of(ours, step);
      memory.give(ours, gradients);
      exact_memory.give(exact, gradients);
      optimizer.step();
      reference.step();
      const auto states = optimizer.state();
      for (std::size_t i = 0; i < ours.size(); ++i) {
        REQUIRE((bits({states[i].master}) == bits({exact[i]})));
        REQUIRE((bits({ours[i]}) == bits({exact[i].detach().to(at::kBFloat16)})));
      }
    }
  }
}

/// Of equal weights with equal gradients as many are rounded up as makes their mean right.
template <class O>
void rounds_by_chance(typename O::Options options) {
  options.low_precision = optim::LowPrecision::stochastic_rounding;
  constexpr std::int64_t rows = 260;  // more than a block
  const auto make = [&](at::ScalarType dtype) {
    auto one = torch::full({rows, rows}, 0.75, dtype).requires_grad_();
    one.mutable_grad() = torch::full({rows, rows}, 0.5, dtype);
    return one;
  };
  const torch::Tensor ours = make(at::kBFloat16), again = make(at::kBFloat16), exact = make(at::kFloat);
  options.lr = 1e-3;
  O optimizer(Tensors{ours}, options), same(Tensors{again}, options), reference(Tensors{exact}, options);
  const auto random_state = at::detail::getDefaultCPUGenerator().get_state().clone();
  optimizer.step();
  same.step();
  REQUIRE(torch::equal(at::detail::getDefaultCPUGenerator().get_state(), random_state));
  reference.step();
  REQUIRE((bits({ours}) == bits({again})));
  const auto distance = (ours.detach().to(at::kFloat) - exact.detach()).to(at::kDouble);
  constexpr double ulp = 0x1p-8;  // of bf16 from 0.5 to 1
  REQUIRE(distance.abs().max().item<double>() < ulp);
  // The sum of rows^2 choices of one of two neighbours deviates by at most ulp / 2 * rows; five times that is never.
  REQUIRE(std::abs(distance.mean().item<double>()) < 5 * 0.5 * ulp / rows);
  for (int step = 0; step < 3; ++step) {
    optimizer.step();
    same.step();
  }
  REQUIRE((bits({ours}) == bits({again})));
}

template <class O>
void binds_later_and_steps_some(const typename O::Options& options) {
  O unbound(options);
  REQUIRE(unbound.is_unbound());
  REQUIRE_THROWS_WITH(unbound.step(), ContainsSubstring("made without parameters"));
  REQUIRE(unbound.state().empty());
  REQUIRE(unbound.state_dict().empty());
  const Tensors ours = odd_parameters<O>();
  const Tensors theirs = twins(ours);
  unbound.add_param_group(typename O::Group(ours));
  REQUIRE(!unbound.is_unbound());
  REQUIRE(describe(unbound.param_groups()[0].options()) == describe(options));
  O plain(theirs, options);
  Memory memory(true), theirs_memory(true);
  for (int step = 0; step < 6; ++step) {
    memory.give(ours, gradients_of(ours, step));
    theirs_memory.give(theirs, gradients_of(theirs, step));
    if (step % 3 == 0) {
      unbound.step();
    } else {
      unbound.step_some(std::span(ours).first(2));
      unbound.step_some(std::span(ours).subspan(2));
    }
    plain.step();
    REQUIRE((everything(unbound, ours) == everything(plain, theirs)));
  }
}

/// Options are the user's to change between steps.
template <class O>
void follows_its_options(const typename O::Options& options) {
  const Tensors ours = odd_parameters<O>(at::kBFloat16);
  O optimizer(ours, options);
  Memory memory(true);
  int step = 0;
  for (const auto mode : {optim::LowPrecision::as_it_is, optim::LowPrecision::master_weights,
                          optim::LowPrecision::stochastic_rounding, optim::LowPrecision::as_it_is}) {
    optimizer.param_groups()[0].options().low_precision = mode;
    take_steps(optimizer, ours, memory, step, step + 2);
    step += 2;
    for (const auto& state : optimizer.state()) {
      REQUIRE(state.step == step);
      REQUIRE(state.master.defined() == (mode == optim::LowPrecision::master_weights));
      for (const auto& tensor : state.tensors)
        if (tensor.defined())
          REQUIRE(tensor.scalar_type() == (mode == optim::LowPrecision::as_it_is ? at::kBFloat16 : at::kFloat));
    }
  }
  for (const auto& one : ours) REQUIRE(one.isfinite().all().item<bool>());
}

template <class O>
void with_each(const std::vector<typename O::Options>& all,
               std::initializer_list<std::function<void(const typename O::Options&)>> laws) {
  for (const auto& options : all) {
    INFO(O::name << ": " << describe(options));
    for (const auto& law : laws) law(options);
  }
}

}  // namespace accel::testing::optimizer_suite

#define ACCEL_OPTIMIZER_SUITE(O, ...)                                                                            \
  static_assert(accel::optim::UpdateRule<O>);                                                                    \
  TEST_CASE(#O " steps each parameter as if it were alone, wherever things lie", "[optim][conformance]") {       \
    using namespace accel::testing::optimizer_suite;                                                             \
    with_each<O>({__VA_ARGS__}, {steps_each_as_if_it_were_alone<O>, steps_groups_with_their_own_options<O>,      \
                                 maximizes<O>, reads_lr_from_a_tensor<O>, binds_later_and_steps_some<O>});       \
    if constexpr (O::is_elementwise) with_each<O>({__VA_ARGS__}, {steps_slices_as_the_whole<O>});                \
  }                                                                                                              \
  TEST_CASE(#O " takes a scale out of gradients, and skips what is not finite", "[optim][conformance]") {        \
    using namespace accel::testing::optimizer_suite;                                                             \
    with_each<O>({__VA_ARGS__}, {divides_by_the_scale<O>, divides_small_gradients_exactly<O>,                    \
                                 skips_what_is_not_finite<O>, asks_the_host_nothing<O>});                        \
  }                                                                                                              \
  TEST_CASE(#O " goes on from its state, bit for bit, and refuses that of others", "[optim][conformance]") {     \
    using namespace accel::testing::optimizer_suite;                                                             \
    with_each<O>({__VA_ARGS__}, {goes_on_from_its_state<O>, refuses_a_state_of_others<O>, names_its_states<O>}); \
  }                                                                                                              \
  TEST_CASE(#O " calls closures, clears gradients, follows its options", "[optim][conformance]") {               \
    using namespace accel::testing::optimizer_suite;                                                             \
    with_each<O>({__VA_ARGS__}, {calls_closures_and_clears_gradients<O>, follows_its_options<O>});               \
  }                                                                                                              \
  TEST_CASE(#O " follows the run in f32 with bf16 weights, or rounds them by chance", "[optim][conformance]") {  \
    using namespace accel::testing::optimizer_suite;                                                             \
    with_each<O>({__VA_ARGS__}, {follows_the_run_in_f32<O>, rounds_by_chance<O>});                               \
  }
