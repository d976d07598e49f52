// Gloo through shared memory: sums in the order of the ranks, whatever lies where, and what happens when a rank goes.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <accel/backend/gloo.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

using accel::Bytes;
using accel::CommError;
using accel::Deadline;
using accel::ReduceOp;
using accel::backend::Gloo;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::Seconds;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

/// Numbers of many magnitudes, so that a sum in another order has other bits, and no -0, whose minimum with 0 may be
/// either; every rank can make those of all.
at::Tensor numbers(std::int64_t count, c10::ScalarType dtype, int rank, std::int64_t seed) {
  const at::Tensor whole = at::arange(count).add(1'000'003 * rank + seed % 1000).mul(1'103'515'245).remainder(65'521);
  if (!c10::isFloatingType(dtype)) return whole.to(dtype);
  return whole.to(at::kFloat).sub(32'760).mul(whole.remainder(31).add(1).pow(3).to(at::kFloat).mul(1e-5)).to(dtype);
}

at::Tensor reduced(const std::vector<at::Tensor>& parts, ReduceOp op) {
  at::Tensor result = parts.front().clone();
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (op == ReduceOp::sum) result = result.add(parts[i]);
    if (op == ReduceOp::max) result = at::maximum(result, parts[i]);
    if (op == ReduceOp::min) result = at::minimum(result, parts[i]);
  }
  return result;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.contiguous().view({-1}).view(at::kByte).equal(b.contiguous().view({-1}).view(at::kByte));
}

/// `values` in memory that the others read where it is, or in memory of LibTorch's.
at::Tensor laid(Group<Gloo>& group, const at::Tensor& values, bool in_shared_memory) {
  if (!in_shared_memory) return values.clone();
  at::Tensor memory = group->allocate(Bytes{static_cast<std::int64_t>(values.nbytes())}).view(values.scalar_type());
  return memory.copy_(values);
}

/// Sizes in elements of float: nothing, odd ones, the ends of small messages and of pieces, several MiB.
const std::vector<std::int64_t> sizes = {0,      1,      3,       1023,    8191,    8193,      16'383,
                                         16'384, 16'385, 262'143, 262'144, 262'145, 1'100'003, 2'097'152 + 3};

}  // namespace

TEST_CASE("through shared memory a sum is that in the order of the ranks, bit for bit", "[backend]") {
  on_ranks({2, 3, 4}, [](Rank rank) {
    Group<Gloo> group;
    CHECK_THAT(group->describe(), ContainsSubstring("reductions through shared memory"));
    for (const auto count : sizes) {
      for (const int in_shared_memory : {0, 1, 2}) {  // 2: of every second rank
        INFO(count << " elements, in shared memory: " << in_shared_memory);
        std::vector<at::Tensor> all;
        for (int r = 0; r < rank.world_size; ++r) all.push_back(numbers(count, at::kFloat, r, count));
        const bool here = in_shared_memory == 1 || (in_shared_memory == 2 && rank.rank % 2 == 0);
        at::Tensor tensor = laid(group, all[static_cast<std::size_t>(rank.rank)], here);
        auto work = group->all_reduce(tensor, ReduceOp::sum);
        work.wait();
        CHECK(work.done());
        CHECK(same_bits(tensor, reduced(all, ReduceOp::sum)));
      }
    }
  });
}

