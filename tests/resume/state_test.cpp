// save_state and load_state as a training meets them: what does not fit, what cannot be saved, the end that a scheduler
// announces, and another number of ranks.
#include "support/captured.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>
#include <accel/metrics/mean.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Catch::Matchers::ContainsSubstring;

namespace {

namespace state {

namespace fs = std::filesystem;
using A = Accelerator<backend::Gloo, precision::Fp32>;

A::Options options(const fs::path& base) {
  A::Options result;
  result.log = Log::Level::warning;
  result.checkpoint = {.folder = base};
  return result;
}

/// Runs `body` on ranks that have a folder in common, the same one for all calls of a test case.
class InFolder {
 public:
  void operator()(std::initializer_list<int> world_sizes,
                  const std::function<void(Rank, const fs::path&)>& body) const {
    on_ranks(world_sizes, [&](Rank rank) { body(rank, folder_ / "base"); });
  }

 private:
  SharedFolder folder_;
};

template <class Model, class Optimizer, class Loader>
std::vector<double> train(A& accelerator, Model& model, Optimizer& optimizer, Loader& loader, int steps) {
  std::vector<double> losses;
  while (static_cast<int>(losses.size()) < steps)
    for (auto& batch : loader) {
      const auto loss = cross_entropy(model(batch.data), batch.target);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      losses.push_back(loss.template item<double>());
      if (static_cast<int>(losses.size()) == steps) break;
    }
  return losses;
}

}  // namespace state

TEST_CASE("a checkpoint of another training is refused with a list of all that does not fit, and nothing is changed",
          "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({2}, [](Rank, const fs::path& base) {
    struct Other : torch::nn::Module {
      Other()
          : first(register_module("first", torch::nn::Linear(5, 4))),
            third(register_module("third", torch::nn::Linear(4, 3))) {}
      torch::Tensor forward(const torch::Tensor& x) { return third(first(x)); }
      torch::nn::Linear first, third;
    };
    struct One : torch::nn::Module {
      One()
          : first(register_module("first", torch::nn::Linear(5, 3))),
            second(register_module("second", torch::nn::Linear(3, 3))) {}
      torch::Tensor forward(const torch::Tensor& x) { return second(first(x)); }
      torch::nn::Linear first, second;
    };
    {
      A accelerator(options(base));
      CHECK_FALSE(accelerator.latest_checkpoint().has_value());
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_state(); }),
                 ContainsSubstring("there is no checkpoint in " + base.string()));
      auto net = std::make_shared<One>();
      auto [model, optimizer, loader] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}),
                                                            data::DataLoader(Noise(40), {.batch_size = 4, .seed = 1}));
      train(accelerator, model, optimizer, loader, 2);
      (void)accelerator.save_state(std::nullopt, {.asynchronous = false});
    }
    A accelerator(options(base));
    auto net = std::make_shared<Other>();
    auto model = accelerator.prepare(net);
    const auto before = bits(net->parameters());
    const auto error = thrown_by<CheckpointError>([&] { (void)accelerator.load_state(); });
    for (const char* words : {"missing: third.weight, third.bias", "unexpected: second.bias, second.weight",
                              "first.weight is f32[3, 5] there and f32[4, 5] here", "optimizer is only there",
                              "loader is only there", "build the same, or load what fits with {.strict = false}"})
      CHECK_THAT(error, ContainsSubstring(words));
    CHECK(bits(net->parameters()) == before);
    // What fits: the random numbers, say.
    (void)accelerator.load_state(std::nullopt, {.strict = false});
    CHECK(accelerator.steps() == 2);
    CHECK(bits(net->parameters()) == before);
  });
}

