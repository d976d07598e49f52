// The star as others meet it: strangers at the door, no descriptors left, a silent name server, settings by variables.
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace launch = accel::launch;
namespace inner = accel::launch::detail;
using accel::CommError;
using accel::ConfigError;
using accel::Deadline;
using accel::Error;
using accel::testing::exact_filter;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::own_program;
using accel::testing::pace;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::run_program;
using accel::testing::Seconds;
using accel::testing::stay_for;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

namespace {

/// Much longer than a round of a healthy job.
constexpr double beat_s = 0.3 * pace;

launch::Meeting meet_beating() {
  return launch::meet(launch::detect(), launch::next_creation(), {.timeout = Seconds(20), .beat = Seconds(beat_s)});
}

inner::Descriptor connect_to_rank_0() {
  const auto master = *launch::detect().master;
  return inner::connect_to(inner::look_up(master.host), master.port, Deadline::in(Seconds(5)));
}

/// Blocks; false once the other end has hung up.
bool send_all(const inner::Descriptor& socket, const std::string& bytes) {
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    const auto count = ::send(socket.number(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0) sent += static_cast<std::size_t>(count);
    if (count < 0 && errno != EAGAIN) return false;
    if (count < 0) std::this_thread::yield();
  }
  return true;
}

/// Whether rank 0 hangs up within that time.
bool is_dropped(const inner::Descriptor& socket, double seconds) {
  const Stopwatch watch;
  char byte = 0;
  while (watch.seconds() < seconds * patience) {
    const auto count = ::recv(socket.number(), &byte, 1, MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN)) return true;
    stay_for(0.01);
  }
  return false;
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

TEST_CASE("strangers that flood rank 0 delay no beat and no round", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto meeting = meet_beating();
    auto control = meeting.control_plane();
    std::atomic<bool> over{false};
    std::atomic<std::int64_t> bytes{0};
    std::vector<std::thread> strangers;
    if (rank.rank == 1)
      for (int i = 0; i < 4; ++i)
        strangers.emplace_back([&, i] {
          // Anything at all, or what begins like a message of 2 GB.
          std::string words(1 << 16, i % 2 == 0 ? 'x' : '\0');
          if (i % 2 != 0) words.replace(0, 5, std::string("\xff\xff\xff\x7f\0", 5));
          while (!over) {
            const auto socket = connect_to_rank_0();
            while (!over && send_all(socket, words)) bytes += 1 << 16;
          }
        });
    const Stopwatch watch;
    double slowest = 0;
    const auto goes_on = [&] { return watch.seconds() < 5 * beat_s ? "yes" : ""; };
    while (!control.broadcast("does rank 0 go on", goes_on(), 0, Deadline::in(Seconds(20))).empty()) {
      const Stopwatch round;
      control.barrier("test", Deadline::in(Seconds(20)));
      slowest = std::max(slowest, round.seconds());
    }
    over = true;
    for (auto& one : strangers) one.join();
    control.barrier("end", Deadline::in(Seconds(20)));
    CHECK_FALSE(control.failed());
    CHECK(slowest < beat_s);
    if (rank.rank == 1) std::cout << bytes / (1 << 20) << " MiB of nonsense, slowest round " << slowest << " s\n";
    control.farewell();
  });
}

TEST_CASE("a stranger is dropped as soon as it says something else than a rank would", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto meeting = meet_beating();
    auto control = meeting.control_plane();
    if (rank.rank == 1) {
      const auto message = [](inner::Word word, const std::string& body) {
        std::string bytes(4, '\0');
        bytes[0] = static_cast<char>(body.size() + 1);
        bytes.push_back(static_cast<char>(word));
        return bytes + body;
      };
      const auto hello = [&](const std::string& magic, const std::string& token, std::int64_t creation,
                             std::int64_t of) {
        return message(inner::Word::hello,
                       inner::Packer().text(magic).text(ACCEL_VERSION).text(token).number(creation).number(of).take());
      };
      for (const std::string& words :
           {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(300, '\0'), hello("accel!", "", 0, 1),
            hello("accel", "a token", 0, 1), hello("accel", "", 0, -1), hello("accel", "", -1, 1),
            message(inner::Word::failed, inner::Packer().text("rank 0 is a liar").take()),
            hello("accel", "", 0, 1) + message(inner::Word::failed, "x"),
            hello("accel", "", 0, 1) + message(inner::Word::introduce, "x")}) {
        const auto socket = connect_to_rank_0();
        REQUIRE(send_all(socket, words));
        CHECK(is_dropped(socket, 2));
      }
      // Many that say nothing are dropped for others to come in.
      std::vector<inner::Descriptor> silent;
      for (int i = 0; i < 100; ++i) silent.push_back(connect_to_rank_0());
      const double busy = cpu_seconds();
      CHECK(is_dropped(silent.front(), 3));
      CHECK(cpu_seconds() - busy < 1);
      const auto socket = connect_to_rank_0();
      REQUIRE(send_all(socket, hello("no", "", 0, 1)));
      CHECK(is_dropped(socket, 3));
    }
    control.barrier("test", Deadline::in(Seconds(20)));
    CHECK_FALSE(control.failed());
    control.farewell();
  });
}

