// Faults F1 to F4, F16: whoever ends, fails, hangs or is cut off, at a random moment of a training, is
// named by every survivor, soon. A hundred random faults instead of a few:
//
//   ACCEL_FAULTS=100 build/tests/tests/faults_tests "*random moment*"
#include <torch/torch.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

using accel::CommError;
using accel::ConfigError;
using accel::testing::bits;
using accel::testing::copies;
using accel::testing::cross_entropy;
using accel::testing::exact_filter;
using accel::testing::in_another_launch;
using accel::testing::Mlp;
using accel::testing::Noise;
using accel::testing::on_ranks;
using accel::testing::own_program;
using accel::testing::pace;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::RankResult;
using accel::testing::run_program;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

/// A collective of the backend alone: accelerator.reduce would wait for the ranks' agreement first.
void all_reduce(Accelerator& accelerator, int numel) {
  at::Tensor sum = torch::ones({numel});
  auto work = accelerator.backend().all_reduce(sum, accel::ReduceOp::sum);
  work.wait();
}

constexpr double beat_s = 0.3 * pace;

/// A deadline so far away that only news of the others can end a wait.
Accelerator::Options beating(bool shared_memory = true) {
  Accelerator::Options result;
  result.backend.shared_memory = shared_memory;
  result.backend.timeout_s = 100;
  result.heartbeat_s = beat_s;
  return result;
}

/// Nanoseconds of a clock that all processes share.
std::int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One write, so that the lines of a process stay whole when it is killed.
void say(const std::string& text) {
  std::cout << text + "\n" << std::flush;
}

/// What stands behind `words` in the line that begins with them; empty if there is none.
std::string said(const RankResult& result, const std::string& words) {
  const std::size_t at = result.output.find(words);
  if (at == std::string::npos) return {};
  const std::size_t begin = at + words.size();
  return result.output.substr(begin, result.output.find('\n', begin) - begin);
}

std::uint64_t hash_of(const std::vector<torch::Tensor>& tensors) {
  std::string all;
  for (const auto& one : bits(tensors)) all += one;
  return accel::fnv1a(all);
}

/// Trains, with `during(step)` before each backward, until a CommError, or for `most` steps; says when and which, and
/// the weights after each step: as a number, that survivors and an undisturbed training can be compared.
/// Checks that the weights are those of the last step that was finished, bit for bit.
template <class During>
std::string train_until_error(const During& during, bool shared_memory = true, int most = -1) {
  torch::manual_seed(1);
  Accelerator accelerator(beating(shared_memory));
  auto net = std::make_shared<Mlp>();
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-2));
  auto [model, optimizer, loader] =
      accelerator.prepare(net, adamw, accel::data::DataLoader{Noise(200), {.batch_size = 4, .shuffle = true}});
  auto weights = copies(net->parameters());
  accelerator.wait_for_everyone();
  std::string error;
  std::vector<std::uint64_t> after;
  try {
    for (int step = 0; static_cast<int>(after.size()) != most;)
      for (auto& batch : loader) {
        if (static_cast<int>(after.size()) == most) break;
        if constexpr (std::is_invocable_v<During, int, Accelerator&>)
          during(step++, accelerator);
        else
          during(step++);
        optimizer.zero_grad();
        auto loss = cross_entropy(model(batch.data), batch.target);
        accelerator.backward(loss);
        optimizer.step();
        weights = copies(net->parameters());
        after.push_back(hash_of(weights));
      }
  } catch (const CommError& failed) {
    error = failed.what();
  }
  say(accel::message("heard at ", now_ns()));
  say("says: " + error);
  if (most >= 0) {
    CHECK(error.empty());
    for (std::size_t step = 0; step < after.size(); ++step)
      say(accel::message("after ", step + 1, " steps: ", after[step]));
    return error;
  }
  say(accel::message("finished ", after.size(), " steps"));
  say(accel::message("weights: ", after.empty() ? 0 : after.back()));
  CHECK(bits(net->parameters()) == bits(weights));
  CHECK_THAT(thrown_by<CommError>([&] { (void)accelerator.reduce(torch::ones({2})); }), ContainsSubstring("given up"));
  return error;
}

double seconds_at(const RankResult& result, const std::string& words) {
  const std::string text = said(result, words);
  return text.empty() ? -1 : 1e-9 * std::stod(text);
}

/// Checks that every survivor has named `culprit`, with `words`, within `bound_s` of the fault.
void judge(const std::vector<RankResult>& results, int culprit, const std::string& words, double bound_s) {
  const auto& gone = results[static_cast<std::size_t>(culprit)];
  const double fault = seconds_at(gone, "fault at ");
  INFO("rank " << culprit << " said: " << gone.output);
  CHECK(fault > 0);
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    if (static_cast<int>(rank) == culprit) continue;
    const auto& result = results[rank];
    INFO("rank " << rank << ", signal " << result.signal << ": " << result.output);
    CHECK(result.succeeded());
    const std::string error = said(result, "says: ");
    const double after = seconds_at(result, "heard at ") - fault;
    std::cout << "after " << after << " s: " << error << "\n";
    CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(culprit) + " (host "));
    CHECK_THAT(error, ContainsSubstring(words));
    CHECK(after <= bound_s * patience);
  }
}

