// The tests of on_ranks: that real ranks run, that a failing one cannot pass unseen, and that no test leaves anything to
// the next one.
#include "ranks.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/rand.h>
#include <c10/core/GradMode.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "folder.hpp"

using accel::testing::exact_filter;
using accel::testing::Folder;
using accel::testing::on_ranks;
using accel::testing::own_program;
using accel::testing::ProcessResult;
using accel::testing::Rank;
using accel::testing::ReservedPort;
using accel::testing::run_program;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::skip_without;
using Catch::Matchers::ContainsSubstring;

namespace {

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

// Runs one of the hidden test cases below, as ctest would.
ProcessResult run_hidden(const std::string& test_name, const accel::testing::Variables& variables = {}) {
  return run_program({own_program(), exact_filter(test_name)}, {.variables = variables});
}

// What stood in the environment when this program was loaded.
const std::string read_while_loading = variable("TEST_READ_WHILE_LOADING");

// Notes that the destructors of statics ran.
struct Farewell {
  ~Farewell() {
    if (!file.empty()) std::ofstream(file) << "ended";
  }
  std::string file;
} farewell;

std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

// The children of a process's first thread.
std::vector<pid_t> children_of(pid_t process) {
  const std::string number = std::to_string(process);
  std::ifstream file("/proc/" + number + "/task/" + number + "/children");
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

// True for a process that runs; one that is dead but not yet collected has an empty command line.
bool is_running(int process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/cmdline");
  return file.get() != std::ifstream::traits_type::eof();
}

[[noreturn]] void hang() {
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
}

}  // namespace

TEST_CASE("every rank is a process of its own with a launcher's variables", "[support]") {
  const pid_t parent = ::getpid();
  on_ranks({1, 2, 3}, [](Rank rank) {
    CHECK(variable("RANK") == std::to_string(rank.rank));
    CHECK(variable("WORLD_SIZE") == std::to_string(rank.world_size));
    CHECK(variable("LOCAL_RANK") == variable("RANK"));
    CHECK(variable("LOCAL_WORLD_SIZE") == variable("WORLD_SIZE"));
    CHECK(variable("MASTER_ADDR") == "127.0.0.1");
    CHECK_FALSE(variable("MASTER_PORT").empty());
    CHECK(variable("OMP_NUM_THREADS") == "1");
  });
  CHECK(::getpid() == parent);
  CHECK(variable("ACCEL_TEST_NAME").empty());
}

TEST_CASE("names with , [brackets] \"quotes\" \\ and a star * are found again", "[support]") {
  on_ranks({1}, [](Rank rank) { CHECK(rank.world_size == 1); });
}

TEST_CASE("results differ by rank", "[support]") {
  const auto results = run_ranks(3, [](Rank rank) {
    std::cout << "I am " << rank.rank << " of " << rank.world_size << "\n";
    if (rank.rank == 2) std::exit(7);
    CHECK(rank.rank == 0);
  });
  REQUIRE(results.size() == 3);
  CHECK(results[0].succeeded());
  CHECK(results[1].exit_code == 1);
  CHECK(results[2].exit_code == 7);
  for (std::size_t rank = 0; rank < results.size(); ++rank)
    CHECK_THAT(results[rank].output, ContainsSubstring("I am " + std::to_string(rank) + " of 3"));
}

TEST_CASE("several launches, sections and generators each run their own body", "[support]") {
  const int factor = GENERATE(10, 20);
  const auto run = [&](int world_size, int expected) {
    const auto results = run_ranks(world_size, [&](Rank rank) { std::exit(factor * expected + rank.rank); });
    CHECK(results.back().exit_code == factor * expected + world_size - 1);
  };
  SECTION("one after the other") {
    run(1, 1);
    run(2, 2);
  }
  SECTION("in another section") {
    run(1, 3);
  }
}

TEST_CASE("a rank that hangs is killed at the deadline", "[support]") {
  const auto results = run_ranks(2,
                                 [](Rank rank) {
                                   if (rank.rank == 1) hang();
                                 },
                                 {.deadline = Seconds(5)});
  REQUIRE(results.size() == 2);
  CHECK(results[0].succeeded());
  CHECK(results[1].timed_out);
  CHECK(results[1].signal == SIGKILL);
  CHECK(results[1].seconds >= 5);
}

TEST_CASE("a stopped rank is killed once nobody is left who could wake it", "[support]") {
  const auto results = run_ranks(2, [](Rank rank) {
    if (rank.rank == 0) std::raise(SIGSTOP);
    std::this_thread::sleep_for(Seconds(0.5));
  });
  CHECK(results.front().timed_out);
  CHECK(results.front().seconds >= 0.5);
  CHECK(results.front().seconds < 30);
}

TEST_CASE("a stopped rank that is woken goes on", "[support]") {
  const auto results = run_ranks(1, [](Rank) {
    const pid_t sleeper = ::getpid();
    if (::fork() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(40));
      ::kill(sleeper, SIGCONT);
      ::_exit(0);
    }
    std::raise(SIGSTOP);
    std::this_thread::sleep_for(Seconds(0.3));
  });
  CHECK(results.front().succeeded());
}