TEST_CASE("another optimizer, schedule, average or dataset is refused before weights have changed", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    const fs::path place = base / message("of_", rank.world_size);
    // Saves, or finds out that what is there does not fit, and then loads what fits.
    const auto with = [&](auto make_optimizer, std::int64_t rows, const char* misfit, bool fresh = false) {
      INFO((misfit == nullptr ? "saving" : misfit));
      A accelerator(options(base));
      torch::manual_seed(misfit == nullptr ? 1 : 2);
      auto net = std::make_shared<Mlp>();
      auto [model, optimizer, average, loader] =
          accelerator.prepare(net, make_optimizer(*net), optim::EMA({.decay = 0.9}),
                              data::DataLoader(Noise(rows), {.batch_size = 4, .seed = 1}));
      auto schedule =
          accelerator.prepare(optim::Scheduler(optimizer.unwrap(), optim::schedule::cosine({.total_steps = 30})));
      if (!fresh) {
        train(accelerator, model, optimizer, loader, 2);
        average.update();
        schedule.step();
      }
      if (misfit == nullptr) {
        (void)accelerator.save_state(place, {.asynchronous = false});
        return;
      }
      const auto weights = bits(net->parameters()), averages = bits(average->averages());
      const auto rate = optim::rate_of(optimizer.param_groups()[0].options());
      const auto error = thrown_by<CheckpointError>([&] { (void)accelerator.load_state(place); });
      CHECK_THAT(error, ContainsSubstring("does not fit this training") && ContainsSubstring(misfit));
      CHECK(bits(net->parameters()) == weights);
      CHECK(bits(average->averages()) == averages);
      CHECK(optim::rate_of(optimizer.param_groups()[0].options()) == rate);
      CHECK(accelerator.steps() == (fresh ? 0 : 2));
      (void)accelerator.load_state(place, {.strict = false});
      CHECK(bits(net->parameters()) != weights);
    };
    const auto adamw = [](Mlp& net) { return optim::AdamW(net.parameters(), {.lr = 1e-2}); };
    const auto torch_adam = [](Mlp& net) {
      return torch::optim::Adam(net.parameters(), torch::optim::AdamOptions(1e-2));
    };
    with(adamw, 40, nullptr);
    with([](Mlp& net) { return optim::SGD(net.parameters(), {.lr = 1e-2}); }, 40,
         "optimizer: state: param_groups.0.momentum is missing");
    with([](Mlp& net) { return optim::SGD(net.parameters(), {.lr = 1e-2}); }, 40, "optimizer: ", true);
    with(adamw, 44, "loader: loader: the saved position belongs to another dataset");
    with([](Mlp& net) { return torch::optim::SGD(net.parameters(), 1e-2); }, 40, "optimizer: ");
    with(torch_adam, 40, nullptr);
    with([](Mlp& net) { return torch::optim::AdamW(net.parameters()); }, 44, "loader: ");
  });
}

TEST_CASE("of a checkpoint with another head what fits is loaded, if that is asked for", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({2}, [](Rank, const fs::path& base) {
    const auto classes = [&](std::int64_t outputs, std::uint64_t seed, auto body) {
      A accelerator(options(base));
      torch::manual_seed(seed);
      auto net = std::make_shared<Mlp>(5, 7, outputs);
      auto [model, optimizer] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}));
      accelerator.backward(model(torch::ones({4, 5})).square().mean());
      optimizer.step();
      optimizer.zero_grad();
      body(accelerator, *net);
    };
    std::vector<torch::Tensor> saved;
    classes(3, 1, [&](A& accelerator, Mlp& net) {
      saved = copies(net.parameters());
      (void)accelerator.save_state(base / "head", {.asynchronous = false});
    });
    classes(4, 2, [&](A& accelerator, Mlp& net) {
      const auto head = bits({net.second->weight, net.second->bias});
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_state(base / "head"); }),
                 ContainsSubstring("second.weight is f32[3, 7] there and f32[4, 7] here") &&
                     ContainsSubstring("optimizer: AdamW: exp_avg of second.weight is f32[3, 7]"));
      (void)accelerator.load_state(base / "head", {.strict = false});
      CHECK(bits({net.first->weight, net.first->bias}) == bits({saved[0], saved[1]}));
      CHECK(bits({net.second->weight, net.second->bias}) == head);
      CHECK(accelerator.steps() == 1);
    });
  });
}

