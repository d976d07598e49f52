// Gathering: on rank 0, who has come so far, who may not come in, and who is missing. No sockets, no clock.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Why a process cannot take part.
struct Refusal {
  bool is_setting = true;  // ConfigError; else CommError
  std::string sentence{};

  [[noreturn]] void raise() const {
    if (is_setting) throw ConfigError(sentence);
    throw CommError(sentence);
  }
};

/// Why a process of run `run_id` cannot take part in `own`'s; nothing if it can. `is_drawn`: no launcher gave that
/// run's id, so that those who come for the first time have none.
[[nodiscard]] inline std::optional<Refusal> refusal_of_run(const Peer& peer, const std::string& run_id, const Peer& own,
                                                           const std::string& own_run_id, bool is_drawn) {
  if (run_id == own_run_id || (run_id.empty() && is_drawn)) return std::nullopt;
  return Refusal{.sentence = message("rendezvous: ", peer, " belongs to run \"", run_id, "\", but that of ", own,
                                     " is run \"", own_run_id, "\"; end what is left of the other one, or give each ",
                                     "its own MASTER_PORT")};
}

class Gathering {
 public:
  /// `is_drawn` as above.
  Gathering(Peer own, std::string run_id, bool is_drawn)
      : run_id_(std::move(run_id)), is_drawn_(is_drawn), came_(static_cast<std::size_t>(own.world_size)) {
    came_.front() = std::move(own);
  }

  /// A process says who it is. If it cannot come in: why.
  [[nodiscard]] std::optional<Refusal> admit(const Peer& peer, const std::string& run_id) {
    const Peer& own = *came_.front();
    if (verdict_) return verdict_;
    if (auto other = refusal_of_run(peer, run_id, own, run_id_, is_drawn_)) return other;
    if (peer.world_size != own.world_size) {
      // Neither number is that of a job: nobody can go on.
      verdict_ = Refusal{.sentence = message("rendezvous: WORLD_SIZE is ", own.world_size, " on ", own, " but ",
                                             peer.world_size, " on ", peer, "; give all processes of a job the same")};
      return verdict_;
    }
    if (peer.rank >= own.world_size)
      return Refusal{.sentence = message("rendezvous: ", peer, " is not below ", own.world_size)};
    auto& place = came_[static_cast<std::size_t>(peer.rank)];
    if (place)
      return Refusal{.sentence = message("rendezvous: two processes say they are rank ", peer.rank, ": this one (",
                                         peer, ") and ", *place, ", which came before; give each its own RANK, or its ",
                                         "own MASTER_PORT if they belong to different jobs")};
    place = peer;
    return std::nullopt;
  }

  /// That process has gone again: another may come in its place.
  void forget(int rank) { came_[static_cast<std::size_t>(rank)].reset(); }

  [[nodiscard]] bool is_complete() const {
    for (const auto& one : came_)
      if (!one) return false;
    return true;
  }

  /// Everybody, by rank. Only if it is complete.
  [[nodiscard]] std::vector<Peer> peers() const {
    std::vector<Peer> all;
    for (const auto& one : came_) all.push_back(*one);
    return all;
  }

  /// Why nobody can go on, if something says so.
  [[nodiscard]] const std::optional<Refusal>& verdict() const { return verdict_; }

  /// The time is over. What was wrong before stays.
  void give_up(double seconds, const std::string& where) {
    if (verdict_) return;
    std::vector<std::string> names;
    std::vector<std::string> missing;
    for (std::size_t rank = 0; rank < came_.size(); ++rank)
      if (came_[rank])
        names.push_back(message(*came_[rank]));
      else
        missing.push_back(std::to_string(rank));
    verdict_ = Refusal{.is_setting = false,
                       .sentence = message("rendezvous: after ", seconds, " s ", names.size(), " of ", came_.size(),
                                           " ranks have come to ", where, ": ", listed(names), "; missing: rank ",
                                           listed(missing), ". Start as many processes as WORLD_SIZE says")};
  }

 private:
  std::string run_id_;
  bool is_drawn_;
  std::vector<std::optional<Peer>> came_;  // by rank
  std::optional<Refusal> verdict_;
};

}  // namespace accel::inline v0_1::launch::detail
