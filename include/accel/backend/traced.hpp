// Traced: an adaptor that counts calls, bytes and time.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/backend/backend.hpp>

namespace accel::inline v0_1::backend {

/// What one operation has cost so far.
struct TraceRow {
  std::string_view operation;
  std::int64_t calls = 0;
  Bytes bytes{};         // that this rank handed over
  Seconds in_flight{0};  // from the call until wait() had returned, summed over the calls
  Seconds waited{0};     // of that, spent in wait(): what nothing hid
};

/// A backend that counts, per operation, calls, bytes and time. The groups split from it count with it.
///
/// Cost     four looks at the clock per call, and a lock twice: works may be waited for on other threads.
/// Example  Accelerator<backend::Traced<backend::Gloo>, precision::Fp32> accelerator;
///          ... accelerator.print(accelerator.backend().table());
template <Backend B>
class Traced {
 public:
  static constexpr std::string_view name = "traced";
  static constexpr bool waits_on_stream = backend::waits_on_stream<B>;

  using Options = typename B::Options;
  class Work;

  Traced(const launch::Meeting& meeting, const Options& options) : inner_(meeting, options) {}

  static void check_launch(std::string_view family, int world_size)
    requires requires { B::check_launch(family, world_size); }
  {
    B::check_launch(family, world_size);
  }

  [[nodiscard]] int rank() const { return inner_.rank(); }
  [[nodiscard]] int world_size() const { return inner_.world_size(); }
  [[nodiscard]] c10::Device device() const { return inner_.device(); }
  [[nodiscard]] bool is_capturing() const { return backend::may_be_capturing(inner_); }
  [[nodiscard]] Seconds timeout() const { return inner_.timeout(); }
  [[nodiscard]] std::string describe() const { return description(inner_); }

  void name_next(std::shared_ptr<const std::string> call)
    requires requires(B& inner) { inner.name_next(nullptr); }
  {
    inner_.name_next(std::move(call));
  }
  [[nodiscard]] bool compares_names() const
    requires requires(const B& inner) { inner.compares_names(); }
  {
    return inner_.compares_names();
  }

  [[nodiscard]] Work all_reduce(at::Tensor tensor, ReduceOp op) {
    return trace(Operation::all_reduce, bytes_of(tensor), [&] { return inner_.all_reduce(tensor, op); });
  }
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    std::size_t bytes = 0;
    for (const auto& tensor : tensors) bytes += bytes_of(tensor);
    return trace(Operation::all_reduce, bytes, [&] { return inner_.all_reduce(tensors, op); });
  }
  [[nodiscard]] Work broadcast(at::Tensor tensor, int root) {
    return trace(Operation::broadcast, bytes_of(tensor), [&] { return inner_.broadcast(tensor, root); });
  }
  [[nodiscard]] Work all_gather(at::Tensor output, at::Tensor input) {
    return trace(Operation::all_gather, bytes_of(input), [&] { return inner_.all_gather(output, input); });
  }
  [[nodiscard]] Work reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op) {
    return trace(Operation::reduce_scatter, bytes_of(input), [&] { return inner_.reduce_scatter(output, input, op); });
  }
  [[nodiscard]] Work send(at::Tensor tensor, int peer) {
    return trace(Operation::send, bytes_of(tensor), [&] { return inner_.send(tensor, peer); });
  }
  [[nodiscard]] Work recv(at::Tensor tensor, int peer) {
    return trace(Operation::recv, bytes_of(tensor), [&] { return inner_.recv(tensor, peer); });
  }

  [[nodiscard]] at::Tensor allocate(Bytes bytes) { return inner_.allocate(bytes); }
  [[nodiscard]] Traced split(std::span<const int> ranks, std::string_view part_name) {
    return Traced(inner_.split(ranks, part_name), table_);
  }
  [[nodiscard]] launch::ControlPlane& control() { return inner_.control(); }
  void abort(std::string_view reason) noexcept { inner_.abort(reason); }

  /// The operations that were called, in a fixed order.
  [[nodiscard]] std::vector<TraceRow> rows() const {
    std::vector<TraceRow> called;
    const std::lock_guard lock(table_->mutex);
    for (const auto& row : table_->rows)
      if (row.calls > 0) called.push_back(row);
    return called;
  }

  /// The same as text, a line per operation.
  [[nodiscard]] std::string table() const {
    std::ostringstream text;
    text << std::left << std::setw(16) << "operation" << std::right << std::setw(8) << "calls" << std::setw(16)
         << "bytes" << std::setw(14) << "in flight s" << std::setw(12) << "waited s" << std::fixed
         << std::setprecision(3);
    for (const auto& row : rows())
      text << '\n'
           << std::left << std::setw(16) << row.operation << std::right << std::setw(8) << row.calls << std::setw(16)
           << row.bytes.count << std::setw(14) << row.in_flight.count() << std::setw(12) << row.waited.count();
    return text.str();
  }

  void reset() {
    const std::lock_guard lock(table_->mutex);
    table_->rows = empty_rows();
  }

  /// The backend that does the work.
  [[nodiscard]] B& inner() { return inner_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Rows = std::array<TraceRow, 6>;

  struct Table {
    std::mutex mutex;
    Rows rows = empty_rows();
  };

  enum class Operation : std::size_t { all_reduce, broadcast, all_gather, reduce_scatter, send, recv };

  /// An undefined tensor is the backend's to refuse.
  static std::size_t bytes_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.nbytes() : 0; }

  static Rows empty_rows() {
    return {{{"all_reduce"}, {"broadcast"}, {"all_gather"}, {"reduce_scatter"}, {"send"}, {"recv"}}};
  }

  Traced(B&& inner, std::shared_ptr<Table> own) : inner_(std::move(inner)), table_(std::move(own)) {}

  template <class Start>
  Work trace(Operation operation, std::size_t bytes, Start&& start) {
    const auto begin = Clock::now();
    auto work = start();  // first: what is refused is no call
    const std::lock_guard lock(table_->mutex);
    TraceRow& row = table_->rows[static_cast<std::size_t>(operation)];
    ++row.calls;
    row.bytes.count += static_cast<std::int64_t>(bytes);
    return Work(std::move(work), table_, row, begin);
  }

  B inner_;
  std::shared_ptr<Table> table_ = std::make_shared<Table>();
};

template <Backend B>
class Traced<B>::Work {
 public:
  void wait() {
    timed([&] { work_.wait(); });
  }
  void wait_until(Deadline deadline) {
    timed([&] { work_.wait_until(deadline); });
  }
  [[nodiscard]] bool done() const { return work_.done(); }

 private:
  friend class Traced;

  Work(WorkOf<B> work, std::shared_ptr<Table> its, TraceRow& row, Clock::time_point begin)
      : work_(std::move(work)), table_(std::move(its)), row_(&row), begin_(begin) {}

  template <class Body>
  void timed(Body&& body) {
    const auto before = Clock::now();
    std::forward<Body>(body)();
    if (!table_) return;  // a second wait
    const auto after = Clock::now();
    {
      const std::lock_guard lock(table_->mutex);
      row_->in_flight += after - begin_;
      row_->waited += after - before;
    }
    table_.reset();
  }

  WorkOf<B> work_;
  std::shared_ptr<Table> table_;
  TraceRow* row_;  // in it
  Clock::time_point begin_;
};

}  // namespace accel::inline v0_1::backend