TEST_CASE("a rank that crashes is told apart from one that exits", "[support]") {
  const auto results = run_ranks(1, [](Rank) { ::kill(::getpid(), SIGKILL); });
  CHECK(results.front().signal == SIGKILL);
  CHECK_FALSE(results.front().timed_out);
}

TEST_CASE("hidden: the last rank fails a check", "[.][support]") {
  on_ranks({1, 2}, [](Rank rank) { CHECK(rank.rank == 7 * rank.world_size - 14); });
}

TEST_CASE("a check that fails on one rank fails the test with that rank's output", "[support]") {
  const ProcessResult result = run_hidden("hidden: the last rank fails a check");
  CHECK(result.exit_code != 0);
  CHECK_THAT(result.output, ContainsSubstring("world size 1"));
  CHECK_THAT(result.output, ContainsSubstring("rank 0 left with exit code 1"));
  CHECK_THAT(result.output, ContainsSubstring("0 == -7"));  // the rank's own expansion
}

TEST_CASE("hidden: rank 1 throws", "[.][support]") {
  on_ranks({2}, [](Rank rank) {
    if (rank.rank == 1) throw std::runtime_error("the reason");
  });
}

TEST_CASE("an exception on one rank fails the test and is shown", "[support]") {
  const ProcessResult result = run_hidden("hidden: rank 1 throws");
  CHECK(result.exit_code != 0);
  CHECK_THAT(result.output, ContainsSubstring("rank 1 threw: the reason"));
  CHECK_THAT(result.output, !ContainsSubstring("output of rank 0"));
}

TEST_CASE("hidden: rank 0 hangs", "[.][support]") {
  on_ranks({2},
           [](Rank rank) {
             if (rank.rank == 0) hang();
           },
           {.deadline = Seconds(5)});
}

TEST_CASE("a hanging rank fails the test and is named", "[support]") {
  const ProcessResult result = run_hidden("hidden: rank 0 hangs");
  CHECK(result.exit_code != 0);
  CHECK_THAT(result.output, ContainsSubstring("rank 0 still ran after"));
  CHECK_THAT(result.output, !ContainsSubstring("rank 1 still ran"));
}

TEST_CASE("hidden: the ranks skip", "[.][support]") {
  on_ranks({2}, [](Rank) { SKIP("no such device"); });
}

TEST_CASE("ranks that skip make the test skip, with the reason", "[support]") {
  const ProcessResult result = run_hidden("hidden: the ranks skip");
  CHECK(result.exit_code == 4);
  CHECK_THAT(result.output, ContainsSubstring("no such device"));
}

TEST_CASE("hidden: rank 0 notes all processes and hangs", "[.][support]") {
  on_ranks({2}, [](Rank rank) {
    while (rank.rank == 0 && children_of(::getppid()).size() < 3) std::this_thread::sleep_for(Seconds(0.01));
    if (rank.rank == 0) {
      std::ofstream note(variable("TEST_NOTE"));
      for (const pid_t child : children_of(::getppid())) note << child << "\n";
    }
    hang();
  });
}

TEST_CASE("no rank outlives a test program that is killed, nor does the server that forked them", "[support]") {
  const Folder folder;
  const std::string note = folder / "note";
  const ProcessResult result =
      run_program({own_program(), exact_filter("hidden: rank 0 notes all processes and hangs")},
                  {.deadline = Seconds(8), .variables = {{"TEST_NOTE", note}}});
  CHECK(result.timed_out);
  std::ifstream file(note);
  int count = 0;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  for (int orphan = 0; file >> orphan; ++count) CHECK_FALSE(is_running(orphan));
  CHECK(count == 3);
}

TEST_CASE("a rank finds nothing of what an earlier one did", "[support]") {
  static int changed = 0;
  const auto drawn = std::to_string(at::rand({1}).item<float>());  // here and, once more, in each rank
  for (int round = 0; round < 2; ++round)
    on_ranks({2},
             [&](Rank) {
               CHECK(changed++ == 0);
               CHECK(variable("TEST_DRAWN") == drawn);
               CHECK(variable("TEST_LEFT_BEHIND").empty());
               CHECK(at::get_num_threads() == 1);
               CHECK(c10::GradMode::is_enabled());
               ::setenv("TEST_LEFT_BEHIND", "x", 1);
               at::set_num_threads(3);
               c10::GradMode::set_enabled(false);
             },
             {.variables = {{"TEST_DRAWN", drawn}}});
  CHECK(changed == 0);
}