TEST_CASE("a tied weight is in a checkpoint once, and the log says what was written, and how long it took",
          "[checkpoint]") {
  using namespace state;
  struct Tied : torch::nn::Module {
    Tied() : weight(register_parameter("embedding", torch::randn({4, 3}))) { register_parameter("head", weight); }
    torch::Tensor forward(const torch::Tensor& x) { return x.matmul(weight).matmul(weight.t()); }
    torch::Tensor weight;
  };
  const Folder folder;
  auto own = options(folder.path());
  own.log = Log::Level::info;
  const Captured captured;
  fs::path place;
  std::int64_t bytes = 0;
  {
    A accelerator(own);
    auto net = std::make_shared<Tied>();
    auto model = accelerator.prepare(net);
    place = accelerator.save_state(std::nullopt, {.asynchronous = false});
    CHECK(accelerator.latest_checkpoint() == place);
    CHECK_FALSE(accelerator.is_saving());
    const checkpoint::Reader reader(place);
    const auto weights = reader.part("model", 0)->own();
    CHECK(weights.entries().size() == 1);
    CHECK(weights.has("embedding"));
    for (const auto& file : fs::directory_iterator(place)) bytes += static_cast<std::int64_t>(file.file_size());
  }
  CHECK_THAT(captured.text(), ContainsSubstring(message("saved ", place.string(), ": ", bytes, " bytes in ")));
}

TEST_CASE("what is registered gets tensors of its own, which it may write to", "[checkpoint]") {
  using namespace state;
  struct Keeper {
    torch::Tensor kept = torch::ones({3});

    [[nodiscard]] tensor::StateDict state_dict() const {
      tensor::StateDict state;
      state.add("kept", kept);
      return state;
    }
    void load_state_dict(const tensor::StateDict& state) { kept = state.tensor("kept"); }
  };
  const Folder folder;
  A accelerator(options(folder.path()));
  Keeper keeper;
  accelerator.register_for_checkpointing(keeper);
  const auto place = accelerator.save_state(std::nullopt, {.asynchronous = false});
  keeper.kept = torch::zeros({3});
  (void)accelerator.load_state(place);
  CHECK(torch::equal(keeper.kept, torch::ones({3})));
  keeper.kept.add_(1);
  (void)accelerator.load_state(place);
  CHECK(torch::equal(keeper.kept, torch::ones({3})));
}

TEST_CASE("a type that may keep what it is loaded from gets memory of its own, and no type of ours a copy in between",
          "[checkpoint]") {
  using namespace state;
  struct Keeper {
    [[nodiscard]] tensor::StateDict state_dict() const { return {}; }
    void load_state_dict(const tensor::StateDict&) {}
  };
  CHECK(prepare::average_part(std::make_shared<Keeper>()).keeps);
  CHECK_FALSE(prepare::average_part(std::make_shared<optim::EMA>(optim::EMA({.decay = 0.9}))).keeps);
  Keeper registered;
  CHECK(checkpoint::part_of("", registered, 0, 1).keeps);
  const auto states_of = [](const auto& optimizer) {
    std::vector<torch::Tensor> states;
    for (const auto& one : optimizer.state()) states.insert(states.end(), one.tensors.begin(), one.tensors.end());
    return states;
  };
  const auto stepped = [](auto optimizer) {
    for (auto& parameter : optimizer.param_groups().front().params())
      parameter.mutable_grad() = torch::ones_like(parameter);
    optimizer.step();
    return optimizer;
  };
  const auto weights = [] { return std::vector<torch::Tensor>{torch::ones({4, 3}).requires_grad_()}; };
  const auto saved = stepped(optim::AdamW(weights(), {.lr = 1e-2}));
  optim::AdamW copying(weights(), {.lr = 1e-2}), adopting(weights(), {.lr = 1e-2});
  const auto dict = saved.state_dict();
  copying.load_state_dict(dict);
  adopting.adopt_state_dict(dict);
  for (std::size_t s = 0; s < 2; ++s) {
    CHECK(states_of(copying)[s].const_data_ptr() != states_of(saved)[s].const_data_ptr());
    CHECK(states_of(adopting)[s].const_data_ptr() == states_of(saved)[s].const_data_ptr());
    CHECK(torch::equal(states_of(copying)[s], states_of(saved)[s]));
  }
  // On other devices they copy.
  STATIC_REQUIRE_FALSE(prepare::detail::CopiesState<Keeper>);
  STATIC_REQUIRE(prepare::detail::CopiesState<optim::AdamW>);
  STATIC_REQUIRE(prepare::detail::CopiesState<optim::Muon>);
  STATIC_REQUIRE(prepare::detail::CopiesState<optim::EMA>);
  // And of what lies otherwise.
  const std::vector<torch::Tensor> turned{torch::ones({3, 4}).t().requires_grad_()};
  optim::AdamW converting(turned, {.lr = 1e-2});
  converting.adopt_state_dict(dict);
  CHECK(states_of(converting)[0].strides() == turned[0].strides());
  CHECK(torch::equal(states_of(converting)[0], states_of(saved)[0]));
}

