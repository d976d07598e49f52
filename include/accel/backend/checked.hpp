// Checked: an adaptor for finding out where ranks part ways.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>
#include <accel/backend/detail/called.hpp>
#include <accel/core/hash.hpp>

namespace accel::inline v0_1::backend {

/// A backend whose ranks must call the same operation with equal shapes and dtypes: where they do not,
/// every rank's CommError names all the calls. Without it such ranks wait for each other until the
/// deadline, compute with what was never meant for them, or die: Gloo ends the process of a rank that
/// receives more than it asked for.
///
/// Where the ranks share memory, each says beside its data what it calls, and reads what the others say before it
/// takes theirs. Elsewhere an all_reduce of 16 bytes before every collective compares it, in a group of its own, which
/// no wrong call can disturb, and on a thread that then starts the collective, so that backward goes on meanwhile;
/// texts are exchanged only when something differs. What differs is never sent. send and recv, which two ranks call,
/// are passed through.
///
/// Cost     a microsecond or two per collective to put it into words; without shared memory an all_reduce of 16 bytes,
///          and a thread. On a GPU the caller waits for it: what is started elsewhere would not follow its stream.
/// Differs  from its backend: what only that refuses, a dtype it cannot reduce, is thrown by wait().
/// Example  Accelerator<backend::Checked<backend::Gloo>, precision::Fp32>
template <Backend B>
class Checked {
 public:
  static constexpr std::string_view name = "checked";
  static constexpr bool waits_on_stream = backend::waits_on_stream<B>;

  using Options = typename B::Options;
  class Work;

  Checked(const launch::Meeting& meeting, const Options& options) : Checked(B(meeting, options)) {}

  static void check_launch(std::string_view family, int world_size)
    requires requires { B::check_launch(family, world_size); }
  {
    B::check_launch(family, world_size);
  }

  Checked(Checked&&) noexcept = default;
  Checked& operator=(Checked&& other) noexcept {
    std::swap(core_, other.core_);
    return *this;
  }
  ~Checked() {
    if (core_) core_->end();
  }

  [[nodiscard]] int rank() const { return core_->inner.rank(); }
  [[nodiscard]] int world_size() const { return core_->inner.world_size(); }
  [[nodiscard]] c10::Device device() const { return core_->inner.device(); }
  [[nodiscard]] bool is_capturing() const { return backend::may_be_capturing(core_->inner); }
  [[nodiscard]] Seconds timeout() const { return core_->inner.timeout(); }
  [[nodiscard]] std::string describe() const { return description(core_->inner); }

