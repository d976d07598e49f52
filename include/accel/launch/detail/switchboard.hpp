// Switchboard: what follows from each word that a rank hears or says. No sockets, no clock, no thread, no lock.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/units.hpp>
#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/hub.hpp>
#include <accel/launch/detail/roster.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// One rank's end of the star, once all have met: what it knows of the others, and what it has asked rank 0 for. On
/// rank 0 the hub, too, which it asks without a connection in between.
///
/// `own` is always how far this rank is. What is to be sent lies in take_letters().
class Switchboard {
 public:
  Switchboard(int rank, std::vector<Peer> peers, Seconds interval, Time now)
      : rank_(rank), roster_(rank, std::move(peers), interval, now) {
    if (rank == 0) hub_.emplace();
  }

  [[nodiscard]] const Roster& roster() const { return roster_; }

  // What happens

  void sign_of_life(int from, Time now) { roster_.sign_of_life(from, now); }

  /// Throws   std::runtime_error if it is not said as a rank does.
  void hear(int from, const Message& message, const Progress& own, Time now) {
    roster_.hear(from, message, now);
    has_news_ |= message.word == Word::left || message.word == Word::behind || message.word == Word::failed ||
                 message.word == Word::halted;
    take(from, message, own, now);
  }

  /// The connection to that rank has ended.
  void lose(int rank, Time now) {
    roster_.lose(rank, now);
    has_news_ = true;
  }

  /// As Roster::turn.
  void turn(const Progress& own, Time now, const std::function<bool(int)>& host_answers, bool has_heard_all) {
    const bool was_well = roster_.failure().empty();
    roster_.turn(own, now, host_answers, has_heard_all);
    has_news_ |= was_well != roster_.failure().empty();
  }

  // What this rank says

  void fail(std::string_view sentence) {
    roster_.fail(sentence);
    has_news_ = true;
  }

  void leave(const Progress& own) { roster_.leave(own); }
  void halt(const Progress& own, std::string_view why) { roster_.halt(own, why); }

  /// To rank 0, which may be this one.
  void say(Message message, const Progress& own, Time now) {
    if (rank_ == 0)
      take(0, message, own, now);
    else
      letters_.push_back({0, std::move(message)});
  }

  /// The number by which the reply is known.
  [[nodiscard]] std::int64_t ask(const Inquiry& inquiry, const Progress& own, Time now) {
    const std::int64_t id = ++inquiries_;
    say({Word::ask, inquiry.packed(id)}, own, now);
    return id;
  }

  // What has come of it

  [[nodiscard]] bool has_reply(std::int64_t id) const { return replies_.contains(id); }
  [[nodiscard]] std::optional<std::string> take_reply(std::int64_t id) { return taken_out(replies_, id); }

  [[nodiscard]] bool has_result(const ExchangeKey& key) const { return results_.contains(key); }
  [[nodiscard]] std::optional<std::string> take_result(const ExchangeKey& key) { return taken_out(results_, key); }

  /// Whether, since it was asked last, something has come for which somebody may wait.
  [[nodiscard]] bool take_news() { return std::exchange(has_news_, false); }

  /// What is to be sent, in order: who has left has had its results before.
  [[nodiscard]] std::vector<Letter> take_letters() {
    for (auto& letter : roster_.take_letters()) letters_.push_back(std::move(letter));
    return std::exchange(letters_, {});
  }

 private:
  /// What is no news of rank `from` itself.
  void take(int from, const Message& message, const Progress& own, Time now) {
    if (message.word == Word::report) {
      if (rank_ == 0)
        ask_for_reports(now);
      else
        roster_.beat(0, own);
    } else if (message.word == Word::compare) {
      if (rank_ == 0 && from != 0) roster_.compare(from, own, now);
    } else if (message.word == Word::give) {
      Unpacker body(message.body);
      auto key = ExchangeKey::unpacked(body);
      results_[std::move(key)] = body.text();
      has_news_ = true;
    } else if (message.word == Word::tell) {
      Unpacker body(message.body);
      const std::int64_t id = body.number();
      replies_[id] = body.text();
      has_news_ = true;
    } else if (hub_) {
      auto outcome = hub_->hear(from, message, roster_);
      for (auto& letter : outcome.letters) {
        if (letter.to == rank_ || letter.to == Letter::everybody) take(rank_, letter.message, own, now);
        if (letter.to != rank_) letters_.push_back(std::move(letter));
      }
      if (!outcome.failure.empty()) fail(outcome.failure);
    }
  }

  /// Of a late collective all ranks ask at the same time: one answer serves them all.
  void ask_for_reports(Time now) {
    constexpr std::chrono::milliseconds as_new(100);
    if (now - reported_ < as_new) return;
    reported_ = now;
    letters_.push_back({Letter::everybody, {Word::report, {}}});
  }

  template <class Map>
  [[nodiscard]] static std::optional<std::string> taken_out(Map& all, const typename Map::key_type& key) {
    auto found = all.extract(key);
    return found.empty() ? std::nullopt : std::optional(std::move(found.mapped()));
  }

  int rank_;
  Roster roster_;
  std::optional<Hub> hub_;  // on rank 0
  std::map<ExchangeKey, std::string> results_;
  std::int64_t inquiries_ = 0;
  std::map<std::int64_t, std::string> replies_;
  Time reported_{};  // when all were asked how far they are
  std::vector<Letter> letters_;
  bool has_news_ = false;
};

}  // namespace accel::inline v0_1::launch::detail
