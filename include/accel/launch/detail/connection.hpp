// Connection: one end of a TCP connection that carries messages and never blocks.
#pragma once

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <accel/launch/detail/descriptor.hpp>
#include <accel/launch/detail/wire.hpp>

namespace accel::inline v0_1::launch::detail {

/// A message goes as four bytes of size, one that says what it is, and its body. What cannot be sent yet waits in
/// memory. One thread may read while another writes.
class Connection {
 public:
  static constexpr std::size_t read_budget = 1 << 16;  // bytes of a turn: every connection has its own
  static constexpr std::size_t longest_message = 1UL << 31;

  Connection() = default;
  explicit Connection(Descriptor connected) : socket_(std::move(connected)) {
    const int on = 1;
    ::setsockopt(socket_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }

  [[nodiscard]] int number() const { return socket_.number(); }
  [[nodiscard]] bool is_open() const { return socket_.is_open(); }
  [[nodiscard]] const Descriptor& descriptor() const { return socket_; }

  // Writing

  [[nodiscard]] bool has_output() const { return is_open() && sent_ < output_.size(); }

  /// Nothing is sent before flush(), so that what goes together goes in one piece.
  void write(const Message& message) {
    if (!is_open()) return;
    const auto size = static_cast<std::uint32_t>(message.body.size() + 1);
    for (int shift = 0; shift < 32; shift += 8) output_.push_back(static_cast<char>(size >> shift & 0xff));
    output_.push_back(static_cast<char>(message.word));
    output_ += message.body;
  }

  /// Sends what the network takes. A lost connection shows when it is read.
  void flush() {
    while (has_output()) {
      // No signal: a peer that has gone is news, not the end of this process.
      const auto sent = ::send(number(), output_.data() + sent_, output_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno == EAGAIN) return;
      sent_ = sent < 0 ? output_.size() : sent_ + static_cast<std::size_t>(sent);
    }
    output_.clear();
    sent_ = 0;
  }

  // Reading

  /// Reads what has come, but no more than `budget` bytes, and appends the whole messages to `messages`. False when
  /// the connection has ended, or a message is longer than `longest`.
  [[nodiscard]] bool read(std::size_t budget, std::size_t longest, std::vector<Message>& messages) {
    std::array<char, 16384> block;
    while (budget > 0) {
      const auto count = ::recv(number(), block.data(), std::min(budget, block.size()), MSG_DONTWAIT);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) break;
      if (count <= 0) return (void)cut_messages(longest, messages), false;
      input_.append(block.data(), static_cast<std::size_t>(count));
      budget -= static_cast<std::size_t>(count);
    }
    return cut_messages(longest, messages);
  }

  /// Reads what has come, and forgets it: a connection that is closed before loses what was written last.
  void drain() {
    std::vector<Message> forgotten;
    if (is_open()) (void)read(read_budget, longest_message, forgotten);
    input_.clear();
  }

  /// Whether the other host has acknowledged all that was sent: it lives, whatever its process does.
  [[nodiscard]] bool acknowledged() const {
    int waiting = 0;
    return ::ioctl(number(), SIOCOUTQ, &waiting) == 0 && waiting == 0;
  }

 private:
  static constexpr std::size_t head = 5;

  [[nodiscard]] bool cut_messages(std::size_t longest, std::vector<Message>& messages) {
    std::size_t begin = 0;
    bool is_well = true;
    while (input_.size() - begin >= head) {
      std::size_t size = 0;
      for (std::size_t i = 0; i < 4; ++i)
        size |= static_cast<std::size_t>(static_cast<unsigned char>(input_[begin + i])) << (8 * i);
      is_well = size >= 1 && size <= longest;
      if (!is_well || input_.size() - begin < size + 4) break;
      messages.push_back({static_cast<Word>(input_[begin + 4]), input_.substr(begin + head, size - 1)});
      begin += size + 4;
    }
    input_.erase(0, begin);
    return is_well;
  }

  Descriptor socket_;
  std::string input_;
  std::string output_;
  std::size_t sent_ = 0;  // of the output
};

}  // namespace accel::inline v0_1::launch::detail