  [[nodiscard]] Work all_reduce(at::Tensor tensor, ReduceOp op) {
    return begin("all_reduce", word(op), {&tensor, 1},
                 [tensor, op](B& inner) mutable { return inner.all_reduce(tensor, op); });
  }
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    std::vector<at::Tensor> kept(tensors.begin(), tensors.end());
    return begin("all_reduce", word(op), tensors,
                 [kept = std::move(kept), op](B& inner) mutable { return inner.all_reduce(std::span(kept), op); });
  }
  [[nodiscard]] Work broadcast(at::Tensor tensor, int root) {
    check_peer("broadcast", root, world_size());
    return begin("broadcast", message("from ", root), {&tensor, 1},
                 [tensor, root](B& inner) mutable { return inner.broadcast(tensor, root); });
  }
  [[nodiscard]] Work all_gather(at::Tensor output, at::Tensor input) {
    check_both("all_gather", output, input);
    check_parts("all_gather", output, input, world_size());
    return begin("all_gather", {}, {&input, 1},
                 [output, input](B& inner) mutable { return inner.all_gather(output, input); });
  }
  [[nodiscard]] Work reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op) {
    check_both("reduce_scatter", output, input);
    check_parts("reduce_scatter", input, output, world_size());
    return begin("reduce_scatter", word(op), {&input, 1},
                 [output, input, op](B& inner) mutable { return inner.reduce_scatter(output, input, op); });
  }
  [[nodiscard]] Work send(at::Tensor tensor, int peer) {
    core_->drain();
    return Work(core_, core_->inner.send(tensor, peer));
  }
  [[nodiscard]] Work recv(at::Tensor tensor, int peer) {
    core_->drain();
    return Work(core_, core_->inner.recv(tensor, peer));
  }

  [[nodiscard]] at::Tensor allocate(Bytes bytes) { return core_->inner.allocate(bytes); }
  [[nodiscard]] Checked split(std::span<const int> ranks, std::string_view part_name) {
    core_->drain();
    return Checked(core_->inner.split(ranks, part_name));
  }
  [[nodiscard]] launch::ControlPlane& control() { return core_->inner.control(); }
  void abort(std::string_view reason) noexcept { core_->inner.abort(reason); }

  /// The backend that does the work.
  [[nodiscard]] B& inner() { return core_->inner; }

 private:
  using InnerWork = WorkOf<B>;

  /// A collective as a rank calls it.
  struct Call {
    detail::Called called;
    std::string text;  // all of it
  };

  /// What the thread shares with the backend and its works: it may outlive them.
  struct Core {
    explicit Core(B&& backend) : inner(std::move(backend)) {
      const int size = inner.world_size();
      if (size == 1 || names_are_compared()) return;
      std::vector<int> all(static_cast<std::size_t>(size));
      std::iota(all.begin(), all.end(), 0);
      checks.emplace(inner.split(all, "checked"));
    }

    /// The backend compares by itself what it is told of a call.
    [[nodiscard]] bool names_are_compared() const {
      if constexpr (requires { inner.compares_names(); }) return inner.compares_names();
      return false;
    }

    /// Returns when nothing is under way on the thread, whose waits have deadlines.
    void drain() {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return tasks.empty() && !busy; });
    }

    void put(std::packaged_task<InnerWork()> task) {
      {
        const std::lock_guard lock(mutex);
        tasks.push_back(std::move(task));
      }
      changed.notify_all();
    }

    /// The thread: one collective after the other, in the order of the calls.
    void run() {
      std::unique_lock lock(mutex);
      for (;;) {
        changed.wait(lock, [&] { return !tasks.empty() || ending; });
        if (tasks.empty()) return;
        auto task = std::move(tasks.front());
        tasks.pop_front();
        busy = true;
        lock.unlock();
        task();
        lock.lock();
        busy = false;
        changed.notify_all();
      }
    }

    /// A thread that waits for a rank that does not come is left behind: it ends at its deadline.
    void end() {
      if (!thread.joinable()) return;
      bool idle = false;
      {
        const std::lock_guard lock(mutex);
        ending = true;
        idle = tasks.empty() && !busy;
      }
      changed.notify_all();
      if (idle)
        thread.join();
      else
        thread.detach();
    }

    /// Throws on every rank if they do not call the same.
    void compare(const Call& call) {
      const std::int64_t own = hash(call.text);
      at::Tensor least = at::empty({2}, at::kLong);
      auto* const values = least.template mutable_data_ptr<std::int64_t>();
      values[0] = own;
      values[1] = ~own;
      least = least.to(inner.device());
      try {
        auto work = checks->all_reduce(least, ReduceOp::min);
        wait_on_host(*checks, work);
      } catch (const CommError& error) {
        throw CommError(message(call.called, ", compared before: ", error.what()));
      }
      // All hashes are equal if the least is this one, and so is the least complement.
      const at::Tensor found = least.cpu();
      const auto* const agreed = found.template const_data_ptr<std::int64_t>();
      if (agreed[0] == own && agreed[1] == ~own) return;

      // Its own control plane: the other one is the caller's, who may be in a round of it.
      const auto calls = checks->control().all_gather("what the ranks call", call.text, Deadline::in(inner.timeout()));
      const std::string title =
          message(call.called.operation, " number ", call.called.number, ": the ranks do not call the same");
      // Of each call the first rank: of a thousand that differ in one it is these two that tell.
      std::vector<std::string> who;
      std::set<std::string_view> known;
      for (std::size_t r = 0; r < calls.size(); ++r)
        if (known.insert(calls[r]).second) who.push_back(message("rank ", r, " calls ", calls[r]));
      const std::string problem =
          message(title, ": ", launch::listed(who),
                  "; every rank must call the same collectives, in the same order, with equal shapes and dtypes");
      inner.control().give_up(problem);
      throw CommError(problem);
    }

    B inner;
    std::optional<B> checks;  // none at one rank, or where the backend compares
    std::int64_t number = 0;  // collectives begun
    std::mutex mutex;         // of all below
    std::condition_variable changed;
    std::deque<std::packaged_task<InnerWork()>> tasks;
    bool busy = false;
    bool ending = false;
    std::thread thread;
  };

  explicit Checked(B&& inner) : core_(std::make_shared<Core>(std::move(inner))) {
    if (core_->checks && device().is_cpu()) core_->thread = std::thread([core = core_] { core->run(); });
  }

  static std::string_view word(ReduceOp op) {
    return op == ReduceOp::sum ? "sum" : op == ReduceOp::max ? "max" : "min";
  }

  static std::int64_t hash(std::string_view text) { return static_cast<std::int64_t>(fnv1a(text)); }

  void check_both(std::string_view operation, const at::Tensor& output, const at::Tensor& input) {
    check(*this, operation, output);
    check(*this, operation, input);
  }

  static std::string in_words(std::string_view operation, std::string_view how, std::span<const at::Tensor> tensors) {
    std::ostringstream text;
    text << operation << (how.empty() ? "" : " ") << how << " of" << (tensors.empty() ? " nothing" : "");
    for (std::size_t i = 0; i < tensors.size(); ++i) text << (i == 0 ? " " : ", ") << tensor::spec(tensors[i]);
    return std::move(text).str();
  }

  /// What only this rank's call has wrong is refused at once: the others do not know of it.
  template <class Start>
  Work begin(std::string_view operation, std::string_view how, std::span<const at::Tensor> tensors, Start start) {
    control().check_failure(operation);
    for (const auto& tensor : tensors) check_tensor(operation, tensor, device());
    const bool names = core_->names_are_compared();
    if (!core_->checks && !names) return Work(core_, start(core_->inner));
    Call call{.called = {operation, 0}, .text = in_words(operation, how, tensors)};
    for (const auto& tensor : tensors) call.called.bytes.count += static_cast<std::int64_t>(tensor.nbytes());
    if constexpr (requires { core_->inner.name_next(nullptr); }) {
      if (names) {
        core_->inner.name_next(std::make_shared<const std::string>(std::move(call.text)));
        try {
          return Work(core_, start(core_->inner));
        } catch (const std::exception&) {
          core_->inner.name_next(nullptr);  // refused before it was one
          throw;
        }
      }
    }
    call.called.number = ++core_->number;
    if (!device().is_cpu()) {
      core_->compare(call);
      return Work(core_, start(core_->inner));
    }
    std::packaged_task<InnerWork()> task([core = core_.get(), call, start = std::move(start)]() mutable {
      core->compare(call);
      return start(core->inner);
    });
    Work work(core_, call.called, task.get_future());
    core_->put(std::move(task));
    return work;
  }

  std::shared_ptr<Core> core_;  // null only in what was moved from
};

