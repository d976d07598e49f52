// BasicNccl: the calls of a Backend over NCCL's, for any driver that holds NCCL, streams and events.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>
#include <accel/backend/detail/called.hpp>
#include <accel/backend/detail/nccl_group.hpp>
#include <accel/backend/detail/nccl_work.hpp>

namespace accel::inline v0_1::backend {

struct NcclOptions {
  // Of a collective; unset: ACCEL_TIMEOUT_S, or 600, PyTorch's default.
  std::optional<double> timeout_s{};
  int max_ctas = 0;                // multiprocessors that NCCL may take; 0: as many as it likes
  bool symmetric_windows = false;  // allocate() registers its memory, for NVLink's faster kernels
};

/// NCCL's calls, and the stream and event calls, of one device.
///
/// A type D drives NCCL if it is made for the device of an index and offers the calls below.
/// 1. Collectives go to the driver's own stream, the engine, and return at once. Whatever a call answers, it is over
///    when state() says so; nothing else is called until then. A window's handle is written until then, too.
/// 2. Between group_start() and group_end() calls are only collected. What is not collected takes place in its order:
///    a send waits on the engine until its peer receives.
/// 3. abort() and destroy() free the communicator, and wait for no peer beyond the deadline, abort() at
///    most a few seconds. If abort() says true, the engine's work ends and its events pass, and what peers have got
///    from it is anything; else it hangs, and that work may go on.
/// 4. state() and abort() may be called by another thread than the rest. state() never waits; the state of an event
///    may, for the device, until abort().
template <class D>
concept DrivesNccl = std::movable<D> && std::constructible_from<D, int> && std::movable<typename D::Event> &&
                     std::default_initializable<typename D::Window> &&
                     requires(D& driver, typename D::Comm& comm, typename D::Event& event, typename D::Window& window,
                              const at::Tensor& tensor, const NcclOptions& options, const std::string& id, ReduceOp op,
                              int number, Deadline deadline) {
                       { D::device_count() } -> std::same_as<int>;
                       { D::uuid(number) } -> std::same_as<std::string>;    // of the device, among all hosts' own
                       D::enter_thread(driver.device());                    // a thread that will call it begins
                       { D::ranks_share_devices() } -> std::same_as<bool>;  // whether two ranks may have one
                       { D::has_windows() } -> std::same_as<bool>;          // whether open_window() can work
                       { D::version() } -> std::same_as<std::string>;
                       { driver.device() } -> std::same_as<c10::Device>;
                       { driver.is_capturing() } -> std::same_as<bool>;      // a graph records the current stream
                       { driver.unique_id() } -> std::same_as<std::string>;  // bytes
                       {
                         driver.init(comm, number, id, number, options)
                       } -> std::same_as<NcclAnswer>;  // world size, id, rank
                       { driver.state(comm) } -> std::same_as<NcclAnswer>;
                       { driver.destroy(comm, deadline) } noexcept;
                       { driver.abort(comm) } noexcept -> std::same_as<bool>;
                       { driver.group_start() } -> std::same_as<NcclAnswer>;
                       { driver.group_end() } -> std::same_as<NcclAnswer>;
                       { driver.all_reduce(comm, tensor, op) } -> std::same_as<NcclAnswer>;
                       { driver.broadcast(comm, tensor, number) } -> std::same_as<NcclAnswer>;
                       { driver.all_gather(comm, tensor, tensor) } -> std::same_as<NcclAnswer>;  // output, input
                       {
                         driver.reduce_scatter(comm, tensor, tensor, op)
                       } -> std::same_as<NcclAnswer>;  // output, input
                       { driver.send(comm, tensor, number) } -> std::same_as<NcclAnswer>;
                       { driver.recv(comm, tensor, number) } -> std::same_as<NcclAnswer>;
                       {
                         driver.allocate(Bytes{})
                       } -> std::same_as<at::Tensor>;  // u8; undefined where NCCL has no memory
                       { driver.open_window(comm, tensor, window) } -> std::same_as<NcclAnswer>;
                       { driver.close_window(comm, window) } noexcept;
                       { driver.make_event() } -> std::same_as<typename D::Event>;
                       driver.record_current(event);  // what the caller's current stream holds
                       driver.record_engine(event);   // what the engine holds
                       driver.engine_waits(event);
                       driver.current_waits(event);
                       { std::as_const(event).state() } -> std::same_as<NcclAnswer>;  // has passed, or not yet
                     };

/// Processes with one device each. Collectives run on a stream of their own, after what the current
/// stream held when they were called; wait() makes the current stream wait for them.
///
/// A thread looks at the communicator ten times a second. NCCL's own errors, the failure of a rank,
/// and a collective that takes longer than timeout_s end in an abort, so that no stream hangs.
///
/// Order    messages between two ranks keep that of the calls. A send or recv starts with all others that were called
///          before one of them is waited for or let go, or before the next collective; then it waits for its peer.
/// Memory   tensors are kept until their collective is over.
/// Throws   ConfigError on every rank if one of them has no device for itself; CommError if the ranks
///          do not reach each other.
/// Differs  from c10d: one communicator, made at once; the reason for an abort is told on every rank.
template <DrivesNccl Driver>
class BasicNccl {
 public:
  static constexpr std::string_view name = "nccl";
  static constexpr bool waits_on_stream = true;