TEST_CASE("an optimizer goes on from states that it has adopted, and leaves the checkpoint as it is", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    A accelerator(options(base / message(rank.world_size)));
    torch::manual_seed(1);
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}),
                                                          data::DataLoader(Noise(40), {.batch_size = 4, .seed = 1}));
    train(accelerator, model, optimizer, loader, 3);
    const auto place = accelerator.save_state(std::nullopt, {.asynchronous = false});
    const auto once = train(accelerator, model, optimizer, loader, 4);
    for (int again = 0; again < 2; ++again) {
      (void)accelerator.load_state(place);
      CHECK(train(accelerator, model, optimizer, loader, 4) == once);
    }
    CHECK_NOTHROW(checkpoint::Reader(place).verify());
  });
}

TEST_CASE("with an average in the place of the weights nothing is saved or loaded", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2}, [](Rank, const fs::path& base) {
    A accelerator(options(base));
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, average, loader] =
        accelerator.prepare(net, optim::AdamW(net->parameters(), {.lr = 0.1}), optim::EMA({.decay = 0.9}),
                            data::DataLoader(Noise(40), {.batch_size = 4, .seed = 1}));
    average.update();
    train(accelerator, model, optimizer, loader, 2);
    average.update();
    const auto place = accelerator.save_state();
    const auto weights = bits(net->parameters());
    {
      const auto averaged = average.swap_in();
      CHECK(bits(net->parameters()) != weights);
      constexpr const char* words = "the average is in the weights' place; end what swap_in() gave first";
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.save_state(); }), ContainsSubstring(words));
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_state(place, {.strict = false}); }),
                 ContainsSubstring(words));
    }
    CHECK(bits(net->parameters()) == weights);
    (void)accelerator.load_state(place);
    CHECK(bits(net->parameters()) == weights);
    (void)accelerator.save_state();
    accelerator.wait_for_save();
  });
}

TEST_CASE("a position is not loaded into a loop that is under way and would go on from where it is", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2}, [](Rank, const fs::path& base) {
    A accelerator(options(base));
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}),
                                                          data::DataLoader(Noise(40), {.batch_size = 4, .seed = 1}));
    train(accelerator, model, optimizer, loader, 1);
    fs::path place;
    for ([[maybe_unused]] auto& batch : loader) {
      place = accelerator.save_state();
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_state(place, {.strict = false}); }),
                 ContainsSubstring("loader: a loop over it is under way, which would go on as it was"));
      break;
    }
    (void)accelerator.load_state(place);
    std::int64_t first = -1;
    for ([[maybe_unused]] auto& batch : loader) {
      if (first < 0) first = loader.position().index;
    }
    CHECK(first == 1);  // behind the batch in which it was saved
  });
}

TEST_CASE("what the ranks' hooks throw behind a save every rank is told by the next load", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({2}, [](Rank rank, const fs::path& base) {
    A accelerator(options(base));
    auto model = accelerator.prepare(std::make_shared<Mlp>());
    bool is_broken = true;
    accelerator.after_save([&](const checkpoint::SaveEvent&) {
      if (is_broken && rank.rank == 1) throw std::runtime_error("no upload");
    });
    const auto place = accelerator.save_state();
    CHECK_THAT(thrown_by<std::runtime_error>([&] { (void)accelerator.load_state(place); }),
               ContainsSubstring("no upload"));
    is_broken = false;
    CHECK(accelerator.load_state(place) == place);
  });
}

