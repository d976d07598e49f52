// The processes behind on_ranks: which rank of which launch a process is, and what its parent makes of them.
#include "ranks.hpp"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include <catch2/catch_get_random_seed.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/interfaces/catch_interfaces_capture.hpp>
#include <catch2/internal/catch_test_failure_exception.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>

#include "fork_server.hpp"
#include "process.hpp"

namespace accel::testing {
namespace {

constexpr int skipped_exit_code = 4;  // Catch2's own for "all tests skipped"
constexpr int never_reached_exit_code = 90;
constexpr Seconds grace{10};  // for the others, once a rank has failed

// ---- which rank of which call this process is --------------------------------------------------

struct Role {
  Rank rank;
  int call;  // index of the launch within the test case
  std::string test_name;
};

int integer_from(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) throw std::runtime_error(std::string(variable) + " is not set");
  return std::stoi(text);
}

// The role that the parent gave this process, or nothing in the parent itself.
const std::optional<Role>& role() {
  static const std::optional<Role> instance = [] {
    std::optional<Role> found;
    if (const char* name = std::getenv("ACCEL_TEST_NAME")) {
      found = Role{.rank = {integer_from("ACCEL_TEST_RANK_RANK"), integer_from("ACCEL_TEST_RANK_WORLD_SIZE")},
                   .call = integer_from("ACCEL_TEST_RANK_CALL"),
                   .test_name = name};
    }
    return found;
  }();
  return instance;
}

std::string current_test_name() {
  return Catch::getResultCapture().getCurrentTestName();
}

// Counts launches within a test case and the assertions that failed, which a rank answers for.
struct Progress {
  int launches = 0;
  int failed_assertions = 0;
};

Progress& progress() {
  static Progress instance;
  return instance;
}

class ProgressListener : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;

  void testCaseStarting(const Catch::TestCaseInfo&) override { progress() = {}; }

  void assertionEnded(const Catch::AssertionStats& stats) override {
    if (!stats.assertionResult.isOk()) ++progress().failed_assertions;
  }

  void testRunEnded(const Catch::TestRunStats&) override {
    if (!role()) return;
    std::cout << "this process was started for launch " << role()->call << " of \"" << role()->test_name
              << "\", which the test case never reached\n"
              << std::flush;
    ::_exit(never_reached_exit_code);
  }
};

// ---- inside a rank -----------------------------------------------------------------------------

int exit_code_of_body(const std::function<void(Rank)>& body, Rank rank) {
  progress().failed_assertions = 0;  // those before are the parent's
  const auto threw = [&](const char* what) {
    std::cout << "rank " << rank.rank << " threw: " << what << "\n";
    return 1;
  };
  try {
    body(rank);
  } catch (const Catch::TestFailureException&) {
    return 1;  // the reporter has printed it
  } catch (const Catch::TestSkipException&) {
    return skipped_exit_code;
  } catch (const std::exception& error) {
    return threw(error.what());
  } catch (...) {
    return threw("something that is no std::exception");
  }
  return progress().failed_assertions == 0 ? 0 : 1;
}

enum class Leave {
  at_once,       // 0.2 s less for each rank: LibTorch's statics are many
  through_main,  // as programs do, and where sanitizers look for leaks
};

[[noreturn]] void run_as_rank(const std::function<void(Rank)>& body, Leave leave) {
  const int code = exit_code_of_body(body, role()->rank);
  std::cout << std::flush;
  std::fflush(nullptr);
  if (leave == Leave::at_once && !sanitized) ::_exit(code);
  std::exit(code);  // NOLINT(concurrency-mt-unsafe)
}

// True if this process is a rank of another launch, which passes over this one.
bool is_for_another_launch(const std::function<void(Rank)>& body, Leave leave) {
  const int launch = progress().launches++;
  if (!role()) return false;
  if (role()->test_name == current_test_name() && role()->call == launch) run_as_rank(body, leave);
  return true;
}

// ---- in the parent -----------------------------------------------------------------------------

std::vector<RankResult> launch(int world_size, const RankOptions& options, std::optional<Seconds> grace_after_failure) {
  const ReservedPort port;
  const std::string name = current_test_name();
  Processes processes;
  for (int rank = 0; rank < world_size; ++rank) {
    Variables variables = {{"RANK", std::to_string(rank)},
                           {"WORLD_SIZE", std::to_string(world_size)},
                           {"LOCAL_RANK", std::to_string(rank)},
                           {"LOCAL_WORLD_SIZE", std::to_string(world_size)},
                           {"MASTER_ADDR", "127.0.0.1"},
                           {"MASTER_PORT", std::to_string(port.number())},
                           {"OMP_NUM_THREADS", "1"},
                           {"ACCEL_TEST_NAME", name},
                           {"ACCEL_TEST_RANK_RANK", std::to_string(rank)},
                           {"ACCEL_TEST_RANK_WORLD_SIZE", std::to_string(world_size)},
                           {"ACCEL_TEST_RANK_CALL", std::to_string(progress().launches - 1)}};
    for (const auto& [key, value] : options.variables) {
      std::erase_if(variables, [&](const auto& variable) { return variable.first == key; });
      variables.emplace_back(key, value);
    }
    const std::vector<std::string> arguments = {
        own_program(), exact_filter(name), "--rng-seed", std::to_string(Catch::getSeed()), "--colour-mode", "none"};
    processes.push_back(std::make_unique<Process>([&](int output) {
      return options.own_processes ? start_program(arguments, environment_with(variables), output)
                                   : ForkServer::instance().start(arguments, environment_with(variables), output);
    }));
  }
  wait_for(processes, options.deadline, grace_after_failure);
  std::vector<RankResult> results;
  for (const auto& process : processes) results.push_back(process->result());
  return results;
}

