// ControlPlane: small host values between ranks, over the store of the rendezvous.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::launch {

/// A process as the others know it.
struct Peer {
  int rank = 0;
  std::string host;
  std::string network;  // host and network namespace: equal where loopback reaches
  std::int64_t pid = 0;
  int world_size = 0;  // what that process believes
};

inline std::ostream& operator<<(std::ostream& out, const Peer& peer) {
  return out << "rank " << peer.rank << " (host " << peer.host << ", process " << peer.pid << ")";
}

/// Small host values between the ranks of one group: agreements, barriers, error texts. Never
/// touches a device, names the ranks that did not come.
///
/// Cost     one write and one read per rank and call, over TCP to rank 0's store.
/// Order    every call is collective; all ranks call in the same order.
/// Throws   CommError on the deadline or when the store is lost.
class ControlPlane {
 public:
  /// One rank: every call returns at once.
  ControlPlane() = default;

  ControlPlane(c10::intrusive_ptr<c10d::Store> store, int rank, std::vector<Peer> peers)
      : store_(std::move(store)), rank_(rank), peers_(std::move(peers)) {}

  /// Everybody's `value`, by rank. `purpose` names the call in errors.
  [[nodiscard]] std::vector<std::string> all_gather(std::string_view purpose, const std::string& value,
                                                    Deadline deadline) {
    if (!store_) return {value};
    const std::string prefix = std::to_string(sequence_) + "/";
    std::vector<std::string> values;
    talk(purpose, [&] {
      store_->set(prefix + std::to_string(rank_), bytes(value));
      wait_for_all(purpose, prefix, deadline);
      for (std::size_t rank = 0; rank < peers_.size(); ++rank)
        values.push_back(text(store_->get(prefix + std::to_string(rank))));
      // Everybody wrote round n, so everybody has read round n-1: its keys can go.
      if (sequence_ > 0) store_->deleteKey(std::to_string(sequence_ - 1) + "/" + std::to_string(rank_));
    });
    ++sequence_;
    return values;
  }

  /// Rank `root`'s `value`, on every rank.
  [[nodiscard]] std::string broadcast(std::string_view purpose, const std::string& value, int root, Deadline deadline) {
    return all_gather(purpose, rank_ == root ? value : std::string(), deadline)[static_cast<std::size_t>(root)];
  }

  void barrier(std::string_view purpose, Deadline deadline) { (void)all_gather(purpose, "", deadline); }

  /// The last word, from a destructor: after it this rank reads nothing from the store. Rank 0, whose
  /// process may serve it, waits for the others, for a short while.
  void farewell() noexcept {
    if (!store_) return;
    try {
      store_->set("farewell/" + std::to_string(rank_), std::vector<std::uint8_t>());
      std::vector<std::string> keys;
      for (const auto& peer : peers_) keys.push_back("farewell/" + std::to_string(peer.rank));
      if (rank_ == 0 && std::uncaught_exceptions() == 0) store_->wait(keys, farewell_timeout);
    } catch (const std::exception&) {
      // The others are gone, or late: either way there is nothing left to do for them.
    }
  }

  [[nodiscard]] const std::vector<Peer>& peers() const { return peers_; }

  /// The same store under a further prefix, for a part of the ranks.
  [[nodiscard]] const c10::intrusive_ptr<c10d::Store>& store() const { return store_; }

 private:
  static std::vector<std::uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }
  static std::string text(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

  void wait_for_all(std::string_view purpose, const std::string& prefix, Deadline deadline) {
    std::vector<std::string> keys;
    for (std::size_t rank = 0; rank < peers_.size(); ++rank) keys.push_back(prefix + std::to_string(rank));
    try {
      store_->wait(keys, deadline.remaining());
    } catch (const std::exception&) {
      if (!deadline.passed()) throw;  // not the time, but the store itself: talk() says so
      std::ostringstream missing;
      for (std::size_t rank = 0; rank < keys.size(); ++rank)
        if (!store_->check({keys[rank]})) missing << (missing.tellp() > 0 ? ", " : "") << peers_[rank];
      throw CommError(message(purpose, " gave up after ", deadline.span_s(), " s: no word from ", missing.str(),
                              "; look at the output of these ranks, or raise timeout_s"));
    }
  }

  template <class Body>
  void talk(std::string_view purpose, Body&& body) {
    try {
      std::forward<Body>(body)();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw CommError(message(purpose, ": the store on ", peers_.front(),
                              " does not answer; that process has probably ended. LibTorch says: ", first_line(error)));
    }
  }

 public:
  /// LibTorch's exceptions carry a backtrace below their first line.
  [[nodiscard]] static std::string first_line(const std::exception& error) {
    const std::string what = error.what();
    return what.substr(0, what.find('\n'));
  }

 private:
  // Ranks that finish a training together do so within milliseconds of each other.
  static constexpr std::chrono::milliseconds farewell_timeout{1000};

  c10::intrusive_ptr<c10d::Store> store_;
  int rank_ = 0;
  std::vector<Peer> peers_{Peer{}};
  std::int64_t sequence_ = 0;
};

}  // namespace accel::inline v0_1::launch
