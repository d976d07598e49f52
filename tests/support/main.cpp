// The main of every test program: runs its test cases one after the other, each as if it had a process to itself.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <catch2/catch_session.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>

#include "fork_server.hpp"
#include "process.hpp"
#include "ranks.hpp"

namespace accel::testing {
namespace {

// For one that hangs outside of any rank: those have deadlines of their own.
constexpr unsigned longest_test_case_s = 1200;

// Catch2 reports it as a failure of the running test case, which a kill by ctest would not name.
extern "C" void give_up_on_test_case(int) {
  ::raise(SIGABRT);
}

// What a test case could leave to the next one.
class ProcessState {
 public:
  ProcessState() : environment_(current_environment()) {}

  void restore() {
    at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
    generator.set_current_seed(c10::default_rng_seed_val);
    at::set_num_threads(threads_);
    c10::GradMode::set_enabled(true);
    if (current_environment() == environment_) return;
    ::clearenv();
    for (const auto& entry : environment_) {
      const auto equals = entry.find('=');
      ::setenv(entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str(), 1);
    }
  }

 private:
  static std::vector<std::string> current_environment() {
    std::vector<std::string> entries;
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) entries.emplace_back(*entry);
    return entries;
  }

  std::vector<std::string> environment_;
  int threads_ = at::get_num_threads();
};

// The file that tests/run.sh sums up, a line for each test case: outcome, seconds, name, reason of a skip. It is
// complete if it ends with "ended"; after a crash its last line is the test case that ran.
class Results {
 public:
  void open() {
    if (const char* path = std::getenv("ACCEL_TEST_RESULTS")) file_.open(path, std::ios::trunc);
    file_ << std::fixed;
  }
  template <class... Fields>
  void note(const std::string& outcome, const Fields&... fields) {
    if (!file_.is_open()) return;
    file_ << outcome;
    ((file_ << '\t' << fields), ...);
    file_ << std::endl;
  }

 private:
  std::ofstream file_;
};

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

std::string& failed_test_case() {
  static std::string name;
  return name;
}

class TestCaseListener : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;

  void testRunStarting(const Catch::TestRunInfo&) override {
    results_.open();
    ::signal(SIGALRM, give_up_on_test_case);
  }

  void testCaseStarting(const Catch::TestCaseInfo& test) override {
    results_.note("running", 0, test.name);
    reason_.clear();
    stopwatch_ = Clock::now();
    state_.restore();
    ::alarm(static_cast<unsigned>(longest_test_case_s * pace));
  }

  void assertionEnded(const Catch::AssertionStats& stats) override {
    const auto& result = stats.assertionResult;
    if (result.getResultType() == Catch::ResultWas::ExplicitSkip)
      reason_ = first_line(std::string(result.getMessage()));
  }

  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    ::alarm(0);
    const auto& count = stats.totals.testCases;
    if (count.failed > 0) failed_test_case() = stats.testInfo->name;
    const auto* outcome = count.failed > 0 ? "failed" : count.skipped > 0 ? "skipped" : "passed";
    results_.note(outcome, Seconds(Clock::now() - stopwatch_).count(), stats.testInfo->name, reason_);
  }

  void testRunEnded(const Catch::TestRunStats&) override { results_.note("ended"); }

 private:
  using Clock = std::chrono::steady_clock;

  Results results_;
  ProcessState state_;
  std::string reason_;
  Clock::time_point stopwatch_;
};

CATCH_REGISTER_LISTENER(TestCaseListener)

int run(int argc, const char* const* argv) {
  const int code = Catch::Session().run(argc, argv);
  // Catch2's code is the number of failed assertions; 4 of them would read as "all skipped".
  return failed_test_case().empty() ? code : 1;
}

}  // namespace
}  // namespace accel::testing

int main(int argc, char* argv[]) {
  if (const auto arguments = accel::testing::serve_forks()) {
    std::vector<const char*> pointers;
    for (const auto& argument : *arguments) pointers.push_back(argument.c_str());
    return accel::testing::run(static_cast<int>(pointers.size()), pointers.data());
  }
  return accel::testing::run(argc, argv);
}