/// A collective that is compared, or under way.
template <Backend B>
class Checked<B>::Work {
 public:
  void wait() { wait_until(Deadline::in(core_->inner.timeout())); }

  void wait_until(Deadline deadline) {
    if (!work_ && !failure_ && future_.wait_for(deadline.remaining()) != std::future_status::ready)
      detail::fail(core_->inner.control(), called_, {.late = deadline, .native = "not all ranks have called it"});
    take();
    work_->wait_until(deadline);
  }

  [[nodiscard]] bool done() const {
    return work_ || failure_ || future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready ? ended()
                                                                                                       : false;
  }

 private:
  friend class Checked;

  Work(std::shared_ptr<Core> core, InnerWork work) : core_(std::move(core)), work_(std::move(work)) {}
  Work(std::shared_ptr<Core> core, const detail::Called& called, std::future<InnerWork> future)
      : core_(std::move(core)), called_(called), future_(std::move(future)) {}

  /// Once it was started; throws, each time, what went wrong before that.
  void take() const {
    if (failure_) std::rethrow_exception(failure_);
    if (work_) return;
    try {
      work_.emplace(future_.get());
    } catch (...) {
      failure_ = std::current_exception();
      throw;
    }
  }

  [[nodiscard]] bool ended() const {
    try {
      take();
      return work_->done();
    } catch (const std::exception&) {
      return true;  // wait() throws it
    }
  }

  std::shared_ptr<Core> core_;
  detail::Called called_;
  mutable std::future<InnerWork> future_;  // taken by the first that asks
  mutable std::optional<InnerWork> work_;
  mutable std::exception_ptr failure_;
};

}  // namespace accel::inline v0_1::backend
