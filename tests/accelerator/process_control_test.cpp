// Process control: which rank does what, and when, and that nobody waits for who does not come.
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using accel::collective::BatchSizeSearch;
using accel::collective::next_batch_size;

using GlooControl = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

/// All sizes that are tried from `first` on, if none fits.
std::vector<std::int64_t> tried(std::int64_t first, const BatchSizeSearch& search = {}) {
  std::vector<std::int64_t> sizes;
  for (auto size = first; size > 0; size = next_batch_size(size, search)) sizes.push_back(size);
  return sizes;
}

[[noreturn]] void run_out_of_memory() {
  throw c10::OutOfMemoryError({}, "CUDA out of memory. Tried to allocate 2.00 GiB");
}

GlooControl* triggered_by_signal = nullptr;

}  // namespace

TEST_CASE("every host has a first rank of its own", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({3}, [](Rank rank) {
    // As a launcher says it that has put ranks 0 and 1 on one host, and rank 2 on another.
    const bool is_apart = rank.rank == 2;
    ::setenv("LOCAL_RANK", is_apart ? "0" : std::to_string(rank.rank).c_str(), 1);
    ::setenv("LOCAL_WORLD_SIZE", is_apart ? "1" : "2", 1);
    ::setenv("GROUP_RANK", is_apart ? "1" : "0", 1);
    GlooControl accelerator;
    CHECK(accelerator.is_local_main_process() == (rank.rank != 1));
    CHECK(accelerator.is_main_process() == (rank.rank == 0));
    CHECK(accelerator.on_local_main_process([] {}) == (rank.rank != 1));
    bool ran = false;
    accelerator.local_main_process_first([&] { ran = true; });
    CHECK(ran);
    accelerator.wait_for_everyone();
  });
}

TEST_CASE("callables run on their ranks only, and give what they give there", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator;
    const bool is_last = rank.rank == rank.world_size - 1;
    CHECK(accelerator.is_last_process() == is_last);
    int ran = 0;
    CHECK(accelerator.on_main_process([&] { ++ran; }) == (rank.rank == 0));
    CHECK(accelerator.on_local_main_process([&] { ++ran; }) == (rank.rank == 0));
    CHECK(accelerator.on_last_process([&] { ++ran; }) == is_last);
    CHECK(ran == (rank.rank == 0 ? 2 : 0) + (is_last ? 1 : 0));
    const std::string text = "a reference";
    const std::optional<std::string> given = accelerator.on_main_process([&]() -> const std::string& { return text; });
    CHECK(given == (rank.rank == 0 ? std::optional(text) : std::nullopt));
    for (int i = 0; i < rank.world_size; ++i) {
      const std::optional<int> mine = accelerator.on_process(i, [&] { return 10 * i; });
      CHECK(mine == (i == rank.rank ? std::optional(10 * i) : std::nullopt));
      CHECK(accelerator.on_local_process(i, [] { return std::make_unique<int>(1); }).has_value() == (i == rank.rank));
    }
    for (const int i : {-1, rank.world_size}) {
      CHECK_THROWS_AS(accelerator.on_process(i, [] {}), InvalidArgument);
      CHECK_THROWS_AS(accelerator.on_local_process(i, [] {}), InvalidArgument);
    }
  });
}

TEST_CASE("the main rank goes first, and if it throws so do the others, at once", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator;
    const auto both = [&](const auto& call) {
      call([&](const auto& body) { return accelerator.main_process_first(body); });
      call([&](const auto& body) { return accelerator.local_main_process_first(body); });
    };
    both([&](const auto& first) {
      // Who comes later finds that rank 0 has come, long before: all share this clock.
      const double done = first([&] {
        if (rank.rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
      });
      const auto times = accelerator.gather_object(done);
      for (const double time : times) CHECK(time >= times.front());
    });
    both([&](const auto& first) {
      INFO("an exception on rank 0");
      int ran = 0;
      const Stopwatch watch;
      const auto body = [&] {
        ++ran;
        if (rank.rank == 0) throw std::runtime_error("the disk is full");
      };
      if (rank.rank == 0) {
        CHECK_THROWS_WITH(first(body), "the disk is full");
      } else {
        CHECK_THAT(thrown_by<CommError>([&] { first(body); }), ContainsSubstring("failed on rank 0: the disk is full"));
        CHECK(ran == 0);
      }
      CHECK(watch.seconds() < 10 * patience);
    });
    both([&](const auto& first) {
      INFO("an exception on another rank is its own");
      const auto body = [&] {
        if (rank.rank == rank.world_size - 1) throw std::runtime_error("only here");
        return 1;
      };
      if (rank.rank == rank.world_size - 1)
        CHECK_THROWS(first(body));
      else
        CHECK(first(body) == 1);
      accelerator.wait_for_everyone();
    });
    CHECK(accelerator.main_process_first([] { return std::make_unique<int>(3); }) != nullptr);
  });
}

