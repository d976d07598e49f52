// ControlPlane: small host values between ranks, and what is known of their failures.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/heartbeat.hpp>
#include <accel/launch/peer.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch {

/// Small host values between the ranks of one group: agreements, barriers, error texts. Never
/// touches a device. Knows which ranks did not come, have failed or have left, and says so.
///
/// Copies are the same control plane. begin(), give_up() and failed() may be called by any thread.
///
/// Cost     of a round a write and a few reads per rank, over TCP to rank 0's store.
/// Order    rounds are collective; all ranks call them in the same order.
/// Throws   CommError on the deadline, when the store is lost or a rank has failed; from then on every
///          call does.
class ControlPlane {
 public:
  /// One rank: every call returns at once.
  ControlPlane() = default;

  /// `server` names the process that serves the store, for errors. `heartbeat` watches the whole job;
  /// `whole` says that this group is all of it.
  ControlPlane(c10::intrusive_ptr<c10d::Store> store, int rank, std::vector<Peer> peers, std::string server,
               std::shared_ptr<Heartbeat> heartbeat, bool whole)
      : store_(std::move(store)),
        rank_(rank),
        peers_(std::move(peers)),
        server_(std::move(server)),
        heartbeat_(std::move(heartbeat)),
        whole_(whole) {}

  // Rounds

  /// Everybody's `value`, by rank. `purpose` names the call in errors.
  [[nodiscard]] std::vector<std::string> all_gather(std::string_view purpose, const std::string& value,
                                                    Deadline deadline) {
    check_failure(purpose);
    if (!store_) return {value};
    const std::int64_t number = ++shared_->rounds;
    if (whole_) heartbeat_->began_round(purpose, number);
    try {
      return within(
          deadline,
          [round = Round{store_, rank_, peers_.size(), number}, value, deadline] {
            return round.exchange(value, deadline);
          },
          [&] { return failed() || missed_by(0, number); });
    } catch (const Missing& missing) {
      std::ostringstream names;
      for (const std::size_t rank : missing.ranks) names << (names.tellp() > 0 ? ", " : "") << peers_[rank];
      lose(message(purpose, " gave up after ", deadline.span_s(), " s: no word from ", names.str(),
                   "; look at the output of these ranks, or raise timeout_s"));
    } catch (const LeftBehind&) {
      if (!deadline.passed()) fail(message(purpose, " gave up"), 0, number);
      fail(message(purpose, " gave up after ", deadline.span_s(), " s: the store of ", server_,
                   " does not answer; that process is stopped, or its host out of reach"),
           0, 0, Seconds(0));
    } catch (const std::exception& error) {
      fail(message(purpose, ": the store of ", server_,
                   " does not answer; that process has probably ended. LibTorch says: ", first_line(error)));
    }
  }

  /// Rank `root`'s `value`, on every rank.
  [[nodiscard]] std::string broadcast(std::string_view purpose, const std::string& value, int root, Deadline deadline) {
    return all_gather(purpose, rank_ == root ? value : std::string(), deadline)[static_cast<std::size_t>(root)];
  }

  void barrier(std::string_view purpose, Deadline deadline) { (void)all_gather(purpose, "", deadline); }

  // Collectives of a backend

  /// The number of the next collective, 1, 2, ... `operation` must be a literal: it is what the other
  /// ranks read if this one fails.
  [[nodiscard]] std::int64_t begin(std::string_view operation) noexcept {
    const std::int64_t number = ++shared_->collectives;
    if (heartbeat_ && whole_) heartbeat_->began(operation.data(), number);
    return number;
  }

  /// The number of the next message, of those that this rank sends or receives. Two ranks know of it, so that no other
  /// is behind for it.
  [[nodiscard]] std::int64_t begin_message(std::string_view operation) noexcept {
    if (heartbeat_ && whole_) heartbeat_->began(operation.data(), shared_->collectives);
    return ++shared_->messages;
  }

  /// A sentence about rank `peer` of this group if it has left the training; else empty.
  [[nodiscard]] std::string departure_of(int peer) const {
    return heartbeat_ ? heartbeat_->departure_of(peers_[static_cast<std::size_t>(peer)].rank) : std::string();
  }

  /// Whether a wait is in vain: this group was given up, or a rank of the job has failed.
  [[nodiscard]] bool failed() const noexcept { return shared_->given_up || (heartbeat_ && heartbeat_->failed()); }

