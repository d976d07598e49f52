// Rendezvous: all processes of a job find each other in LibTorch's TCPStore.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/detail/network.hpp>
#include <accel/launch/environment.hpp>
#include <accel/launch/heartbeat.hpp>
#include <accel/launch/no_sigpipe.hpp>
#include <accel/launch/peer.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch {

/// What the rendezvous leaves: everything a backend needs to connect. The default is one process.
struct Meeting {
  Topology topology;                        // complete, local ranks included
  std::string family = "single process";    // who started the processes
  c10::intrusive_ptr<c10d::Store> store;    // under this accelerator's own prefix; null at one rank
  std::vector<Peer> peers{Peer{}};          // by rank
  std::string server;                       // who serves the store, for messages
  std::string local_address = "127.0.0.1";  // where the other ranks reach this process; empty: unknown
  Seconds timeout{60};                      // what connecting may take
  std::shared_ptr<Heartbeat> heartbeat{};   // of the whole job; null at one rank
  bool whole = true;                        // or a part of the job, as Backend::split makes it

  [[nodiscard]] ControlPlane control_plane() const {
    if (!store) return {};
    return {c10::make_intrusive<c10d::PrefixStore>("control/", store), topology.rank, peers, server, heartbeat, whole};
  }

  /// The meeting of `ranks` only, in that order, as Backend::split needs it; `name` must be new.
  /// Throws   InvalidArgument if a rank does not exist, or this one is no member.
  [[nodiscard]] Meeting part(std::span<const int> ranks, std::string_view name) const {
    Meeting part = *this;
    part.whole = false;
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

inline c10::intrusive_ptr<c10d::TCPStore> connect_store(const std::string& host, const c10d::TCPStoreOptions& options,
                                                        Deadline deadline) {
  return within(deadline, [host, options] {
    const NoSigpipe guard;  // for the thread that serves, where this rank does
    return c10::make_intrusive<c10d::TCPStore>(host, options);
  });
}

/// Connects to the store of the job; on rank 0 it also serves it, unless the launcher does.
///
/// One server per process and port, kept until the process ends: accelerators that come and go
/// share it, so that no rank finds it closing while another is still inside.
inline c10::intrusive_ptr<c10d::Store> open_store(const Launch& launch, Deadline deadline) {
  static std::mutex mutex;
  static auto& servers = *new std::map<int, c10::intrusive_ptr<c10d::TCPStore>>;  // outlives static destruction
  const Endpoint& master = *launch.master;
  try {
    within(deadline, [master, deadline] { wait_for_name(master.host, deadline); });
  } catch (const LeftBehind&) {
    throw CommError(message("rendezvous: looking up MASTER_ADDR = ", master.host, " did not end within ",
                            deadline.span_s(), " s; is this host's name server out of reach?"));
  }
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(master.port);
  options.waitWorkers = false;  // we count the ranks ourselves, and can name who is missing
  options.timeout = deadline.remaining();
  const bool serves = launch.topology.rank == 0 && !launch.agent_store;
  try {
    if (const std::lock_guard lock(mutex); serves && !servers.contains(master.port)) {
      options.isServer = true;
      options.multiTenant = true;  // a second version of accel in this process finds the first one's server
      servers[master.port] = connect_store(master.host, options, deadline);
    }
    options.isServer = false;
    return connect_store(master.host, options, deadline);
  } catch (const std::exception& error) {
    const std::string native = first_line(error);
    if (serves && native.find("EADDRINUSE") != std::string::npos)
      throw CommError(message("rendezvous: port ", master.port,
                              " is in use on this host, by another job or by a second ",
                              "process that was started as rank 0; choose another MASTER_PORT, or give every process ",
                              "its own RANK. LibTorch says: ", native));
    throw CommError(message(
        "rendezvous: rank ", launch.topology.rank, " of ", launch.topology.world_size, " found ",
        serves ? "no way to open a store at " : "no store of rank 0 at ", master.host, ":", master.port, " within ",
        deadline.span_s(), " s; ",
        serves ? "MASTER_ADDR must name this host" : "is rank 0 running, and are MASTER_ADDR and MASTER_PORT right?",
        " LibTorch says: ", native));
  }
}

/// `host|network|pid|world_size`, what a rank says of itself.
inline std::string introduce(const Topology& topology) {
  return message(host_name(), "|", network_name(), "|", ::getpid(), "|", topology.world_size);
}

inline Peer parse_peer(int rank, const std::string& text) {
  std::array<std::string, 4> fields;
  std::istringstream stream(text);
  for (auto& field : fields) std::getline(stream, field, '|');
  return {rank, fields[0], fields[1], std::stoll(fields[2]), std::stoi(fields[3])};
}

inline std::string text(const std::vector<std::uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

/// The store goes with rank 0's process: before it gives up it waits, for a short while, until those
/// that came have seen who is missing, too.
inline void part(c10d::Store& store, const std::vector<Peer>& came, int rank) {
  const auto key = [](int of) { return "parted/" + std::to_string(of); };
  store.set(key(rank), std::vector<std::uint8_t>());
  if (rank != 0) return;
  std::vector<std::string> keys;
  for (const auto& peer : came) keys.push_back(key(peer.rank));
  try {
    store.wait(keys, std::chrono::milliseconds(500));
  } catch (const std::exception&) {
    // They began later, or are gone: they will hear of it from this rank's output.
  }
}

/// Everybody says who it is and waits for all. The error names who came and who is missing.
inline std::vector<Peer> introduce_all(c10d::Store& store, const Launch& launch, Deadline deadline) {
  const Topology& own = launch.topology;
  const auto key = [](int rank) { return "rank/" + std::to_string(rank); };
  const std::string self = introduce(own);
  const std::string entry = store.compareSet(key(own.rank), std::string(), self);
  ACCEL_CHECK(entry == self, ConfigError, "rendezvous: two processes say they are rank ", own.rank,
              ": this one (process ", ::getpid(), " on ", host_name(), ") and ", parse_peer(own.rank, entry),
              "; give each its own RANK, or its own MASTER_PORT if they belong to different jobs");
  std::vector<std::string> keys;
  for (int rank = 0; rank < own.world_size; ++rank) keys.push_back(key(rank));
  bool all_came = true;
  try {
    store.wait(keys, deadline.remaining());
  } catch (const std::exception&) {
    if (!deadline.passed()) throw;  // not the time, but the store itself
    all_came = false;
  }
  std::vector<Peer> peers;
  std::ostringstream came;
  std::ostringstream missing;
  for (int rank = 0; rank < own.world_size; ++rank) {
    if (!all_came && !store.check({key(rank)})) {
      missing << (missing.tellp() > 0 ? ", " : "") << rank;
      continue;
    }
    peers.push_back(parse_peer(rank, text(store.get(key(rank)))));
    came << (peers.size() > 1 ? ", " : "") << peers.back();
    ACCEL_CHECK(peers.back().world_size == own.world_size, ConfigError, "rendezvous: WORLD_SIZE is ", own.world_size,
                " on rank ", own.rank, " but ", peers.back().world_size, " on ", peers.back(),
                "; give all processes of a job the same");
  }
  if (!all_came) part(store, peers, own.rank);
  ACCEL_CHECK(all_came, CommError, "rendezvous: after ", deadline.span_s(), " s ", peers.size(), " of ", own.world_size,
              " ranks have come to ", launch.master->host, ":", launch.master->port, ": ", came.str(),
              "; missing: rank ", missing.str(), ". Start as many processes as WORLD_SIZE says");
  return peers;
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

/// Waits until all ranks of `launch` are there. The `creation`-th call of a process meets the
/// `creation`-th call of the others, so that several accelerators in one process do not mix. From then
/// on they hear each other's heartbeat, every `beat`; 0: nobody is given up for being silent.
///
/// Cost     one connection to the store and a few small messages per rank.
/// Throws   CommError after `timeout`, naming who came and who is missing; ConfigError if two
///          processes have one rank or the ranks disagree about WORLD_SIZE.
[[nodiscard]] inline Meeting meet(const Launch& launch, std::int64_t creation, Seconds timeout,
                                  Seconds beat = default_beat) {
  Meeting meeting;
  meeting.topology = launch.topology;
  meeting.family = launch.family;
  meeting.timeout = timeout;
  meeting.peers = {detail::parse_peer(0, detail::introduce(launch.topology))};
  if (launch.topology.world_size == 1) return meeting;
  const Deadline deadline = Deadline::in(timeout);
  auto store = detail::open_store(launch, deadline);
  // The version in the name: two versions in one program count their accelerators by themselves.
  meeting.store = c10::make_intrusive<c10d::PrefixStore>(
      message("accel/", ACCEL_VERSION, "/", launch.run_id, "/", creation), std::move(store));
  try {
    // A second more, to tell each other who is missing.
    meeting.peers = within(Deadline::in(timeout + Seconds(1)), [store = meeting.store, launch, deadline] {
      return detail::introduce_all(*store, launch, deadline);
    });
    meeting.heartbeat = std::make_shared<Heartbeat>(meeting.store, launch.master->host, launch.topology.rank,
                                                    meeting.peers, beat, deadline);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(message("rendezvous: the store at ", launch.master->host, ":", launch.master->port,
                            " stopped answering; look at the output of rank 0. LibTorch says: ", first_line(error)));
  }
  meeting.server = launch.agent_store
                       ? message("the launcher's agent at ", launch.master->host, ":", launch.master->port)
                       : message(meeting.peers.front());
  meeting.topology = detail::complete(launch, meeting.peers);
  const auto& own = meeting.peers[static_cast<std::size_t>(launch.topology.rank)];
  const bool one_host = std::all_of(meeting.peers.begin(), meeting.peers.end(),
                                    [&](const Peer& peer) { return peer.network == own.network; });
  if (!one_host) meeting.local_address = detail::address_towards(launch.master->host, launch.master->port);
  return meeting;
}

/// The number of this call in this process: 0, 1, 2, ... for meet().
[[nodiscard]] inline std::int64_t next_creation() {
  static std::atomic<std::int64_t> created{0};
  return created++;
}

}  // namespace accel::inline v0_1::launch