namespace {

/// A collective, and what it must leave.
struct Trial {
  std::string call;
  at::Tensor output, expected;
};

/// Calls a collective that all ranks draw alike; what differs between them, they draw by themselves.
Gloo::Work begin(Group<Gloo>& group, std::mt19937& shared, std::mt19937& own, Trial& trial) {
  const auto below = [](std::mt19937& random, std::size_t end) { return static_cast<std::size_t>(random() % end); };
  using enum c10::ScalarType;
  const int world_size = group->world_size();
  const auto kind = below(shared, 4);
  const auto op = std::array{ReduceOp::sum, ReduceOp::max, ReduceOp::min}[below(shared, 3)];
  const auto dtype = std::array{Float, Double, Half, BFloat16, Long, Int, Char, Byte}[below(shared, 8)];
  const auto root = static_cast<int>(below(shared, static_cast<std::size_t>(world_size)));
  const std::int64_t count = sizes[below(shared, sizes.size() - 2)] + static_cast<std::int64_t>(below(shared, 5));
  const auto seed = static_cast<std::int64_t>(shared());
  std::vector<at::Tensor> all;
  const std::int64_t brought = kind == 3 ? count * world_size : count;
  for (int r = 0; r < world_size; ++r) all.push_back(numbers(brought, dtype, r, seed));
  const at::Tensor& mine = all[static_cast<std::size_t>(group->rank())];
  at::Tensor input = laid(group, mine, below(own, 2) == 0);
  trial.output = input;
  trial.call = accel::message("kind ", kind, ", operation ", static_cast<int>(op), ", ", accel::tensor::spec(input));
  if (kind == 0) {
    trial.expected = reduced(all, op);
    return group->all_reduce(trial.output, op);
  }
  if (kind == 1) {
    trial.expected = all[static_cast<std::size_t>(root)];
    return group->broadcast(trial.output, root);
  }
  if (kind == 2) {
    trial.expected = at::cat(all);
    trial.output = laid(group, at::zeros_like(trial.expected), below(own, 2) == 0);
    return group->all_gather(trial.output, input);
  }
  trial.expected = reduced(all, op).narrow(0, count * group->rank(), count);
  // Its own part of the input is a fine place for the result.
  trial.output = below(own, 2) == 0 ? input.narrow(0, count * group->rank(), count) : at::zeros({count}, dtype);
  return group->reduce_scatter(trial.output, input, op);
}

/// How many mappings and descriptors of such memory this process has.
int mapped() {
  int count = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:accel") == std::string::npos ? 0 : 1;
  for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(file, gone).string();
    count += target.find("memfd:accel") == std::string::npos ? 0 : 1;
  }
  return count;
}

/// KiB of shared memory that this process has touched.
std::int64_t shared_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kib = 0;
    if (word == "RssShmem:" && status >> kib) return kib;
  }
  return -1;
}

void sums_up(Gloo& group) {
  for (const std::int64_t count : {3, 100'000}) {
    at::Tensor tensor = at::full({count}, group.rank() + 1.0);
    auto work = group.all_reduce(tensor, ReduceOp::sum);
    work.wait();
    CHECK(tensor.equal(at::full({count}, group.world_size() * (group.world_size() + 1) / 2.0)));
  }
}

}  // namespace

TEST_CASE("a thousand collectives of all kinds, some in flight, waited for in any order or never", "[backend]") {
  on_ranks({2, 3}, [](Rank rank) {
    Group<Gloo> group;
    std::mt19937 shared(7);
    std::mt19937 own(static_cast<std::mt19937::result_type>(100 + rank.rank));
    int number = 0;
    for (int round = 0; number < 1000; ++round) {
      std::vector<Trial> trials(1 + shared() % 24);
      std::vector<Gloo::Work> works;
      for (auto& trial : trials) works.push_back(begin(group, shared, own, trial));
      number += static_cast<int>(trials.size());
      // Each rank in an order of its own, and some works are dropped: waiting for a later one is enough.
      std::shuffle(works.begin(), works.end(), own);
      for (auto& work : works)
        if (own() % 3 != 0) work.wait();
      works.clear();
      at::Tensor tensor = at::ones({1});
      auto last = group->all_reduce(tensor, ReduceOp::sum);
      last.wait();
      for (const auto& trial : trials) {
        INFO("round " << round << ", " << trial.call);
        CHECK(same_bits(trial.output, trial.expected));
      }
    }
  });
}