void note_fault() {
  say(accel::message("fault at ", now_ns()));
}

/// The process whose number stands in an error, so that it can be woken.
pid_t process_in(const std::string& error) {
  const std::string words = ", process ";
  const std::size_t at = error.find(words);
  return at == std::string::npos ? 0 : static_cast<pid_t>(std::stol(error.substr(at + words.size())));
}

/// A fault: what the rank does to itself, what the others say of it, and within what time.
struct Fault {
  std::function<void(Accelerator&)> commit;
  std::string words;
  double bound_s;
};

const std::map<std::string, Fault>& faults() {
  static const std::map<std::string, Fault> instance = {
      {"kill -9", {[](Accelerator&) { ::raise(SIGKILL); }, "has ended without a word", 1}},
      {"exit", {[](Accelerator&) { ::_exit(3); }, "has ended without a word", 1}},
      {"uncaught",
       {[](Accelerator&) { std::thread([] { throw std::runtime_error("no such sample"); }).join(); }, "no such sample",
        1}},
      {"abort", {[](Accelerator& accelerator) { accelerator.abort("the disk is full"); }, "the disk is full", 1}},
      {"SIGSTOP", {[](Accelerator&) { ::raise(SIGSTOP); }, "is silent since", 3 * beat_s / patience + 1}},
  };
  return instance;
}

/// Beside the training, so that the fault strikes wherever that is at the time.
void commit_after(std::chrono::milliseconds delay, Accelerator& accelerator, const Fault& fault) {
  std::thread([delay, &accelerator, &fault] {
    std::this_thread::sleep_for(delay);
    note_fault();
    fault.commit(accelerator);
  }).detach();
}

/// What was trained when: by world size, and by whether memory is shared.
struct Course {
  int world_size;
  bool shared_memory;
  auto operator<=>(const Course&) const = default;
};

/// What a survivor had at its end.
struct Finished {
  std::string who;
  int steps;
  std::string weights;
};

/// Checks that survivors have what an undisturbed training of as many steps has.
void compare_with_undisturbed(const std::vector<Course>& courses,
                              const std::map<Course, std::vector<Finished>>& finished) {
  for (const auto& course : courses) {
    const auto found = finished.find(course);
    int most = 1;  // also where nobody is to be compared: ranks come to the same launches as their parent
    if (found != finished.end())
      for (const auto& one : found->second) most = std::max(most, one.steps);
    const char* const asked = std::getenv("ACCEL_FAULT_STEPS");  // a rank hears it from its parent
    const auto results = run_ranks(
        course.world_size, [&](Rank) { (void)train_until_error([](int) {}, course.shared_memory, std::stoi(asked)); },
        {.variables = {{"ACCEL_FAULT_STEPS", std::to_string(most)}}});
    if (in_another_launch(results)) continue;
    for (const auto& result : results) {
      INFO(result.output);
      CHECK(result.succeeded());
    }
    if (found == finished.end()) continue;
    int compared = 0;
    for (const auto& one : found->second) {
      if (one.steps == 0) continue;
      INFO(one.who << " finished " << one.steps << " steps");
      CHECK(said(results[0], accel::message("after ", one.steps, " steps: ")) == one.weights);
      ++compared;
    }
    std::cout << compared << " survivors of " << course.world_size << (course.shared_memory ? "" : ", over TCP")
              << ", have the weights of an undisturbed training\n";
  }
}

/// What a rank says of itself at its end, if it says it.
void note_finished(std::vector<Finished>& all, const RankResult& result, const std::string& who) {
  if (const auto steps = said(result, "finished "); !steps.empty())
    all.push_back({who, std::stoi(steps), said(result, "weights: ")});
}

}  // namespace

