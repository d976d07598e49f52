// ControlPlane: small host values between ranks, and what is known of their failures.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/notice_board.hpp>
#include <accel/launch/peer.hpp>
#include <accel/launch/star.hpp>

namespace accel::inline v0_1::launch {

/// Small host values between the ranks of one group: agreements, barriers, error texts. Never
/// touches a device. Knows which ranks did not come, have failed or have left, and says so.
///
/// Copies are the same control plane. begin(), give_up() and failed() may be called by any thread.
///
/// Cost     of a round one message to rank 0 of the job and one back, over TCP, which holds what all have brought.
/// Order    rounds are collective; all ranks call them in the same order, with the same `purpose`. Where they do not,
///          every rank's error names both.
/// Throws   CommError on the deadline, or when a rank has failed; from then on every call does.
class ControlPlane {
 public:
  /// One rank: every call returns at once.
  ControlPlane() = default;

  /// `peers`: the members, in order, this rank being number `rank` of them. `star` is of the whole job. `group` is
  /// empty if that is this group, too, else a name of its own.
  ControlPlane(std::shared_ptr<Star> star, std::string group, int rank, std::vector<Peer> peers)
      : star_(std::move(star)), group_(std::move(group)), rank_(rank), peers_(std::move(peers)) {}

  // Rounds

  /// Everybody's `value`, by rank. `purpose` names the call in errors.
  [[nodiscard]] std::vector<std::string> all_gather(std::string_view purpose, const std::string& value,
                                                    Deadline deadline) {
    check_failure(purpose);
    if (!star_) return {value};
    return detail::parted(round(purpose, value, detail::Contribution::everybody, deadline));
  }

  /// Rank `root`'s `value`, on every rank, when all have come.
  [[nodiscard]] std::string broadcast(std::string_view purpose, const std::string& value, int root, Deadline deadline) {
    check_failure(purpose);
    if (!star_) return value;
    return round(purpose, rank_ == root ? value : std::string(), root, deadline);
  }

  /// Returns when all have come.
  void barrier(std::string_view purpose, Deadline deadline) {
    check_failure(purpose);
    if (star_) (void)round(purpose, {}, detail::Contribution::nobody, deadline);
  }

  /// For threads that go their own way: values by name, apart from those of other `section`s.
  [[nodiscard]] NoticeBoard notices(std::string_view section) const {
    return star_ ? NoticeBoard(star_, message(group_, "/", section, "/")) : NoticeBoard();
  }

  // Collectives of a backend

  /// The number of the next collective, 1, 2, ... `operation` must be a literal: it is what the other
  /// ranks read if this one fails.
  [[nodiscard]] std::int64_t begin(std::string_view operation) noexcept {
    const std::int64_t number = ++shared_->collectives;
    if (star_ && is_whole()) star_->began(operation.data(), number);
    return number;
  }

  /// The number of the next message, of those that this rank sends or receives. Two ranks know of it, so that no other
  /// is behind for it.
  [[nodiscard]] std::int64_t begin_message(std::string_view operation) noexcept {
    if (star_ && is_whole()) star_->began(operation.data(), shared_->collectives);
    return ++shared_->messages;
  }

  /// How many collectives this rank has begun.
  [[nodiscard]] std::int64_t begun() const noexcept { return shared_->collectives; }

  /// This rank begins no collective before it has come to the next round; `why` is the rest of a sentence about it,
  /// such as "ran out of memory". Who waits for a collective of it before that waits in vain, and its error says why.
  void halt(std::string_view why) {
    if (star_ && is_whole()) star_->halt(why);
  }

  /// Whether a wait is in vain: this group was given up, or a rank of the job has failed.
  [[nodiscard]] bool failed() const noexcept { return shared_->given_up || (star_ && star_->failed()); }

  /// It is of all ranks of the job.
  [[nodiscard]] bool is_whole() const { return group_.empty(); }

  /// A sentence about a member that has left, and so takes part in nothing more; else empty. What it did before may
  /// still be under way. Of a part of the job that is all that is known: how far it had come there it has not said.
  [[nodiscard]] std::string departed_member() const {
    // Asked again and again by who waits, and as a rule nobody has: that is one look, not one per peer.
    if (!star_ || star_->missed_by(std::numeric_limits<std::int64_t>::max(), 0).empty()) return {};
    for (const Peer& peer : peers_)
      if (std::string sentence = star_->departure_of(peer.rank); !sentence.empty()) return sentence;
    return {};
  }

  /// Whether a rank has left without having begun that collective or round, or has halted before that collective.
  /// 0 asks for neither.
  [[nodiscard]] bool missed_by(std::int64_t collective, std::int64_t round) const {
    return star_ && is_whole() && !star_->missed_by(collective, round).empty();
  }

  /// For a thread that watches: until a rank has failed, or this group was given up, or nudge() where `is_over`; not
  /// longer than `patience`.
  void wait_for_failure(Seconds patience, const std::atomic<bool>& is_over) const {
    const Deadline end = Deadline::in(patience);
    while (!failed() && !is_over && !end.passed()) {
      if (star_) {
        star_->wait_for_news(end.remaining(), is_over);
      } else {
        std::unique_lock lock(shared_->mutex);
        shared_->changed.wait_for(lock, end.remaining(), [&] { return shared_->given_up || is_over; });
      }
    }
  }
  void nudge() const {
    if (star_) return star_->nudge();
    const std::lock_guard lock(shared_->mutex);
    shared_->changed.notify_all();
  }

