// Rendezvous: all processes of a job find rank 0, and over it each other.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <ios>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/detail/address.hpp>
#include <accel/launch/detail/agent_store.hpp>
#include <accel/launch/detail/door.hpp>
#include <accel/launch/detail/limits.hpp>
#include <accel/launch/detail/network.hpp>
#include <accel/launch/environment.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/peer.hpp>
#include <accel/launch/star.hpp>
#include <accel/launch/star_store.hpp>
#include <accel/launch/topology.hpp>

namespace accel::inline v0_1::launch {

/// What the rendezvous leaves: everything a backend needs to connect. The default is one process.
struct Meeting {
  Topology topology;                        // complete, local ranks included
  std::string family = "single process";    // who started the processes
  c10::intrusive_ptr<c10d::Store> store;    // of this accelerator; null at one rank
  std::vector<Peer> peers{Peer{}};          // by rank
  std::string local_address = "127.0.0.1";  // where the other ranks reach this process; empty: unknown
  Seconds timeout{300};                     // what connecting may take
  Seconds collective_timeout{600};          // what a collective may take, where a backend's options do not say
  std::string run_id{};                     // equal on all ranks
  std::shared_ptr<Star> star{};             // of the whole job; null at one rank
  std::string group{};                      // empty: the whole job; else a part of it, as Backend::split makes it

  [[nodiscard]] ControlPlane control_plane() const {
    if (!store) return {};
    return {star, group, topology.rank, peers};
  }

  /// The meeting of `ranks` only, in that order, as Backend::split needs it; `name` must be new.
  /// Throws   InvalidArgument if a rank does not exist, or this one is no member.
  [[nodiscard]] Meeting part(std::span<const int> ranks, std::string_view name) const {
    Meeting part = *this;
    part.group = message(group, "/", name);
    part.peers.clear();
    part.topology.world_size = static_cast<int>(ranks.size());
    part.topology.rank = -1;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      ACCEL_CHECK(ranks[i] >= 0 && ranks[i] < topology.world_size, InvalidArgument, "split: rank ", ranks[i],
                  " is not in [0, ", topology.world_size, ")");
      if (ranks[i] == topology.rank) part.topology.rank = static_cast<int>(i);
      part.peers.push_back(peers[static_cast<std::size_t>(ranks[i])]);
    }
    ACCEL_CHECK(part.topology.rank >= 0, InvalidArgument, "split: rank ", topology.rank, " is not a member of group \"",
                name, "\"; only its members call split");
    if (ranks.size() == 1)
      part.store = {};
    else
      part.store = c10::make_intrusive<c10d::PrefixStore>(message("split/", name), store);
    return part;
  }
};

namespace detail {

[[nodiscard]] inline std::string random_name() {
  std::random_device random;
  return message(std::hex, random(), random());
}

/// The run that this process takes part in: the launcher's, or else the one of the rank 0 that it has met first at this
/// place. A process that is left over of an earlier run is so known to be.
class RunIds {
 public:
  [[nodiscard]] static std::string of(const Launch& launch) {
    const std::lock_guard lock(mutex());
    return launch.run_id.empty() ? all()[place_of(launch)] : launch.run_id;
  }
  /// The same on a rank 0, which draws one where there is none: one for all its accelerators, however many begin at
  /// once.
  [[nodiscard]] static std::string drawn_for(const Launch& launch) {
    if (!launch.run_id.empty()) return launch.run_id;
    const std::lock_guard lock(mutex());
    std::string& run_id = all()[place_of(launch)];
    if (run_id.empty()) run_id = random_name();
    return run_id;
  }
  static void remember(const Launch& launch, const std::string& run_id) {
    const std::lock_guard lock(mutex());
    all()[place_of(launch)] = run_id;
  }

