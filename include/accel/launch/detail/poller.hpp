// Poller: waits for many descriptors at once, and for other threads' wish that it wake up.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/descriptor.hpp>

namespace accel::inline v0_1::launch::detail {

/// What is watched has a name, a number that events come with. add(), change(), remove() and wake() may be called by
/// any thread.
class Poller {
 public:
  Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), bell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!epoll_.is_open() || !bell_.is_open()) throw_errno("rendezvous: epoll and eventfd");
    add(bell_.number(), bell);
  }

  void add(int descriptor, std::uint64_t name) { control(descriptor, name, EPOLLIN, EPOLL_CTL_ADD); }
  /// From now on under that name, and whether space for writing is news, too.
  void change(int descriptor, std::uint64_t name, bool writes) {
    control(descriptor, name, writes ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
  }
  void remove(int descriptor) { control(descriptor, 0, 0, EPOLL_CTL_DEL); }

  void wake() const noexcept {
    const std::uint64_t one = 1;
    // It fails only if the counter is full, and then the thread is awake anyway.
    [[maybe_unused]] const auto written = ::write(bell_.number(), &one, sizeof one);
  }

  /// An eventfd: who writes to it wakes this.
  [[nodiscard]] int bell_number() const { return bell_.number(); }

  /// Until something comes, or until `end`; calls `read(name)` for what there is to read, or has ended. False if there
  /// is more of it.
  template <class Read>
  bool wait(std::optional<Time> end, Read&& read) {
    std::array<epoll_event, 256> events{};
    const int count = ::epoll_wait(epoll_.number(), events.data(), static_cast<int>(events.size()), milliseconds(end));
    for (int i = 0; i < count; ++i) {
      const auto& event = events[static_cast<std::size_t>(i)];
      std::uint64_t rings = 0;
      if (event.data.u64 == bell) [[maybe_unused]]
        const auto drained = ::read(bell_.number(), &rings, sizeof rings);
      else if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0U)
        read(event.data.u64);
    }
    return count >= 0 && count < static_cast<int>(events.size());  // not where a signal came
  }

 private:
  static constexpr std::uint64_t bell = ~0ULL;

  void control(int descriptor, std::uint64_t name, std::uint32_t what, int how) {
    epoll_event event{};
    event.events = what;
    event.data.u64 = name;
    if (::epoll_ctl(epoll_.number(), how, descriptor, &event) != 0) throw_errno("rendezvous: epoll_ctl");
  }

  [[nodiscard]] static int milliseconds(std::optional<Time> end) {
    constexpr std::int64_t most = 1'000'000'000;
    if (!end) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*end - Clock::now()).count();
    return static_cast<int>(left < 0 ? 0 : left > most ? most : left);
  }

  Descriptor epoll_;
  Descriptor bell_;
};

}  // namespace accel::inline v0_1::launch::detail
