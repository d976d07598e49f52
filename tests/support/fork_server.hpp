// ForkServer: this very program, loaded once and waiting, so that a rank is a fork and no start.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace accel::testing {

/// Loading LibTorch takes 0.7 s, a fork of the loaded program 2 ms. A fork of the server is as fresh as a started
/// process: nothing of LibTorch has run in the server, which has one thread and knows no test.
class ForkServer {
 public:
  /// The one of this program; it starts on first use and ends with the program.
  static ForkServer& instance();

  ForkServer(const ForkServer&) = delete;
  ForkServer& operator=(const ForkServer&) = delete;
  ~ForkServer();

  /// Runs main with these arguments in a new child of this process, which leads a process group, dies with this
  /// process, and writes to the file `output`.
  [[nodiscard]] pid_t start(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                            int output);

 private:
  ForkServer();

  int socket_;
};

/// To be called first in main. In a process that was started as a fork server it serves, and returns in its forks
/// alone, with the arguments to go on with; elsewhere it returns nothing.
[[nodiscard]] std::optional<std::vector<std::string>> serve_forks();

}  // namespace accel::testing
