// Faults F1, F2, F3, F12 and F16: a rank goes, or differs, and what the others say. Nobody hangs, nobody aborts.
#include <torch/torch.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
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
using accel::InvalidArgument;
using accel::testing::bits;
using accel::testing::copies;
using accel::testing::cross_entropy;
using accel::testing::in_another_launch;
using accel::testing::Mlp;
using accel::testing::Noise;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::RankResult;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

constexpr double timeout_s = 2;
constexpr int fault_step = 5;

Accelerator::Options options(bool shared_memory = true) {
  Accelerator::Options result;
  result.backend.shared_memory = shared_memory;
  result.backend.timeout_s = timeout_s;
  return result;
}

/// Trains, with `before_step(step)` before each backward. On a CommError: says so, checks that it came
/// soon after the deadline, that the weights are those of the last step, and that the group
/// says ever after that it was given up.
void train(const std::function<void(int)>& before_step, bool shared_memory = true, bool in_run = false) {
  Accelerator accelerator(options(shared_memory));
  auto net = std::make_shared<Mlp>();
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-2));
  auto [model, optimizer, loader] =
      accelerator.prepare(net, adamw, accel::data::DataLoader{Noise(200), {.batch_size = 4, .shuffle = true}});
  int step = 0;
  Stopwatch since_step;
  auto weights = copies(net->parameters());
  bool failed = false;
  const auto loop = [&, &model = model, &optimizer = optimizer, &loader = loader] {
    for (auto& batch : loader) {
      since_step = {};
      if (step == fault_step)
        std::cout << "step of the fault at " << std::chrono::steady_clock::now().time_since_epoch().count() << " ns\n"
                  << std::flush;
      before_step(step++);
      optimizer.zero_grad();
      auto loss = cross_entropy(model(batch.data), batch.target);
      accelerator.backward(loss);
      optimizer.step();
      weights = copies(net->parameters());
    }
  };
  try {
    in_run ? accelerator.run(loop) : loop();
  } catch (const CommError& error) {
    failed = true;
    std::cout << "says: " << error.what() << "\n";
  }
  CHECK(failed);
  CHECK(step == fault_step + 1);
  CHECK(since_step.seconds() <= timeout_s + 1 * patience);
  CHECK(bits(net->parameters()) == bits(weights));
  const Stopwatch next;
  const auto later = thrown_by<CommError>([&] { (void)accelerator.reduce(torch::ones({2})); });
  CHECK(next.seconds() < 0.5 * patience);
  CHECK_THAT(later, ContainsSubstring("given up"));
  std::cout << "says later: " << later << "\n" << std::flush;
}

/// Seconds from the step of the fault to the end of the process.
double left_after(const RankResult& result) {
  const std::string words = "step of the fault at ";
  const std::size_t at = result.output.find(words);
  REQUIRE(at != std::string::npos);
  return result.ended_at - 1e-9 * std::stod(result.output.substr(at + words.size()));
}

/// Shows what the survivors said, and checks that they left soon after `gone` did, or soon after they began.
void judge_survivors(const std::vector<RankResult>& results, int gone, bool gone_has_ended,
                     const std::string& words = {}, double bound_s = timeout_s + 1) {
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    if (static_cast<int>(rank) == gone) continue;
    const auto& result = results[rank];
    INFO("signal " << result.signal << ", " << result.output);
    std::cout << "world size " << results.size() << ", rank " << gone << " gone, after " << result.seconds << " s rank "
              << rank << " " << result.output.substr(std::min(result.output.find("says:"), result.output.size()));
    CHECK(result.succeeded());
    CHECK_THAT(result.output, ContainsSubstring("says: [rank " + std::to_string(rank) + "/"));
    CHECK_THAT(result.output, !ContainsSubstring("terminate"));
    CHECK_THAT(result.output, ContainsSubstring("rank " + std::to_string(gone) + " (host "));
    CHECK_THAT(result.output, ContainsSubstring(words));
    if (gone_has_ended) {
      const double after = result.seconds - results[static_cast<std::size_t>(gone)].seconds;
      CHECK(after <= bound_s * patience);
    }
  }
}

}  // namespace

