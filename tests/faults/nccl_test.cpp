// Faults over NCCL's calls: whoever ends, at a random moment of a training whose host does not wait for its
// reductions, is named by every survivor, and no survivor has stepped by a reduction that never came to its end. A
// hundred random faults instead of a few:
//
//   ACCEL_FAULTS=100 build/tests/tests/faults_tests "*over NCCL's calls*"
#include <torch/torch.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/backend/basic_nccl.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"
#include "support/recording_driver.hpp"

namespace accel::testing::nccl_faults {
namespace {

using Catch::Matchers::ContainsSubstring;
using RecordedNccl = backend::BasicNccl<RecordingDriver>;

constexpr double beat_s = 0.3 * pace;

/// One write, so that the lines of a process stay whole when it is killed.
void say(const std::string& text) {
  std::cout << text + "\n" << std::flush;
}

/// Of a clock that all processes share.
void note_time(const std::string& event) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  say(message(event, " at ", std::chrono::nanoseconds(now).count()));
}

/// What stands behind `words` in every line that begins with them.
std::vector<std::string> said(const RankResult& result, const std::string& words) {
  std::vector<std::string> found;
  std::istringstream lines(result.output);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(words)) found.push_back(line.substr(words.size()));
  return found;
}

std::string said_once(const RankResult& result, const std::string& words) {
  const auto all = said(result, words);
  return all.empty() ? std::string() : all.front();
}

std::uint64_t fingerprint(const Mlp& net) {
  std::string all;
  for (const auto& parameter : bits(net.parameters())) all += parameter;
  return fnv1a(all);
}

template <class O>
auto optimizer_of(const Mlp& net) {
  if constexpr (std::is_same_v<O, optim::AdamW>)
    return optim::AdamW{{.lr = 1e-2}};
  else
    return O(net.parameters(), 1e-2);
}

/// Ends the training of all, as Accelerator::abort.
using Abort = std::function<void()>;
/// Comes before each backward.
using During = std::function<void(int step, const Abort&)>;

/// Trains until the weights have changed `last` times, or a CommError, which is said, and when. Says every state that
/// the weights have been in.
template <class P, class O>
void train(const During& during, std::size_t last) {
  RecordingDriver::faults.runs_ahead = true;
  RecordingDriver::faults.connects_late = true;
  // What others have given up before passes on to it what was there.
  if (std::string(std::getenv("RANK")) == "0") RecordingDriver::faults.abort_takes_s = 0.2;
  typename Accelerator<RecordedNccl, P>::Options options;
  options.backend.timeout_s = 100;  // so far away that only news of the others can end a wait
  options.heartbeat_s = beat_s;
  options.gradient.caps = {.bucket_cap = Bytes{64}, .last_bucket_cap = Bytes{32}};
  if constexpr (P::scales_loss) options.precision.init_scale = 1024;
  torch::manual_seed(3);
  Accelerator<RecordedNccl, P> accelerator(options);
  auto net = std::make_shared<Mlp>();
  auto [model, optimizer, loader] =
      accelerator.prepare(net, optimizer_of<O>(*net), data::DataLoader{Noise(200), {.batch_size = 4, .shuffle = true}});
  std::atomic<int> aborting{0};  // by another thread, which must not find the accelerator gone
  const Abort abort = [&] {
    ++aborting;
    accelerator.abort("the disk is full");
    --aborting;
  };
  std::vector<std::uint64_t> states = {fingerprint(*net)};
  const auto look = [&] {
    if (const auto now = fingerprint(*net); now != states.back()) states.push_back(now);
  };
  accelerator.wait_for_everyone();
  std::string error;
  try {
    for (int step = 0; states.size() <= last;)
      for (auto& batch : loader) {
        if (states.size() > last) break;
        during(step++, abort);
        optimizer.zero_grad();
        auto loss = cross_entropy(model(batch.data), batch.target);
        accelerator.backward(loss);
        optimizer.step();
        look();
      }
  } catch (const CommError& failed) {
    error = failed.what();
    note_time("heard");
    say("says: " + error);
    CHECK_THAT(thrown_by<CommError>([&] { (void)accelerator.reduce(torch::ones({2})); }),
               ContainsSubstring("given up"));
  }
  while (aborting > 0) std::this_thread::yield();
  look();
  for (const auto state : states) say(message("weights: ", state));
}

/// A fault: what the rank does to itself, what the others say of it, and within what time.
struct Fault {
  std::string kind;
  std::function<void(const Abort&)> commit;
  std::string words;
  double bound_s;
};

const std::vector<Fault>& faults() {
  static const std::vector<Fault> instance = {
      {"kill -9", [](const Abort&) { ::raise(SIGKILL); }, "has ended without a word", 1.5},
      {"SIGSTOP", [](const Abort&) { ::raise(SIGSTOP); }, "is silent since", 3 * beat_s / patience + 1.5},
      {"exit", [](const Abort&) { ::_exit(3); }, "has ended without a word", 1.5},
      {"uncaught", [](const Abort&) { std::thread([] { throw std::runtime_error("no such sample"); }).join(); },
       "no such sample", 1.5},
      {"std::abort", [](const Abort&) { std::abort(); }, "has ended without a word", 1.5},
      {"abort", [](const Abort& abort) { abort(); }, "the disk is full", 1.5},
  };
  return instance;
}