TEST_CASE("a training whose saves fail goes on as if there had been none, and saves when it can again",
          "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& base) {
    const auto run = [&](bool saves) {
      auto own = options(base / std::to_string(rank.world_size));
      own.log = Log::Level::off;
      A accelerator(own);
      torch::manual_seed(1);
      auto net = std::make_shared<Mlp>();
      auto [model, optimizer, loader] =
          accelerator.prepare(net, optim::AdamW(net->parameters(), {.lr = 1e-2}),
                              data::DataLoader(Noise(60), {.batch_size = 4, .shuffle = true, .seed = 1}));
      bool is_in_the_way = true;
      accelerator.before_save([&](const checkpoint::SaveEvent& event) {
        if (is_in_the_way && rank.rank == rank.world_size - 1)
          std::ofstream(event.folder / message("rank", rank.rank, ".safetensors")) << "mine";
      });
      for (int i = 0; i < 3; ++i) {
        if (saves) (void)accelerator.save_state();
        train(accelerator, model, optimizer, loader, 2);
        if (saves)
          CHECK_THAT(thrown_by<CheckpointError>([&] { accelerator.wait_for_save(); }),
                     ContainsSubstring("File exists"));
      }
      is_in_the_way = false;
      if (saves) {
        CHECK_FALSE(accelerator.latest_checkpoint().has_value());
        const auto place = accelerator.save_state(std::nullopt, {.asynchronous = false});
        CHECK(accelerator.latest_checkpoint() == place);
        CHECK(accelerator.load_state() == place);
      }
      return bits(net->parameters());
    };
    CHECK(run(true) == run(false));
  });
}

TEST_CASE("gradients that nobody has stepped with are not lost without a word", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2}, [](Rank, const fs::path& base) {
    A accelerator(options(base));
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}),
                                                          data::DataLoader(Noise(40), {.batch_size = 4, .seed = 1}));
    for (auto& batch : loader) {
      accelerator.backward(cross_entropy(model(batch.data), batch.target));
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.save_state(); }),
                 ContainsSubstring("gradients wait for step(), and are not saved"));
      optimizer.step();
      (void)accelerator.save_state();  // what stands now was stepped with
      optimizer.zero_grad();
      (void)accelerator.save_state();
      break;
    }
    accelerator.wait_for_save();
  });
}

TEST_CASE("SIGTERM to one rank is heard by all after the same step, who save, leave, and go on later", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  const auto run = [](Rank rank, const fs::path& base, bool is_asked) {
    ::signal(SIGTERM, SIG_DFL);  // Catch2's handler would be called as well, and ends the test
    auto asked = options(base / std::to_string(rank.world_size));
    asked.checkpoint.on_sigterm = true;
    A accelerator(asked);
    torch::manual_seed(1);
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] = accelerator.prepare(net, optim::AdamW(net->parameters(), {}),
                                                          data::DataLoader(Noise(400), {.batch_size = 4, .seed = 1}));
    if (!is_asked) {
      (void)accelerator.load_state();
      return accelerator.steps();
    }
    for (auto& batch : loader) {
      if (accelerator.steps() == 5 && rank.rank == rank.world_size - 1) ::raise(SIGTERM);
      accelerator.backward(cross_entropy(model(batch.data), batch.target));
      optimizer.step();
      optimizer.zero_grad();
      if (accelerator.is_preempted()) {
        (void)accelerator.save_state();
        accelerator.wait_for_save();
        break;
      }
    }
    return accelerator.steps();
  };
  on_ranks_in_folder({1, 2, 3}, [&](Rank rank, const fs::path& base) {
    const auto steps = run(rank, base, true);
    CHECK(steps >= 6);
    CHECK(steps <= 8);
    std::ofstream(base / message(rank.world_size, ".", rank.rank)) << steps;
  });
  on_ranks_in_folder({1, 2, 3}, [&](Rank rank, const fs::path& base) {
    const auto steps = run(rank, base, false);
    for (int other = 0; other < rank.world_size; ++other) {
      std::int64_t theirs = 0;
      std::ifstream(base / message(rank.world_size, ".", other)) >> theirs;
      CHECK(theirs == steps);
    }
  });
}

