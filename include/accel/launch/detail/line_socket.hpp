// LineSocket: a TCP connection that carries lines of text and never blocks.
#pragma once

#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::launch::detail {

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }

  [[nodiscard]] int number() const { return number_; }
  [[nodiscard]] bool is_open() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

/// One end of a connection. Lines that cannot be sent yet wait in memory.
class LineSocket {
 public:
  LineSocket() = default;
  explicit LineSocket(Descriptor connected) : socket_(std::move(connected)) {
    const int on = 1;
    ::setsockopt(socket_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }

  [[nodiscard]] int number() const { return socket_.number(); }
  [[nodiscard]] bool is_open() const { return socket_.is_open(); }
  [[nodiscard]] bool has_output() const { return is_open() && !output_.empty(); }
  void close() { *this = LineSocket(); }

  /// A line ends where it ends: breaks inside of the text become spaces.
  void write(std::string line) {
    if (!is_open()) return;
    for (char& c : line)
      if (c == '\n') c = ' ';
    output_ += line;
    output_ += '\n';
    flush();
  }

  /// Sends what the network takes. A lost connection shows when it is read.
  void flush() {
    while (has_output()) {
      // No signal: a peer that has gone is news, not the end of this process.
      const auto sent = ::send(number(), output_.data(), output_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent <= 0) {
        if (sent < 0 && errno != EAGAIN && errno != EINTR) output_.clear();
        return;
      }
      output_.erase(0, static_cast<std::size_t>(sent));
    }
  }

  /// Reads what has come. False when the connection has ended, or a line is longer than any of ours.
  [[nodiscard]] bool receive() {
    constexpr std::size_t longest_line = 1 << 16;
    std::array<char, 4096> block{};
    for (;;) {
      const auto count = ::recv(number(), block.data(), block.size(), MSG_DONTWAIT);
      if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) return false;
      if (count < 0) return input_.size() <= longest_line;
      input_.append(block.data(), static_cast<std::size_t>(count));
    }
  }

  /// The next whole line that was received.
  [[nodiscard]] std::optional<std::string> next_line() {
    const std::size_t end = input_.find('\n');
    if (end == std::string::npos) return std::nullopt;
    std::string line = input_.substr(0, end);
    input_.erase(0, end + 1);
    return line;
  }

  /// Whether the other host has acknowledged all that was sent: it lives, whatever its process does.
  [[nodiscard]] bool acknowledged() const {
    int waiting = 0;
    return ::ioctl(number(), SIOCOUTQ, &waiting) == 0 && waiting == 0;
  }

 private:
  Descriptor socket_;
  std::string input_;
  std::string output_;
};

[[noreturn]] inline void throw_errno(std::string_view what) {
  throw CommError(message(what, ": ", std::generic_category().message(errno)));
}

/// Listens on a free port of every address, of IPv6 and of IPv4 where the host has both.
[[nodiscard]] inline Descriptor listen_anywhere() {
  Descriptor socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  sockaddr_in four{};
  four.sin_family = AF_INET;
  const int off = 0;
  // The socket interface asks for these casts.
  const bool bound = socket.is_open() &&
                     ::setsockopt(socket.number(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
                     ::bind(socket.number(), reinterpret_cast<const sockaddr*>(&six), sizeof six) == 0;
  if (!bound) {
    socket = Descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.is_open() || ::bind(socket.number(), reinterpret_cast<const sockaddr*>(&four), sizeof four) != 0)
      throw_errno("heartbeat: cannot open a socket");
  }
  if (::listen(socket.number(), SOMAXCONN) != 0) throw_errno("heartbeat: cannot listen");
  return socket;
}

[[nodiscard]] inline int port_of(const Descriptor& socket) {
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  if (::getsockname(socket.number(), reinterpret_cast<sockaddr*>(&own), &size) != 0)
    throw_errno("heartbeat: the socket has no address");
  const auto* const port = own.ss_family == AF_INET6 ? &reinterpret_cast<const sockaddr_in6*>(&own)->sin6_port
                                                     : &reinterpret_cast<const sockaddr_in*>(&own)->sin_port;
  return ntohs(*port);
}

/// Connects to the first address of `host` that answers before the deadline.
[[nodiscard]] inline LineSocket connect_to(const std::string& host, int port, Deadline deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int unknown = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  ACCEL_CHECK(unknown == 0, CommError, "heartbeat: ", host, " is no host: ", ::gai_strerror(unknown));
  int problem = ETIMEDOUT;
  LineSocket result;
  for (const addrinfo* one = found; one != nullptr && !result.is_open() && !deadline.passed(); one = one->ai_next) {
    Descriptor socket(::socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.is_open()) continue;
    if (::connect(socket.number(), one->ai_addr, one->ai_addrlen) != 0 && errno != EINPROGRESS) {
      problem = errno;
      continue;
    }
    pollfd ready{.fd = socket.number(), .events = POLLOUT, .revents = 0};
    if (::poll(&ready, 1, static_cast<int>(deadline.remaining().count())) != 1) continue;
    socklen_t size = sizeof problem;
    ::getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &problem, &size);
    if (problem == 0) result = LineSocket(std::move(socket));
  }
  ::freeaddrinfo(found);
  ACCEL_CHECK(result.is_open(), CommError, "heartbeat: rank 0 does not answer at ", host, ":", port, ": ",
              std::generic_category().message(problem), "; may the hosts of the job connect to each other's ports?");
  return result;
}

}  // namespace accel::inline v0_1::launch::detail
