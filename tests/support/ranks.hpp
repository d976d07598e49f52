// Real ranks for tests: on_ranks runs this very test program again, in a new process for each rank.
#pragma once

#include <chrono>
#include <functional>
#include <initializer_list>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

namespace accel::testing {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ACCEL_TEST_SANITIZED  // Clang's way to say it; GCC has the two macros
#endif
#endif
#if defined(ACCEL_TEST_SANITIZED) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

/// By what the time is multiplied that a test sleeps, or gives a process: sanitizers slow everything down.
inline constexpr double pace = sanitized ? 3 : 1;

/// By what an upper bound on a measured time is multiplied. Such a bound tells an answer from a hang, and which answer
/// it was the words tell: a busy machine takes three times as long as an idle one, and is not at fault.
inline constexpr double patience = 3 * pace;

using Seconds = std::chrono::duration<double>;

/// Who the body of on_ranks runs as.
struct Rank {
  int rank;
  int world_size;
};

/// How a process that a test started came to its end.
struct ProcessResult {
  int exit_code = 0;       // 0 also where a signal ended it
  int signal = 0;          // the signal that ended it, or 0
  bool timed_out = false;  // it was killed: it ran at its deadline, or was stopped when all others had ended
  std::string output;      // stdout and stderr together
  double seconds = 0;      // from its start to its end
  double ended_at = 0;     // its end, in seconds of the system's steady clock, which all processes share

  [[nodiscard]] bool succeeded() const { return exit_code == 0 && signal == 0 && !timed_out; }
};
using RankResult = ProcessResult;

/// Variables a process gets on top of the environment that launchers left clean.
using Variables = std::vector<std::pair<std::string, std::string>>;

struct RankOptions {
  Seconds deadline{180};  // then the ranks are killed; three times as long under sanitizers
  Variables variables = {};
  /// Ranks are forks of this program as it is once loaded (fork_server.hpp), and on_ranks lets them leave as soon as
  /// the body is done. These are started like anybody's, so that what is read while a program is loaded is read again,
  /// and leave through the destructors of statics, as those of run_ranks do.
  bool own_processes = false;
};

/// Runs `body` on real processes, for each world size in turn; fails the running test case if a
/// rank fails, throws, crashes or still runs at the deadline, and shows that rank's output. Once
/// one rank has failed the others have 10 s left.
///
/// Inside a rank the test case runs from its top and only this call runs its body: keep what
/// stands before it cheap. Several calls in one test case, SECTION and GENERATE all work.
///
/// Example  tests/support/ranks_test.cpp
void on_ranks(std::initializer_list<int> world_sizes, const std::function<void(Rank)>& body,
              const RankOptions& options = {}, std::source_location where = std::source_location::current());

/// The same for ranks that are meant to fail: says how each of them ended instead of judging.
/// Inside the ranks of a later call the results are default ones, so a REQUIRE on them should be
/// the last thing in its SECTION.
[[nodiscard]] std::vector<RankResult> run_ranks(int world_size, const std::function<void(Rank)>& body,
                                                const RankOptions& options = {});

/// Are these such results, with nothing to judge?
[[nodiscard]] bool in_another_launch(const std::vector<RankResult>& results);

struct ProgramOptions {
  Seconds deadline{180};
  Variables variables = {};
};

/// Runs another program (found on PATH, or this one: `own_program()`), killing it and its children
/// at the deadline.
[[nodiscard]] ProcessResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options = {});

/// The path of the running test program.
[[nodiscard]] std::string own_program();

/// The argument that makes Catch2 run exactly the test case of that name.
[[nodiscard]] std::string exact_filter(const std::string& test_name);

/// Skips the test case for want of `what` (torchrun, mpi, slurm, namespaces), or fails it where ACCEL_TESTS_MUST_RUN, a
/// list of such words or "all", says that this machine has it.
void skip_without(const std::string& what, const std::string& reason);

/// A port of 127.0.0.1 that nobody listens on and that no other test gets while this object lives.
class ReservedPort {
 public:
  ReservedPort();
  ~ReservedPort();
  ReservedPort(const ReservedPort&) = delete;
  ReservedPort& operator=(const ReservedPort&) = delete;

  [[nodiscard]] int number() const { return number_; }

 private:
  int number_ = 0;
  int lock_ = -1;  // file descriptor
};

}  // namespace accel::testing
