// RecordingDriver: NCCL's part in BasicNccl without NCCL or a GPU. It moves real bytes between
// processes, by files; notes what is called; is as unkind as NCCL may be; and fails where a test tells it to.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
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
  std::atomic<int> first_device{0};  // of the host's, that this process sees
  std::atomic<bool> devices_can_be_shared{false};
  std::atomic<int> polls_of_init{0};         // how often it is still in progress; < 0: for ever
  std::atomic<int> polls_of_calls{1};        // the same of every other call, which has answered success
  std::atomic<int> calls_until_error{-1};    // so many more succeed; < 0: all
  std::atomic<bool> error{false};            // NCCL reports one
  std::atomic<bool> cuda_error{false};       // CUDA does, of every event
  std::atomic<bool> never_finishes{false};   // collectives begun from now on
  std::atomic<bool> hangs_if_asked{false};   // an event that has not passed, until an abort
  std::atomic<bool> hangs_to_record{false};  // the current stream has no place for an event, until an abort
  std::atomic<bool> captures{false};         // a graph records the current stream
  std::atomic<bool> runs_ahead{false};       // the current stream waits for no sum
  std::atomic<bool> connects_late{false};    // the first collective is in progress until all have called it
  std::atomic<double> abort_takes_s{0};      // until the engine's work ends
  std::atomic<bool> abort_hangs{false};      // it never does: the driver goes on without
  std::atomic<int> aborts_over{0};           // so many have returned
};

