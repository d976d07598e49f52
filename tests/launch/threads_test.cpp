// How many intra-op threads a rank takes.
#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <ATen/Parallel.h>
#include <accel/accelerator.hpp>
#include <accel/launch/threads.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/ranks.hpp"

using accel::launch::intra_op_threads;
using accel::launch::usable_cores;
using accel::testing::on_ranks;
using accel::testing::Rank;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

accel::launch::Variables only(std::string_view set) {
  return [set](std::string_view name) { return name == set ? std::optional<std::string>("3") : std::nullopt; };
}

}  // namespace

TEST_CASE("the ranks of a host share its cores evenly, and each has one thread at least", "[launch]") {
  for (const int cores : {1, 2, 7, 64})
    for (const int ranks : {2, 3, 8})
      CHECK(intra_op_threads(cores, ranks, false, only("")) == std::max(1, cores / ranks));
}

TEST_CASE("a rank alone on its host leaves LibTorch its own choice", "[launch]") {
  CHECK(intra_op_threads(8, 1, false, only("")) == std::nullopt);
}

TEST_CASE("a number of threads that the user set is left alone", "[launch]") {
  CHECK(intra_op_threads(8, 2, false, only("OMP_NUM_THREADS")) == std::nullopt);
  CHECK(intra_op_threads(8, 2, false, only("MKL_NUM_THREADS")) == std::nullopt);
  CHECK(intra_op_threads(8, 2, false, only("OMP_THREADS")) == 4);
  CHECK(intra_op_threads(8, 2, true, only("")) == std::nullopt);
}

TEST_CASE("usable cores are those the process is pinned to", "[launch]") {
  on_ranks({1}, [](Rank) {
    cpu_set_t all;
    REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
    CHECK(usable_cores() == CPU_COUNT(&all));
    std::size_t first = 0;
    while (!CPU_ISSET(first, &all)) ++first;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(usable_cores() == 1);
  });
}

TEST_CASE("an accelerator sets the threads of its rank, and says why", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    ::unsetenv("OMP_NUM_THREADS");
    ::unsetenv("MKL_NUM_THREADS");
    at::set_num_threads(usable_cores());  // as LibTorch itself does without those variables
    Accelerator accelerator;
    CHECK(at::get_num_threads() == std::max(1, usable_cores() / rank.world_size));
    CHECK_THAT(accelerator.describe(), ContainsSubstring("intra-op threads: " + std::to_string(at::get_num_threads()) +
                                                         " (cores / local world size)"));
    Accelerator::Options options;
    options.threads = 3;
    Accelerator other(options);
    CHECK(at::get_num_threads() == 3);
    CHECK_THAT(other.describe(), ContainsSubstring("intra-op threads: 3 (option)"));
  });
}

TEST_CASE("an accelerator leaves the threads alone where the user set them", "[launch]") {
  on_ranks({2}, [](Rank) {
    ::setenv("OMP_NUM_THREADS", "1", 1);
    at::set_num_threads(2);
    Accelerator accelerator;
    CHECK(at::get_num_threads() == 2);
  });
  on_ranks({2}, [](Rank) {
    ::unsetenv("OMP_NUM_THREADS");
    ::unsetenv("MKL_NUM_THREADS");
    const int own = usable_cores() + 1;
    at::set_num_threads(own);
    Accelerator accelerator;
    CHECK(at::get_num_threads() == own);
    CHECK_THAT(accelerator.describe(), ContainsSubstring(std::to_string(own) + " (as the program set them)"));
  });
}
