// Preemption: a signal by which a scheduler asks a job to come to its end, seen between two steps.
#pragma once

#include <atomic>
#include <cerrno>
#include <csignal>
#include <system_error>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::prepare {

/// SIGTERM, as SLURM, Kubernetes and torchrun send it some time before they kill, is no end any more but a question to
/// ask. For as long as this lives; a handler that was there before is called, too.
///
/// Order    one in a process at a time.
class Preemption {
 public:
  Preemption() {
    ACCEL_CHECK(!is_there().exchange(true), ConfigError,
                "checkpoint.on_sigterm: another accelerator of this process has it already");
    struct sigaction action{};
    action.sa_sigaction = &Preemption::note;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    ::sigemptyset(&action.sa_mask);
    seen().store(false);
    if (::sigaction(SIGTERM, &action, &before()) != 0) {
      is_there().store(false);
      throw ConfigError(message("SIGTERM: cannot set a handler: ", std::generic_category().message(errno)));
    }
  }
  Preemption(const Preemption&) = delete;
  Preemption& operator=(const Preemption&) = delete;
  ~Preemption() {
    ::sigaction(SIGTERM, &before(), nullptr);
    is_there().store(false);
  }

  /// This process has got the signal.
  [[nodiscard]] static bool was_asked() { return seen().load(std::memory_order_relaxed); }

 private:
  // Statics, since a signal handler has nothing else: of the process, as signals are.
  static std::atomic<bool>& is_there() {
    static std::atomic<bool> there = false;
    return there;
  }
  static std::atomic<bool>& seen() {
    static std::atomic<bool> one = false;
    static_assert(std::atomic<bool>::is_always_lock_free);
    return one;
  }
  static struct sigaction& before() {
    static struct sigaction one{};
    return one;
  }

  static void note(int signal, siginfo_t* info, void* context) {
    seen().store(true, std::memory_order_relaxed);
    const struct sigaction& other = before();
    if ((other.sa_flags & SA_SIGINFO) != 0) {
      if (other.sa_sigaction != nullptr) other.sa_sigaction(signal, info, context);
    } else if (other.sa_handler != SIG_DFL && other.sa_handler != SIG_IGN) {
      other.sa_handler(signal);
    }
  }
};

}  // namespace accel::inline v0_1::prepare
