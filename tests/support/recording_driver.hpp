// RecordingDriver: NCCL's part in BasicNccl without NCCL or a GPU. It moves real bytes between
// processes, by files; notes what is called; and fails where a test tells it to.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <stdlib.h>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <accel/backend/basic_nccl.hpp>

namespace accel::testing {

/// What a test tells all drivers of this process.
struct RecordingFaults {
  std::atomic<int> devices{8};
  std::atomic<bool> devices_can_be_shared{false};
  std::atomic<int> polls_of_init{0};        // how often it is still in progress; < 0: for ever
  std::atomic<bool> error{false};           // NCCL reports one
  std::atomic<bool> never_finishes{false};  // collectives begun from now on
  std::atomic<bool> captures{false};        // a graph records the current stream
};

/// The engine is a thread that works through a queue, as a stream does; the current stream is the
/// caller itself. One folder per communicator; a file appears whole, under its name, or not at all.
class RecordingDriver {
 public:
  using Answer = backend::NcclAnswer;
  using State = Answer::State;

  static inline RecordingFaults faults;

  /// What was called, in order, since the last time.
  static std::vector<std::string> take_calls() {
    const std::lock_guard lock(calls_mutex);
    return std::exchange(calls, {});
  }

  struct CommState {
    std::filesystem::path folder;
    int world_size = 1;
    int rank = 0;
    int polls = 0;
    std::atomic<bool> aborted{false};
    // Of the engine's thread only.
    std::int64_t rounds = 0;
    std::vector<std::int64_t> sent, received;
  };
  using Comm = std::shared_ptr<CommState>;
  using Window = int;
  /// Recording it again leaves those alone that wait for the first time.
  struct Event {
    std::shared_ptr<std::atomic<bool>> passed = std::make_shared<std::atomic<bool>>(true);
  };

  explicit RecordingDriver(int) {}

  static int device_count() { return faults.devices; }
  static bool ranks_share_devices() { return faults.devices_can_be_shared; }
  static bool has_windows() { return true; }
  static std::string version() { return "of a test"; }
  [[nodiscard]] c10::Device device() const { return {c10::DeviceType::CPU}; }
  [[nodiscard]] bool is_capturing() const { return faults.captures; }

  [[nodiscard]] std::string unique_id() const {
    std::string pattern = (std::filesystem::temp_directory_path() / "accel_comm_XXXXXX").string();
    return ::mkdtemp(pattern.data());
  }

  Answer init(Comm& comm, int world_size, const std::string& id, int rank, const backend::NcclOptions&) {
    note("init");
    comm = std::make_shared<CommState>();
    comm->folder = id;
    comm->world_size = world_size;
    comm->rank = rank;
    comm->polls = faults.polls_of_init;
    comm->sent.resize(static_cast<std::size_t>(world_size));
    comm->received.resize(static_cast<std::size_t>(world_size));
    return state(comm);
  }

  Answer state(Comm& comm) {
    if (faults.error) return {State::failed, "unhandled fault of a test"};
    if (comm->polls == 0) return {};
    if (comm->polls > 0) --comm->polls;
    return {State::in_progress};
  }

  void destroy(Comm& comm, Deadline) noexcept {
    note("destroy");
    leave(*comm);
  }

  void abort(Comm& comm) noexcept {
    note("abort");
    comm->aborted = true;
    leave(*comm);
  }

  Answer group_start() {
    note("group_start");
    engine_->grouping = true;
    return {};
  }

  Answer group_end() {
    note("group_end");
    engine_->grouping = false;
    for (auto& job : std::exchange(engine_->group, {})) engine_->push(std::move(job));
    return {};
  }

  Answer all_reduce(Comm& comm, const at::Tensor& tensor, ReduceOp op) {
    return start("all_reduce", comm, [tensor = tensor.detach(), op](CommState& self) {
      auto parts = exchange(self, tensor);
      if (!parts.empty()) tensor.copy_(reduce(parts, op));
    });
  }

  Answer broadcast(Comm& comm, const at::Tensor& tensor, int root) {
    return start("broadcast", comm, [tensor = tensor.detach(), root](CommState& self) {
      auto parts = exchange(self, tensor);
      if (!parts.empty()) tensor.copy_(parts[static_cast<std::size_t>(root)]);
    });
  }

  Answer all_gather(Comm& comm, const at::Tensor& output, const at::Tensor& input) {
    return start("all_gather", comm, [output = output.detach(), input = input.detach()](CommState& self) {
      auto parts = exchange(self, input.view({-1}));
      if (!parts.empty()) output.view({-1}).copy_(at::cat(parts));
    });
  }

  Answer reduce_scatter(Comm& comm, const at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    return start("reduce_scatter", comm, [output = output.detach(), input = input.detach(), op](CommState& self) {
      auto parts = exchange(self, input.view({-1}));
      if (parts.empty()) return;
      output.view({-1}).copy_(reduce(parts, op).narrow(0, self.rank * output.numel(), output.numel()));
    });
  }

  Answer send(Comm& comm, const at::Tensor& tensor, int peer) {
    return start("send", comm, [tensor = tensor.detach(), peer](CommState& self) {
      const auto number = ++self.sent[static_cast<std::size_t>(peer)];
      write(self, message("send.", self.rank, ".", peer, ".", number), tensor);
    });
  }