/// The engine is a thread that works through a queue, as a stream does; the current stream is the
/// caller itself. One folder per communicator; a file appears whole, under its name, or not at all.
///
/// What NCCL and CUDA leave undefined ends the program: a call without a communicator, one beside another that is
/// still in progress, a look at what a graph has recorded. An abort leaves what an earlier call has brought where a
/// result should have been, as NCCL's buffers are used again. Its peers hear nothing of it: as NCCL's kernels do, what is
/// aborted passes on whatever is there in place of what it has waited for, and theirs end as if all were well.
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
  static inline std::atomic<int> threads_entered{0};

  struct CommState {
    std::filesystem::path folder;
    int world_size = 1;
    int rank = 0;
    std::atomic<int> met{0};     // ranks, when connecting
    std::atomic<int> called{0};  // ranks, a first collective
    std::atomic<int> polls{0};
    std::atomic<bool> registers{false};  // a window, on a thread of its own
    std::atomic<bool> connects{false};   // a collective has been called
    std::atomic<bool> aborted{false};
    std::atomic<bool> is_left_behind{false};  // by an abort that hangs, for as long as a test lets it
    std::thread registration{};
    // Of the engine's thread only.
    std::int64_t rounds = 0;
    std::vector<std::int64_t> sent, received;
    std::map<std::size_t, std::string> results;  // the last, by their sizes
  };
  using Comm = std::shared_ptr<CommState>;
  using Window = int;
  /// Recording it again leaves those alone that wait for the first time.
  struct Event {
    std::shared_ptr<std::atomic<bool>> passed = std::make_shared<std::atomic<bool>>(true);
    std::shared_ptr<std::atomic<bool>> aborted;  // the engine's
    bool is_captured = false;
    bool is_of_sum = false;  // of a collective

    [[nodiscard]] Answer state() const {
      if (is_captured) misuse("a look at an event that a graph has recorded");
      if (faults.cuda_error) return {State::failed, "CUDA says: an illegal address of a test"};
      while (faults.hangs_if_asked && !*passed && !*aborted) pause();
      return {*passed ? State::done : State::in_progress};
    }
  };

  explicit RecordingDriver(int) {}

  static int device_count() { return faults.devices; }
  static std::string uuid(int index) { return message("GPU-", faults.first_device + index); }
  static bool ranks_share_devices() { return faults.devices_can_be_shared; }
  static bool has_windows() { return true; }
  static std::string version() { return "of a test"; }
  static void enter_thread(c10::Device) noexcept { ++threads_entered; }
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
    comm->polls = faults.polls_of_init.load();
    comm->sent.resize(static_cast<std::size_t>(world_size));
    comm->received.resize(static_cast<std::size_t>(world_size));
    std::ofstream(comm->folder / message("here.", rank)).flush();
    return {comm->polls == 0 ? State::done : State::in_progress};
  }

  Answer state(Comm& comm) {
    if (comm == nullptr) misuse("the state of no communicator");
    if (faults.error) return {State::failed, "unhandled fault of a test"};
    if (comm->registers || !has_met(*comm, "here.", comm->met)) return {State::in_progress};
    if (comm->connects && !has_met(*comm, "calls.", comm->called)) return {State::in_progress};
    if (comm->polls == 0) return {};
    if (comm->polls > 0) --comm->polls;
    return {State::in_progress};
  }

  void destroy(Comm& comm, Deadline) noexcept {
    check(comm);
    note("destroy");
    end(comm);
  }

  bool abort(Comm& comm) noexcept {
    if (comm == nullptr) misuse("an abort of no communicator");
    note("abort");
    std::this_thread::sleep_for(Seconds(faults.abort_takes_s.load()));
    const bool hangs = faults.abort_hangs;
    comm->is_left_behind = hangs;
    comm->aborted = !hangs;
    *engine_->aborted = !hangs;
    end(comm);
    ++faults.aborts_over;
    return !hangs;
  }

  Answer group_start() {
    note("group_start");
    engine_->grouping = true;
    return {};
  }

  Answer group_end() {
    note("group_end");
    engine_->grouping = false;
    const auto group = std::exchange(engine_->group, {});
    // All messages are on their way before one of them is waited for.
    engine_->push([group] {
      for (const auto& job : group) job.post();
      for (const auto& job : group) job.run();
      for (const auto& job : group) job.finish();
    });
    return next_answer();
  }

  Answer all_reduce(Comm& comm, const at::Tensor& tensor, ReduceOp op) {
    engine_->last_is_sum = op == ReduceOp::sum;
    return start("all_reduce", comm, tensor, [tensor = tensor.detach(), op](CommState& self) {
      auto parts = exchange(self, tensor);
      if (!parts.empty()) tensor.copy_(reduce(parts, op));
      return !parts.empty();
    });
  }

  Answer broadcast(Comm& comm, const at::Tensor& tensor, int root) {
    return start("broadcast", comm, tensor, [tensor = tensor.detach(), root](CommState& self) {
      auto parts = exchange(self, tensor);
      if (!parts.empty()) tensor.copy_(parts[static_cast<std::size_t>(root)]);
      return !parts.empty();
    });
  }

  Answer all_gather(Comm& comm, const at::Tensor& output, const at::Tensor& input) {
    return start("all_gather", comm, output, [output = output.detach(), input = input.detach()](CommState& self) {
      auto parts = exchange(self, input.view({-1}));
      if (!parts.empty()) output.view({-1}).copy_(at::cat(parts));
      return !parts.empty();
    });
  }

  Answer reduce_scatter(Comm& comm, const at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    const auto body = [output = output.detach(), input = input.detach(), op](CommState& self) {
      auto parts = exchange(self, input.view({-1}));
      if (parts.empty()) return false;
      output.view({-1}).copy_(reduce(parts, op).narrow(0, self.rank * output.numel(), output.numel()));
      return true;
    };
    return start("reduce_scatter", comm, output, body);
  }

  /// It is over when the peer has it.
  Answer send(Comm& comm, const at::Tensor& tensor, int peer) {
    const auto name = std::make_shared<std::string>();
    const auto post = [name, tensor = tensor.detach(), peer](CommState& self) {
      *name = message("send.", self.rank, ".", peer, ".", ++self.sent[static_cast<std::size_t>(peer)]);
      write(self, *name, tensor);
    };
    const auto finish = [name](CommState& self) {
      while (std::filesystem::exists(self.folder / *name) && !self.aborted) pause();
    };
    return start("send", comm, {}, [](CommState&) { return true; }, post, finish);
  }

  Answer recv(Comm& comm, const at::Tensor& tensor, int peer) {
    return start("recv", comm, tensor, [tensor = tensor.detach(), peer](CommState& self) {
      const auto number = ++self.received[static_cast<std::size_t>(peer)];
      const auto name = message("send.", peer, ".", self.rank, ".", number);
      if (!read(self, name, tensor)) return false;
      std::filesystem::remove(self.folder / name);
      return true;
    });
  }

  at::Tensor allocate(Bytes bytes) {
    note("allocate");
    return at::empty({bytes.count}, at::kByte);
  }
  /// Says success at once, and writes the handle later.
  Answer open_window(Comm& comm, const at::Tensor&, Window& window) {
    check(comm);
    note("open_window");
    join_registration(*comm);
    comm->registers = true;
    comm->registration = std::thread([state = comm.get(), handle = &window] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      *handle = 7;
      state->registers = false;
    });
    return next_answer();
  }
  void close_window(Comm& comm, Window& window) noexcept {
    check(comm);
    if (window != 7) misuse("a window is closed whose handle is not there");
    note("close_window");
    comm->polls = faults.polls_of_calls.load();
  }

  Event make_event() { return {.aborted = engine_->aborted}; }

  void record_current(Event& event) {
    note("record_current");
    if (faults.cuda_error) throw CommError("CUDA says: an illegal address of a test");
    while (faults.hangs_to_record && !*engine_->aborted) pause();
    event.passed = std::make_shared<std::atomic<bool>>(true);
    event.is_captured = faults.captures;
  }

  void record_engine(Event& event) {
    note("record_engine");
    event.passed = std::make_shared<std::atomic<bool>>(false);
    event.is_captured = faults.captures;
    engine_->push([passed = event.passed] { *passed = true; });
    event.is_of_sum = engine_->last_is_sum;
  }

  void engine_waits(Event& event) {
    note("engine_waits");
    engine_->push([passed = event.passed] { await(*passed); });
  }

  /// The current stream is the host here, and blocks. One that runs ahead does it only behind sums, which are what a
  /// reduction of gradients begins with: as a GPU's host it has been told of nothing when they are lost.
  void current_waits(Event& event) {
    note("current_waits");
    if (!faults.runs_ahead || !event.is_of_sum) await(*event.passed);
  }

 private:
  /// A call: what is on its way before others of its group are waited for, the call itself, and what it waits for when
  /// they are over.
  struct Job {
    std::function<void()> post, run, finish;
  };

  class Engine {
   public:
    Engine() : thread_([this] { work(); }) {}
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() {
      push(nullptr);
      thread_.join();
    }

    void push(std::function<void()> task) {
      {
        const std::lock_guard lock(mutex_);
        tasks_.push_back(std::move(task));
      }
      wake_.notify_one();
    }

    bool grouping = false;
    std::vector<Job> group;
    bool last_is_sum = false;
    std::shared_ptr<std::atomic<bool>> aborted = std::make_shared<std::atomic<bool>>(false);

   private:
    void work() {
      for (;;) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return !tasks_.empty(); });
        const auto task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        if (!task) return;
        task();
      }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> tasks_;
    std::thread thread_;
  };

  [[noreturn]] static void misuse(const char* what) {
    std::cerr << "NCCL is misused: " << what << std::endl;
    std::abort();
  }

  static void pause() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

  static void await(const std::atomic<bool>& passed) {
    while (!passed) pause();
  }

  static void note(const char* call) {
    const std::lock_guard lock(calls_mutex);
    calls.emplace_back(call);
  }

  void check(const Comm& comm) const {
    if (comm == nullptr) misuse("a call without a communicator");
    if (comm->aborted) misuse("a call on a communicator that was aborted");
    if (comm->polls != 0 || comm->registers) misuse("a call while another is in progress");
  }

  static Answer next_answer() {
    if (faults.calls_until_error < 0 || faults.calls_until_error-- > 0) return {};
    return {State::failed, "a call that a test lets fail"};
  }

  /// `body` says whether it came to its end; if not, an abort leaves ones in `output`.
  template <class Body>
  Answer start(const char* name, const Comm& comm, const at::Tensor& output, Body body,
               std::function<void(CommState&)> post = {}, std::function<void(CommState&)> finish = {}) {
    if (!engine_->grouping || comm == nullptr) check(comm);
    note(name);
    if (std::string_view(name) != "all_reduce") engine_->last_is_sum = false;
    if (const Answer answer = next_answer(); answer.failed()) return answer;
    Job job;
    job.post = [comm, post = std::move(post)] {
      if (post && !comm->aborted) post(*comm);
    };
    job.finish = [comm, finish = std::move(finish)] {
      if (finish && !comm->aborted) finish(*comm);
    };
    if (faults.connects_late && !is_message(name) && !comm->connects.exchange(true))
      std::ofstream(comm->folder / message("calls.", comm->rank)).flush();
    job.run = [comm, output = output.defined() ? output.detach() : output, body = std::move(body),
               hangs = faults.never_finishes.load()] {
      for (; hangs && !comm->aborted; pause())
        if (comm->is_left_behind && !faults.abort_hangs) comm->aborted = true;
      const bool is_whole = body(*comm);
      if (!output.defined() || output.nbytes() == 0) return;
      std::string& known = comm->results[output.nbytes()];
      if (is_whole)
        known.assign(static_cast<const char*>(output.data_ptr()), output.nbytes());
      else if (known.empty())
        std::memset(output.data_ptr(), 0xa5, output.nbytes());
      else
        std::memcpy(output.data_ptr(), known.data(), known.size());
    };
    comm->polls = faults.polls_of_calls.load();
    if (engine_->grouping) {
      engine_->group.push_back(std::move(job));
      return {};
    }
    engine_->push([job = std::move(job)] {
      job.post();
      job.run();
      job.finish();
    });
    return {};
  }

  static bool is_message(std::string_view call) { return call == "send" || call == "recv"; }

  /// Nobody is connected before all have come. `met`: so many have written that.
  static bool has_met(const CommState& comm, const char* what, std::atomic<int>& met) {
    for (; met < comm.world_size; ++met)
      if (!std::filesystem::exists(comm.folder / message(what, met.load()))) return false;
    return true;
  }

  static void join_registration(CommState& comm) noexcept {
    if (comm.registration.joinable()) comm.registration.join();
  }

  static void end(Comm& comm) noexcept {
    join_registration(*comm);
    leave(*comm);
    comm = nullptr;
  }

  // On the engine's thread.

  static void write(const CommState& self, const std::string& name, const at::Tensor& tensor) {
    const auto unfinished = self.folder / message("unfinished.", self.rank);
    std::ofstream(unfinished, std::ios::binary)
        .write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    std::error_code gone;  // the folder, when all have left: of who was aborted some work may go on
    std::filesystem::rename(unfinished, self.folder / name, gone);
    if (gone && !self.aborted) misuse("a file that cannot be renamed");
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

  /// Everybody's `tensor`, by rank; nothing after an abort, which passes on this rank's own in place of others'.
  static std::vector<at::Tensor> exchange(CommState& self, const at::Tensor& tensor) {
    const auto round = ++self.rounds;
    const auto name = [](std::int64_t of_round, int of_rank) { return message("round.", of_round, ".", of_rank); };
    const auto is_there = [&](int rank) { return std::filesystem::exists(self.folder / name(round, rank)); };
    write(self, name(round, self.rank), tensor);
    std::vector<at::Tensor> parts;
    for (int rank = 0; rank < self.world_size; ++rank) {
      parts.push_back(at::empty_like(tensor));
      if (read(self, name(round, rank), parts.back())) continue;
      for (int other = 0; other < self.world_size; ++other)
        if (!is_there(other)) write(self, name(round, other), tensor);
      return {};
    }
    if (self.aborted) return {};
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