TEST_CASE("whatever ends a rank at a random moment, every survivor names it", "[faults]") {
  const char* const wish = std::getenv("ACCEL_FAULTS");
  const int count = wish == nullptr ? 10 : std::stoi(wish);
  // The ranks draw the same faults.
  const char* const given = std::getenv("ACCEL_FAULT_SEED");
  const std::string seed = given == nullptr ? std::to_string(std::random_device{}()) : given;
  std::mt19937 random(static_cast<std::mt19937::result_type>(std::stoul(seed)));
  const auto below = [&](int end) { return static_cast<int>(random() % static_cast<unsigned>(end)); };
  std::map<Course, std::vector<Finished>> finished;
  for (int i = 0; i < count; ++i) {
    const auto kinds = static_cast<int>(faults().size());
    const auto& [kind, fault] = *std::next(faults().begin(), i % kinds);
    const int world_size = 2 + below(2);
    const int culprit = below(world_size);
    const std::chrono::milliseconds delay(below(300));
    const bool shared_memory = i / kinds % 2 == 0;  // or over TCP
    const auto results = run_ranks(world_size,
                                   [&](Rank rank) {
                                     const auto strike = [&](int step, Accelerator& accelerator) {
                                       if (rank.rank == culprit && step == 0) commit_after(delay, accelerator, fault);
                                     };
                                     const auto error = train_until_error(strike, shared_memory);
                                     // Is there something to wake? It has to find out that it was given up.
                                     if (rank.rank != culprit && kind == "SIGSTOP") ::kill(process_in(error), SIGCONT);
                                   },
                                   {.deadline = Seconds(20), .variables = {{"ACCEL_FAULT_SEED", seed}}});
    if (in_another_launch(results)) continue;
    const std::string what =
        accel::message("seed ", seed, ", fault ", i, ": ", kind, " after ", delay.count(), " ms, rank ", culprit,
                       " of ", world_size, shared_memory ? "" : ", over TCP");
    INFO(what);
    std::cout << what << "\n";
    judge(results, culprit, fault.words, fault.bound_s);
    const auto& gone = results[static_cast<std::size_t>(culprit)];
    CHECK(gone.succeeded() == (kind == "SIGSTOP" || kind == "abort"));
    if (kind == "SIGSTOP") std::cout << "woken again: " << said(gone, "says: ") << "\n";
    for (std::size_t rank = 0; rank < results.size(); ++rank)
      note_finished(finished[{world_size, shared_memory}], results[rank], accel::message(what, ": rank ", rank));
  }
  compare_with_undisturbed({{2, true}, {2, false}, {3, true}, {3, false}}, finished);
}

TEST_CASE("what a rank cannot go on with is what the others read", "[faults]") {
  struct Way {
    std::string name, words;
    std::function<void(Accelerator&)> fail;
  };
  const std::vector<Way> ways = {
      {"abort", "failed after 3 steps and 7 collectives, the last operation all_reduce: the disk is full",
       [](Accelerator& accelerator) { accelerator.abort("the disk is full"); }},
      {"a backward",
       "failed after 3 steps and 7 collectives, the last operation all_reduce: its backward threw: backward: "
       "expected a loss of one number, found f32[2]",
       [](Accelerator& accelerator) { accelerator.backward(torch::ones({2})); }},
      {"an error of the library", "was ended by an exception after 3 steps",
       [](Accelerator& accelerator) { (void)accelerator.gather_for_metrics(torch::ones({2})); }},
  };
  for (const auto& way : ways) {
    const int culprit = 1;
    const auto results = run_ranks(3, [&](Rank rank) {
      try {
        (void)train_until_error([&](int step, Accelerator& accelerator) {
          if (rank.rank != culprit || step != 3) return;
          note_fault();
          way.fail(accelerator);
        });
      } catch (const accel::InvalidArgument& error) {
        say(accel::message("ends by: ", error.what()));
      }
    });
    if (in_another_launch(results)) continue;
    judge(results, culprit, way.words, 1);
  }
}

TEST_CASE("a rank that has left the training is named by those that go on", "[faults]") {
  on_ranks({2, 3}, [](Rank rank) {
    const int leaver = rank.world_size - 1;
    Accelerator accelerator(beating());
    accelerator.wait_for_everyone();  // or the others would still be connecting to the one that leaves
    if (rank.rank == leaver) {
      {
        const Accelerator gone = std::move(accelerator);
      }
      stay_for(1.5);  // its process goes on
      return;
    }
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { accelerator.wait_for_everyone(); });
    CHECK_THAT(error, ContainsSubstring(accel::message("rank ", leaver, " (host ")) &&
                          ContainsSubstring("has left the training after 0 steps"));
    CHECK(watch.seconds() < 1 * patience);
    std::cout << error << "\n";
  });
}

TEST_CASE("at a deadline the rank that is furthest behind is named", "[faults]") {
  on_ranks({3}, [](Rank rank) {
    const int late = 1;
    auto hasty = beating();
    hasty.backend.timeout_s = 3 * beat_s;
    Accelerator accelerator(hasty);
    for (int i = 0; i < 4; ++i) all_reduce(accelerator, 3);
    stay_for(2 * beat_s);
    if (rank.rank == late) {
      stay_for(5 * beat_s);  // it lives and beats, but does not come
      return;
    }
    const auto error = thrown_by<CommError>([&] { all_reduce(accelerator, 3); });
    CHECK_THAT(error, ContainsSubstring("all_reduce number 5 of 12 B failed"));
    CHECK_THAT(error, ContainsSubstring("rank 1 (host "));
    std::cout << error << "\n";
  });
}