TEST_CASE("no more strangers wait for other accelerators of rank 0 than the job has ranks", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto meeting = meet_beating();
    auto control = meeting.control_plane();
    const auto together = [&] { control.barrier("test", Deadline::in(Seconds(20))); };
    const auto open_files = [] {
      return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
    };
    const auto before = open_files();
    together();
    std::vector<inner::Connection> crowd;
    if (rank.rank == 1)
      for (int i = 0; i < 200; ++i) {
        auto& one = crowd.emplace_back(connect_to_rank_0());
        one.write(inner::Hello::from(1, {.creation = 1000 + i}));
        one.write(inner::introduction({1, "host", "net", 1, 2}, meeting.run_id));
        one.flush();
      }
    stay_for(1);
    together();
    if (rank.rank == 0) CHECK(open_files() - before < 20);  // and not 200
    // One that is meant is let in all the same.
    const auto other = launch::meet(launch::detect(), 7, {.timeout = Seconds(20)});
    auto there = other.control_plane();
    there.barrier("test", Deadline::in(Seconds(20)));
    there.farewell();
    together();
    control.farewell();
  });
}

TEST_CASE("without a descriptor left rank 0 waits for one, and does not spin", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto meeting = meet_beating();
    auto control = meeting.control_plane();
    const auto together = [&] { control.barrier("test", Deadline::in(Seconds(20))); };
    rlimit before{};
    ::getrlimit(RLIMIT_NOFILE, &before);
    if (rank.rank == 0) {
      rlimit few = before;
      few.rlim_cur = static_cast<rlim_t>(::dup(0));  // the lowest that is free: so many are open
      ::setrlimit(RLIMIT_NOFILE, &few);
    }
    together();
    std::vector<inner::Descriptor> crowd;
    if (rank.rank == 1)
      for (int i = 0; i < 20; ++i) crowd.push_back(connect_to_rank_0());
    together();
    const double busy = cpu_seconds();
    stay_for(1);
    const double spent = cpu_seconds() - busy;
    together();
    if (rank.rank == 0) ::setrlimit(RLIMIT_NOFILE, &before);
    if (rank.rank == 0) CHECK(spent < 0.3 * pace);  // not before: UBSan opens files to look at an object's type
    together();
    if (rank.rank == 1) {
      const auto socket = connect_to_rank_0();
      REQUIRE(send_all(socket, "GET / HTTP/1.1\r\n\r\n"));
      CHECK(is_dropped(socket, 3));
    }
    together();
    CHECK_FALSE(control.failed());
    control.farewell();
  });
}

