// Hub: what rank 0 does for the others: exchanges of values, and a shelf of them. No sockets, no clock.
#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/roster.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

class Hub {
 public:
  /// What follows from what a rank has said.
  struct Outcome {
    std::vector<Letter> letters{};
    std::string failure{};  // of the job; empty: none
  };

  /// Throws   std::runtime_error if it is not said as a rank does.
  [[nodiscard]] Outcome hear(int from, const Message& said, const Roster& roster) {
    if (said.word == Word::bring) return bring(from, Contribution::unpacked(said.body), roster);
    if (said.word == Word::late) return name_missing(Inquest::unpacked(said.body), roster);
    if (said.word == Word::ask) return ask(from, said);
    return {};
  }

 private:
  [[nodiscard]] Outcome bring(int from, Contribution own, const Roster& roster) {
    Outcome outcome;
    try {
      auto result = exchanges_.bring(from, std::move(own));
      // One letter where it is for all: it may be long.
      if (result.to.size() == roster.peers().size()) result.to = {Letter::everybody};
      for (const int to : result.to) outcome.letters.push_back({to, {Word::give, result.packed()}});
    } catch (const std::exception& error) {
      outcome.failure = error.what();
    }
    return outcome;
  }

  [[nodiscard]] Outcome ask(int from, const Message& said) {
    const auto [id, inquiry] = Inquiry::unpacked(said.body);
    Outcome outcome;
    for (auto& reply : shelf_.ask(from, id, inquiry))
      outcome.letters.push_back({reply.to, {Word::tell, Packer().number(reply.id).text(reply.value).take()}});
    return outcome;
  }

  [[nodiscard]] Outcome name_missing(const Inquest& late, const Roster& roster) const {
    if (!roster.failure().empty()) return {};  // it is said already
    std::vector<int> members = late.members;
    if (late.key.group.empty())
      for (const Peer& peer : roster.peers()) members.push_back(peer.rank);
    std::vector<std::string> names;
    for (const int rank : exchanges_.missing(late.key, members)) {
      if (late.of_leavers && roster.has_left(rank))
        return {.failure = message(late.purpose, " gave up: ", roster.departure_of(rank))};
      names.push_back(message(roster.peers().at(static_cast<std::size_t>(rank))));
    }
    if (names.empty() || late.of_leavers) return {};  // meanwhile all have come, or may still
    return {.failure = message(late.purpose, " gave up after ", late.seconds, " s: no word from ", listed(names),
                               "; look at the output of these ranks, or raise timeout_s")};
  }

  Exchanges exchanges_;
  Shelf shelf_;
};

}  // namespace accel::inline v0_1::launch::detail