  using Options = NcclOptions;
  using Work = detail::NcclWork<Driver>;

  BasicNccl(const launch::Meeting& meeting, const Options& options)
      : meeting_(meeting), options_(options), timeout_(timeout_of("NCCL", options.timeout_s, meeting)) {
    ACCEL_CHECK(options.max_ctas >= 0, ConfigError, "NCCL: max_ctas = ", options.max_ctas, " must not be below 0");
    auto plane = meeting.control_plane();
    const Deadline deadline = Deadline::in(meeting.timeout);
    agree_on_devices(plane, deadline);
    Driver driver(device_index());
    const std::string id = make_id(driver, plane, deadline);
    group_ = std::make_shared<detail::NcclGroup<Driver>>(std::move(driver), std::move(plane));
    group_->connect(deadline,
                    [&](auto& comm) { return group_->driver.init(comm, world_size(), id, rank(), options_); });
  }

  [[nodiscard]] int rank() const { return meeting_.topology.rank; }
  [[nodiscard]] int world_size() const { return meeting_.topology.world_size; }
  [[nodiscard]] c10::Device device() const { return group_->driver.device(); }

  /// A CUDA graph records what is called now.
  [[nodiscard]] bool is_capturing() const { return group_->driver.is_capturing(); }
  [[nodiscard]] Seconds timeout() const { return timeout_; }
  [[nodiscard]] std::string describe() const {
    return message("NCCL ", Driver::version(), " on ", device().str(), ", timeout_s = ", timeout_.count(),
                   windows_ ? ", symmetric windows" : "");
  }

  [[nodiscard]] Work all_reduce(const at::Tensor& tensor, ReduceOp op) {
    check_reducible(*this, "NCCL", "all_reduce", tensor, op);
    return run("all_reduce", tensor.nbytes(), {tensor},
               [&](auto& comm) { return group_->driver.all_reduce(comm, tensor, op); });
  }

  /// One group: few launches for all of them.
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    control().check_failure("all_reduce");
    std::size_t bytes = 0;
    std::vector<at::Tensor> sent;
    for (const auto& tensor : tensors) {
      check_reducible(*this, "NCCL", "all_reduce", tensor, op);
      bytes += tensor.nbytes();
      if (tensor.numel() > 0) sent.push_back(tensor);
    }
    return run("all_reduce", bytes, sent, [&](auto& comm) {
      return group_->together(sent, [&](const auto& tensor) { return group_->driver.all_reduce(comm, tensor, op); });
    });
  }

  [[nodiscard]] Work broadcast(const at::Tensor& tensor, int root) {
    check(*this, "broadcast", tensor);
    check_peer("broadcast", root, world_size());
    return run("broadcast", tensor.nbytes(), {tensor},
               [&](auto& comm) { return group_->driver.broadcast(comm, tensor, root); });
  }

  [[nodiscard]] Work all_gather(at::Tensor& output, const at::Tensor& input) {
    check(*this, "all_gather", output);
    check(*this, "all_gather", input);
    check_parts("all_gather", output, input, world_size());
    return run("all_gather", output.nbytes(), {output, input},
               [&](auto& comm) { return group_->driver.all_gather(comm, output, input); });
  }

  [[nodiscard]] Work reduce_scatter(at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    check(*this, "reduce_scatter", output);
    check_reducible(*this, "NCCL", "reduce_scatter", input, op);
    check_parts("reduce_scatter", input, output, world_size());
    return run("reduce_scatter", input.nbytes(), {output, input},
               [&](auto& comm) { return group_->driver.reduce_scatter(comm, output, input, op); });
  }

  [[nodiscard]] Work send(const at::Tensor& tensor, int peer) {
    check_message(*this, "send", tensor, peer);
    return begin_message("send", tensor, peer);
  }

  [[nodiscard]] Work recv(at::Tensor& tensor, int peer) {
    check_message(*this, "recv", tensor, peer);
    return begin_message("recv", tensor, peer);
  }

  /// Memory that NCCL's peers can map, where every rank asks for symmetric windows; else LibTorch's, whose allocator
  /// knows better when the streams are done with it.
  [[nodiscard]] at::Tensor allocate(Bytes bytes) {
    at::Tensor memory;
    if (windows_ && bytes.count > 0) {
      memory = group_->driver.allocate(bytes);
      // One rank without a window would leave the others waiting for it.
      const Deadline deadline = Deadline::in(timeout());
      const auto have = control().all_gather("allocate", memory.defined() ? "1" : "0", deadline);
      if (std::count(have.begin(), have.end(), "1") == world_size()) group_->open_window(memory, deadline);
    }
    if (memory.defined()) return memory;
    return at::empty({bytes.count}, at::TensorOptions().dtype(at::kByte).device(device()));
  }

