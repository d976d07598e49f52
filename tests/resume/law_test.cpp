// The law of checkpoints: n steps are k steps, a checkpoint, new processes, and n - k steps, bit for bit.
#include "resume/covering.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;
using Catch::Matchers::ContainsSubstring;

namespace {

namespace law {

namespace fs = std::filesystem;

/// Statistics in buffers, and random numbers in forward.
struct Net : torch::nn::Module {
  /// `is_listed_backwards`: the order of its parameters says nothing of when their gradients come.
  Net(bool has_third, bool is_listed_backwards) {
    if (is_listed_backwards) register_module("second", second);
    register_module("first", first);
    register_module("norm", norm);
    if (!is_listed_backwards) register_module("second", second);
    if (has_third) third = register_module("third", torch::nn::Linear(16, 3));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto inner = torch::dropout(torch::relu(norm(first(x))), 0.2, is_training());
    return uses_third ? second(inner) + third(inner) : second(inner);
  }

  torch::nn::Linear first{5, 16};
  torch::nn::BatchNorm1d norm{16};
  torch::nn::Linear second{16, 3}, third = nullptr;
  bool uses_third = false;
};

/// The rows of Noise, one after the other.
struct Stream {
  Noise noise;
  std::int64_t next_ = 0;

  void start(std::int64_t /*epoch*/) { next_ = 0; }
  std::optional<Noise::Batch> next() {
    if (next_ == static_cast<std::int64_t>(noise.size())) return std::nullopt;
    const auto row = next_++;
    return Noise::Batch{noise.all.data[row], noise.all.target[row]};
  }
};

/// A user's own, which counts what it has seen.
struct Seen {
  std::int64_t steps = 0;
  double loss = 0;

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("steps", steps);
    state.add("loss", loss);
    return state;
  }
  void load_state_dict(const tensor::StateDict& state) {
    steps = state.integer("steps");
    loss = state.number("loss");
  }
};

enum class Schedule { cosine, step, plateau };  // step: PyTorch's, where the optimizer is
enum class Loader { alone, workers, stream };
enum class Extra { none, clip_and_average, step_in_backward };

struct Setup {
  Schedule schedule = Schedule::cosine;
  Loader loader = Loader::alone;
  Extra extra = Extra::none;
  int accumulation = 1;
  int saved_behind = 7;  // micro-steps
  bool is_asynchronous = true;
  bool has_third = false;  // a layer that is used in some micro-steps, on some ranks
  bool in_a_ring = false;  // sums over TCP, whose order depends on where in its bucket a gradient lies
};

constexpr int last = 23;  // micro-steps: two epochs and more

/// What a run lets be seen, from micro-step to micro-step, and what it leaves.
using Trace = std::vector<std::string>;

template <class T>
void note(Trace& trace, const std::string& what, const T& tensors) {
  for (const auto& text : bits(tensors)) trace.push_back(what + " " + text);
}

[[nodiscard]] std::vector<torch::Tensor> tensors_of(const tensor::StateDict& state) {
  std::vector<torch::Tensor> tensors;
  for (const auto& [name, tensor] : state.entries()) tensors.push_back(tensor);
  return tensors;
}

/// Steps a schedule of one of three types.
template <class A, class O>
[[nodiscard]] std::function<void(double)> prepared_schedule(A& accelerator, O& optimizer, Schedule which) {
  const auto shared = [](auto scheduler) { return std::make_shared<decltype(scheduler)>(std::move(scheduler)); };
  if (which == Schedule::cosine) {
    const auto own =
        shared(accelerator.prepare(optim::Scheduler(optimizer, optim::schedule::cosine({.total_steps = 30}))));
    return [own](double) { own->step(); };
  }
  if (which == Schedule::plateau) {
    const auto own = shared(accelerator.prepare(optim::ReduceLROnPlateau(optimizer, {.factor = 0.5, .patience = 1})));
    return [own](double loss) { own->step(loss); };
  }
  if constexpr (std::is_base_of_v<torch::optim::Optimizer, O>) {
    const auto own = shared(accelerator.prepare(torch::optim::StepLR(optimizer, 3, 0.7)));
    return [own](double) { own->step(); };
  } else {
    const auto own =
        shared(accelerator.prepare(optim::Scheduler(optimizer, optim::schedule::step({.step_size = 3, .gamma = 0.7}))));
    return [own](double) { own->step(); };
  }
}

/// Trains to the last micro-step, from the first one or from what `base` holds, and saves behind `setup.saved_behind`.
/// The trace has what came behind that.
template <class P, class MakeOptimizer>
Trace train(const Setup& setup, const fs::path& base, bool saves, bool resumes, const MakeOptimizer& make_optimizer) {
  torch::manual_seed(resumes ? 99 : 7);
  using A = Accelerator<backend::Gloo, P>;
  typename A::Options options{.accumulation_steps = setup.accumulation};
  options.log = Log::Level::warning;
  options.checkpoint = {.folder = base, .asynchronous = setup.is_asynchronous};
  if constexpr (std::is_same_v<P, precision::Fp16>) options.precision.init_scale = 0x1p24;
  if (setup.in_a_ring) {
    options.backend.shared_memory = false;
    options.gradient.caps = {.bucket_cap = 256_B, .last_bucket_cap = 128_B};
  }
  A accelerator(options);
  torch::manual_seed((resumes ? 1000 : 100) + static_cast<std::uint64_t>(accelerator.rank()));
  auto net = std::make_shared<Net>(setup.has_third, setup.in_a_ring);
  auto [model, optimizer, average] =
      accelerator.prepare(net, make_optimizer(net->parameters()), optim::EMA({.decay = 0.9}));
  if constexpr (requires { optimizer.step_in_backward(); })
    if (setup.extra == Extra::step_in_backward) optimizer.step_in_backward();
  const auto schedule = prepared_schedule(accelerator, optimizer.unwrap(), setup.schedule);
  Seen seen;
  accelerator.register_for_checkpointing(seen);

  int done = 0;
  Trace trace;
  const auto run = [&, &model = model, &optimizer = optimizer, &average = average](auto loader) {
    if (resumes) {
      CHECK(accelerator.load_state() == base / "checkpoint_0");
      done = setup.saved_behind;
      CHECK(seen.steps == done);
    }
    while (done < last) {
      for (auto& batch : loader) {
        auto micro_step = accelerator.accumulate(batch);
        net->uses_third = setup.has_third && (done / 2 + accelerator.rank()) % 3 == 0;
        const auto loss = cross_entropy(model(batch.data), batch.target);
        accelerator.backward(loss);
        if (setup.extra == Extra::clip_and_average) accelerator.clip_grad_norm_(model, 0.5);
        optimizer.step();
        schedule(1.0 / (1 + done % 4));
        if (setup.extra == Extra::clip_and_average) average.update();
        optimizer.zero_grad();
        ++done;
        ++seen.steps;
        seen.loss += loss.template item<double>();
        if (done > setup.saved_behind) {
          note(trace, message("loss ", done), std::vector<torch::Tensor>{loss.detach()});
          note(trace, message("data ", done), std::vector<torch::Tensor>{batch.data});
          trace.push_back(message("rate ", optim::rate_of(optimizer.param_groups()[0].options())));
          trace.push_back(message("scale ", accelerator.loss_scale()));
        }
        if (saves && done == setup.saved_behind) (void)accelerator.save_state();
        if (done == last) break;
      }
    }
  };
  if (setup.loader == Loader::stream)
    run(accelerator.prepare(
        data::StreamLoader{Stream{Noise(44)}, {.batch_size = 4, .reading = data::Reading::dispatched}}));
  else
    run(accelerator.prepare(data::DataLoader{
        Noise(44), {.batch_size = 4, .shuffle = true, .seed = 5, .workers = setup.loader == Loader::workers ? 2 : 0}}));

  note(trace, "weights", net->parameters());
  note(trace, "buffers", net->buffers());
  if constexpr (tensor::Stateful<std::remove_cvref_t<decltype(optimizer.unwrap())>>)
    note(trace, "optimizer", tensors_of(optimizer->state_dict()));
  note(trace, "average", average->averages());
  note(trace, "random", std::vector<torch::Tensor>{torch::rand({3})});
  trace.push_back(message("steps ", accelerator.steps(), ", seen ", seen.steps, " ", seen.loss));
  (void)accelerator.save_state(base.parent_path() / (resumes ? "end_resumed" : "end_straight"),
                               {.asynchronous = false});
  return trace;
}

void write(const Trace& trace, const fs::path& path) {
  std::ofstream file(path);
  for (const auto& line : trace)
    file << std::hash<std::string>()(line) << " " << line.substr(0, line.find(' ')) << "\n";
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The law, in new processes for what goes on.
template <class P, class MakeOptimizer>
void holds(const Setup& setup, int world_size, const MakeOptimizer& make_optimizer) {
  const SharedFolder folder;
  const fs::path base = folder / "base";
  const auto file = [&](Rank rank, const char* name) { return folder / message(rank.rank, ".", name); };
  on_ranks({world_size}, [&](Rank rank) {
    const auto straight = train<P>(setup, base, false, false, make_optimizer);
    const auto saving = train<P>(setup, base, true, false, make_optimizer);
    CHECK(saving == straight);
    write(straight, file(rank, "straight"));
  });
  on_ranks({world_size}, [&](Rank rank) {
    write(train<P>(setup, base, false, true, make_optimizer), file(rank, "resumed"));
    CHECK(text_of(file(rank, "resumed")) == text_of(file(rank, "straight")));
    // All that a checkpoint keeps, by the checksums of its bytes, and so the steps behind it are the same, too.
    const auto kept = [&](const char* name) {
      checkpoint::Manifest manifest;
      manifest.parts = checkpoint::Manifest::read(folder / name).parts;
      return manifest.text();
    };
    CHECK(kept("end_resumed") == kept("end_straight"));
  });
}

const auto adamw = [](const std::vector<torch::Tensor>& parameters) { return optim::AdamW(parameters, {.lr = 1e-2}); };
const auto sgd = [](const std::vector<torch::Tensor>& parameters) {
  return optim::SGD(parameters, {.lr = 1e-1, .momentum = 0.9});
};
const auto torch_adam = [](const std::vector<torch::Tensor>& parameters) {
  return torch::optim::Adam(parameters, torch::optim::AdamOptions(1e-2));
};

template <class P>
void holds_for(int optimizer, const Setup& setup, int world_size) {
  if (optimizer == 0) return holds<P>(setup, world_size, adamw);
  if (optimizer == 1) return holds<P>(setup, world_size, sgd);
  holds<P>(setup, world_size, torch_adam);
}

/// A row: optimizer, precision, schedule, loader, extra, accumulation, moment, ranks, in the background or not.
const std::vector<int> levels{3, 3, 3, 3, 3, 3, 3, 3, 2};

bool is_possible(const CoveringRow& row) {
  // A step inside of backward is one of this library's optimizers, and of an unscaled loss.
  return row[4] != 2 || (row[0] != 2 && row[1] != 2);
}

}  // namespace law

TEST_CASE("n steps are k, a checkpoint, new processes, and n - k, for every two settings together", "[checkpoint]") {
  using namespace law;
  const auto rows = covering_rows(levels, is_possible);
  CHECK(rows.size() <= 18);
  for (const auto& row : rows) {
    const Setup setup{.schedule = static_cast<Schedule>(row[2]),
                      .loader = static_cast<Loader>(row[3]),
                      .extra = static_cast<Extra>(row[4]),
                      .accumulation = row[5] + 1,
                      .saved_behind = std::array{1, 8, 13}[static_cast<std::size_t>(row[6])],
                      .is_asynchronous = row[8] == 0};
    const int world_size = row[7] + 1;
    INFO("optimizer " << row[0] << ", precision " << row[1] << ", schedule " << row[2] << ", loader " << row[3]
                      << ", extra " << row[4] << ", accumulation " << setup.accumulation << ", saved behind "
                      << setup.saved_behind << ", ranks " << world_size << ", asynchronous " << setup.is_asynchronous);
    if (row[1] == 0)
      holds_for<precision::Fp32>(row[0], setup, world_size);
    else if (row[1] == 1)
      holds_for<precision::Bf16>(row[0], setup, world_size);
    else
      holds_for<precision::Fp16>(row[0], setup, world_size);
  }
  if (std::getenv("RANK") == nullptr) std::cout << rows.size() << " rows of settings\n";
}

TEST_CASE("n steps are k, a checkpoint, new processes, and n - k: bf16 weights with masters", "[checkpoint]") {
  law::holds<precision::Bf16Weights>({.loader = law::Loader::workers, .saved_behind = 1}, 2, law::adamw);
}

TEST_CASE("n steps are k, a checkpoint, new processes, and n - k: sums whose order depends on the buckets",
          "[checkpoint]") {
  law::holds<precision::Fp32>({.in_a_ring = true}, 3, law::adamw);
}

TEST_CASE("n steps are k, a checkpoint, new processes, and n - k: layers that some ranks use, in some steps",
          "[checkpoint]") {
  law::holds<precision::Fp32>({.saved_behind = 9, .has_third = true}, 3, law::adamw);
}

}  // namespace