TEST_CASE("a rank that is killed in the middle of an epoch leaves errors, no hang", "[faults]") {
  const auto kill_one = [](int world_size, int victim, bool shared_memory = true) {
    const auto results = run_ranks(world_size,
                                   [&](Rank rank) {
                                     const auto fault = [&](int step) {
                                       if (rank.rank == victim && step == fault_step) ::raise(SIGKILL);
                                     };
                                     train(fault, shared_memory);
                                   },
                                   {.deadline = Seconds(20)});
    if (in_another_launch(results)) return;
    CHECK(results[static_cast<std::size_t>(victim)].signal == SIGKILL);
    judge_survivors(results, victim, true, "has ended without a word");
  };
  SECTION("the last of two") {
    kill_one(2, 1);
  }
  SECTION("the first of two, over which the others speak") {
    kill_one(2, 0);
  }
  SECTION("the middle of three") {
    kill_one(3, 1);
  }
  SECTION("the middle of three, over TCP") {
    kill_one(3, 1, false);
  }
  SECTION("the first of three") {
    kill_one(3, 0);
  }
}

TEST_CASE("a rank that is killed while the others wait in a collective leaves errors, no hang", "[faults]") {
  const auto results = run_ranks(3,
                                 [](Rank rank) {
                                   train([&](int step) {
                                     if (rank.rank != 2 || step != fault_step) return;
                                     stay_for(0.3);
                                     ::raise(SIGKILL);
                                   });
                                 },
                                 {.deadline = Seconds(20)});
  CHECK(results[2].signal == SIGKILL);
  judge_survivors(results, 2, true, "has ended without a word");
}

TEST_CASE("a rank that stops leaves errors at the deadline, no hang", "[faults]") {
  const auto stop_one = [](int world_size, int victim, bool shared_memory = true) {
    const auto results = run_ranks(world_size,
                                   [&](Rank rank) {
                                     const auto fault = [&](int step) {
                                       if (rank.rank == victim && step == fault_step) ::raise(SIGSTOP);
                                     };
                                     train(fault, shared_memory);
                                   },
                                   {.deadline = Seconds(20)});
    if (in_another_launch(results)) return;
    CHECK(results[static_cast<std::size_t>(victim)].timed_out);  // it is still stopped when all is over
    judge_survivors(results, victim, false, "without an answer");
    for (std::size_t rank = 0; rank < results.size(); ++rank)
      if (static_cast<int>(rank) != victim)
        CHECK(left_after(results[rank]) <= timeout_s + 2 * patience);  // the process
  };
  SECTION("the last of two") {
    stop_one(2, 1);
  }
  SECTION("the last of two, over TCP") {
    stop_one(2, 1, false);
  }
  SECTION("the first of three, over which the others speak") {
    stop_one(3, 0);
  }
}

TEST_CASE("rank 0, over which the others speak, stops while they wait for it: errors, no hang", "[faults]") {
  using Call = std::function<void(Accelerator&)>;
  const auto stop_rank_0_in = [](const std::string& words, const Call& call) {
    const auto results = run_ranks(3,
                                   [&](Rank rank) {
                                     Accelerator accelerator(options());
                                     accelerator.wait_for_everyone();
                                     if (rank.rank == 0) {
                                       stay_for(0.3);  // the others have read, and are in the call
                                       ::raise(SIGSTOP);
                                     }
                                     const Stopwatch watch;
                                     const auto error = thrown_by<CommError>([&] { call(accelerator); });
                                     CHECK_THAT(error, ContainsSubstring(words) && ContainsSubstring("rank 0 (host "));
                                     CHECK(watch.seconds() <= timeout_s + 1 * patience);
                                     std::cout << "says: " << error << "\n" << std::flush;
                                   },
                                   {.deadline = Seconds(20)});
    if (in_another_launch(results)) return;
    CHECK(results[0].timed_out);  // it is still stopped when all is over
    judge_survivors(results, 0, false);
    for (const int rank : {1, 2}) CHECK(results[static_cast<std::size_t>(rank)].seconds < 5 * patience);
  };
  SECTION("in a barrier") {
    stop_rank_0_in("wait_for_everyone gave up after 2 s",
                   [](Accelerator& accelerator) { accelerator.wait_for_everyone(); });
  }
  SECTION("in gather") {
    stop_rank_0_in("gather gave up after 2 s",
                   [](Accelerator& accelerator) { (void)accelerator.gather(torch::ones({2})); });
  }
  SECTION("in prepare") {
    stop_rank_0_in("prepare gave up after 2 s",
                   [](Accelerator& accelerator) { (void)accelerator.prepare(std::make_shared<Mlp>()); });
  }
}

