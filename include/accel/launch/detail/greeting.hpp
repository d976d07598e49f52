// Greeting: the first words between a rank and rank 0.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch {

/// Three of them are silence: a stopped process is given up after 4.5 s.
inline constexpr Seconds default_beat{1.5};

/// What all ranks of a star have alike.
struct StarTerms {
  std::string where{};        // MASTER_ADDR and MASTER_PORT, for people
  std::string run_id{};       // who has another is of another run; empty, but not on rank 0: whichever that has
  bool is_drawn = false;      // on rank 0: nobody gave it, so that nobody else can know it
  std::int64_t creation = 0;  // of the accelerators of a process, which one
  std::string token{};        // who does not know it is no rank of this job
  Seconds interval = default_beat;
};

namespace detail {

inline constexpr std::string_view magic = "accel";

/// Of any version: what comes later may be said otherwise, this is not.
struct Hello {
  std::string version;
  std::string token;
  std::int64_t creation = 0;
  std::int64_t rank = 0;

  [[nodiscard]] static Message from(int rank, const StarTerms& terms) {
    return {Word::hello,
            Packer().text(magic).text(ACCEL_VERSION).text(terms.token).number(terms.creation).number(rank).take()};
  }
  /// Throws   std::runtime_error if it is something else.
  [[nodiscard]] static Hello heard(const Message& message) {
    Unpacker body(message.body);
    if (message.word != Word::hello || body.text() != magic) throw std::runtime_error("no rank speaks so");
    Hello hello;
    hello.version = body.text();
    hello.token = body.text();
    hello.creation = body.number();
    hello.rank = body.number();
    return hello;
  }
};

[[nodiscard]] inline Message introduction(const Peer& own, const std::string& run_id) {
  return {Word::introduce,
          Packer().text(run_id).text(own.host).text(own.network).number(own.pid).number(own.world_size).take()};
}

/// Who it is that has said hello as `rank`, and its run.
///
/// Throws   std::runtime_error if it is something else.
[[nodiscard]] inline std::pair<Peer, std::string> introduced(const Message& message, int rank) {
  if (message.word != Word::introduce) throw std::runtime_error("no introduction");
  Unpacker body(message.body);
  std::string run_id(body.text());
  Peer peer;
  peer.rank = rank;
  peer.host = body.text();
  peer.network = body.text();
  peer.pid = body.number();
  peer.world_size = static_cast<int>(body.number());
  return {std::move(peer), std::move(run_id)};
}

[[nodiscard]] inline Message refusal(const Refusal& why) {
  return {Word::refuse, Packer().number(why.is_setting ? 1 : 0).text(why.sentence).take()};
}

/// All have come.
struct Welcome {
  std::string run_id;
  Seconds interval{};
  std::vector<Peer> peers;

  /// Everybody gets everybody's, so that each has few bytes: names stand in a list of their own.
  [[nodiscard]] Message packed() const {
    std::map<std::string, std::uint64_t> numbers;
    std::vector<std::string> names;
    const auto number_of = [&](const std::string& name) {
      const auto [found, is_new] = numbers.try_emplace(name, names.size());
      if (is_new) names.push_back(name);
      return found->second;
    };
    Packer everybody;
    for (const Peer& peer : peers)
      everybody.count(number_of(peer.host)).count(number_of(peer.network)).count(static_cast<std::uint64_t>(peer.pid));
    Packer all;
    all.text(run_id).real(interval.count()).count(peers.size()).count(names.size());
    for (const auto& name : names) all.text(name);
    return {Word::welcome, all.text(everybody.take()).take()};
  }

  [[nodiscard]] static Welcome heard(const Message& message) {
    Unpacker all(message.body);
    Welcome welcome;
    welcome.run_id = all.text();
    welcome.interval = Seconds(all.real());
    const std::uint64_t ranks = all.count();
    std::vector<std::string> names;
    for (std::uint64_t left = all.count(); left > 0; --left) names.emplace_back(all.text());
    Unpacker everybody(all.text());
    for (std::uint64_t rank = 0; rank < ranks; ++rank) {
      Peer peer;
      peer.rank = static_cast<int>(rank);
      peer.host = names.at(everybody.count());
      peer.network = names.at(everybody.count());
      peer.pid = static_cast<std::int64_t>(everybody.count());
      peer.world_size = static_cast<int>(ranks);
      welcome.peers.push_back(std::move(peer));
    }
    return welcome;
  }
};

}  // namespace detail
}  // namespace accel::inline v0_1::launch
