// Some of the ranks of a job, each a thread that trains nothing: they meet, come to barriers, idle, and miss one.
//
//   meeting <accel or libtorch> <world size> <first rank> <how many> <port> <missing rank or -1>
//
// Writes a line of JSON: when they began and had met (seconds of a clock that all processes share), what barriers took,
// processor time of this process, and how many of them named the missing rank, and nobody else.
#include <sys/resource.h>
#include <sys/time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <accel/launch/rendezvous.hpp>

namespace launch = accel::launch;
using accel::Deadline;
using accel::Seconds;

namespace {

constexpr int barriers = 10;
constexpr double idle_s = 4;      // almost three beats
constexpr double patience_s = 5;  // for who is missing

double now_s() {
  return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_s() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Job {
  int world_size;
  int port;
  int missing;
};

/// accel's way: over rank 0.
class Star {
 public:
  Star(const Job& job, int rank) {
    launch::Launch own;
    own.topology = {.rank = rank, .world_size = job.world_size};
    own.master = launch::Endpoint{"127.0.0.1", job.port};
    own.run_id = "benchmark";
    meeting_ = launch::meet(own, 0, {.timeout = Seconds(60)});
    control_ = meeting_.control_plane();
  }
  ~Star() { control_.farewell(); }
  void barrier(double timeout_s = 60) { control_.barrier("barrier", Deadline::in(Seconds(timeout_s))); }

 private:
  launch::Meeting meeting_;
  launch::ControlPlane control_;
};

/// What c10d and its users do: everybody's words by key, counters for barriers.
class Store {
 public:
  Store(const Job& job, int rank) : world_size_(job.world_size) {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(job.port);
    options.isServer = rank == 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::seconds(60);
    store_ = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    const auto key = [](int of) { return "rank/" + std::to_string(of); };
    store_->set(key(rank), std::vector<std::uint8_t>(60, 'x'));
    std::vector<std::string> keys;
    for (int other = 0; other < world_size_; ++other) keys.push_back(key(other));
    store_->wait(keys, std::chrono::seconds(60));
    (void)store_->multiGet(keys);
  }
  void barrier() {
    const std::string name = "barrier/" + std::to_string(++barriers_);
    if (store_->add(name, 1) == world_size_) store_->set(name + "/go", std::vector<std::uint8_t>());
    store_->wait({name + "/go"}, std::chrono::seconds(60));
  }

 private:
  int world_size_;
  int barriers_ = 0;
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

class Report {
 public:
  explicit Report(int first, int last) : first_(first), last_(last) {}

  /// The latest of all; of times, of the first rank only where `value` is a list.
  void at_most(const char* name, double value) {
    const std::lock_guard lock(mutex_);
    report_[name] = std::max(report_.value(name, 0.0), value);
  }
  void of(int rank, const char* name, const nlohmann::json& value) {
    const std::lock_guard lock(mutex_);
    if (rank == first_ || rank == last_) report_[name][rank == first_ ? "first" : "last"] = value;
  }
  void count(const char* name) {
    const std::lock_guard lock(mutex_);
    report_[name] = report_.value(name, 0) + 1;
  }
  void set(const char* name, double value) { report_[name] = value; }
  void set_text(const char* name, const std::string& value) { report_[name] = value; }
  [[nodiscard]] std::string text() const { return report_.dump(); }

 private:
  int first_, last_;
  std::mutex mutex_;
  nlohmann::json report_;
};

template <class Group>
void take_part(const Job& job, int rank, Report& report) {
  Group group(job, rank);
  report.at_most("met", now_s());
  report.at_most("cpu_to_meet", cpu_s());
  group.barrier();
  std::vector<double> took;
  for (int i = 0; i < barriers; ++i) {
    const double begin = now_s();
    group.barrier();
    took.push_back(now_s() - begin);
  }
  report.of(rank, "barriers", took);
  const double busy = cpu_s();
  std::this_thread::sleep_for(Seconds(idle_s));
  report.at_most("cpu_idle", (cpu_s() - busy) / idle_s);
  group.barrier();
  if constexpr (requires { group.barrier(1.0); }) {
    if (job.missing < 0) return;
    if (rank == job.missing) return std::this_thread::sleep_for(Seconds(patience_s + 3));
    try {
      group.barrier(patience_s);
    } catch (const accel::CommError& error) {
      const std::string text = error.what();
      const std::string name = "no word from rank " + std::to_string(job.missing) + " (host ";
      const bool is_alone = text.find("(host ") == text.rfind("(host ");
      report.count(text.find(name) != std::string::npos && is_alone ? "named" : "not_named");
      report.of(rank, "missed", text);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const std::string system = argv[1];
  const Job job{std::stoi(argv[2]), std::stoi(argv[5]), std::stoi(argv[6])};
  const int first = std::stoi(argv[3]);
  const int count = std::stoi(argv[4]);
  launch::detail::raise_limits(1, 4 * count);  // ranks that share a process share its descriptors
  Report report(first, first + count - 1);
  report.set("begin", now_s());
  std::vector<std::thread> ranks;
  std::mutex mutex;
  for (int rank = first; rank < first + count; ++rank)
    ranks.emplace_back([&, rank] {
      try {
        system == "accel" ? take_part<Star>(job, rank, report) : take_part<Store>(job, rank, report);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        report.count("errors");
        report.set_text("error", accel::first_line(error));
      }
    });
  for (auto& rank : ranks) rank.join();
  std::cout << report.text() << "\n";
}
