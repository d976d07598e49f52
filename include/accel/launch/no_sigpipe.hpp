// NoSigpipe: a write to a lost peer is an error, not the end of the process.
#pragma once

#include <cerrno>
#include <csignal>
#include <ctime>

#include <pthread.h>

namespace accel::inline v0_1::launch {

/// While it lives, SIGPIPE reaches neither this thread nor, for as long as they run, threads that it
/// starts. The program's own handling of the signal stays as it is.
///
/// Source   Gloo and libuv write to sockets without MSG_NOSIGNAL. Python ignores the signal for its
///          programs; a C++ program would end without a word when a peer is killed.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigset_t pending;
    ::sigpending(&pending);
    was_pending_ = ::sigismember(&pending, SIGPIPE) == 1;
    ::sigemptyset(&pipe_);
    ::sigaddset(&pipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  NoSigpipe(const NoSigpipe&) = delete;
  NoSigpipe& operator=(const NoSigpipe&) = delete;

  /// Takes back what arrived meanwhile: it was not meant for the program.
  ~NoSigpipe() {
    const timespec no_time{};
    while (!was_pending_ && ::sigtimedwait(&pipe_, nullptr, &no_time) < 0 && errno == EINTR) continue;
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t pipe_{};
  sigset_t before_{};
  bool was_pending_ = false;
};

}  // namespace accel::inline v0_1::launch