TEST_CASE("open files are raised to what the ranks need, or that is said before anybody waits", "[launch]") {
  on_ranks({1}, [](Rank) {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 100;
    limit.rlim_max = 1000;
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
    const auto soft = [] {
      rlimit now{};
      ::getrlimit(RLIMIT_NOFILE, &now);
      return now.rlim_cur;
    };
    inner::raise_limits(1, 64);
    CHECK(soft() == 64 + 256);
    inner::raise_limits(0, 200);
    CHECK(soft() == 2 * 200 + 256);
    inner::raise_limits(0, 500);
    CHECK(soft() == 1000);  // Gloo's connections may be too many; those of the meeting are not
    CHECK_THAT(thrown_by<ConfigError>([] { inner::raise_limits(0, 800); }),
               ContainsSubstring("with 800 ranks, rank 0 needs 1056 open files") && ContainsSubstring("limit is 1000"));
    CHECK(thrown_by<ConfigError>([] { inner::raise_limits(1, 10'000); }).empty());
  });
}

TEST_CASE("rank 0 listens where the others look for it, and nowhere else", "[launch]") {
  const auto first = [](const std::string& host, const std::string& address) {
    return inner::doors(host, inner::look_up(address)).front();
  };
  CHECK(first("127.0.0.1", "127.0.0.1").text() == "127.0.0.1");
  CHECK(first("localhost", "127.0.0.1").text() == "127.0.0.1");
  CHECK(first("192.168.1.100", "192.168.1.100").text() == "192.168.1.100");
  CHECK(first("node7", "192.168.1.100").text() == "192.168.1.100");
  CHECK(first("node7", "127.0.1.1").is_any());  // as /etc/hosts of Debian calls the host itself
  auto several = inner::look_up("192.168.1.100");
  several.push_back(inner::look_up("10.0.0.1").front());
  CHECK(inner::doors("node7", several).front().is_any());
  // An address that this host does not have, as of a service in front of it.
  const auto listener = inner::listen_at(inner::doors("192.0.2.7", inner::look_up("192.0.2.7")), 0);
  CHECK(inner::place_of(listener).is_any());

  on_ranks({2}, [](Rank rank) {
    auto control = meet().control_plane();
    if (rank.rank == 1)
      for (const auto& address : inner::own_addresses()) {
        INFO(address);
        CHECK_THROWS_AS(
            inner::connect_to(inner::look_up(address), launch::detect().master->port, Deadline::in(Seconds(5))),
            CommError);
      }
    control.barrier("end", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("an address that leads nowhere costs a moment, not the deadline", "[launch]") {
  const auto loopback = [](int last) { return inner::look_up("127.0.0." + std::to_string(last)).front(); };
  const inner::Descriptor listener = inner::listen_at({loopback(1)}, 0);
  const int port = inner::place_of(listener).port();
  // Where nobody takes what has come, the system lets nobody else connect, and says nothing.
  const inner::Descriptor full = inner::listen_at({loopback(2)}, port);
  REQUIRE(::listen(full.number(), 0) == 0);
  std::vector<inner::Descriptor> crowd;
  for (int i = 0; i < 8; ++i) {
    crowd.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const auto place = loopback(2).with_port(port);
    (void)::connect(crowd.back().number(), place.native(), place.size());
  }
  stay_for(0.1);
  const Stopwatch alone;
  CHECK_THROWS_AS(inner::connect_to({loopback(2)}, port, Deadline::in(Seconds(0.5))), CommError);
  CHECK(alone.seconds() > 0.4);  // so it leads nowhere indeed
  const Stopwatch watch;
  const auto socket = inner::connect_to({loopback(2), loopback(1)}, port, Deadline::in(Seconds(20)));
  CHECK(watch.seconds() < 2 * patience);
  sockaddr_in other{};
  socklen_t size = sizeof other;
  REQUIRE(::getpeername(socket.number(), reinterpret_cast<sockaddr*>(&other), &size) == 0);
  CHECK(ntohl(other.sin_addr.s_addr) == 0x7f000001);
}

TEST_CASE("signals interrupt neither meeting nor talking", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    struct sigaction nothing{};
    nothing.sa_handler = [](int) {};  // and no SA_RESTART
    REQUIRE(::sigaction(SIGUSR1, &nothing, nullptr) == 0);
    std::atomic<bool> over{false};
    std::thread storm([&over, own = ::pthread_self()] {
      while (!over) {
        ::pthread_kill(own, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
    if (rank.rank == 0) stay_for(0.3);  // the other knocks meanwhile
    Accelerator accelerator;
    for (int i = 0; i < 200; ++i) {
      REQUIRE(accelerator.reduce(torch::full({3}, i)).equal(torch::full({3}, 2 * i)));
      accelerator.wait_for_everyone();
    }
    over = true;
    storm.join();
  });
}

TEST_CASE("a process that is left over of an earlier run is refused at once, and both runs are named", "[launch]") {
  on_ranks({2}, [](Rank rank) {
    const auto launch = launch::detect();
    if (rank.rank == 1) {
      inner::RunIds::remember(launch, "the earlier one");
      const Stopwatch watch;
      const auto error = thrown_by<ConfigError>([&] { (void)launch::meet(launch, 0, {.timeout = Seconds(20)}); });
      CHECK(watch.seconds() < 5);
      CHECK_THAT(error, ContainsSubstring("belongs to run \"the earlier one\"") && ContainsSubstring("is run \""));
      std::cout << error << "\n";
      // One that was at its second accelerator meets the first of the new run.
      const Stopwatch again;
      const auto second = thrown_by<ConfigError>([&] { (void)launch::meet(launch, 1, {.timeout = Seconds(20)}); });
      CHECK(again.seconds() < 5);
      CHECK_THAT(second, ContainsSubstring("belongs to run \"the earlier one\""));
      inner::RunIds::remember(launch, "");
    }
    const auto meeting = launch::meet(launch, 0, {.timeout = Seconds(20)});
    CHECK(meeting.run_id.size() > 8);
    auto control = meeting.control_plane();
    CHECK(control.all_gather("test", meeting.run_id, Deadline::in(Seconds(20))).front() == meeting.run_id);
    control.farewell();
  });
}

TEST_CASE("Gloo's store over the star keeps values for the others, and gives up in time", "[launch]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    if (rank.world_size == 1) return;
    const auto meeting = meet();
    auto control = meeting.control_plane();
    c10d::Store& store = *meeting.store;
    const auto bytes = [](const std::string& text) { return std::vector<std::uint8_t>(text.begin(), text.end()); };
    const std::string own = "from " + std::to_string(rank.rank);
    if (rank.rank == 1) stay_for(0.2);
    store.set(own, bytes(own + '\0'));
    for (int other = 0; other < rank.world_size; ++other) {
      const std::string theirs = "from " + std::to_string(other);
      store.wait({theirs}, std::chrono::seconds(20));
      CHECK(store.get(theirs) == bytes(theirs + '\0'));
    }
    (void)store.add("sum", rank.rank + 1);
    control.barrier("added", Deadline::in(Seconds(20)));
    CHECK(store.add("sum", 0) == rank.world_size * (rank.world_size + 1) / 2);
    CHECK(store.getNumKeys() == rank.world_size + 1);
    CHECK(store.check({"sum", own}));
    CHECK_FALSE(store.check({"sum", "nothing"}));
    const Stopwatch watch;
    CHECK_THAT(thrown_by<CommError>([&] { store.wait({"nothing"}, std::chrono::milliseconds(300)); }),
               ContainsSubstring("no value of nothing after 0.3 s"));
    CHECK(watch.seconds() < 0.3 + 1 * patience);
    control.barrier("end", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("under an agent's store rank 0 listens at the port of ACCEL_HEARTBEAT_PORT, and nobody without the token",
          "[launch]") {
  on_ranks({2}, [](Rank rank) {
    auto launch = launch::detect();
    launch.agent_store = true;
    launch.run_id = "a";
    c10::intrusive_ptr<c10d::TCPStore> agent;
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(launch.master->port);
    options.isServer = rank.rank == 0;
    options.waitWorkers = false;
    agent = c10::make_intrusive<c10d::TCPStore>(launch.master->host, options);
    int port = 0;
    if (rank.rank == 0) {
      port = inner::place_of(inner::listen_at({inner::look_up("127.0.0.1").front()}, 0)).port();
      c10d::Store& store = *agent;  // which takes text
      store.set("port", std::to_string(port));
    }
    port = std::stoi(agent->get_to_str("port"));
    const auto meeting = launch::meet(launch, 0, {.timeout = Seconds(20), .port = port});
    auto control = meeting.control_plane();
    control.barrier("test", Deadline::in(Seconds(20)));
    if (rank.rank == 1) {
      auto socket = inner::connect_to(inner::look_up("127.0.0.1"), port, Deadline::in(Seconds(5)));
      inner::Connection connection(std::move(socket));
      connection.write(
          {inner::Word::hello, inner::Packer().text("accel").text(ACCEL_VERSION).text("").number(0).number(1).take()});
      connection.flush();
      CHECK(is_dropped(connection.descriptor(), 2));
    }
    control.barrier("end", Deadline::in(Seconds(20)));
    control.farewell();
  });
}

TEST_CASE("variables say how long ranks wait for each other, and options go before them", "[launch]") {
  const auto variables = [](std::string_view name) -> std::optional<std::string> {
    if (name == "ACCEL_RENDEZVOUS_TIMEOUT_S") return "30.5";
    if (name == "ACCEL_TIMEOUT_S") return "inf";
    if (name == "ACCEL_HEARTBEAT_S") return "0";
    if (name == "ACCEL_HEARTBEAT_PORT") return "29501";
    return std::nullopt;
  };
  const auto found = launch::timeouts_from(variables);
  CHECK(found.rendezvous_s == 30.5);
  CHECK(found.collective_s == std::numeric_limits<double>::infinity());
  CHECK(found.heartbeat_s == 0.0);
  CHECK(found.heartbeat_port == 29501);
  for (const std::string wrong : {"-1", "soon", "5s", "nan", ""}) {
    const auto one_wrong = [&](std::string_view name) -> std::optional<std::string> {
      return name == "ACCEL_TIMEOUT_S" ? std::optional(wrong) : std::nullopt;
    };
    CHECK_THAT(thrown_by<ConfigError>([&] { (void)launch::timeouts_from(one_wrong); }),
               ContainsSubstring("ACCEL_TIMEOUT_S"));
  }

  on_ranks(
      {2},
      [](Rank rank) {
        Accelerator accelerator;
        CHECK_THAT(accelerator.describe(), ContainsSubstring("timeout_s = 7\n") &&
                                               ContainsSubstring("rendezvous timeout: 30 s") &&
                                               ContainsSubstring("heartbeat: 0.5 s"));
        Accelerator::Options options;
        options.backend.timeout_s = std::numeric_limits<double>::infinity();
        options.heartbeat_s = 0;
        options.rendezvous_timeout_s = 20;
        Accelerator chosen(options);
        CHECK_THAT(chosen.describe(), ContainsSubstring("timeout_s = inf\n") &&
                                          ContainsSubstring("rendezvous timeout: 20 s") &&
                                          ContainsSubstring("heartbeat: 0 s"));
        CHECK(chosen.reduce(torch::ones({1})).item<int>() == 2);  // infinite is not at once
        for (const double beat : {std::numeric_limits<double>::infinity(), 1e12}) {
          options.heartbeat_s = beat;
          Accelerator patient(options);
          stay_for(0.2);
          CHECK(patient.reduce(torch::ones({1})).item<int>() == 2);
        }
        chosen.wait_for_everyone();
        (void)rank;
      },
      {.variables = {{"ACCEL_RENDEZVOUS_TIMEOUT_S", "30"}, {"ACCEL_TIMEOUT_S", "7"}, {"ACCEL_HEARTBEAT_S", "0.5"}}});
}

TEST_CASE("hidden: a rank whose name server is silent", "[.][launch]") {
  // Who asks it waits for 5 s: nobody ever reads this.
  const inner::Descriptor silent(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_port = htons(53);
  place.sin_addr.s_addr = htonl(0x7f000035);  // 127.0.0.53
  if (std::string(std::getenv("RANK")) == "0")
    REQUIRE(::bind(silent.number(), reinterpret_cast<const sockaddr*>(&place), sizeof place) == 0);
  stay_for(0.5);
  {
    const Stopwatch asked;
    CHECK(inner::look_up("somebody.example").empty());
    CHECK(asked.seconds() > 2);  // so it is silent indeed
  }
  Accelerator::Options options;
  options.heartbeat_s = 0.3;
  const Stopwatch watch;
  Accelerator accelerator(options);
  CHECK(accelerator.reduce(torch::ones({1})).item<int>() == 2);
  std::cout << "met and reduced in " << watch.seconds() << " s\n";
  accelerator.wait_for_everyone();
}

TEST_CASE("a silent name server neither kills nor delays a job whose MASTER_ADDR is known", "[launch]") {
  const std::string line =
      "echo nameserver 127.0.0.53 > /etc/resolv.conf; ip link set lo up; "
      "for rank in 0 1; do RANK=$rank WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 OMP_NUM_THREADS=1 '" +
      own_program() + "' '" + exact_filter("hidden: a rank whose name server is silent") +
      "' & pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || status=1; done; exit $status";
  // Of its own: the files of /etc, and the network.
  const auto result =
      run_program({"unshare", "--mount", "--net", "bash", "-c",
                   "folder=$(mktemp -d) && cp /etc/hosts /etc/nsswitch.conf /etc/passwd $folder && "
                   "mount --bind $folder /etc || { echo 'no mounts here'; exit 77; }; export status=0; " +
                       line},
                  {.deadline = Seconds(180)});
  INFO(result.output);
  if (result.exit_code == 77 || result.output.find("unshare: ") != std::string::npos)
    accel::testing::skip_without("namespaces", "this system allows no mounts or network namespaces of one's own");
  CHECK(result.succeeded());
  for (std::size_t at = 0, found = 0; found < 2; ++found) {
    at = result.output.find("met and reduced in ", at + 1);
    REQUIRE(at != std::string::npos);
    CHECK(std::stod(result.output.substr(at + 19)) < 4);
  }
}
