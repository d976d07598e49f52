// The rendezvous: who meets whom, and what is said when somebody does not come.
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace launch = accel::launch;
using accel::CommError;
using accel::ConfigError;
using accel::Error;
using accel::testing::in_another_launch;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

constexpr double timeout_s = 2;

std::string name_of(int rank) {
  return "rank " + std::to_string(rank) + " (host ";
}

launch::Meeting meet_until_timeout(const launch::Launch& launch) {
  return launch::meet(launch, launch::next_creation(), {.timeout = Seconds(timeout_s)});
}

/// Meets as `launch` says; the error's text, which must come soon after the timeout.
std::string fails_in_time(const launch::Launch& launch) {
  const Stopwatch watch;
  const auto error = thrown_by<Error>([&] { (void)meet_until_timeout(launch); });
  CHECK(watch.seconds() <= timeout_s + 1 * patience);
  std::cout << error << "\n";
  return error;
}

/// Returns once somebody listens on `port` of this host.
void wait_for_listener(int port) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int probe = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool connected = ::connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    ::close(probe);
    if (connected) return;
    stay_for(0.02);
  }
  throw std::runtime_error("nobody came to listen on port " + std::to_string(port));
}

/// A socket that is bound to `port` and answers nothing.
class Stranger {
 public:
  explicit Stranger(int port) : socket_(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int yes = 1;
    ::setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in6 address{};  // ::, which takes IPv4 as well
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<std::uint16_t>(port));
    if (::bind(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || ::listen(socket_, 8) != 0)
      throw std::runtime_error("the stranger found no place on port " + std::to_string(port));
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;
  ~Stranger() { ::close(socket_); }

 private:
  int socket_;
};

}  // namespace

TEST_CASE("all ranks meet and know each other", "[launch]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const auto meeting = meet();
    CHECK(meeting.topology == launch::Topology{.rank = rank.rank,
                                               .world_size = rank.world_size,
                                               .local_rank = rank.rank,
                                               .local_world_size = rank.world_size,
                                               .node_rank = 0});
    REQUIRE(meeting.peers.size() == static_cast<std::size_t>(rank.world_size));
    for (int other = 0; other < rank.world_size; ++other) {
      const auto& peer = meeting.peers[static_cast<std::size_t>(other)];
      CHECK(peer.rank == other);
      CHECK((peer.pid == ::getpid()) == (other == rank.rank));
      CHECK(peer.world_size == rank.world_size);
      CHECK_FALSE(peer.host.empty());
    }
    CHECK(meeting.local_address == "127.0.0.1");
    meeting.control_plane().farewell();
  });
}

TEST_CASE("a last rank that does not come is named, and those that came", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    const int missing = rank.world_size - 1;
    if (rank.rank == missing) return;
    const auto error = fails_in_time(launch::detect());
    CHECK_THAT(error, ContainsSubstring(std::to_string(missing) + " of " + std::to_string(rank.world_size) + " ranks"));
    for (int other = 0; other < missing; ++other) CHECK_THAT(error, ContainsSubstring(name_of(other)));
    CHECK_THAT(error, !ContainsSubstring(name_of(missing)));
    CHECK_THAT(error, ContainsSubstring("missing: rank " + std::to_string(missing)));
    CHECK_THAT(error, ContainsSubstring("WORLD_SIZE"));
  });
}

TEST_CASE("a rank 0 that is not at MASTER_ADDR is told so when nobody comes", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    if (rank.rank == 1) return;
    auto launch = launch::detect();
    launch.master->host = "192.0.2.7";  // reserved for documentation
    CHECK_THAT(fails_in_time(launch),
               ContainsSubstring("192.0.2.7:" + std::to_string(launch.master->port) + " (no address of this host, "));
  });
}

TEST_CASE("without rank 0 the others say that they found nobody, and where", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    if (rank.rank == 0) return;
    const auto launch = launch::detect();
    const auto error = fails_in_time(launch);
    CHECK_THAT(error,
               ContainsSubstring("rank " + std::to_string(rank.rank) + " of " + std::to_string(rank.world_size)));
    CHECK_THAT(error, ContainsSubstring("found no rank 0 at 127.0.0.1:" + std::to_string(launch.master->port)) &&
                          ContainsSubstring("Connection refused"));
  });
}

TEST_CASE("a host name that does not exist is an error within the timeout", "[launch]") {
  on_ranks({2}, [](Rank) {
    auto launch = launch::detect();
    launch.master->host = "no-such-host.invalid";
    CHECK_THAT(fails_in_time(launch),
               ContainsSubstring("MASTER_ADDR is no-such-host.invalid") && ContainsSubstring("of IPv4 or IPv6"));
  });
}

