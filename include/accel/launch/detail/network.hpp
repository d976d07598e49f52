// Network: who this host is, and where the others find it.
#pragma once

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::launch::detail {

inline std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// Boot and network namespace: two processes that agree in it reach each other by loopback. Names of
/// hosts are no such proof: cloned machines share them, containers of one machine do not.
inline std::string network_name() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code unknown;
  const std::string space = std::filesystem::read_symlink("/proc/self/ns/net", unknown).string();
  return boot.empty() || space.empty() ? host_name() : boot + "/" + space;
}

/// The address from which this host reaches `host`: the one the other hosts can reach, too. Empty
/// if there is none, or only a loopback address, as where /etc/hosts gives a host's own name one.
inline std::string address_towards(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;  // connecting a datagram socket sends nothing, it only picks a route
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return {};
  std::array<char, NI_MAXHOST> text{};
  if (const int fd = ::socket(found->ai_family, SOCK_DGRAM, 0); fd >= 0) {
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    auto* const address = reinterpret_cast<sockaddr*>(&own);  // the socket interface asks for this cast
    if (::connect(fd, found->ai_addr, found->ai_addrlen) == 0 && ::getsockname(fd, address, &size) == 0)
      ::getnameinfo(address, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
    ::close(fd);
  }
  ::freeaddrinfo(found);
  const std::string address = text.data();
  return address.starts_with("127.") || address == "::1" ? std::string() : address;
}

/// Waits until the name of the host is known: that of a container may come up after this process.
/// LibTorch asks as patiently, but says a line each time, and on rank 0 beyond its timeout.
inline void wait_for_name(const std::string& host, Deadline deadline) {
  constexpr std::chrono::milliseconds pause{200};
  for (;;) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int problem = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (problem == 0) return ::freeaddrinfo(found);
    ACCEL_CHECK(!deadline.passed(), CommError, "rendezvous: MASTER_ADDR is ", host, ", and for ", deadline.span_s(),
                " s this host has found no address of that name, of IPv4 or IPv6: ", ::gai_strerror(problem),
                "; give the address of the host of rank 0, or mend the name");
    std::this_thread::sleep_for(std::min(pause, deadline.remaining()));
  }
}

}  // namespace accel::inline v0_1::launch::detail
