// NoSignals: the library's own threads are none of those that a program's signals are for.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace accel::inline v0_1::launch {

/// Threads that are started while it lives hear no signals: no handler of the program's finds itself in one.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;
  ~NoSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace accel::inline v0_1::launch