TEST_CASE("of two processes with one rank the second is refused at once, and both are named", "[launch]") {
  const auto results = run_ranks(3, [](Rank rank) {
    auto launch = launch::detect();
    if (rank.rank == 2) launch.topology.rank = 1;
    const Stopwatch watch;
    const auto error = thrown_by<Error>([&] { (void)meet_until_timeout(launch); });
    std::cout << "process " << ::getpid() << " says: " << error << "\n";
    CHECK(watch.seconds() <= timeout_s + 1 * patience);
    if (error.starts_with("rendezvous: two processes say they are rank 1")) CHECK(watch.seconds() < 1 * patience);
  });
  if (in_another_launch(results)) return;
  int refused = 0;
  for (const auto& result : results) {
    INFO(result.output);
    CHECK(result.succeeded());
    if (result.output.find("two processes say they are rank 1") == std::string::npos) {
      CHECK_THAT(result.output, ContainsSubstring("missing: rank 2"));
      continue;
    }
    ++refused;
    for (const std::size_t other : {1U, 2U}) {
      const std::size_t at = results[other].output.find("process ");
      const std::string who = results[other].output.substr(at, results[other].output.find(" says", at) - at);
      CHECK_THAT(result.output, ContainsSubstring(", " + who + ")"));
    }
  }
  CHECK(refused == 1);
}

TEST_CASE("a second process of rank 0 is refused at once", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    auto launch = launch::detect();
    if (rank.rank == 1) {
      wait_for_listener(launch.master->port);  // the first rank 0
      launch.topology.rank = 0;
      const Stopwatch watch;
      const auto error = thrown_by<CommError>([&] { (void)meet_until_timeout(launch); });
      std::cout << error << "\n";
      CHECK(watch.seconds() < 1 * patience);
      CHECK_THAT(error, ContainsSubstring("port " + std::to_string(launch.master->port) + " is in use"));
      CHECK_THAT(error, ContainsSubstring("rank 0"));
      return;
    }
    CHECK_THAT(fails_in_time(launch), ContainsSubstring("missing: rank 1"));
  });
}

TEST_CASE("ranks that disagree about WORLD_SIZE are told so", "[launch]") {
  on_ranks({3}, [](Rank rank) {
    auto launch = launch::detect();
    const bool believes_in_more = rank.rank == rank.world_size - 1;
    if (believes_in_more) ++launch.topology.world_size;
    const auto error = fails_in_time(launch);
    CHECK_THAT(error, ContainsSubstring("WORLD_SIZE is 3 on " + name_of(0)) &&
                          ContainsSubstring("but 4 on " + name_of(rank.world_size - 1)));
  });
}

TEST_CASE("a port that a stranger listens on is a clear error on every rank", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto launch = launch::detect();
    const std::string port = std::to_string(launch.master->port);
    if (rank.rank == 0) {
      const Stranger stranger(launch.master->port);
      const Stopwatch watch;
      const auto error = fails_in_time(launch);
      CHECK(watch.seconds() < 1 * patience);
      CHECK_THAT(error, ContainsSubstring("port " + port + " is in use") && ContainsSubstring("MASTER_PORT"));
      stay_for(timeout_s + 2);  // the stranger is still there when rank 1 comes
    } else {
      CHECK_THAT(fails_in_time(launch), ContainsSubstring("127.0.0.1:" + port));
    }
  });
}

TEST_CASE("processes of another run do not join", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    auto launch = launch::detect();
    launch.run_id = "run " + std::to_string(rank.rank);
    const Stopwatch watch;
    const auto error = fails_in_time(launch);
    if (rank.rank == 0) {
      CHECK_THAT(error, ContainsSubstring("missing: rank 1"));
    } else {
      CHECK(watch.seconds() < 1 * patience);  // at once
      CHECK_THAT(error, ContainsSubstring(name_of(1)) && ContainsSubstring("belongs to run \"run 1\"") &&
                            ContainsSubstring(name_of(0)) && ContainsSubstring("is run \"run 0\""));
    }
  });
}

TEST_CASE("two meetings on one port do not see each other's words", "[launch]") {
  on_ranks({2, 3}, [](Rank rank) {
    const auto a = meet();
    const auto b = meet();
    auto control_a = a.control_plane();
    auto control_b = b.control_plane();
    const auto deadline = accel::Deadline::in(Seconds(20));
    const auto last = static_cast<std::size_t>(rank.world_size - 1);
    const auto from_a = control_a.all_gather("test", "a" + std::to_string(rank.rank), deadline);
    const auto from_b = control_b.all_gather("test", "b" + std::to_string(rank.rank), deadline);
    CHECK(from_a[last] == "a" + std::to_string(last));
    CHECK(from_b[last] == "b" + std::to_string(last));
    control_b.farewell();
  });
}

