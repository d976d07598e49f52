// Roster: what a rank knows of the others once all have met, and what it tells them. No sockets, no clock, no thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Who takes part, who has left, who has failed, who is how far. Rank 0 is connected to every other rank, these to
/// rank 0 only, which passes the news on. The first failure that a rank hears of is the one it keeps: what follows
/// from it is no news.
///
/// What happens is told to it with the time at which it did; what it has to say lies in take_letters().
class Roster {
 public:
  /// All are connected by now. `interval` 0: silence is never a failure.
  Roster(int rank, std::vector<Peer> peers, Seconds interval, Time now)
      : rank_(rank),
        peers_(std::move(peers)),
        interval_(std::chrono::duration_cast<Clock::duration>(interval)),
        next_beat_(now),
        last_turn_(now),
        links_(rank == 0 ? peers_.size() : 1) {
    for (auto& link : links_) link.heard = now;
    if (rank == 0) links_[0].expected = false;  // itself
  }

  // What happens

  void sign_of_life(int from, Time now) { link_to(from).heard = now; }

  void hear(int from, const Message& message, Time now) {
    Link& link = link_to(from);
    link.heard = now;
    Unpacker body(message.body);
    if (message.word == Word::beat) {
      link.progress = unpack_progress(body);
    } else if (message.word == Word::behind) {
      const std::int64_t who = body.number();
      const Seconds ago(body.real());
      if (who < 0 || who >= static_cast<std::int64_t>(peers_.size())) return;
      ++comparisons_;
      behind_ = {static_cast<int>(who), now - std::chrono::duration_cast<Clock::duration>(ago), unpack_progress(body)};
    } else if (message.word == Word::left) {
      while (!body.is_over()) {
        const std::int64_t who = body.number();
        const Progress progress = unpack_progress(body);
        if (who < 0 || who >= static_cast<std::int64_t>(peers_.size())) return;
        left_[static_cast<int>(who)] = progress;
        if (who == from) link.expected = false;
        if (rank_ == 0) pack(leavers_.number(who), progress);
      }
    } else if (message.word == Word::halted) {
      const std::int64_t who = body.number();
      Halt halt{unpack_progress(body), std::string(body.text())};
      if (who < 0 || who >= static_cast<std::int64_t>(peers_.size())) return;
      if (rank_ == 0) letters_.push_back({Letter::everybody, message});
      halted_[static_cast<int>(who)] = std::move(halt);
    } else if (message.word == Word::failed) {
      fail(std::string(body.text()));
    }
  }

  /// The connection to that rank has ended.
  void lose(int rank, Time now) {
    Link& link = link_to(rank);
    if (std::exchange(link.expected, false))
      fail(message(peer(rank), " has ended without a word: killed, or by exit; ", last_heard(link, now)));
  }

  /// Some time has passed: who is silent has failed, and when a beat is due it is sent. `own`: how far this rank is.
  /// `host_answers(rank)`: whether that rank's host has taken what was sent to it. `has_heard_all`: what has come so
  /// far has been told; else nobody is known to be silent.
  void turn(const Progress& own, Time now, const std::function<bool(int)>& host_answers, bool has_heard_all = true) {
    if (interval_.count() == 0) return;
    // After a pause of this very process: the others were silent only to it.
    if (now - last_turn_ > 2 * interval_)
      for (auto& link : links_) link.heard = now;
    last_turn_ = now;
    if (now >= next_look_ && has_heard_all) {
      next_look_ = now + interval_ / 8;  // not at every turn: of a large job rank 0 has many
      for (std::size_t r = 0; r < links_.size(); ++r) check_silence(static_cast<int>(r), now, host_answers);
    }
    if (now < next_beat_) return;
    next_beat_ = now + interval_;
    beat(Letter::everybody, own);
  }

  /// How far this rank is, said to that one.
  void beat(int to, const Progress& own) { letters_.push_back({to, {Word::beat, pack(Packer(), own).take()}}); }

  /// On rank 0: who is furthest behind, said to that one.
  void compare(int to, const Progress& own, Time now) {
    const Standing last = hindmost(own, now);
    Packer body;
    body.number(last.rank).real(Seconds(now - last.heard).count());
    letters_.push_back({to, {Word::behind, pack(body, last.progress).take()}});
  }

  /// This rank has failed, or knows of one that has. The first sentence stays, and everybody hears it.
  void fail(std::string_view sentence) {
    if (!failure_.empty()) return;
    failure_ = shortened(sentence);
    letters_.push_back({Letter::everybody, {Word::failed, Packer().text(failure_).take()}});
  }

  /// This rank takes part in nothing more.
  void leave(const Progress& own) { pack(leavers_.number(rank_), own); }

  /// This rank begins no collective before its next exchange.
  void halt(const Progress& own, std::string_view why) {
    Packer body;
    body.number(rank_);
    letters_.push_back({Letter::everybody, {Word::halted, pack(body, own).text(shortened(why)).take()}});
  }

  // What is known

  [[nodiscard]] const std::vector<Peer>& peers() const { return peers_; }
  [[nodiscard]] const Peer& peer(int rank) const { return peers_[static_cast<std::size_t>(rank)]; }

  /// When turn() has something to do; none if never.
  [[nodiscard]] std::optional<Time> next_turn() const {
    return interval_.count() == 0 ? std::nullopt : std::optional(std::min(next_beat_, next_look_));
  }

  /// The sentence about the first rank that has failed; empty while all are well.
  [[nodiscard]] const std::string& failure() const { return failure_; }