TEST_CASE("what the ranks share is gone with the last tensor in it, and what is freed is returned", "[backend]") {
  on_ranks({2}, [](Rank) {
    CHECK(mapped() == 0);
    at::Tensor kept;
    {
      Group<Gloo> group;
      CHECK(mapped() == 3);  // this rank's, its descriptor, and the other's
      kept = group->allocate(Bytes{10'000'001}).fill_(7);
      CHECK(reinterpret_cast<std::uintptr_t>(kept.data_ptr()) % 64 == 0);
      const std::int64_t before = shared_kib();
      for (int i = 0; i < 100; ++i) {
        const std::int64_t unit = i % 10 == 0 ? 10'000'000 : 1'000'000;  // all of them large would take half a minute
        const std::vector<at::Tensor> tensors = {group->allocate(Bytes{3 * unit}), group->allocate(Bytes{1}),
                                                 group->allocate(Bytes{4 * unit})};
        CHECK(tensors[0].sum().item<std::int64_t>() == 0);
        for (const auto& tensor : tensors) tensor.fill_(i);
      }
      CHECK(shared_kib() < before + 1000);
      sums_up(*group);
    }
    CHECK(mapped() == 2);
    CHECK(kept.eq(7).all().item<bool>());
    kept.reset();
    CHECK(mapped() == 0);
  });
}

TEST_CASE("where a rank cannot share its memory, or does not want to, all go through TCP and say why", "[backend]") {
  on_ranks({2, 3}, [](Rank rank) {
    const bool odd = rank.rank == rank.world_size - 1;
    const std::string who = "through TCP: rank " + std::to_string(rank.world_size - 1);
    const auto goes_by_tcp = [&](const accel::launch::Meeting& meeting, const Gloo::Options& options,
                                 const std::string& why) {
      {
        Gloo group(meeting, options);
        CHECK_THAT(group.describe(), ContainsSubstring(who + why));
        if (rank.rank == 0) std::cout << group.describe() << "\n";
        CHECK(mapped() == 0);
        CHECK(group.allocate(Bytes{5}).numel() == 5);
        sums_up(group);
      }
      meeting.control_plane().farewell();
    };
    auto meeting = meet();
    goes_by_tcp(meeting, {.timeout_s = 20, .shared_memory = !odd}, " has shared_memory = false");

    meeting = meet();
    if (odd) meeting.peers[0].pid = 1;  // as where each has process ids of its own
    goes_by_tcp(meeting, {.timeout_s = 20}, " cannot open rank 0's memory: ");

    meeting = meet();
    if (odd) meeting.peers[0].network = "elsewhere";
    goes_by_tcp(meeting, {.timeout_s = 20}, " is on another host than others");

    meeting = meet();
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    const rlimit little{.rlim_cur = 65536, .rlim_max = before.rlim_max};
    if (odd) ::setrlimit(RLIMIT_FSIZE, &little);
    goes_by_tcp(meeting, {.timeout_s = 20}, " cannot have such memory: ");
    ::setrlimit(RLIMIT_FSIZE, &before);
  });
}

TEST_CASE("parts of a group share memory of their own", "[backend]") {
  on_ranks({3}, [](Rank rank) {
    Group<Gloo> group;
    at::Tensor whole = laid(group, at::ones({300'000}), true);
    if (rank.rank != 1) {
      Gloo part = group->split(std::vector<int>{2, 0}, "ends");
      CHECK_THAT(part.describe(), ContainsSubstring("through shared memory"));
      at::Tensor own = part.allocate(Bytes{4'000'000}).view(at::kFloat).fill_(rank.rank);
      auto of_whole = part.all_reduce(whole, ReduceOp::sum);
      auto of_own = part.all_reduce(own, ReduceOp::sum);
      of_own.wait();
      CHECK(own.eq(2).all().item<bool>());
      of_whole.wait();
      CHECK(whole.eq(2).all().item<bool>());
    }
    auto work = group->all_reduce(whole, ReduceOp::sum);
    work.wait();
    CHECK(whole.eq(5).all().item<bool>());
  });
}

TEST_CASE("ranks that call different things are told at once", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    Group<Gloo> group;
    at::Tensor tensor = at::ones({3}, rank.rank == 0 ? at::kFloat : at::kInt);
    auto work = group->all_reduce(tensor, ReduceOp::sum);
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { work.wait(); });
    CHECK(watch.seconds() < 2 * patience);
    CHECK_THAT(error,
               ContainsSubstring("all_reduce number 1: the ranks do not call the same: rank 0 calls all_reduce of "
                                 "12 B of f32, rank 1 calls all_reduce of 12 B of i32"));
    std::cout << error << "\n";
  });
}