  /// A sentence about rank `peer` of this group if it has left the training; else empty.
  [[nodiscard]] std::string departure_of(int peer) const {
    return star_ ? star_->departure_of(peers_[static_cast<std::size_t>(peer)].rank) : std::string();
  }

  // Failures

  /// Gives up the group and throws CommError: `what` failed here, and who is to blame as far as is known.
  /// `collective` and `round` as in missed_by(). A lost connection comes before the news of whose it was,
  /// which `patience` is for; at a deadline there was time enough for them.
  [[noreturn]] void fail(const std::string& what, std::int64_t collective = 0, std::int64_t round = 0,
                         Seconds patience = Seconds(0.5)) {
    std::string blame = star_ && !shared_->given_up ? star_->failure(patience) : std::string();
    if (blame.empty() && star_ && is_whole()) blame = star_->missed_by(collective, round);
    if (blame.empty() && !is_whole()) blame = departed_member();
    if (blame.empty() && star_ && is_whole() && collective > 0) {
      blame = star_->suspect(collective);
      if (blame.empty()) blame = star_->failure();  // which may have come meanwhile
    }
    // Another rank may have said the very same a moment before: it is said once.
    const std::size_t same = blame.find(what + ": ");
    lose(what.find(blame) != std::string::npos ? what
         : same != std::string::npos           ? blame.substr(same)
                                               : message(what, ": ", blame));
  }

  /// From now on every call throws, on every rank of the job. The first reason stays.
  void give_up(std::string_view reason) noexcept {
    try {
      const std::lock_guard lock(shared_->mutex);
      if (shared_->given_up) return;
      shared_->reason = reason.empty() ? "no reason given" : reason;
      shared_->given_up = true;
      shared_->changed.notify_all();
      if (star_) star_->publish(shared_->reason);
    } catch (const std::exception&) {
      shared_->given_up = true;  // without memory for words
    }
  }

  /// Throws CommError if the group was given up or a rank has failed.
  void check_failure(std::string_view operation) const {
    if (!failed()) return;
    throw CommError(message(operation, ": this group of ranks was given up earlier: ", failure(),
                            "; end the run and start it again"));
  }

  /// Why the group was given up; empty while it works.
  [[nodiscard]] std::string failure() const {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->reason.empty() || !star_) return shared_->reason;
    return star_->failure();
  }

  // What the others hear of this rank

  void stepped() noexcept {
    if (star_) star_->stepped();
  }
  /// An error that this rank has thrown; it is forgotten with the exception itself.
  void note_error(const Error& error) {
    if (star_) star_->note_error(error.text());
  }
  /// This rank ends by an exception.
  void ended_by(std::string_view text) {
    if (star_) star_->ended_by(text);
  }

  /// The last word, from a destructor: after it this rank takes part in nothing more. Rank 0, over which the others
  /// speak, waits for them, for a short while.
  void farewell() noexcept {
    try {
      if (star_) star_->leave();
    } catch (const std::exception&) {
      // No memory for words. The others will see the connection end.
    }
  }

  [[nodiscard]] const std::vector<Peer>& peers() const { return peers_; }

 private:
  [[nodiscard]] std::string round(std::string_view purpose, const std::string& value, std::int64_t root,
                                  Deadline deadline) {
    using enum Star::Answer::Ending;
    const std::int64_t number = ++shared_->rounds;
    if (is_whole()) star_->began_round(purpose, number);
    const detail::ExchangeKey key{group_, number};
    std::vector<int> members;  // of the whole job rank 0 knows them
    if (!is_whole())
      for (const Peer& peer : peers_) members.push_back(peer.rank);
    auto answer = star_->exchange({.key = key,
                                   .purpose = std::string(purpose),
                                   .root = root,
                                   .index = rank_,
                                   .size = static_cast<std::int64_t>(peers_.size()),
                                   .value = value},
                                  members, deadline);
    if (answer.ending == answered) return std::move(answer.value);
    if (answer.ending == interrupted) {
      const std::string departure = is_whole() ? std::string() : star_->departure_of(0);
      fail(message(purpose, " gave up", departure.empty() ? "" : ": ", departure), 0, number);
    }
    answer = star_->ask_who_is_late({key, std::string(purpose), false, deadline.span_s(), members});
    if (answer.ending == answered) return std::move(answer.value);
    const std::string said = star_->failure();
    // What rank 0 says of this very round is this rank's own word, too.
    if (said.starts_with(message(purpose, " gave up"))) lose(said);
    fail(message(purpose, " gave up after ", deadline.span_s(), " s",
                 said.empty() ? message(": ", star_->peers().front(),
                                        ", over which the ranks speak, does not answer; that process is stopped, or "
                                        "its host out of reach")
                              : ""),
         0, 0, Seconds(0));
  }

  [[noreturn]] void lose(const std::string& text) {
    give_up(text);
    throw CommError(text);
  }

  /// What copies share.
  struct Shared {
    std::atomic<std::int64_t> collectives{0};
    std::atomic<std::int64_t> messages{0};
    std::atomic<std::int64_t> rounds{0};
    std::atomic<bool> given_up{false};
    std::mutex mutex;                 // of the reason
    std::condition_variable changed;  // at one rank
    std::string reason;               // why it was given up
  };

  std::shared_ptr<Star> star_;  // null at one rank
  std::string group_;
  int rank_ = 0;
  std::vector<Peer> peers_{Peer{}};
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace accel::inline v0_1::launch