std::string fate(const RankResult& result) {
  std::ostringstream text;
  text.precision(2);
  if (result.timed_out) {
    text << "still ran after " << std::fixed << result.seconds << " s and was killed";
  } else if (result.signal != 0) {
    text << "was ended by signal " << result.signal << " (" << ::strsignal(result.signal) << ")";
  } else {
    text << "left with exit code " << result.exit_code;
  }
  return text.str();
}

std::string report(const std::vector<RankResult>& results, const std::source_location& where) {
  std::ostringstream text;
  text << "\non_ranks at " << where.file_name() << ":" << where.line() << ", world size " << results.size() << ":\n";
  for (std::size_t rank = 0; rank < results.size(); ++rank)
    if (!results[rank].succeeded()) text << "  rank " << rank << " " << fate(results[rank]) << "\n";
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    if (results[rank].succeeded()) continue;
    text << "---- output of rank " << rank << " ----\n" << results[rank].output;
  }
  text << "---- end of the ranks' output ----\n";
  return text.str();
}

// What stands behind Catch2's words in the output of a rank that skipped.
std::string reason_of_skip(const std::string& output) {
  const std::string_view words = "explicitly with message:\n";
  const auto at = output.find(words);
  if (at == std::string::npos) return "the ranks skipped, see above";
  const auto begin = output.find_first_not_of(' ', at + words.size());
  return output.substr(begin, output.find('\n', begin) - begin);
}

void judge(const std::vector<RankResult>& results, const std::source_location& where) {
  const auto skipped = [](const RankResult& result) { return result.exit_code == skipped_exit_code; };
  if (std::ranges::all_of(results, &RankResult::succeeded)) {
    SUCCEED("all ranks succeeded");
    return;
  }
  // Printed as it is: Catch2 would break the lines of a message.
  std::cout << report(results, where) << std::flush;
  const auto failed = std::ranges::find_if_not(results, &RankResult::succeeded);
  const auto rank = std::distance(results.begin(), failed);
  if (std::ranges::all_of(results, skipped)) SKIP(reason_of_skip(results.front().output));
  FAIL("rank " << rank << " of " << results.size() << " " << fate(*failed) << ", see above");
}

// An abstract socket is a lock without a file: it is seen by the processes that share our ports
// (the same network namespace) and it is gone with its owner, however that one ends.
int lock_port(int port) {
  const int lock = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (lock < 0) throw_errno("socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = "accel-test-port-" + std::to_string(port);
  std::ranges::copy(name, address.sun_path + 1);  // the leading zero makes it abstract
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(lock, reinterpret_cast<const sockaddr*>(&address), length) == 0) return lock;
  ::close(lock);
  return -1;
}

bool is_free(int port) {
  const int probe = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) throw_errno("socket");
  const int yes = 1;  // as servers do: the remains of closed connections do not matter
  ::setsockopt(probe, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  const bool free = ::bind(probe, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  ::close(probe);
  return free;
}

}  // namespace

CATCH_REGISTER_LISTENER(ProgressListener)

void on_ranks(std::initializer_list<int> world_sizes, const std::function<void(Rank)>& body, const RankOptions& options,
              std::source_location where) {
  for (const int world_size : world_sizes) {
    const auto leave = options.own_processes ? Leave::through_main : Leave::at_once;
    if (is_for_another_launch(body, leave)) continue;
    judge(launch(world_size, options, grace), where);
  }
}

std::vector<RankResult> run_ranks(int world_size, const std::function<void(Rank)>& body, const RankOptions& options) {
  if (is_for_another_launch(body, Leave::through_main))
    return std::vector<RankResult>(static_cast<std::size_t>(world_size));
  return launch(world_size, options, std::nullopt);
}

std::string own_program() {
  std::array<char, PATH_MAX> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length < 0) throw_errno("readlink /proc/self/exe");
  return {path.data(), static_cast<std::size_t>(length)};
}

bool in_another_launch(const std::vector<RankResult>& results) {
  return std::ranges::all_of(results, [](const RankResult& result) { return result.seconds == 0; });
}

void skip_without(const std::string& what, const std::string& reason) {
  const char* wanted = std::getenv("ACCEL_TESTS_MUST_RUN");
  std::istringstream words(wanted == nullptr ? "" : wanted);
  for (std::string word; words >> word;)
    if (word == what || word == "all") FAIL("ACCEL_TESTS_MUST_RUN says that there are " << what << ", but: " << reason);
  SKIP(reason);
}

std::string exact_filter(const std::string& test_name) {
  std::string filter;
  for (const char character : test_name) {
    // What Catch2's test specification gives a meaning of its own.
    if (std::string_view("\\,[]\"~*").find(character) != std::string_view::npos) filter += '\\';
    filter += character;
  }
  return filter;
}

// Below 32768 lie no ephemeral ports: no outgoing connection takes one of these from under us.
ReservedPort::ReservedPort() {
  constexpr int first = 20000;
  constexpr int count = 10000;
  const int offset = ::getpid() * 7;
  for (int i = 0; i < count; ++i) {
    number_ = first + (offset + i) % count;
    lock_ = lock_port(number_);
    if (lock_ < 0) continue;
    if (is_free(number_)) return;
    ::close(lock_);
  }
  throw std::runtime_error("no free port between 20000 and 29999");
}

ReservedPort::~ReservedPort() {
  ::close(lock_);
}

}  // namespace accel::testing