TEST_CASE("who needs longer than the others wait for is named", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({2}, [](Rank rank) {
    GlooControl accelerator;
    const auto error = thrown_by<CommError>([&] {
      accelerator.main_process_first(
          [&] {
            if (rank.rank == 0) stay_for(2);
          },
          Seconds(0.3));
    });
    CHECK_THAT(error, ContainsSubstring("main_process_first") && ContainsSubstring("rank 0"));
  });
}

TEST_CASE("a trigger that any rank raises is seen by all, once", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator;
    CHECK_FALSE(accelerator.check_trigger());
    for (int r = 0; r < rank.world_size; ++r) {
      if (rank.rank == r) accelerator.set_trigger();
      CHECK(accelerator.check_trigger());
      CHECK_FALSE(accelerator.check_trigger());
    }
    triggered_by_signal = &accelerator;
    std::signal(SIGUSR1, [](int) { triggered_by_signal->set_trigger(); });
    if (rank.rank == rank.world_size - 1) std::raise(SIGUSR1);
    CHECK(accelerator.check_trigger());
    std::signal(SIGUSR1, SIG_DFL);
    CHECK_FALSE(accelerator.check_trigger());
  });
}

TEST_CASE("seeds are the ranks' own if they shall, and generators can be made equal", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator;
    const auto drawn = [](std::uint64_t seed) {
      auto generator = at::detail::createCPUGenerator(seed);
      return at::randn({5}, generator);
    };
    const auto own = 42 + static_cast<std::uint64_t>(rank.rank);
    CHECK(accelerator.set_seed(42) == 42);
    CHECK(at::randn({5}).equal(drawn(42)));
    CHECK(accelerator.set_seed(42, {.device_specific = true}) == own);
    CHECK(at::randn({5}).equal(drawn(own)));
    CHECK_FALSE(at::globalContext().deterministicAlgorithms());
    (void)accelerator.set_seed(42, {.device_specific = true, .deterministic = true});
    CHECK(at::globalContext().deterministicAlgorithms());
    at::globalContext().setDeterministicAlgorithms(false, false);

    accelerator.synchronize_rng_states();
    const at::Tensor next = at::randn({100});
    CHECK(accelerator.broadcast(next.clone()).equal(next));
    auto generator = at::detail::createCPUGenerator(7 + static_cast<std::uint64_t>(rank.rank));
    (void)at::randperm(5 + rank.rank, generator);  // somewhere within its numbers, and with one normal number kept
    (void)at::normal(0.0, 1.0, {1}, generator);
    accelerator.synchronize_rng_states({generator});
    const at::Tensor drawn_after = at::randn({3}, generator);
    CHECK(accelerator.broadcast(drawn_after.clone()).equal(drawn_after));
    const int bad = rank.world_size - 1;
    const auto error = thrown_by<InvalidArgument>(
        [&] { accelerator.synchronize_rng_states({rank.rank == bad ? at::Generator() : generator}); });
    CHECK_THAT(error, ContainsSubstring("generator 0 is undefined"));
    if (rank.world_size > 1)
      CHECK_THAT(thrown_by<InvalidArgument>([&] {
                   accelerator.synchronize_rng_states(rank.rank == bad ? std::vector{generator, generator}
                                                                       : std::vector{generator});
                 }),
                 ContainsSubstring("rank 0 has nothing, rank " + std::to_string(bad) + " has a generator of cpu"));
  });
}

TEST_CASE("the sizes that are tried are accelerate's", "[accelerator]") {
  const std::vector<std::int64_t> from_128 = {128, 115, 103, 92, 82, 73, 65, 58, 52, 46, 41,
                                              36,  32,  28,  25, 22, 19, 17, 15, 13, 11, 9};
  auto sizes = tried(128);
  CHECK(std::vector(sizes.begin(), sizes.begin() + 22) == from_128);
  CHECK(sizes[22] == 8);
  CHECK(sizes.back() == 1);
  CHECK(tried(16) == std::vector<std::int64_t>{16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1});
  CHECK(tried(64, {.factor = 0.5, .smallest = 8}) == std::vector<std::int64_t>{64, 32, 16, 8});
  CHECK(tried(100, {.smallest = 60, .align = 8}) == std::vector<std::int64_t>{100, 88, 72, 64});
  CHECK(tried(3, {.factor = 0.999}) == std::vector<std::int64_t>{3, 2, 1});
}