/// The loops that are struck.
struct Loop {
  std::string name;
  void (*train)(const During&, std::size_t);
};

const std::vector<Loop>& loops() {
  static const std::vector<Loop> instance = {
      {"fp32, an optimizer of the library", train<precision::Fp32, optim::AdamW>},
      {"fp32, an optimizer of LibTorch", train<precision::Fp32, torch::optim::SGD>},
      {"fp16, an optimizer of the library", train<precision::Fp16, optim::AdamW>},
      {"fp16, an optimizer of LibTorch", train<precision::Fp16, torch::optim::SGD>},
  };
  return instance;
}

/// Beside the training, so that the fault strikes wherever that is at the time.
void commit_after(std::chrono::milliseconds delay, const Fault& fault, const Abort& abort) {
  std::thread([delay, &fault, abort] {
    std::this_thread::sleep_for(delay);
    note_time("fault");
    fault.commit(abort);
  }).detach();
}

}  // namespace

TEST_CASE("whatever ends a rank over NCCL's calls, every survivor names it, and has stepped by nothing that was lost",
          "[faults][nccl]") {
  const char* const wish = std::getenv("ACCEL_FAULTS");
  const int count = wish == nullptr ? 6 : std::stoi(wish);
  // The ranks draw the same faults.
  const char* const given = std::getenv("ACCEL_FAULT_SEED");
  const std::string seed = given == nullptr ? std::to_string(std::random_device{}()) : given;
  std::mt19937 random(static_cast<std::mt19937::result_type>(std::stoul(seed)));
  const auto below = [&](std::size_t end) { return static_cast<int>(random() % end); };
  const RankOptions rank_options{.deadline = Seconds(30), .variables = {{"ACCEL_FAULT_SEED", seed}}};
  const int first_loop = below(loops().size());
  for (int i = 0; i < count; ++i) {
    const Fault& fault = faults()[static_cast<std::size_t>(i) % faults().size()];
    const Loop& loop = loops()[static_cast<std::size_t>(first_loop + i) % loops().size()];
    const int world_size = 2 + below(2);
    const int culprit = below(static_cast<std::size_t>(world_size));
    const std::chrono::milliseconds delay(below(200));
    const auto results = run_ranks(
        world_size,
        [&](Rank rank) {
          const auto strike = [&](int step, const Abort& abort) {
            if (rank.rank == culprit && step == 0) commit_after(delay, fault, abort);
          };
          loop.train(strike, 1'000'000);
        },
        rank_options);
    std::size_t last = 0;
    for (const auto& result : results) last = std::max(last, said(result, "weights: ").size());
    // How far they came is known where they were struck alone.
    const auto undisturbed =
        run_ranks(world_size,
                  [&](Rank) {
                    const char* const steps = std::getenv("ACCEL_UNDISTURBED_STEPS");
                    loop.train([](int, const Abort&) {}, steps == nullptr ? 0 : std::stoul(steps));
                  },
                  {.deadline = Seconds(30),
                   .variables = {{"ACCEL_FAULT_SEED", seed}, {"ACCEL_UNDISTURBED_STEPS", std::to_string(last)}}});
    if (in_another_launch(results) || in_another_launch(undisturbed)) continue;

    const std::string what = message("seed ", seed, ", fault ", i, ": ", fault.kind, " after ", delay.count(),
                                     " ms, rank ", culprit, " of ", world_size, ", ", loop.name);
    INFO(what);
    std::cout << what << "\n";
    const auto& gone = results[static_cast<std::size_t>(culprit)];
    INFO("rank " << culprit << " said: " << gone.output);
    const std::string struck = said_once(gone, "fault at ");
    REQUIRE_FALSE(struck.empty());
    const auto expected = said(undisturbed.front(), "weights: ");
    INFO("undisturbed: " << undisturbed.front().output);
    CHECK(undisturbed.front().succeeded());
    for (int rank = 0; rank < world_size; ++rank) {
      if (rank == culprit) continue;
      const auto& result = results[static_cast<std::size_t>(rank)];
      INFO("rank " << rank << ", signal " << result.signal << ": " << result.output);
      CHECK(result.succeeded());
      const std::string error = said_once(result, "says: ");
      CHECK_THAT(error, ContainsSubstring(message("rank ", culprit, " (host ")) && ContainsSubstring(fault.words));
      const std::string heard = said_once(result, "heard at ");
      REQUIRE_FALSE(heard.empty());
      const double after = 1e-9 * (std::stod(heard) - std::stod(struck));
      CHECK(after <= fault.bound_s * patience);
      const auto states = said(result, "weights: ");
      REQUIRE(states.size() <= expected.size());
      CHECK(std::equal(states.begin(), states.end(), expected.begin()));
      std::cout << "after " << after << " s and " << states.size() - 1 << " steps: " << error << "\n";
    }
  }
}

}  // namespace accel::testing::nccl_faults