TEST_CASE("hidden: a test case leaves everything changed", "[.][support][leaving]") {
  (void)at::rand({1});
  at::set_num_threads(3);
  c10::GradMode::set_enabled(false);
  ::setenv("TEST_LEFT_BEHIND", "x", 1);
  ::unsetenv("TEST_TO_KEEP");
}

TEST_CASE("hidden: the next test case finds nothing changed", "[.][support][leaving]") {
  const auto drawn = at::rand({1}).item<float>();
  at::manual_seed(c10::default_rng_seed_val);
  CHECK(drawn == at::rand({1}).item<float>());
  CHECK(at::get_num_threads() == 1);
  CHECK(c10::GradMode::is_enabled());
  CHECK(variable("TEST_LEFT_BEHIND").empty());
  CHECK(variable("TEST_TO_KEEP") == "kept");
}

TEST_CASE("a test case leaves nothing to the next one of its program", "[support]") {
  const ProcessResult result = run_program({own_program(), "[leaving]", "--order", "decl"},
                                           {.variables = {{"TEST_TO_KEEP", "kept"}, {"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  CHECK(result.succeeded());
}

TEST_CASE("own processes are started and left like any program, others are forked and leave at once", "[support]") {
  const bool own = GENERATE(false, true);
  const Folder folder;
  const std::string note = folder / "note";
  on_ranks({1},
           [](Rank) {
             CHECK(read_while_loading == variable("TEST_EXPECTED"));
             farewell.file = variable("TEST_NOTE");
           },
           {.variables = {{"TEST_READ_WHILE_LOADING", "now"}, {"TEST_EXPECTED", own ? "now" : ""}, {"TEST_NOTE", note}},
            .own_processes = own});
  CHECK(text_of(note) == (own || accel::testing::sanitized ? "ended" : ""));
}

TEST_CASE("hidden: the fork server is killed between two launches", "[.][support]") {
  on_ranks({1}, [](Rank) {});
  for (const pid_t child : children_of(::getpid())) ::kill(child, SIGKILL);
  on_ranks({1}, [](Rank) {});
}

TEST_CASE("a fork server that was killed is an error, no hang", "[support]") {
  const ProcessResult result = run_hidden("hidden: the fork server is killed between two launches");
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.output, ContainsSubstring("fork server"));
}

TEST_CASE("hidden: a program ends in the middle of a test case", "[.][support]") {
  ::_exit(0);
}

TEST_CASE("the outcome of each test case is noted, and the one that a program ended in", "[support]") {
  const Folder folder;
  const std::string note = folder / "note";
  (void)run_hidden("hidden: the ranks skip", {{"ACCEL_TEST_RESULTS", note}});
  CHECK_THAT(text_of(note), ContainsSubstring("\nskipped\t") &&
                                ContainsSubstring("\thidden: the ranks skip\tno such device\nended\n"));
  (void)run_hidden("hidden: the last rank fails a check", {{"ACCEL_TEST_RESULTS", note}});
  CHECK_THAT(text_of(note), ContainsSubstring("\nfailed\t"));
  (void)run_hidden("hidden: a program ends in the middle of a test case", {{"ACCEL_TEST_RESULTS", note}});
  CHECK(text_of(note) == "running\t0\thidden: a program ends in the middle of a test case\n");
}

TEST_CASE("hidden: this machine has no unicorns", "[.][support]") {
  skip_without("unicorns", "no unicorn was found");
}

TEST_CASE("what must run fails in place of being skipped", "[support]") {
  const std::string name = "hidden: this machine has no unicorns";
  CHECK(run_hidden(name).exit_code == 4);
  CHECK(run_hidden(name, {{"ACCEL_TESTS_MUST_RUN", "horses"}}).exit_code == 4);
  for (const auto* wanted : {"horses unicorns", "all"}) {
    const ProcessResult result = run_hidden(name, {{"ACCEL_TESTS_MUST_RUN", wanted}});
    CHECK(result.exit_code == 1);
    CHECK_THAT(result.output, ContainsSubstring("no unicorn was found"));
  }
}

TEST_CASE("reserved ports do not collide", "[support]") {
  const ReservedPort a;
  const ReservedPort b;
  const ReservedPort c;
  CHECK(std::set<int>{a.number(), b.number(), c.number()}.size() == 3);
}

TEST_CASE("a program that cannot be started says so", "[support]") {
  const ProcessResult result = run_program({"accel-no-such-program"});
  CHECK(result.exit_code == 127);
  CHECK_THAT(result.output, ContainsSubstring("accel-no-such-program"));
}