TEST_CASE("the size that every rank has memory for is found, and all take it", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator({.log = Log::Level::warning});
    {
      INFO("memory as LibTorch, C++ and the CPU's allocator say that there is none; each rank for other sizes");
      std::vector<std::int64_t> sizes;
      const auto found = accelerator.find_executable_batch_size(128, [&](std::int64_t size) {
        sizes.push_back(size);
        if (size > 100) run_out_of_memory();
        if (size > 60 && rank.rank == rank.world_size - 1) throw std::bad_alloc();
        if (size > 50 && rank.rank == 0) (void)at::empty({std::int64_t{1} << 60}, at::kByte);
      });
      CHECK(found == 46);
      CHECK(sizes == std::vector<std::int64_t>{128, 115, 103, 92, 82, 73, 65, 58, 52, 46});
      // What the body gives, of the try that went well everywhere.
      CHECK(accelerator.find_executable_batch_size(10, [&](std::int64_t size) {
        if (size > 8 && rank.rank == 0) run_out_of_memory();
        return std::to_string(size);
      }) == "8");
    }
    {
      INFO("collectives between, and what they give");
      const auto sum = accelerator.find_executable_batch_size(4, [&](std::int64_t size) {
        const at::Tensor result = accelerator.reduce(at::full({}, size));
        if (size > 2) run_out_of_memory();  // everywhere
        return result.item<std::int64_t>();
      });
      CHECK(sum == 2 * rank.world_size);
    }
    {
      INFO("none that fits, and options that cannot be");
      const auto none = thrown_by<InvalidArgument>([&] {
        accelerator.find_executable_batch_size(16,
                                               [&](std::int64_t) {
                                                 if (rank.rank == rank.world_size - 1) run_out_of_memory();
                                               },
                                               {.smallest = 4});
      });
      CHECK_THAT(none, ContainsSubstring("a batch size of 4 at least") && ContainsSubstring("CUDA out of memory") &&
                           ContainsSubstring("rank " + std::to_string(rank.world_size - 1) + " has no memory"));
      const auto nothing = [](std::int64_t) {};
      CHECK_THROWS_AS(accelerator.find_executable_batch_size(0, nothing), InvalidArgument);
      CHECK_THROWS_AS(accelerator.find_executable_batch_size(8, nothing, {.factor = 1}), InvalidArgument);
      CHECK_THROWS_AS(accelerator.find_executable_batch_size(8, nothing, {.align = 0}), InvalidArgument);
      if (rank.world_size > 1)
        CHECK_THAT(thrown_by<InvalidArgument>([&] { accelerator.find_executable_batch_size(8 + rank.rank, nothing); }),
                   ContainsSubstring("rank 0 has from 8, ") && ContainsSubstring("rank 1 has from 9, "));
    }
    {
      INFO("another exception is no matter of memory, and reaches every rank");
      for (int bad = 0; bad < rank.world_size; ++bad) {
        const auto search = [&] {
          return accelerator.find_executable_batch_size(8, [&](std::int64_t size) {
            if (rank.rank == bad) throw std::runtime_error("no such file");
            if (size > 4) run_out_of_memory();
            return size;
          });
        };
        if (rank.rank == bad)
          CHECK_THROWS_WITH(search(), "no such file");
        else
          CHECK_THAT(thrown_by<CommError>(search),
                     ContainsSubstring("failed on rank " + std::to_string(bad) + ": no such file"));
      }
    }
    accelerator.wait_for_everyone();  // the group goes on
  });
}

TEST_CASE("a model can be tried under no_sync, where any rank may run out of memory, and is trained then",
          "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator({.log = Log::Level::warning});
    auto net = std::make_shared<Line>();
    auto model = accelerator.prepare(net);
    struct TooLarge : torch::autograd::Function<TooLarge> {
      static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) { return x.clone(); }
      static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*,
                                                   const torch::autograd::tensor_list&) {
        run_out_of_memory();
      }
    };
    const auto size = accelerator.find_executable_batch_size(8, [&](std::int64_t batch_size) {
      const auto guard = accelerator.no_sync();
      auto x = at::ones({batch_size}, at::kDouble);
      auto y = model(x).sum();
      if (batch_size > 5 && rank.rank == 0) y = TooLarge::apply(y);
      accelerator.backward(y);
    });
    CHECK(size == 5);
    accelerator.give_up_window();
    net->zero_grad();
    accelerator.backward(model(at::full({1}, 1.0 + rank.rank, at::kDouble)).sum());
    CHECK(std::abs(net->weight.grad().item<double>() - (rank.world_size + 1) / 2.0) < 1e-12);
  });
}