  /// Whether a rank has left without having begun that collective or round. 0 asks for neither.
  [[nodiscard]] bool missed_by(std::int64_t collective, std::int64_t round) const {
    return heartbeat_ && whole_ && !heartbeat_->missed_by(collective, round).empty();
  }

  // Failures

  /// Gives up the group and throws CommError: `what` failed here, and who is to blame as far as is known.
  /// `collective` and `round` as in missed_by(). A lost connection comes before the news of whose it was,
  /// which `patience` is for; at a deadline there was time enough for them.
  [[noreturn]] void fail(const std::string& what, std::int64_t collective = 0, std::int64_t round = 0,
                         Seconds patience = Seconds(0.5)) {
    std::string blame = heartbeat_ && !shared_->given_up ? heartbeat_->failure(patience) : std::string();
    if (blame.empty() && heartbeat_ && whole_) blame = heartbeat_->missed_by(collective, round);
    if (blame.empty() && heartbeat_ && whole_ && collective > 0) blame = heartbeat_->suspect(collective);
    lose(blame.empty() ? what : message(what, ": ", blame));
  }

  /// From now on every call throws, on every rank of the job. The first reason stays.
  void give_up(std::string_view reason) noexcept {
    try {
      const std::lock_guard lock(shared_->mutex);
      if (shared_->given_up) return;
      shared_->reason = reason.empty() ? "no reason given" : reason;
      shared_->given_up = true;
      if (heartbeat_) heartbeat_->publish(shared_->reason);
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
    if (!shared_->reason.empty() || !heartbeat_) return shared_->reason;
    return heartbeat_->failure();
  }

  // What the others hear of this rank

  void stepped() noexcept {
    if (heartbeat_) heartbeat_->stepped();
  }
  void note_error(std::string_view text) {
    if (heartbeat_) heartbeat_->note_error(text);
  }

  /// The last word, from a destructor: after it this rank takes part in nothing more. Rank 0, whose
  /// process may serve the store, waits for the others, for a short while.
  void farewell() noexcept {
    try {
      if (heartbeat_) heartbeat_->leave();
    } catch (const std::exception&) {
      // No memory for words. The others will see the connection end.
    }
  }

  [[nodiscard]] const std::vector<Peer>& peers() const { return peers_; }

 private:
  /// These ranks did not come.
  struct Missing : std::exception {
    std::vector<std::size_t> ranks;
  };

  /// One exchange, with all it needs: it may be left behind, see within().
  struct Round {
    c10::intrusive_ptr<c10d::Store> store;
    int rank;
    std::size_t ranks;
    std::int64_t number;

    [[nodiscard]] std::string key(std::int64_t of_round, std::size_t of_rank) const {
      return std::to_string(of_round) + "/" + std::to_string(of_rank);
    }

    [[nodiscard]] std::vector<std::string> exchange(const std::string& value, Deadline deadline) const {
      const auto own = static_cast<std::size_t>(rank);
      store->set(key(number, own), std::vector<std::uint8_t>(value.begin(), value.end()));
      std::vector<std::string> keys;
      for (std::size_t other = 0; other < ranks; ++other) keys.push_back(key(number, other));
      try {
        store->wait(keys, deadline.remaining());
      } catch (const std::exception&) {
        if (!deadline.passed()) throw;  // not the time, but the store itself
        Missing missing;
        for (std::size_t other = 0; other < ranks; ++other)
          if (!store->check({keys[other]})) missing.ranks.push_back(other);
        throw missing;
      }
      std::vector<std::string> values;
      for (const auto& bytes : store->multiGet(keys)) values.emplace_back(bytes.begin(), bytes.end());
      // Everybody wrote round n, so everybody has read round n-1: its keys can go.
      if (number > 1) store->deleteKey(key(number - 1, own));
      return values;
    }
  };

  [[noreturn]] void lose(const std::string& text) {
    give_up(text);
    throw CommError(text);
  }

  /// What copies share.
  struct Shared {
    std::atomic<std::int64_t> collectives{0};
    std::atomic<std::int64_t> messages{0};
    std::int64_t rounds = 0;
    std::atomic<bool> given_up{false};
    std::mutex mutex;    // of the reason
    std::string reason;  // why it was given up
  };

  c10::intrusive_ptr<c10d::Store> store_;
  int rank_ = 0;
  std::vector<Peer> peers_{Peer{}};
  std::string server_;
  std::shared_ptr<Heartbeat> heartbeat_;  // null at one rank
  bool whole_ = true;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace accel::inline v0_1::launch