 private:
  [[nodiscard]] static std::string place_of(const Launch& launch) {
    return launch.master->host + ":" + std::to_string(launch.master->port);
  }
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::map<std::string, std::string>& all() {
    static auto& instance = *new std::map<std::string, std::string>;  // outlives static destruction
    return instance;
  }
};

/// What a rank has met by, and where the others reach it; empty: nowhere but on its own host.
struct Met {
  std::shared_ptr<Star> star;
  std::string address;
};

/// Rank 0's side of the meeting.
[[nodiscard]] inline Met lead(const Launch& launch, const Peer& own, StarTerms terms, int port, Deadline deadline) {
  const Endpoint& master = *launch.master;
  const auto addresses = addresses_of_master(master.host, deadline);
  terms.is_drawn = launch.run_id.empty();
  terms.run_id = RunIds::drawn_for(launch);
  // It may be right, where something forwards to this host. If nobody comes, it is what is wrong.
  if (!is_own(addresses)) terms.where += message(" (no address of this host, ", own.host, ", on which rank 0 runs)");
  std::shared_ptr<Door> door;
  try {
    door = launch.agent_store ? std::make_shared<Door>(master.host, addresses, port)
                              : Door::of_process(master.host, addresses, master.port);
  } catch (const std::system_error& error) {
    ACCEL_CHECK(!launch.agent_store, CommError, "rendezvous: ACCEL_HEARTBEAT_PORT: port ", port,
                " cannot be had on this host: ", error.code().message());
    throw CommError(message("rendezvous: port ", master.port,
                            " is in use on this host, by another job or by a second process that was started as ",
                            "rank 0; choose another MASTER_PORT, or give every process its own RANK"));
  }
  if (launch.agent_store) {
    StarPlace place{door->place().port(), random_name() + random_name(), {door->place().text()}};
    if (door->place().is_any()) place.addresses = own_addresses();
    AgentStore(master, deadline).put(key_of(launch, terms.creation), place);
    terms.token = place.token;
  }
  return {std::make_shared<Star>(own, std::move(terms), std::move(door), deadline), address_towards(addresses.front())};
}

/// The others' side.
[[nodiscard]] inline Met follow(const Launch& launch, const Peer& own, StarTerms terms, Deadline deadline) {
  const Endpoint& master = *launch.master;
  // Asked once: from then on everything goes by numbers, so that no slow name server is asked again.
  auto addresses = addresses_of_master(master.host, deadline);
  int port = master.port;
  if (launch.agent_store) {
    const auto place = AgentStore(master, deadline).get(key_of(launch, terms.creation));
    port = place.port;
    terms.token = place.token;
    // As this host knows the one of rank 0, and then as that knows itself.
    for (const auto& text : place.addresses)
      for (const Address& one : look_up(text)) addresses.push_back(one);
  }
  auto star = std::make_shared<Star>(own, std::move(terms), addresses, port, deadline);
  const Address address = star->own_address();
  return {std::move(star), address.is_loopback() ? std::string() : address.text()};
}

/// Fills in what the launcher did not say, from the hosts of the others.
inline Topology complete(const Launch& launch, const std::vector<Peer>& peers) {
  Topology topology = launch.topology;
  const auto& self = peers[static_cast<std::size_t>(topology.rank)];
  int local_rank = 0;
  int local_world_size = 0;
  std::vector<std::string> hosts;  // in order of their first rank
  for (const auto& peer : peers) {
    if (peer.network == self.network) {
      ++local_world_size;
      if (peer.rank < topology.rank) ++local_rank;
    }
    if (std::find(hosts.begin(), hosts.end(), peer.network) == hosts.end()) hosts.push_back(peer.network);
  }
  if (!launch.known.local_rank) topology.local_rank = local_rank;
  if (!launch.known.local_world_size) topology.local_world_size = local_world_size;
  if (!launch.known.node_rank)
    topology.node_rank = static_cast<int>(std::find(hosts.begin(), hosts.end(), self.network) - hosts.begin());
  return topology;
}

}  // namespace detail

/// How long the ranks wait for each other, and how they beat.
struct MeetOptions {
  Seconds timeout{300};             // until all are there
  Seconds beat = default_beat;      // 0: nobody is given up for being silent
  int port = 0;                     // where rank 0 listens under a launcher's agent; 0: any that is free
  Seconds collective_timeout{600};  // for a backend whose own options say nothing
};

/// Waits until all ranks of `launch` are there. The `creation`-th call of a process meets the
/// `creation`-th call of the others, so that several accelerators in one process do not mix. From then
/// on they hear each other's heartbeat.
///
/// Cost     a connection to rank 0 and a few small messages per rank.
/// Throws   CommError after the timeout, naming who came and who is missing; ConfigError if two
///          processes have one rank, the ranks disagree about WORLD_SIZE, or one is of another run.
[[nodiscard]] inline Meeting meet(const Launch& launch, std::int64_t creation, const MeetOptions& options = {}) {
  Meeting meeting;
  meeting.topology = launch.topology;
  meeting.family = launch.family;
  meeting.timeout = options.timeout;
  meeting.collective_timeout = options.collective_timeout;
  const Peer own{launch.topology.rank, detail::host_name(), detail::network_name(), ::getpid(),
                 launch.topology.world_size};
  meeting.peers = {own};
  if (launch.topology.world_size == 1) return meeting;
  const Deadline deadline = Deadline::in(options.timeout);
  detail::raise_limits(own.rank, own.world_size);
  StarTerms terms{.where = message(launch.master->host, ":", launch.master->port),
                  .run_id = detail::RunIds::of(launch),
                  .creation = creation,
                  .interval = options.beat};
  const auto port = options.port == 0 ? 0 : static_cast<int>(options.port + creation);
  ACCEL_CHECK(port <= 65535, ConfigError, "rendezvous: ACCEL_HEARTBEAT_PORT = ", options.port, " and ", creation,
              " accelerators before this one: there is no port ", port);
  auto met = own.rank == 0 ? detail::lead(launch, own, std::move(terms), port, deadline)
                           : detail::follow(launch, own, std::move(terms), deadline);
  meeting.star = std::move(met.star);
  meeting.run_id = meeting.star->run_id();
  detail::RunIds::remember(launch, meeting.run_id);
  meeting.store = c10::make_intrusive<StarStore>(meeting.star);
  meeting.peers = meeting.star->peers();
  meeting.topology = detail::complete(launch, meeting.peers);
  const bool one_host = std::all_of(meeting.peers.begin(), meeting.peers.end(),
                                    [&](const Peer& peer) { return peer.network == own.network; });
  if (!one_host) meeting.local_address = std::move(met.address);
  return meeting;
}

/// The number of this call in this process: 0, 1, 2, ... for meet().
[[nodiscard]] inline std::int64_t next_creation() {
  static std::atomic<std::int64_t> created{0};
  return created++;
}

}  // namespace accel::inline v0_1::launch