TEST_CASE("a rank that runs out of memory while others wait for it in a collective ends the group, at once",
          "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  for (const bool shared_memory : {true, false})
    on_ranks({2, 3}, [&](Rank rank) {
      for (int bad = 0; bad < rank.world_size; ++bad) {
        GlooControl accelerator({.backend = {.shared_memory = shared_memory}, .log = Log::Level::warning});
        const Stopwatch watch;
        const auto error = thrown_by<CommError>([&] {
          accelerator.find_executable_batch_size(8, [&](std::int64_t) {
            if (rank.rank == bad) run_out_of_memory();
            at::Tensor sum = at::ones({3});
            auto work = accelerator.backend().all_reduce(sum, ReduceOp::sum);
            work.wait();
          });
        });
        CHECK_THAT(error,
                   ContainsSubstring("rank " + std::to_string(bad) + " (host ") &&
                       ContainsSubstring("ran out of memory in find_executable_batch_size, with a batch size of 8") &&
                       ContainsSubstring("under no_sync"));
        CHECK(watch.seconds() < 10 * patience);
      }
      // A collective of its own that the others have not begun must not meet their next one.
      GlooControl accelerator({.log = Log::Level::warning});
      const auto error = thrown_by<CommError>([&] {
        accelerator.find_executable_batch_size(8, [&](std::int64_t) {
          at::Tensor sum = at::ones({3});
          if (rank.rank == 0) {
            auto work = accelerator.backend().all_reduce(sum, ReduceOp::sum);
            run_out_of_memory();
          }
        });
      });
      CHECK_THAT(error, ContainsSubstring("has begun") && ContainsSubstring("cannot be taken back"));
      // What is behind a round over the control plane is named there.
      GlooControl another({.log = Log::Level::warning});
      const auto round = thrown_by<CommError>([&] {
        another.find_executable_batch_size(8, [&](std::int64_t) {
          if (rank.rank == 1) run_out_of_memory();
          (void)another.reduce(at::ones({3}));
        });
      });
      CHECK_THAT(round, ContainsSubstring("reduce") && ContainsSubstring("find_executable_batch_size"));
    });
}

TEST_CASE("values go over the ranks by the accelerator, and errors say who speaks", "[accelerator]") {
  using namespace accel;
  using namespace accel::testing;
  using Catch::Matchers::ContainsSubstring;
  using Catch::Matchers::StartsWith;
  on_ranks({1, 2, 3}, [](Rank rank) {
    GlooControl accelerator;
    const int p = rank.world_size;
    CHECK(accelerator.gather_object(std::string(1, static_cast<char>('a' + rank.rank))).front() == "a");
    CHECK(accelerator.broadcast_object(10 * rank.rank, p - 1) == 10 * (p - 1));
    CHECK(accelerator.pad_across_processes(at::ones({1 + rank.rank}), {.value = 2}).sum().item<double>() ==
          1 + rank.rank + 2 * (p - 1 - rank.rank));
    const std::vector<std::string> prompts = {"A", "B", "C", "D", "E", "F", "G"};
    const auto part = accelerator.split_between_processes(prompts, {.pad = true});
    CHECK(part.values.size() == static_cast<std::size_t>((7 + p - 1) / p));
    CHECK(accelerator.gather_split(part.values, part.valid) == prompts);
    CHECK(std::ssize(accelerator.split_between_processes(prompts)) == part.valid);
    CHECK(accelerator.scatter(rank.rank == 0 ? at::arange(p) : at::Tensor()).item<int>() == rank.rank);
    if (p > 1)
      CHECK_THAT(thrown_by<InvalidArgument>(
                     [&] { (void)accelerator.gather(std::vector{rank.rank == 1 ? at::ones({2, 2}) : at::ones({2})}); }),
                 StartsWith("[rank " + std::to_string(rank.rank) + "/" + std::to_string(p) + "] gather: ") &&
                     ContainsSubstring("at [0]: rank 0 has f32[*], rank 1 has f32[*, 2]"));
  });
}
