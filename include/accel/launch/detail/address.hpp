// Address: where a host is found, which of its doors to open, and how to knock at one.
#pragma once

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/descriptor.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch::detail {

/// Of IPv4 or IPv6, without a port.
class Address {
 public:
  Address(const sockaddr* address, socklen_t size) : size_(size) { std::memcpy(&storage_, address, size); }

  /// Every one of this host, of both families where the host has both.
  [[nodiscard]] static Address any(int family) {
    sockaddr_in6 six{};
    six.sin6_family = AF_INET6;
    sockaddr_in four{};
    four.sin_family = AF_INET;
    // The socket interface asks for these casts.
    return family == AF_INET6 ? Address(reinterpret_cast<const sockaddr*>(&six), sizeof six)
                              : Address(reinterpret_cast<const sockaddr*>(&four), sizeof four);
  }

  [[nodiscard]] int family() const { return storage_.ss_family; }
  [[nodiscard]] socklen_t size() const { return size_; }
  [[nodiscard]] const sockaddr* native() const { return reinterpret_cast<const sockaddr*>(&storage_); }

  [[nodiscard]] Address with_port(int port) const {
    Address copy = *this;
    const auto number = htons(static_cast<std::uint16_t>(port));
    if (family() == AF_INET6)
      reinterpret_cast<sockaddr_in6*>(&copy.storage_)->sin6_port = number;
    else
      reinterpret_cast<sockaddr_in*>(&copy.storage_)->sin_port = number;
    return copy;
  }

  [[nodiscard]] int port() const {
    return ntohs(family() == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port
                                      : reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
  }

  [[nodiscard]] bool is_loopback() const {
    if (family() == AF_INET6) {
      const auto& address = reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr;
      return IN6_IS_ADDR_LOOPBACK(&address) || (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == 127);
    }
    return ntohl(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr) >> 24 == 127;
  }

  [[nodiscard]] bool is_any() const {
    if (family() == AF_INET6)
      return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr);
    return reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr == htonl(INADDR_ANY);
  }

  /// As numbers, without asking anybody.
  [[nodiscard]] std::string text() const {
    std::array<char, NI_MAXHOST> text{};
    if (::getnameinfo(native(), size_, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
    return text.data();
  }

 private:
  sockaddr_storage storage_{};
  socklen_t size_;
};

/// What `host` is called in numbers; nothing if it is not known, `problem` says why. May take as long as a name server
/// takes to answer, or not to.
[[nodiscard]] inline std::vector<Address> look_up(const std::string& host, int* problem = nullptr) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int answer = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (problem != nullptr) *problem = answer;
  std::vector<Address> addresses;
  if (answer != 0) return addresses;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next)
    addresses.emplace_back(one->ai_addr, one->ai_addrlen);
  ::freeaddrinfo(found);
  return addresses;
}

/// This end of `socket`.
[[nodiscard]] inline Address place_of(const Descriptor& socket) {
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  if (::getsockname(socket.number(), reinterpret_cast<sockaddr*>(&own), &size) != 0)
    throw_errno("rendezvous: the socket has no address");
  return {reinterpret_cast<const sockaddr*>(&own), size};
}

/// What other hosts may reach this one by, as text.
[[nodiscard]] inline std::vector<std::string> own_addresses() {
  std::vector<std::string> texts;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return texts;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    const bool is_up = one->ifa_addr != nullptr && (one->ifa_flags & IFF_UP) != 0U;
    if (!is_up || (one->ifa_addr->sa_family != AF_INET && one->ifa_addr->sa_family != AF_INET6)) continue;
    const bool is_six = one->ifa_addr->sa_family == AF_INET6;
    const Address address(one->ifa_addr, is_six ? sizeof(sockaddr_in6) : sizeof(sockaddr_in));
    // With a scope, an address of IPv6 is good on this host's own link only.
    if (!address.is_loopback() && address.text().find('%') == std::string::npos) texts.push_back(address.text());
  }
  ::freeifaddrs(all);
  return texts;
}

/// One of `addresses` is of this host.
[[nodiscard]] inline bool is_own(const std::vector<Address>& addresses) {
  const auto own = own_addresses();
  return std::any_of(addresses.begin(), addresses.end(), [&](const Address& one) {
    return one.is_loopback() || std::find(own.begin(), own.end(), one.text()) != own.end();
  });
}