TEST_CASE("ranks without local variables, as in a shell loop, find out their local ranks", "[launch]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    ::unsetenv("LOCAL_RANK");
    ::unsetenv("LOCAL_WORLD_SIZE");
    const auto launch = launch::detect();
    CHECK(launch.known.local_rank == (rank.world_size == 1));
    Accelerator accelerator;
    CHECK(accelerator.topology() == launch::Topology{.rank = rank.rank,
                                                     .world_size = rank.world_size,
                                                     .local_rank = rank.rank,
                                                     .local_world_size = rank.world_size,
                                                     .node_rank = 0});
    CHECK_THAT(accelerator.describe(), ContainsSubstring("local: rank " + std::to_string(rank.rank) + " of " +
                                                         std::to_string(rank.world_size) + " on host 0"));
  });
}

TEST_CASE("hosts are told apart by name and network", "[launch]") {
  const auto peer = [](int rank, const std::string& network) {
    return launch::Peer{.rank = rank, .host = network, .network = network, .pid = 1, .world_size = 5};
  };
  const std::vector<launch::Peer> peers = {peer(0, "b"), peer(1, "a"), peer(2, "b"), peer(3, "a"), peer(4, "c")};
  const std::vector<int> local_ranks = {0, 0, 1, 1, 0};
  const std::vector<int> local_sizes = {2, 2, 2, 2, 1};
  const std::vector<int> nodes = {0, 1, 0, 1, 2};
  for (int rank = 0; rank < 5; ++rank) {
    launch::Launch launch;
    launch.topology.rank = rank;
    launch.topology.world_size = 5;
    const auto i = static_cast<std::size_t>(rank);
    const auto found = launch::detail::complete(launch, peers);
    CHECK(found == launch::Topology{.rank = rank,
                                    .world_size = 5,
                                    .local_rank = local_ranks[i],
                                    .local_world_size = local_sizes[i],
                                    .node_rank = nodes[i]});
    launch.known.local_rank = true;  // what a launcher said stays
    launch.topology.local_rank = 7;
    CHECK(launch::detail::complete(launch, peers).local_rank == 7);
  }
}

TEST_CASE("several accelerators in one process do not meet", "[launch]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const int world_size = rank.world_size;
    const int ranks = world_size * (world_size - 1) / 2;  // their sum
    const auto sum = [&](Accelerator& accelerator, int value) {
      return accelerator.reduce(at::full({3}, value + rank.rank)).equal(at::full({3}, value * world_size + ranks));
    };
    Accelerator first;
    Accelerator second;
    CHECK(sum(second, 10));
    CHECK(sum(first, 20));
    {
      Accelerator third;
      first.wait_for_everyone();
      CHECK(sum(third, 30));
      CHECK(sum(second, 40));
    }
    Accelerator fourth;
    CHECK(sum(fourth, 50));
    CHECK(sum(first, 60));
  });
}

TEST_CASE("accelerators that are made at the same time are of one run", "[launch]") {
  on_ranks({2, 3}, [](Rank) {
    const auto launch = launch::detect();
    const auto meet_as = [&](int creation) { return launch::meet(launch, creation, {.timeout = Seconds(20)}); };
    std::vector<launch::Meeting> met(4);
    std::vector<std::thread> threads;
    for (int creation = 0; creation < 3; ++creation)
      threads.emplace_back([&, creation] { met[static_cast<std::size_t>(creation)] = meet_as(creation); });
    for (auto& one : threads) one.join();
    met.back() = meet_as(3);
    for (const auto& one : met) {
      CHECK(one.run_id == met.front().run_id);
      auto control = one.control_plane();
      control.barrier("test", accel::Deadline::in(Seconds(20)));
      control.farewell();
    }
  });
}

TEST_CASE("accelerators come and go many times", "[launch]") {
  on_ranks({2, 3}, [](Rank rank) {
    for (int i = 0; i < 20; ++i) {
      Accelerator accelerator;
      if (i % 3 == rank.rank) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      CHECK(accelerator.reduce(at::full({2}, i)).equal(at::full({2}, i * rank.world_size)));
    }
  });
}

TEST_CASE("an address that other hosts cannot reach is none", "[launch]") {
  for (const char* host : {"127.0.0.1", "127.0.1.1", "::1"})
    CHECK(launch::detail::address_towards(launch::detail::look_up(host).front()).empty());
}

TEST_CASE("an accelerator that was only made lets the process end", "[launch]") {
  on_ranks({3}, [](Rank) { Accelerator accelerator; });
}
