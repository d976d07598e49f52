// Starts, watches and ends processes, and forgets what launchers told this one.
#include "process.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace accel::testing {
namespace {

// What launchers set would make a rank believe in another job than its test's.
bool set_by_a_launcher(std::string_view variable) {
  constexpr std::array<std::string_view, 6> names = {
      "RANK=", "WORLD_SIZE=", "NODE_RANK=", "OMP_NUM_THREADS=", "ACCEL_TEST_NAME=", "ACCEL_TEST_RESULTS="};
  constexpr std::array<std::string_view, 16> prefixes = {
      "LOCAL_RANK=", "LOCAL_WORLD_SIZE=", "GROUP_",       "ROLE_",
      "MASTER_",     "TORCHELASTIC_",     "SLURM_",       "OMPI_",
      "PMI",         "MPI_LOCAL",         "MV2_COMM_",    "ACCEL_TEST_RANK_",
      "ACCEL_RANK=", "ACCEL_WORLD_SIZE=", "ACCEL_LOCAL_", "ACCEL_MASTER_"};
  const auto starts = [&](std::string_view prefix) { return variable.starts_with(prefix); };
  return std::ranges::any_of(names, starts) || std::ranges::any_of(prefixes, starts);
}

}  // namespace

void throw_errno(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

std::vector<std::string> environment_with(const Variables& variables) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const auto overridden = [&](const auto& variable) { return text.starts_with(variable.first + "="); };
    if (set_by_a_launcher(text) || std::ranges::any_of(variables, overridden)) continue;
    entries.emplace_back(text);
  }
  for (const auto& [name, value] : variables) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (auto& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

pid_t start_program(std::vector<std::string> arguments, std::vector<std::string> environment, int output) {
  const auto argument_pointers = pointers_to(arguments);
  const auto environment_pointers = pointers_to(environment);
  const pid_t parent = ::getpid();
  const pid_t id = ::fork();
  if (id < 0) throw_errno("fork");
  // Only async-signal-safe calls up to exec: LibTorch's threads do not survive a fork.
  if (id == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    ::signal(SIGPIPE, SIG_DFL);  // what an accelerator of this process ignores is not to be inherited
    const int nothing = ::open("/dev/null", O_RDONLY);
    ::dup2(nothing, STDIN_FILENO);
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
    ::execvpe(argument_pointers[0], argument_pointers.data(), environment_pointers.data());
    ::dprintf(STDERR_FILENO, "cannot start %s: %s\n", argument_pointers[0], ::strerror(errno));
    ::_exit(127);
  }
  ::setpgid(id, id);  // in both processes: whoever comes first
  return id;
}

Process::Process(const std::function<pid_t(int output)>& start)
    : output_(::memfd_create("output", MFD_CLOEXEC)), start_(Clock::now()) {
  if (output_ < 0) throw_errno("memfd_create");
  ::fcntl(output_, F_SETFL, O_APPEND);  // or what processes write at the same time may overwrite each other
  id_ = start(output_);
}

Process::~Process() {
  if (!ended()) kill();
  ::close(output_);
}

bool Process::ended() {
  if (result_) return true;
  int status = 0;
  const pid_t found = ::waitpid(id_, &status, WNOHANG | WUNTRACED | WCONTINUED);
  if (found > 0 && (WIFSTOPPED(status) || WIFCONTINUED(status)))
    stopped_ = WIFSTOPPED(status);
  else if (found != 0)
    finish(status);
  return result_.has_value();
}

void Process::kill() {
  int status = 0;
  ::kill(-id_, SIGKILL);
  if (::waitpid(id_, &status, 0) < 0) throw_errno("waitpid");
  finish(status);
  result_->timed_out = true;
}

void Process::finish(int status) {
  ::kill(-id_, SIGKILL);  // grandchildren must not outlive the test
  ProcessResult result;
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  const auto now = Clock::now();
  result.seconds = Seconds(now - start_).count();
  result.ended_at = Seconds(now.time_since_epoch()).count();
  result.output = read_output();
  result_ = std::move(result);
}

std::string Process::read_output() const {
  std::string text;
  std::array<char, 1 << 14> block{};
  for (;;) {
    const auto offset = static_cast<off_t>(text.size());
    const ssize_t count = ::pread(output_, block.data(), block.size(), offset);
    if (count <= 0) return text;
    text.append(block.data(), static_cast<std::size_t>(count));
  }
}

void wait_for(Processes& processes, Seconds deadline, std::optional<Seconds> grace_after_failure) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds for_news_of_waking(100);
  const auto duration = [](Seconds span) { return std::chrono::duration_cast<Clock::duration>(span); };
  auto end = Clock::now() + duration(deadline * pace);
  auto last_seen_running = Clock::now();
  bool failure_seen = false;
  for (;;) {
    bool left = false;
    for (auto& process : processes) {
      if (!process->ended()) {
        left = true;
        if (!process->is_stopped()) last_seen_running = Clock::now();
      } else if (grace_after_failure && !failure_seen && !process->result().succeeded()) {
        failure_seen = true;
        end = std::min(end, Clock::now() + duration(*grace_after_failure * pace));
      }
    }
    if (!left) return;
    if (Clock::now() >= end || Clock::now() > last_seen_running + for_news_of_waking) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (auto& process : processes)
    if (!process->ended()) process->kill();
}

ProcessResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options) {
  Processes processes;
  processes.push_back(std::make_unique<Process>(
      [&](int output) { return start_program(arguments, environment_with(options.variables), output); }));
  wait_for(processes, options.deadline, std::nullopt);
  return processes.front()->result();
}

}  // namespace accel::testing