TEST_CASE("rank 0 stops while the others look for it: an error at the deadline of the rendezvous", "[faults]") {
  const auto results =
      run_ranks(2,
                [](Rank rank) {
                  auto hasty = options();
                  hasty.rendezvous_timeout_s = 2;
                  if (rank.rank == 0) {
                    // Its port is open, its process stops before anybody is let in.
                    const auto master = *accel::launch::detect().master;
                    const auto door = accel::launch::detail::Door::of_process(
                        master.host, accel::launch::detail::look_up(master.host), master.port);
                    stay_for(0.5);
                    ::raise(SIGSTOP);
                  }
                  stay_for(1);
                  const Stopwatch watch;
                  const auto error = thrown_by<CommError>([&] { Accelerator accelerator(hasty); });
                  CHECK(watch.seconds() >= 1.9);
                  CHECK(watch.seconds() <= 2 + 2 * patience);
                  CHECK_THAT(error, ContainsSubstring("somebody is at 127.0.0.1:") && ContainsSubstring("within 2 s") &&
                                        ContainsSubstring("rank 0 is stopped"));
                  std::cout << "says: " << error << "\n" << std::flush;
                },
                {.deadline = Seconds(20)});
  if (in_another_launch(results)) return;
  INFO(results[1].output);
  CHECK(results[0].timed_out);
  CHECK(results[1].succeeded());
}

TEST_CASE("what a rank throws in the middle of an epoch is what the others read, soon", "[faults]") {
  struct Throw {
    int thrower;
    bool in_run;  // accelerator.run knows the text of any exception
    std::string words;
  };
  const std::vector<Throw> all = {
      {1, true,
       "was ended by an exception after 5 steps and 11 collectives, the last operation all_reduce: no such sample"},
      {0, true, ": no such sample"},
      {1, false, "what it says stands in the output of that rank"}};
  for (const auto& [thrower, in_run, words] : all) {
    const auto results = run_ranks(3,
                                   [&](Rank rank) {
                                     const auto fault = [&](int step) {
                                       if (rank.rank == thrower && step == fault_step)
                                         throw std::runtime_error("no such sample");
                                     };
                                     train(fault, true, in_run);
                                   },
                                   {.deadline = Seconds(20)});
    if (in_another_launch(results)) continue;
    const auto& gone = results[static_cast<std::size_t>(thrower)];
    CHECK(gone.exit_code == 1);
    CHECK_THAT(gone.output, ContainsSubstring("no such sample"));
    judge_survivors(results, thrower, true, words, 1);
  }
}

TEST_CASE("an error that was handled is not what a rank is said to have ended by", "[faults]") {
  const auto results = run_ranks(2, [](Rank rank) {
    Accelerator accelerator(options());
    accelerator.wait_for_everyone();
    std::exception_ptr kept;  // as a program may that tells its errors at the end
    if (rank.rank == 1) {
      try {
        (void)accelerator.gather_for_metrics(torch::ones({2}));
      } catch (const InvalidArgument&) {
        kept = std::current_exception();
      }
    }
    CHECK(accelerator.reduce(torch::ones({1})).item<int>() == 2);
    if (rank.rank == 1) throw std::runtime_error("something else");
    std::cout << "says: " << thrown_by<CommError>([&] { accelerator.wait_for_everyone(); }) << "\n";
  });
  if (in_another_launch(results)) return;
  INFO(results[0].output);
  CHECK(results[0].succeeded());
  CHECK_THAT(results[0].output, ContainsSubstring("rank 1 (host ") && ContainsSubstring("was ended by an exception") &&
                                    !ContainsSubstring("gather_for_metrics"));
}

TEST_CASE("a rank that leaves its loop early is waited for until the deadline", "[faults]") {
  on_ranks({3}, [](Rank rank) {
    Accelerator accelerator(options());
    auto net = std::make_shared<Mlp>();
    auto [model, loader] = accelerator.prepare(net, accel::data::DataLoader{Noise(24), {.batch_size = 4}});
    const int leaver = rank.world_size - 1;
    Stopwatch watch;
    int step = 0;
    const auto error = thrown_by<CommError>([&] {
      for (auto& batch : loader) {
        watch = {};
        if (rank.rank == leaver && step++ == 1) break;  // its accelerator is still there: it may be at something else
        auto loss = cross_entropy(model(batch.data), batch.target);
        accelerator.backward(loss);
      }
    });
    if (rank.rank == leaver) {
      stay_for(timeout_s + 1);
    } else {
      CHECK(watch.seconds() >= 0.9 * timeout_s);
      CHECK(watch.seconds() <= timeout_s + 1 * patience);
      CHECK_THAT(error, ContainsSubstring("all_reduce number") && ContainsSubstring("failed after 2 s") &&
                            ContainsSubstring("rank 2 (host ") && ContainsSubstring("was furthest behind"));
    }
  });
}