TEST_CASE("with heartbeat_s = 0 a stopped process is waited for until the deadline", "[faults]") {
  const auto results = run_ranks(2,
                                 [](Rank rank) {
                                   auto patient = beating();
                                   patient.heartbeat_s = 0;
                                   patient.backend.timeout_s = 6 * beat_s;
                                   Accelerator accelerator(patient);
                                   accelerator.wait_for_everyone();
                                   if (rank.rank == 1) ::raise(SIGSTOP);
                                   const Stopwatch watch;
                                   const auto error = thrown_by<CommError>([&] { all_reduce(accelerator, 1); });
                                   CHECK(watch.seconds() >= 5.9 * beat_s);
                                   say("says: " + error);
                                 },
                                 {.deadline = Seconds(20)});
  if (in_another_launch(results)) return;
  INFO(results[0].output);
  CHECK(results[0].succeeded());
  CHECK_THAT(results[0].output, ContainsSubstring("without an answer") && !ContainsSubstring("silent"));
  CHECK(results[1].timed_out);
}

TEST_CASE("a rank that is started again while the others train is refused", "[faults]") {
  on_ranks({2}, [](Rank rank) {
    Accelerator accelerator(beating());
    if (rank.rank == 0) {
      auto again = accel::launch::detect();
      again.topology.rank = 1;
      const Stopwatch watch;
      const auto error = thrown_by<ConfigError>([&] { (void)accel::launch::meet(again, 0); });
      CHECK_THAT(error, ContainsSubstring("two processes say they are rank 1"));
      CHECK(watch.seconds() < 2 * patience);
      std::cout << error << "\n";
    }
    CHECK(accelerator.reduce(torch::ones({1})).item<int>() == 2);
  });
}

TEST_CASE("hidden: a rank of three machines that may lose its network", "[.][faults]") {
  const int index = std::stoi(std::getenv("HOST_INDEX"));
  const std::chrono::milliseconds delay(std::stoi(std::getenv("CUT_AFTER_MS")));
  const auto cut = [delay] {
    std::this_thread::sleep_for(delay);
    note_fault();
    if (std::system("ip link set eth0 down") != 0) say("cannot take the network down");
  };
  const auto error = train_until_error([&](int step) {
    if (index == 1 && step == 0) std::thread(cut).detach();  // beside the training, wherever that is at the time
  });
  CHECK_FALSE(error.empty());
}

TEST_CASE("a machine whose network is cut at a random moment is named by the others, and names the first", "[faults]") {
  const std::vector<Course> course = {{3, false}};
  if (std::getenv("ACCEL_FAULT_STEPS") != nullptr) return compare_with_undisturbed(course, {});  // in a rank of that
  const unsigned delay_ms = std::random_device{}() % 500;
  std::cout << "the network is cut after " << delay_ms << " ms\n";
  const std::string rank = "CUT_AFTER_MS=" + std::to_string(delay_ms) +
                           " ACCEL_RANK=\\$HOST_INDEX ACCEL_WORLD_SIZE=3 ACCEL_MASTER_ADDR=192.168.1.100 "
                           "ACCEL_MASTER_PORT=29500 '" +
                           own_program() + "' '" +
                           exact_filter("hidden: a rank of three machines that may lose its network") +
                           "' > $folder/\\$HOST_INDEX 2>&1";
  const std::string line =
      "folder=$(mktemp -d); " ACCEL_TEST_DIR "/launch/three_hosts.sh \"" + rank +
      "\"; status=$?; for i in 0 1 2; do echo \"== $i\"; cat $folder/$i; done; rm -r $folder; exit $status";
  const auto result = run_program({"bash", "-c", line}, {.deadline = Seconds(180)});
  INFO(line << "\n" << result.output);
  if (result.exit_code == 77)
    accel::testing::skip_without("namespaces", result.output.substr(result.output.rfind("skipped: ") + 9));
  CHECK(result.succeeded());
  std::vector<RankResult> ranks(3);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const std::size_t begin = result.output.find(accel::message("== ", i, "\n"));
    ranks[i].output = result.output.substr(begin, result.output.find("\n== ", begin) - begin);
  }
  judge(ranks, 1, "its host does not answer: the network is cut, or the host is down", 3 * beat_s / patience + 1);
  const std::string own = said(ranks[1], "says: ");
  std::cout << "the one that is cut off: " << own << "\n";
  CHECK_THAT(own, ContainsSubstring("rank 0 (host ") && ContainsSubstring("its host does not answer"));
  std::map<Course, std::vector<Finished>> finished;
  for (const auto& one : ranks) note_finished(finished[course.front()], one, "a rank of three machines");
  compare_with_undisturbed(course, finished);
}