  /// A group of `ranks` of this one, in that order; `name` must be new. Called by its members only,
  /// so they connect anew: ncclCommSplit wants every rank.
  [[nodiscard]] BasicNccl split(std::span<const int> ranks, std::string_view part_name) {
    return BasicNccl(part_of(ranks, part_name), options_);
  }

  [[nodiscard]] launch::ControlPlane& control() { return group_->control; }

  void abort(std::string_view reason) noexcept {
    const auto group = group_;  // another thread may let go of this backend meanwhile
    group->control.give_up(reason);
    group->stop();
  }

 protected:
  [[nodiscard]] launch::Meeting part_of(std::span<const int> ranks, std::string_view part_name) const {
    group_->control.check_failure("split");
    return meeting_.part(ranks, part_name);
  }
  [[nodiscard]] const Options& options() const { return options_; }

 private:
  /// Every rank hears of one that has no device for itself, before anybody connects. A part of a job may have fewer
  /// ranks than the host, and a process may see one device alone: so it is the device itself that tells.
  void agree_on_devices(launch::ControlPlane& plane, Deadline deadline) {
    std::string problem;
    std::string uuid;
    try {
      ACCEL_CHECK(Driver::device_count() > 0, ConfigError,
                  "there is no CUDA device; use backend::Gloo or start on a machine with a GPU");
      uuid = Driver::uuid(device_index());
    } catch (const std::exception& error) {
      problem = first_line(error);
    }
    windows_ = options_.symmetric_windows && Driver::has_windows();
    const std::string flags{windows_ ? '1' : '0', Driver::ranks_share_devices() ? '1' : '0',
                            problem.empty() ? '1' : '0'};
    const auto answers =
        plane.all_gather("NCCL: choosing a device", flags + (problem.empty() ? uuid : problem), deadline);
    std::map<std::string, std::size_t> rank_of;  // by uuid
    for (std::size_t r = 0; r < answers.size(); ++r) {
      const std::string said = answers[r].substr(flags.size());
      ACCEL_CHECK(answers[r][2] == '1', ConfigError, "NCCL: ", meeting_.peers[r], ": ", said);
      windows_ = windows_ && answers[r][0] == '1';
      const auto [first, is_new] = rank_of.emplace(said, r);
      ACCEL_CHECK(is_new || answers[r][1] == '1', ConfigError, "NCCL: ", meeting_.peers[first->second], " and ",
                  meeting_.peers[r], " have one device, ", said,
                  ", and NCCL refuses two ranks on one; start one process per device, or show each its own by ",
                  "CUDA_VISIBLE_DEVICES");
    }
  }

  [[nodiscard]] int device_index() const { return meeting_.topology.local_rank % Driver::device_count(); }

  /// Rank 0's; where it cannot make one, all hear why.
  [[nodiscard]] std::string make_id(Driver& driver, launch::ControlPlane& plane, Deadline deadline) const {
    std::string id;
    if (rank() == 0) {
      try {
        id = "1" + driver.unique_id();
      } catch (const std::exception& error) {
        id = "0" + first_line(error);
      }
    }
    id = plane.broadcast("NCCL: connecting", id, 0, deadline);
    ACCEL_CHECK(id.front() == '1', CommError, "NCCL: rank 0 could not begin to connect: ", id.substr(1));
    return id.substr(1);
  }

  template <class Call>
  [[nodiscard]] Work run(std::string_view operation, std::size_t size, std::vector<at::Tensor> tensors, Call&& call) {
    const detail::Called called{operation, control().begin(operation), {static_cast<std::int64_t>(size)}};
    std::shared_ptr<typename Work::Flight> flight;
    if (size > 0) flight = group_->run(called, std::move(tensors), Deadline::in(timeout()), call);
    return {group_, called, std::move(flight)};
  }

  [[nodiscard]] Work begin_message(std::string_view operation, const at::Tensor& tensor, int peer) {
    const Bytes bytes{static_cast<std::int64_t>(tensor.nbytes())};
    const detail::Called called{operation, control().begin_message(operation), bytes, peer};
    std::shared_ptr<typename Work::Ticket> ticket;
    if (bytes.count > 0) ticket = group_->collect(called, tensor, timeout());
    return {group_, called, std::move(ticket)};
  }

  launch::Meeting meeting_;
  Options options_;
  Seconds timeout_;
  bool windows_ = false;  // all ranks ask for them and can
  std::shared_ptr<detail::NcclGroup<Driver>> group_;
};

}  // namespace accel::inline v0_1::backend