TEST_CASE("wait_for_everyone names the rank that does not come", "[faults]") {
  on_ranks({3}, [](Rank rank) {
    auto with_timeout = options();
    with_timeout.backend.timeout_s = 0.5;
    Accelerator accelerator(with_timeout);
    const int absent = rank.world_size - 1;
    if (rank.rank == absent) {
      stay_for(1.2);
      return;
    }
    const auto error = thrown_by<CommError>([&] { accelerator.wait_for_everyone(); });
    CHECK_THAT(error, ContainsSubstring("wait_for_everyone gave up after 0.5 s") &&
                          ContainsSubstring("rank " + std::to_string(absent) + " (host "));
    if (rank.rank == 0) stay_for(0.2);
  });
}

TEST_CASE("models that differ between ranks are refused on every rank, which names both", "[faults]") {
  using List = std::vector<std::pair<std::string, torch::Tensor>>;
  struct Net : torch::nn::Module {
    explicit Net(const List& parameters, const List& buffers = {}) {
      for (const auto& [name, tensor] : parameters) register_parameter(name, tensor, tensor.requires_grad());
      for (const auto& [name, tensor] : buffers) register_buffer(name, tensor);
    }
  };
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator accelerator(options());
    const int odd = rank.world_size - 1;
    const auto ones = [](std::vector<std::int64_t> shape, bool trainable = true) {
      return torch::ones(shape).requires_grad_(trainable);
    };
    const auto differ = [&](const Net& own, const Net& others, const std::string& reference,
                            const std::string& theirs) {
      auto net = std::make_shared<Net>(rank.rank == odd ? own : others);
      const auto before = bits(net->parameters());
      const auto error = thrown_by<InvalidArgument>([&] { (void)accelerator.prepare(net); });
      if (rank.rank == 0) std::cout << error << "\n";
      CHECK_THAT(error, ContainsSubstring("[rank " + std::to_string(rank.rank) + "/"));
      CHECK_THAT(error, ContainsSubstring("rank 0 has " + reference));
      CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(odd) + " has " + theirs));
      CHECK(bits(net->parameters()) == before);
    };
    const Net good({{"a", ones({2, 3})}, {"b", ones({4})}});
    differ(Net({{"a", ones({2, 3})}, {"c", ones({4})}}), good, "model 0: b f32[4]", "model 0: c f32[4]");
    differ(Net({{"a", ones({3, 2})}, {"b", ones({4})}}), good, "model 0: a f32[2, 3]", "model 0: a f32[3, 2]");
    differ(Net({{"a", ones({2, 3})}, {"b", torch::ones({4}, torch::kDouble).requires_grad_(true)}}), good,
           "model 0: b f32[4]", "model 0: b f64[4]");
    differ(Net({{"a", ones({2, 3})}, {"b", ones({4}, false)}}), good, "model 0: b f32[4] requires_grad",
           "model 0: b f32[4] frozen");
    differ(Net({{"a", ones({2, 3})}}), good, "model 0: b f32[4]", "nothing");
    differ(Net({{"a", ones({2, 3})}, {"b", ones({4})}, {"c", ones({1})}}), good, "nothing", "model 0: c f32[1]");
    differ(Net({{"b", ones({4})}, {"a", ones({2, 3})}}), good, "model 0: a f32[2, 3]", "model 0: b f32[4]");
    differ(Net({{"a", ones({2, 3})}, {"b", ones({4})}}, {{"m", torch::ones({1})}}), good, "nothing",
           "model 0: buffer m f32[1]");
    const auto shared = ones({2, 3});
    differ(Net({{"a", shared}, {"b", shared}}), Net({{"a", ones({2, 3})}, {"b", ones({2, 3})}}), "model 0: b f32[2, 3]",
           "model 0: b tied to a");
    // After all that the ranks are still in step.
    auto model = accelerator.prepare(std::make_shared<Net>(good));
    CHECK(model.parameters().size() == 2);
    CHECK(accelerator.reduce(torch::ones({1})).item<double>() == rank.world_size);
  });
}

TEST_CASE("a mistake of one rank in prepare is everybody's error", "[faults]") {
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator accelerator(options());
    auto net = std::make_shared<Mlp>();
    auto stranger = std::make_shared<Mlp>();
    const int odd = rank.world_size - 1;
    torch::optim::SGD sgd(rank.rank == odd ? stranger->parameters() : net->parameters(), 0.1);
    const auto error = thrown_by<InvalidArgument>([&] { (void)accelerator.prepare(net, sgd); });
    CHECK_THAT(error, ContainsSubstring("belongs to no prepared model"));
    if (rank.rank != odd) CHECK_THAT(error, ContainsSubstring("failed on rank " + std::to_string(odd)));
    CHECK(accelerator.reduce(torch::ones({1})).item<double>() == rank.world_size);
  });
}
