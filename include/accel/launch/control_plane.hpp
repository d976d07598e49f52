// ControlPlane: small host values between ranks, over the store of the rendezvous.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch {

/// A process as the others know it.
struct Peer {
  int rank = 0;
  std::string host;
  std::string network;  // boot and network namespace: equal where loopback reaches
  std::int64_t pid = 0;
  int world_size = 0;  // what that process believes
};

inline std::ostream& operator<<(std::ostream& out, const Peer& peer) {
  return out << "rank " << peer.rank << " (host " << peer.host << ", process " << peer.pid << ")";
}

/// Small host values between the ranks of one group: agreements, barriers, error texts. Never
/// touches a device, names the ranks that did not come.
///
/// Cost     a write and a few reads per rank and call, over TCP to rank 0's store.
/// Order    every call is collective; all ranks call in the same order.
/// Throws   CommError on the deadline or when the store is lost; from then on every call does.
class ControlPlane {
 public:
  /// One rank: every call returns at once.
  ControlPlane() = default;

  /// `server` names the process that serves the store, for errors.
  ControlPlane(c10::intrusive_ptr<c10d::Store> store, int rank, std::vector<Peer> peers, std::string server)
      : store_(std::move(store)), rank_(rank), peers_(std::move(peers)), server_(std::move(server)) {}

  /// Everybody's `value`, by rank. `purpose` names the call in errors.
  [[nodiscard]] std::vector<std::string> all_gather(std::string_view purpose, const std::string& value,
                                                    Deadline deadline) {
    check_failure(purpose);
    if (!store_) return {value};
    try {
      auto values = within(deadline, [round = Round{store_, rank_, peers_.size(), sequence_}, value, deadline] {
        return round.exchange(value, deadline);
      });
      ++sequence_;
      return values;
    } catch (const Missing& missing) {
      std::ostringstream names;
      for (const std::size_t rank : missing.ranks) names << (names.tellp() > 0 ? ", " : "") << peers_[rank];
      lose(message(purpose, " gave up after ", deadline.span_s(), " s: no word from ", names.str(),
                   "; look at the output of these ranks, or raise timeout_s"));
    } catch (const LeftBehind&) {
      deaf_ = true;
      lose(message(purpose, " gave up after ", deadline.span_s(), " s: the store of ", server_,
                   " does not answer; that process is stopped, or its host out of reach"));
    } catch (const std::exception& error) {
      deaf_ = true;
      lose(message(purpose, ": the store of ", server_,
                   " does not answer; that process has probably ended. LibTorch says: ", first_line(error)));
    }
  }

  /// Rank `root`'s `value`, on every rank.
  [[nodiscard]] std::string broadcast(std::string_view purpose, const std::string& value, int root, Deadline deadline) {
    return all_gather(purpose, rank_ == root ? value : std::string(), deadline)[static_cast<std::size_t>(root)];
  }

  void barrier(std::string_view purpose, Deadline deadline) { (void)all_gather(purpose, "", deadline); }

  /// The last word, from a destructor: after it this rank reads nothing from the store. Rank 0, whose
  /// process may serve it, waits for the others, for a short while.
  void farewell() noexcept {
    if (!store_ || deaf_) return;
    try {
      const bool waits = rank_ == 0 && std::uncaught_exceptions() == 0;
      const Deadline deadline = Deadline::in(failure_.empty() ? farewell_timeout : farewell_timeout_after_failure);
      within(deadline, [store = store_, rank = rank_, ranks = peers_.size(), waits, deadline] {
        store->set(farewell_key(static_cast<std::size_t>(rank)), std::vector<std::uint8_t>());
        std::vector<std::string> keys;
        for (std::size_t other = 0; other < ranks; ++other) keys.push_back(farewell_key(other));
        // Asked again and again: a wait() that runs out of time writes warnings.
        while (waits && !store->check(keys) && !deadline.passed()) std::this_thread::sleep_for(poll_interval);
      });
    } catch (const std::exception&) {
      // The others are gone, or late: either way there is nothing left to do for them.
    }
  }

  /// From now on every call throws. The first reason stays.
  void give_up(std::string_view reason) noexcept {
    if (failure_.empty()) failure_ = reason.empty() ? "no reason given" : reason;
  }

  /// Throws CommError if the group was given up.
  void check_failure(std::string_view operation) const {
    ACCEL_CHECK(failure_.empty(), CommError, operation, ": this group of ranks was given up earlier: ", failure_,
                "; end the run and start it again");
  }

  /// Why the group was given up; empty while it works.
  [[nodiscard]] const std::string& failure() const { return failure_; }

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
      if (number > 0) store->deleteKey(key(number - 1, own));
      return values;
    }
  };

  [[nodiscard]] static std::string farewell_key(std::size_t rank) { return "farewell/" + std::to_string(rank); }

  [[noreturn]] void lose(const std::string& text) {
    give_up(text);
    throw CommError(text);
  }

  // Ranks that finish a training together do so within milliseconds of each other.
  static constexpr Seconds farewell_timeout{1};
  static constexpr Seconds farewell_timeout_after_failure{0.3};  // some are gone; the rest may still ask who
  static constexpr std::chrono::milliseconds poll_interval{2};

  c10::intrusive_ptr<c10d::Store> store_;
  int rank_ = 0;
  std::vector<Peer> peers_{Peer{}};
  std::string server_;
  std::int64_t sequence_ = 0;
  std::string failure_;
  bool deaf_ = false;  // the store does not answer any more
};

}  // namespace accel::inline v0_1::launch