TEST_CASE("at another number of ranks the same global batches come, and what cannot be as it was is said once",
          "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  // Gives the batches of all ranks, micro-step by micro-step, and the weights.
  const auto run = [](const fs::path& base, const fs::path& place, bool resumes, int micro_steps) {
    auto own = options(base);
    own.accumulation_steps = 2;
    A accelerator(own);
    torch::manual_seed(1);
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] = accelerator.prepare(
        net, optim::AdamW(net->parameters(), {.lr = 1e-2}),
        data::DataLoader(Noise(96), {.batch_size = 12, .shuffle = true, .seed = 1, .split_batches = true}));
    if (resumes) (void)accelerator.load_state(place);
    std::vector<std::string> trace;
    while (static_cast<int>(trace.size()) < micro_steps)
      for (auto& batch : loader) {
        const auto micro_step = accelerator.accumulate(batch);
        const auto loss = cross_entropy(model(batch.data), batch.target);
        accelerator.backward(loss);
        optimizer.step();
        optimizer.zero_grad();
        trace.push_back(bits({accelerator.gather(batch.data)}).front());
        if (static_cast<int>(trace.size()) != micro_steps) continue;
        if (!resumes) (void)accelerator.save_state(place, {.asynchronous = false});
        break;  // behind which the epoch would be over
      }
    return std::pair(trace, copies(net->parameters()));
  };
  const auto text_of = [](const fs::path& path) {
    std::ifstream in(path);
    REQUIRE(in);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  // 13 micro-steps by one rank, none of them interrupted; 5 of them, which is amid a window, by three and by one; ...
  on_ranks_in_folder({1}, [&](Rank, const fs::path& base) {
    fs::create_directories(base);
    const auto [trace, weights] = run(base, base / "whole", false, 13);
    std::ofstream out(base / "trace");
    for (const auto& one : std::vector(trace.begin() + 5, trace.end())) out << std::hash<std::string>()(one) << "\n";
    torch::save(weights, (base / "weights.pt").string());
  });
  on_ranks_in_folder({1, 3}, [&](Rank rank, const fs::path& base) {
    (void)run(base, base / message("by_", rank.world_size), false, 5);
  });
  // ... and the other 8 by one, two and three.
  on_ranks_in_folder({1, 2, 3}, [&](Rank rank, const fs::path& base) {
    for (const int then : {1, 3}) {
      INFO("saved by " << then << " ranks, loaded by " << rank.world_size);
      const Captured captured;
      const auto [trace, weights] = run(base, base / message("by_", then), true, 8);
      const std::string log = captured.text();
      if (rank.rank == 0 && rank.world_size != then) {
        CHECK_THAT(log, ContainsSubstring(message("saved by ", then, " ranks and loaded by ", rank.world_size,
                                                  ": sums over the ranks are rounded otherwise")));
        CHECK_THAT(log, ContainsSubstring("gradients: those that waited for the end of their window are now rank 0's"));
        CHECK(log.find("load_state") == log.rfind("load_state"));
        for (int one = then; one < rank.world_size; ++one)
          CHECK_THAT(log, ContainsSubstring(message("random: rank ", one, " draws new random numbers")));
      } else {
        CHECK(log.empty());
      }
      if (rank.rank == 0) {
        std::ostringstream own;
        for (const auto& one : trace) own << std::hash<std::string>()(one) << "\n";
        CHECK(own.str() == text_of(base / "trace"));
      }
      std::vector<torch::Tensor> of_one;
      torch::load(of_one, (base / "weights.pt").string());
      for (std::size_t k = 0; k < weights.size(); ++k) CHECK(torch::allclose(weights[k], of_one[k], 1e-5, 1e-6));
    }
  });
  // What other ranks had is read then, and so it is checked.
  on_ranks_in_folder({1}, [&](Rank, const fs::path& base) {
    const fs::path file = base / "by_3" / "rank2.safetensors";
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(-1, std::ios::end);
    const char last = static_cast<char>(bytes.get());
    bytes.seekp(-1, std::ios::end);
    bytes.put(static_cast<char>(last ^ 1));
    bytes.close();
    CHECK_THAT(thrown_by<CheckpointError>([&] { (void)run(base, base / "by_3", true, 8); }),
               ContainsSubstring("rank2.safetensors: tensor rank2/"));
  });
}