  Answer recv(Comm& comm, const at::Tensor& tensor, int peer) {
    return start("recv", comm, [tensor = tensor.detach(), peer](CommState& self) {
      const auto number = ++self.received[static_cast<std::size_t>(peer)];
      (void)read(self, message("send.", peer, ".", self.rank, ".", number), tensor);
    });
  }

  at::Tensor allocate(Bytes bytes) {
    note("allocate");
    return at::empty({bytes.count}, at::kByte);
  }
  Answer open_window(Comm&, const at::Tensor&, Window&) {
    note("open_window");
    return {};
  }
  void close_window(Comm&, Window) noexcept { note("close_window"); }

  Event make_event() { return {}; }

  void record_current(Event& event) {
    note("record_current");
    event.passed = std::make_shared<std::atomic<bool>>(true);
  }

  void record_engine(Event& event) {
    note("record_engine");
    event.passed = std::make_shared<std::atomic<bool>>(false);
    engine_->push([passed = event.passed] { *passed = true; });
  }

  void engine_waits(Event& event) {
    note("engine_waits");
    engine_->push([passed = event.passed] { await(*passed); });
  }

  /// The current stream is the host here, and blocks.
  void current_waits(Event& event) {
    note("current_waits");
    await(*event.passed);
  }

  [[nodiscard]] bool passed(const Event& event) const noexcept { return *event.passed; }

 private:
  using Job = std::function<void()>;

  class Engine {
   public:
    Engine() : thread_([this] { work(); }) {}
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() {
      push(nullptr);
      thread_.join();
    }

    void push(Job job) {
      {
        const std::lock_guard lock(mutex_);
        jobs_.push_back(std::move(job));
      }
      wake_.notify_one();
    }

    bool grouping = false;
    std::vector<Job> group;

   private:
    void work() {
      for (;;) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return !jobs_.empty(); });
        const Job job = std::move(jobs_.front());
        jobs_.pop_front();
        lock.unlock();
        if (!job) return;
        job();
      }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job> jobs_;
    std::thread thread_;
  };

  static void pause() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

  static void await(const std::atomic<bool>& passed) {
    while (!passed) pause();
  }

  static void note(const char* call) {
    const std::lock_guard lock(calls_mutex);
    calls.emplace_back(call);
  }

  template <class Body>
  Answer start(const char* name, const Comm& comm, Body body) {
    note(name);
    Job job = [comm, body = std::move(body), hangs = faults.never_finishes.load()] {
      while (hangs && !comm->aborted) pause();
      if (!comm->aborted) body(*comm);
    };
    if (engine_->grouping)
      engine_->group.push_back(std::move(job));
    else
      engine_->push(std::move(job));
    return {};
  }

  // On the engine's thread.

  static void write(const CommState& self, const std::string& name, const at::Tensor& tensor) {
    const auto unfinished = self.folder / message("unfinished.", self.rank);
    std::ofstream(unfinished, std::ios::binary)
        .write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    std::filesystem::rename(unfinished, self.folder / name);
  }

  /// False if the communicator was aborted first.
  static bool read(const CommState& self, const std::string& name, const at::Tensor& tensor) {
    while (!std::filesystem::exists(self.folder / name)) {
      if (self.aborted) return false;
      pause();
    }
    std::ifstream(self.folder / name, std::ios::binary)
        .read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    return true;
  }

  /// Everybody's `tensor`, by rank; nothing after an abort.
  static std::vector<at::Tensor> exchange(CommState& self, const at::Tensor& tensor) {
    const auto round = ++self.rounds;
    const auto name = [](std::int64_t of_round, int of_rank) { return message("round.", of_round, ".", of_rank); };
    write(self, name(round, self.rank), tensor);
    std::vector<at::Tensor> parts;
    for (int rank = 0; rank < self.world_size; ++rank) {
      parts.push_back(at::empty_like(tensor));
      if (!read(self, name(round, rank), parts.back())) return {};
    }
    // Everybody wrote this one, so everybody has read the one before.
    std::filesystem::remove(self.folder / name(round - 1, self.rank));
    return parts;
  }

  static at::Tensor reduce(const std::vector<at::Tensor>& parts, ReduceOp op) {
    at::Tensor result = parts.front().clone();
    for (std::size_t rank = 1; rank < parts.size(); ++rank) {
      if (op == ReduceOp::sum) result.add_(parts[rank]);
      if (op == ReduceOp::max) result = at::maximum(result, parts[rank]);
      if (op == ReduceOp::min) result = at::minimum(result, parts[rank]);
    }
    return result;
  }

  /// The last to leave removes the folder: the others may still read.
  static void leave(const CommState& self) noexcept {
    std::error_code ignored;
    const auto name = [](int rank) { return message("left.", rank); };
    std::ofstream(self.folder / name(self.rank)).flush();
    for (int rank = 0; rank < self.world_size; ++rank)
      if (!std::filesystem::exists(self.folder / name(rank), ignored)) return;
    std::filesystem::remove_all(self.folder, ignored);
  }

  static inline std::mutex calls_mutex;
  static inline std::vector<std::string> calls;

  std::shared_ptr<Engine> engine_ = std::make_shared<Engine>();
};

}  // namespace accel::testing
