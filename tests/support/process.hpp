// A process that a test started: in a group of its own, with its output kept, watched until its end.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ranks.hpp"

namespace accel::testing {

[[noreturn]] void throw_errno(const char* what);

/// This program's environment as `name=value`, without what launchers and these tests set, plus `variables`.
[[nodiscard]] std::vector<std::string> environment_with(const Variables& variables);

/// For execve and the like; ends with a null pointer.
[[nodiscard]] std::vector<char*> pointers_to(std::vector<std::string>& strings);

/// Starts a program, whose output goes to the file `output`. It dies with the thread that started it.
[[nodiscard]] pid_t start_program(std::vector<std::string> arguments, std::vector<std::string> environment, int output);

class Process {
 public:
  /// `start` gets the file for the output, and returns the id of a child that leads a process group.
  explicit Process(const std::function<pid_t(int output)>& start);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  /// Looks whether the process has ended, without waiting.
  bool ended();

  /// As it was when ended() was asked: it waits for SIGCONT.
  [[nodiscard]] bool is_stopped() const { return stopped_; }

  /// Ends the process and the children it left behind, and waits for it.
  void kill();

  [[nodiscard]] const ProcessResult& result() const { return result_.value(); }

 private:
  using Clock = std::chrono::steady_clock;

  void finish(int status);
  [[nodiscard]] std::string read_output() const;

  int output_;  // file in memory
  Clock::time_point start_;
  pid_t id_ = -1;
  bool stopped_ = false;
  std::optional<ProcessResult> result_;
};

using Processes = std::vector<std::unique_ptr<Process>>;

/// Waits until all have ended, or are stopped with nobody left to wake them, `deadline` has passed, or one failed
/// `grace_after_failure` ago; ends the rest.
void wait_for(Processes& processes, Seconds deadline, std::optional<Seconds> grace_after_failure);

}  // namespace accel::testing