TEST_CASE("what each rank has counted goes on at as many ranks, and is never counted twice at others", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  // Rank r adds r + 1 and a checkpoint; then everybody adds 10.
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    A accelerator(options(base));
    metrics::Mean mean, empty;
    accelerator.register_for_checkpointing(mean, empty);
    mean.update(torch::full({1}, rank.rank + 1.0));
    (void)accelerator.save_state(base / message("by_", rank.world_size), {.asynchronous = false});
  });
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& base) {
    A accelerator(options(base));
    metrics::Mean mean, empty;
    accelerator.register_for_checkpointing(mean, empty);
    const auto ten = torch::full({1}, 10.0);
    for (const int then : {1, 2}) {
      mean.reset();
      mean.update(ten);  // which is forgotten
      empty.update(ten);
      const fs::path place = base / message("by_", then);
      if (then == 2 && rank.world_size != 2) {
        const auto error = thrown_by<CheckpointError>([&] { (void)accelerator.load_state(place); });
        CHECK_THAT(error, ContainsSubstring(message(
                              "custom: each of 2 ranks had its own, which cannot be divided among ", rank.world_size)));
        CHECK(mean.compute(accelerator) == 10.0);
        continue;
      }
      (void)accelerator.load_state(place);
      mean.update(ten);
      const double before = then == 1 ? 1 : 1 + 2;
      CHECK(mean.compute(accelerator) == (before + 10.0 * rank.world_size) / (then + rank.world_size));
      CHECK(std::isnan(empty.compute(accelerator)));
    }
  });
}

TEST_CASE("hooks add files to a checkpoint, hear of its place, and read them again", "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({2}, [](Rank rank, const fs::path& base) {
    A accelerator(options(base));
    auto model = accelerator.prepare(std::make_shared<Mlp>());
    fs::path placed, read;
    std::string text;
    accelerator.before_save([](const checkpoint::SaveEvent& event) {
      if (event.rank == 0) std::ofstream(event.folder / "words.txt") << "of step " << event.step;
    });
    accelerator.after_save([&](const checkpoint::SaveEvent& event) { placed = event.folder; });
    accelerator.after_load([&](const checkpoint::SaveEvent& event) {
      read = event.folder;
      CHECK(accelerator.steps() == event.step);
      std::ifstream file(event.folder / "words.txt");
      std::getline(file, text);
    });
    const auto place = accelerator.save_state(std::nullopt, {.asynchronous = false});
    CHECK(placed == place);
    CHECK(accelerator.load_state() == place);
    CHECK(read == place);
    CHECK(text == "of step 0");
    accelerator.wait_for_everyone();
    if (rank.rank == 0) std::ofstream(place / "words.txt") << "of step 1";
    accelerator.wait_for_everyone();
    CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_state(); }),
               ContainsSubstring("words.txt: it is damaged"));
  });
}

TEST_CASE("what a hook of a load throws on one rank all are told, before anything has changed or behind all of it",
          "[checkpoint]") {
  using namespace state;
  const InFolder on_ranks_in_folder;
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& base) {
    const fs::path own_base = base / message(rank.world_size);
    A accelerator(options(own_base));
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    const auto saved = bits(net->parameters());
    (void)accelerator.save_state(std::nullopt, {.asynchronous = false});
    const auto change = [&] {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : net->parameters()) parameter.add_(1);
    };
    change();
    const auto changed = bits(net->parameters());
    const int last = rank.world_size - 1;
    std::string when;
    std::vector<std::string> order;
    accelerator.before_load([&](const checkpoint::SaveEvent& event) {
      order.emplace_back("before");
      CHECK(event.folder == own_base / "checkpoint_0");
      CHECK(bits(net->parameters()) == changed);
      if (when == "before" && event.rank == last) throw std::runtime_error("not this one");
    });
    accelerator.after_load([&](const checkpoint::SaveEvent& event) {
      order.emplace_back("after");
      CHECK(bits(net->parameters()) == saved);
      if (when == "after" && event.rank == last) throw std::runtime_error("a file is missing");
    });
    const auto thrown = [&] {
      try {
        (void)accelerator.load_state();
      } catch (const CheckpointError& error) {
        return std::string(error.what());
      } catch (const std::runtime_error& error) {
        return "own: " + std::string(error.what());
      }
      return std::string();
    };
    when = "before";
    CHECK_THAT(thrown(), ContainsSubstring("not this one"));
    CHECK(bits(net->parameters()) == changed);
    CHECK(order == std::vector<std::string>{"before"});
    when = "after";
    CHECK_THAT(thrown(), ContainsSubstring("a file is missing"));
    CHECK(bits(net->parameters()) == saved);
    change();
    when.clear();
    order.clear();
    CHECK(thrown().empty());
    CHECK(order == std::vector<std::string>{"before", "after"});
  });
}

}  // namespace