TEST_CASE("a rank that waits is woken by an abort, of another thread as well as of another rank", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    Group<Gloo> group;
    at::Tensor tensor = at::ones({300'000});
    if (rank.rank == 0) {
      auto work = group->all_reduce(tensor, ReduceOp::sum);
      std::thread aborter([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        group->abort("the disk is full");
      });
      const Stopwatch watch;
      CHECK_THAT(thrown_by<CommError>([&] { work.wait(); }), ContainsSubstring("the disk is full"));
      CHECK(watch.seconds() < 0.5 * patience);
      aborter.join();
    } else {
      const auto other = group->recv(tensor, 0);
      const Stopwatch watch;
      while (!group->control().failed() && watch.seconds() < 5) std::this_thread::yield();
      CHECK_THAT(thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); }),
                 ContainsSubstring("the disk is full"));
    }
  });
}

TEST_CASE("one thread may call while another waits", "[backend]") {
  on_ranks({2}, [](Rank rank) {
    Group<Gloo> group;
    auto control = meet().control_plane();
    at::Tensor first = at::ones({300'000});
    at::Tensor second = at::ones({3});
    auto work = group->all_reduce(first, ReduceOp::sum);
    if (rank.rank == 0) {
      std::thread waits([&] { work.wait(); });
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      auto next = group->all_reduce(second, ReduceOp::sum);
      control.barrier("it has called", Deadline::in(Seconds(20)));
      next.wait();
      waits.join();
    } else {
      control.barrier("it has called", Deadline::in(Seconds(20)));
      work.wait();
      auto next = group->all_reduce(second, ReduceOp::sum);
      next.wait();
    }
    CHECK(first.eq(2).all().item<bool>());
    CHECK(second.eq(2).all().item<bool>());
    control.barrier("both are done", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("a rank that is killed in a collective is named, and has spoiled nothing", "[backend]") {
  for (const int delay_ms : {3, 17, 42, 80}) {
    const int victim = delay_ms % 3;
    const auto results = accel::testing::run_ranks(
        3,
        [&](Rank rank) {
          Group<Gloo> group;
          const at::Tensor bystander = laid(group, numbers(1'000'000, at::kFloat, rank.rank, 1), true);
          at::Tensor tensor = laid(group, at::ones({1'000'000}), rank.rank != 1);
          sums_up(*group);
          if (rank.rank == victim)
            std::thread([&] {
              std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
              ::kill(::getpid(), SIGKILL);
            }).detach();
          const Stopwatch watch;
          const auto error = thrown_by<CommError>([&] {
            for (;;) {
              tensor.fill_(1);
              auto work = group->all_reduce(tensor, ReduceOp::sum);
              work.wait();
              REQUIRE(tensor.eq(3).all().item<bool>());
            }
          });
          CHECK(watch.seconds() < delay_ms / 1000.0 + 1 * patience);
          CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(victim) + " (host "));
          CHECK(same_bits(bystander, numbers(1'000'000, at::kFloat, rank.rank, 1)));
          const at::Tensor before = tensor.clone();
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          CHECK(same_bits(tensor, before));
        },
        {.deadline = Seconds(20)});
    if (accel::testing::in_another_launch(results)) continue;
    for (int r = 0; r < 3; ++r) {
      INFO(results[static_cast<std::size_t>(r)].output);
      CHECK(results[static_cast<std::size_t>(r)].succeeded() == (r != victim));
    }
  }
}