  /// Nobody is connected any more from whom something could come.
  [[nodiscard]] bool is_alone() const {
    return std::none_of(links_.begin(), links_.end(), [](const Link& link) { return link.expected; });
  }

  /// A sentence about a rank that has left, and will never come to this collective or this round; or empty. The
  /// number 0 asks for neither.
  [[nodiscard]] std::string missed_by(std::int64_t collective, std::int64_t round) const {
    for (const auto& [rank, progress] : left_)
      if (progress.collectives < collective || progress.rounds < round) return departure_of(rank);
    return {};
  }

  /// A sentence about a rank that begins this collective only after an exchange that this one, which has begun `rounds`
  /// of them, has not come to; or empty. A collective before that exchange waits for it in vain.
  [[nodiscard]] std::string halted_before(std::int64_t collective, std::int64_t rounds) const {
    for (const auto& [rank, halt] : halted_)
      if (rank != rank_ && halt.progress.collectives < collective && rounds <= halt.progress.rounds)
        return message(peer(rank), " ", halt.why, ", ", halt.progress);
    return {};
  }

  [[nodiscard]] bool has_left(int rank) const { return left_.contains(rank); }

  /// A sentence about that rank if it has left, or empty.
  [[nodiscard]] std::string departure_of(int rank) const {
    const auto found = left_.find(rank);
    return found == left_.end() ? std::string() : message(peer(rank), " has left the training ", found->second);
  }

  /// How often this rank has been told who is furthest behind.
  [[nodiscard]] int comparisons() const { return comparisons_; }

  /// A sentence about the rank that is furthest behind, if it had not begun that collective when it was last heard of;
  /// or empty. For a wait that took too long, after reports and, on others than rank 0, a comparison.
  [[nodiscard]] std::string suspect(std::int64_t collective, const Progress& own, Time now) const {
    const Standing last = rank_ == 0 ? hindmost(own, now) : comparisons_ == 0 ? of(0) : behind_;
    if (last.rank == rank_ || last.progress.collectives >= collective) return {};
    return message(peer(last.rank), " was furthest behind, ", tenths(now - last.heard), " s ago ", last.progress);
  }

  /// What is to be sent, in order. Who has left stands in one letter, as at the end of a job all ranks do.
  [[nodiscard]] std::vector<Letter> take_letters() {
    if (std::string left = leavers_.take(); !left.empty())
      letters_.push_back({Letter::everybody, {Word::left, std::move(left)}});
    return std::exchange(letters_, {});
  }

 private:
  /// How far a rank was when it was last heard of.
  struct Standing {
    int rank = 0;
    Time heard{};
    Progress progress{};
  };

  struct Halt {
    Progress progress{};
    std::string why;
  };

  struct Link {
    Time heard{};
    Progress progress{};   // of the other end
    bool expected = true;  // something should come from there
  };

  [[nodiscard]] Link& link_to(int rank) { return links_[static_cast<std::size_t>(rank)]; }

  /// What is read by every rank is no place for a file: an error may quote one.
  [[nodiscard]] static std::string shortened(std::string_view words) {
    constexpr std::size_t most = 4096;
    if (words.size() <= most) return std::string(words);
    return message(words.substr(0, most), " ... (", words.size() - most, " characters more)");
  }

  static Packer& pack(Packer& packer, const Progress& progress) {
    return packer.number(progress.steps).number(progress.collectives).number(progress.rounds).text(progress.operation);
  }
  static Packer& pack(Packer&& packer, const Progress& progress) { return pack(packer, progress); }

  [[nodiscard]] static Progress unpack_progress(Unpacker& body) {
    Progress progress;
    progress.steps = body.number();
    progress.collectives = body.number();
    progress.rounds = body.number();
    progress.operation = body.text();
    return progress;
  }

  void check_silence(int rank, Time now, const std::function<bool(int)>& host_answers) {
    const Link& link = link_to(rank);
    if (!link.expected || now - link.heard <= 3 * interval_) return;
    fail(message(peer(rank), " is silent since ", tenths(now - link.heard), " s",
                 host_answers(rank) ? " while its host answers: the process is stopped, or gets no time to run"
                                    : " and its host does not answer: the network is cut, or the host is down",
                 "; ", last_heard(link, now)));
  }

  [[nodiscard]] Standing of(int rank) const {
    const Link& link = links_[static_cast<std::size_t>(rank)];
    return {rank, link.heard, link.progress};
  }

  /// On rank 0, which hears of all.
  [[nodiscard]] Standing hindmost(const Progress& own, Time now) const {
    Standing last{0, now, own};
    for (std::size_t r = 1; r < links_.size(); ++r)
      if (links_[r].expected && links_[r].progress.collectives < last.progress.collectives)
        last = of(static_cast<int>(r));
    return last;
  }

  [[nodiscard]] static std::string last_heard(const Link& link, Time now) {
    return message("last heard of ", tenths(now - link.heard), " s ago, ", link.progress);
  }

  [[nodiscard]] static double tenths(Seconds seconds) { return std::round(10 * seconds.count()) / 10; }

  int rank_;
  std::vector<Peer> peers_;
  Clock::duration interval_;
  Time next_beat_;
  Time next_look_{};  // for who is silent
  Time last_turn_;
  std::vector<Link> links_;       // by rank; on others than rank 0 only to that
  std::map<int, Progress> left_;  // by rank: what those had done that have left
  std::map<int, Halt> halted_;    // by rank: the last time
  Standing behind_;               // as rank 0 has told
  int comparisons_ = 0;
  std::string failure_;
  std::vector<Letter> letters_;
  Packer leavers_;  // of whom the others have not heard yet
};

}  // namespace accel::inline v0_1::launch::detail