/// The address from which this host reaches `other`: the one the other hosts can reach, too. Empty if there is none, or
/// only a loopback address, as where /etc/hosts gives a host's own name one.
[[nodiscard]] inline std::string address_towards(const Address& other) {
  // Connecting a datagram socket sends nothing, it only picks a route.
  const Descriptor socket(::socket(other.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Address place = other.with_port(9);
  if (!socket.is_open() || ::connect(socket.number(), place.native(), place.size()) != 0) return {};
  const Address own = place_of(socket);
  return own.is_loopback() ? std::string() : own.text();
}

/// The addresses of MASTER_ADDR, waiting until its name is known: that of a container may come up after this process.
/// Asked once per rank; from then on everything goes by numbers, so that no slow name server is asked again.
///
/// Throws   CommError at the deadline.
[[nodiscard]] inline std::vector<Address> addresses_of_master(const std::string& host, Deadline deadline) {
  try {
    return within(deadline, [host, deadline] {
      constexpr std::chrono::milliseconds pause{200};
      for (;;) {
        int problem = 0;
        if (auto found = look_up(host, &problem); !found.empty()) return found;
        ACCEL_CHECK(!deadline.passed(), CommError, "rendezvous: MASTER_ADDR is ", host, ", and for ", deadline.span_s(),
                    " s this host has found no address of that name, of IPv4 or IPv6: ", ::gai_strerror(problem),
                    "; give the address of the host of rank 0, or mend the name");
        std::this_thread::sleep_for(std::min(pause, deadline.remaining()));
      }
    });
  } catch (const LeftBehind&) {
    throw CommError(message("rendezvous: looking up MASTER_ADDR = ", host, " did not end within ", deadline.span_s(),
                            " s; is this host's name server out of reach?"));
  }
}

/// Where rank 0 listens if others look for it at `host`, which has these `addresses`: at that one, if it is this host's
/// own, so that no other network sees the port; else everywhere. A name of this host that means its loopback, as
/// /etc/hosts may have it, means something else to other hosts.
[[nodiscard]] inline std::vector<Address> doors(const std::string& host, const std::vector<Address>& addresses) {
  const bool is_numeric =
      std::any_of(addresses.begin(), addresses.end(), [&](const auto& one) { return one.text() == host; });
  const bool means_loopback =
      std::any_of(addresses.begin(), addresses.end(), [](const Address& one) { return one.is_loopback(); });
  std::vector<Address> doors;
  if (means_loopback ? is_numeric || host == "localhost" : is_numeric || addresses.size() == 1)
    doors.push_back(addresses.front());
  doors.push_back(Address::any(AF_INET6));
  doors.push_back(Address::any(AF_INET));
  return doors;
}

/// Listens at the first of `doors` that this host has. Port 0: any that is free.
///
/// Throws   CommError with the text of the error; std::system_error if the port is in use.
[[nodiscard]] inline Descriptor listen_at(const std::vector<Address>& doors, int port) {
  int problem = 0;
  for (const Address& door : doors) {
    Descriptor socket(::socket(door.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    const int off = 0;
    if (socket.is_open()) {
      ::setsockopt(socket.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      if (door.family() == AF_INET6) ::setsockopt(socket.number(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
      const Address place = door.with_port(port);
      if (::bind(socket.number(), place.native(), place.size()) == 0 && ::listen(socket.number(), SOMAXCONN) == 0)
        return socket;
    }
    problem = errno;
    if (problem == EADDRINUSE) throw std::system_error(problem, std::generic_category());
  }
  errno = problem;
  throw_errno("rendezvous: cannot open a socket");
}

/// Connects to the first of `addresses` that answers. They are tried at the same time, each a moment after the one
/// before: one of them may lead nowhere, and keep whoever knocks waiting until the deadline.
///
/// Throws   CommError at the deadline, or when all have refused.
/// Source   RFC 8305, Happy Eyeballs.
[[nodiscard]] inline Descriptor connect_to(const std::vector<Address>& addresses, int port, Deadline deadline) {
  constexpr std::chrono::milliseconds head_start{250};
  int problem = ETIMEDOUT;
  std::vector<Descriptor> tried;
  std::vector<pollfd> polled;
  std::size_t next = 0;
  const auto try_next = [&] {
    const Address place = addresses[next++].with_port(port);
    Descriptor socket(::socket(place.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.is_open() || (::connect(socket.number(), place.native(), place.size()) != 0 && errno != EINPROGRESS)) {
      problem = errno;
      return;
    }
    polled.push_back({.fd = socket.number(), .events = POLLOUT, .revents = 0});
    tried.push_back(std::move(socket));
  };
  while (!deadline.passed() && (next < addresses.size() || !tried.empty())) {
    if (next < addresses.size()) try_next();
    const bool is_last = next == addresses.size();
    if (tried.empty()) continue;
    const auto most = is_last ? deadline.remaining() : std::min(deadline.remaining(), head_start);
    const int ready = ::poll(polled.data(), polled.size(), static_cast<int>(most.count()));
    if (ready <= 0) continue;  // the time is over, or a signal came
    for (std::size_t i = tried.size(); i-- > 0;) {
      if (polled[i].revents == 0) continue;
      socklen_t size = sizeof problem;
      ::getsockopt(tried[i].number(), SOL_SOCKET, SO_ERROR, &problem, &size);
      if (problem == 0) return std::move(tried[i]);
      tried.erase(tried.begin() + static_cast<std::ptrdiff_t>(i));
      polled.erase(polled.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  std::string places;
  for (const Address& one : addresses) places += (places.empty() ? "" : ", ") + one.text();
  throw CommError(
      message("nothing answers at ", places, ", port ", port, ": ", std::generic_category().message(problem)));
}

}  // namespace accel::inline v0_1::launch::detail
