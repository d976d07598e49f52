// Links: the connections of a rank to others, and what is still to be sent over them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/poller.hpp>
#include <accel/launch/detail/wire.hpp>

namespace accel::inline v0_1::launch::detail {

/// By rank, which is also the name of a connection with the poller. One thread opens, reads and closes them; any may
/// write, one at a time, and not while they are opened or closed.
class Links {
 public:
  Links(Poller& poller, int count) : poller_(&poller), links_(static_cast<std::size_t>(count)) {}

  void open(int rank, Connection connection) {
    poller_->add(connection.number(), static_cast<std::uint64_t>(rank));
    of(rank).connection = std::move(connection);
  }
  /// The same for a connection that the poller knows by another name.
  void adopt(int rank, Connection connection) {
    poller_->change(connection.number(), static_cast<std::uint64_t>(rank), false);
    of(rank).connection = std::move(connection);
  }
  void close(int rank) {
    if (of(rank).connection.is_open()) poller_->remove(of(rank).connection.number());
    of(rank) = {};
  }

  /// False when the connection has ended.
  [[nodiscard]] bool read(int rank, std::vector<Message>& messages) {
    return of(rank).connection.read(Connection::read_budget, Connection::longest_message, messages);
  }
  [[nodiscard]] bool acknowledged(int rank) const {
    return links_[static_cast<std::size_t>(rank)].connection.acknowledged();
  }

  void write(const Letter& letter) {
    if (letter.to != Letter::everybody) return write(letter.to, letter.message);
    for (std::size_t rank = 0; rank < links_.size(); ++rank) write(static_cast<int>(rank), letter.message);
  }

  /// Sends what it can, each connection's in one piece. For the rest the poller tells when there is space.
  void flush() {
    for (const int rank : std::exchange(dirty_, {})) {
      Link& link = of(rank);
      link.connection.flush();
      link.is_dirty = link.connection.has_output();
      if (link.is_dirty) dirty_.push_back(rank);
      if (link.is_dirty == link.awaits_space || !link.connection.is_open()) continue;
      link.awaits_space = link.is_dirty;
      poller_->change(link.connection.number(), static_cast<std::uint64_t>(rank), link.awaits_space);
    }
  }

  /// All that was written is on its way.
  [[nodiscard]] bool sent() const {
    return std::none_of(dirty_.begin(), dirty_.end(),
                        [&](int rank) { return links_[static_cast<std::size_t>(rank)].connection.has_output(); });
  }

 private:
  struct Link {
    Connection connection{};
    bool is_dirty = false;      // there is something to flush
    bool awaits_space = false;  // the poller tells when more can be sent
  };

  [[nodiscard]] Link& of(int rank) { return links_[static_cast<std::size_t>(rank)]; }

  void write(int rank, const Message& message) {
    Link& link = of(rank);
    if (!link.connection.is_open()) return;
    link.connection.write(message);
    if (!std::exchange(link.is_dirty, true)) dirty_.push_back(rank);
  }

  Poller* poller_;
  std::vector<Link> links_;
  std::vector<int> dirty_;  // ranks
};

}  // namespace accel::inline v0_1::launch::detail
