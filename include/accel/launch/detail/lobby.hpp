// Lobby: on rank 0, those who have come in by the door and are not known yet.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/descriptor.hpp>
#include <accel/launch/detail/door.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/greeting.hpp>
#include <accel/launch/detail/poller.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Somebody who has said that it is a rank of this job.
struct Newcomer {
  Connection connection;
  Peer peer;
  std::string run_id;
};

/// Who does not begin as a rank does is dropped: at once, with what he says at the latest after some bytes, and if he
/// says nothing after some time, or when too many stand around. Of one thread.
class Lobby {
 public:
  /// Names of the poller from here on are the lobby's.
  static constexpr std::uint64_t first_name = 1ULL << 32;

  Lobby(Peer own, std::shared_ptr<Door> door, Poller& poller, StarTerms terms)
      : own_(std::move(own)), door_(std::move(door)), poller_(&poller), terms_(std::move(terms)) {
    door_->open_room(terms_.creation, poller.bell_number());
    poller.wake();  // somebody may have been waiting there
    listen();
  }
  Lobby(const Lobby&) = delete;
  Lobby& operator=(const Lobby&) = delete;
  ~Lobby() { door_->close_room(terms_.creation); }

  /// There is news under that name.
  void read(std::uint64_t name) {
    if (name == door_name) return accept();
    const auto found = visitors_.find(name);
    if (found == visitors_.end()) return;
    Visitor& visitor = found->second;
    const bool is_known = visitor.rank >= 0;
    std::vector<Message> messages;
    const bool open = visitor.connection.read(is_known ? Connection::read_budget : hello_budget,
                                              is_known ? longest_introduction : hello_budget, messages);
    if (!open && messages.empty()) drop(found);
    for (auto& message : messages) words_.emplace_back(name, std::move(message));
  }

  /// Those who have become known since the last time. Who is to be dropped is.
  [[nodiscard]] std::vector<Newcomer> newcomers(Time now) {
    std::vector<Newcomer> known;
    for (auto& visitor : door_->take_from_room(terms_.creation)) {
      visitor.came = now;
      let_in(std::move(visitor));
    }
    auto words = std::exchange(words_, {});
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto found = visitors_.find(words[i].first);
      if (found == visitors_.end() || listen_to(found->second, words[i].second, known)) continue;
      if (found->second.said.empty()) {
        drop(found);
        continue;
      }
      Visitor gone = std::move(found->second);
      visitors_.erase(found);
      for (std::size_t later = i + 1; later < words.size(); ++later)
        if (words[later].first == words[i].first) gone.said.push_back(std::move(words[later].second));
      hand_over(std::move(gone));
    }
    const Clock::duration most = patience_now();
    for (auto one = visitors_.begin(); one != visitors_.end();)
      one = now - one->second.came >= most ? drop(one) : ++one;
    if (!is_listening_ && now >= listen_again_ && !is_full()) listen();
    return known;
  }

  /// When newcomers() has something to do without news.
  [[nodiscard]] std::optional<Time> next_turn() const {
    std::optional<Time> next = is_listening_ || is_full() ? std::nullopt : std::optional(listen_again_);
    for (const auto& [name, visitor] : visitors_)
      if (const Time end = visitor.came + patience_now(); !next || end < *next) next = end;
    return next;
  }

  /// The last word to him.
  static void refuse(Connection& connection, const Message& why) {
    connection.write(why);
    connection.flush();
    connection.drain();
  }

 private:
  using Visitors = std::map<std::uint64_t, Visitor>;  // by name

  [[nodiscard]] bool is_full() const { return visitors_.size() >= most_visitors; }
  [[nodiscard]] Clock::duration patience_now() const { return is_full() ? patience_in_a_crowd : patience; }

  Visitors::iterator drop(Visitors::iterator one) {
    if (one->second.connection.is_open()) poller_->remove(one->second.connection.number());
    return visitors_.erase(one);
  }

  /// A few at a time: each may be nobody.
  void accept() {
    for (int i = 0; i < 16 && !is_full(); ++i) {
      Descriptor next = door_->accept();
      if (!next.is_open()) {
        // No descriptors, or no memory: others may give some back.
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
          stop_listening(std::chrono::milliseconds(200));
        return;
      }
      let_in({Connection(std::move(next)), Clock::now()});
    }
    if (is_full()) stop_listening(std::chrono::milliseconds(20));
  }

  void let_in(Visitor visitor) {
    const std::uint64_t name = ++last_name_;
    try {
      poller_->add(visitor.connection.number(), name);
    } catch (const CommError&) {
      return;  // the system watches no more: he may come again
    }
    auto& kept = visitors_.emplace(name, std::move(visitor)).first->second;
    for (auto& message : std::exchange(kept.said, {})) words_.emplace_back(name, std::move(message));
  }

  /// False: he is no visitor any more. If there is something that he has said, it is for the accelerator he wants to.
  bool listen_to(Visitor& visitor, const Message& message, std::vector<Newcomer>& known) try {
    if (visitor.rank >= 0) {
      auto [peer, run_id] = introduced(message, visitor.rank);
      if (visitor.creation != terms_.creation) {
        if (const auto refused = refusal_of_run(peer, run_id, own_, terms_.run_id, terms_.is_drawn))
          refuse(visitor.connection, refusal(*refused));
        else
          visitor.said.push_back(message);
        return false;
      }
      known.push_back({std::move(visitor.connection), std::move(peer), std::move(run_id)});
      return false;
    }
    const Hello hello = Hello::heard(message);
    if (hello.version != ACCEL_VERSION) {
      refuse(visitor.connection, {Word::other_version, Packer().text(ACCEL_VERSION).take()});
      return false;
    }
    if (hello.token != terms_.token || hello.rank < 0 || hello.rank > 1'000'000'000 || hello.creation < 0) return false;
    visitor.rank = static_cast<int>(hello.rank);
    visitor.creation = hello.creation;
    return true;
  } catch (const std::exception&) {
    return false;  // he speaks as no rank does
  }

  /// He wants to another accelerator of this process, which may be there already, or not yet.
  void hand_over(Visitor visitor) {
    poller_->remove(visitor.connection.number());
    if (door_->put_into_room(visitor, static_cast<std::size_t>(own_.world_size))) return;
    refuse(visitor.connection, refusal({.is_setting = false,
                                        .sentence = message("rendezvous: accelerator number ", visitor.creation + 1,
                                                            " of rank 0 at ", terms_.where, " has ended already")}));
  }

  void listen() {
    is_listening_ = true;
    poller_->add(door_->number(), door_name);
  }

  void stop_listening(std::chrono::milliseconds pause) {
    if (!std::exchange(is_listening_, false)) return;
    poller_->remove(door_->number());
    listen_again_ = Clock::now() + pause;
  }

  static constexpr std::uint64_t door_name = first_name;
  static constexpr std::size_t most_visitors = 64;
  static constexpr std::size_t hello_budget = 256;  // bytes, of who has not said hello
  static constexpr std::size_t longest_introduction = 1 << 16;
  static constexpr std::chrono::seconds patience{5};
  static constexpr std::chrono::milliseconds patience_in_a_crowd{500};

  Peer own_;
  std::shared_ptr<Door> door_;
  Poller* poller_;
  StarTerms terms_;
  Visitors visitors_;
  std::vector<std::pair<std::uint64_t, Message>> words_;  // of whom
  std::uint64_t last_name_ = first_name;
  bool is_listening_ = false;
  Time listen_again_{};
};

}  // namespace accel::inline v0_1::launch::detail
