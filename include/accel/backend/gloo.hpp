// Gloo: real ranks on CPUs, through LibTorch's own Gloo. The only header that sees the gloo stubs.
#pragma once

// LibTorch's header is empty without it; LibTorch's own targets define it.
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO 1
#endif

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <accel/backend/backend.hpp>
#include <accel/launch/no_sigpipe.hpp>

namespace accel::inline v0_1::backend {

/// Processes on CPUs, on one host or on several.
///
/// On one host they talk over the loopback address; on several over the address by which this
/// host reaches rank 0. `interface` or `hostname` choose another; GLOO_SOCKET_IFNAME, PyTorch's
/// variable, is taken for `interface` where that is empty.
///
/// Differs  from c10d: a failed group is given up, and its destructor does not wait for it.
class Gloo {
 public:
  static constexpr std::string_view name = "gloo";

  struct Options {
    double timeout_s = 600;   // of a collective; PyTorch's default for NCCL, 10 minutes
    std::string interface{};  // network interface, as in "eth0"
    std::string hostname{};   // or a name or address of this host
  };

  /// A collective under way. Waiting twice is allowed.
  class Work;

  Gloo(const launch::Meeting& meeting, const Options& options)
      : meeting_(meeting), options_(options), control_(meeting.control_plane()), group_(std::make_shared<Group>()) {
    ACCEL_CHECK(options.timeout_s > 0, ConfigError, "Gloo: timeout_s = ", options.timeout_s, " must be above 0");
    ACCEL_CHECK(options.interface.empty() || options.hostname.empty(), ConfigError, "Gloo: interface = \"",
                options.interface, "\" and hostname = \"", options.hostname, "\" are both set; choose one");
    if (world_size() > 1) connect();
  }

  [[nodiscard]] int rank() const { return meeting_.topology.rank; }
  [[nodiscard]] int world_size() const { return meeting_.topology.world_size; }
  [[nodiscard]] c10::Device device() const { return c10::Device(c10::DeviceType::CPU); }
  [[nodiscard]] Seconds timeout() const { return Seconds(options_.timeout_s); }
  [[nodiscard]] std::string describe() const {
    return message("LibTorch's Gloo on the CPU, by ", endpoint_.empty() ? "nothing: one rank" : endpoint_,
                   ", timeout_s = ", options_.timeout_s);
  }

  [[nodiscard]] Work all_reduce(const at::Tensor& tensor, ReduceOp op);
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op);
  [[nodiscard]] Work broadcast(const at::Tensor& tensor, int root);
  [[nodiscard]] Work all_gather(at::Tensor& output, const at::Tensor& input);
  [[nodiscard]] Work reduce_scatter(at::Tensor& output, const at::Tensor& input, ReduceOp op);
  [[nodiscard]] Work send(const at::Tensor& tensor, int peer);
  [[nodiscard]] Work recv(at::Tensor& tensor, int peer);

  [[nodiscard]] at::Tensor allocate(Bytes bytes) { return at::empty({bytes.count}, at::kByte); }

  /// A group of `ranks` of this one, in that order; `name` must be new. Called by its members only.
  [[nodiscard]] Gloo split(std::span<const int> ranks, std::string_view name);

  [[nodiscard]] launch::ControlPlane& control() { return control_; }

  void abort(std::string_view reason) noexcept { group_->fail(reason); }

 private:
  /// What works share with their backend, so that either may go first.
  struct Group {
    c10::intrusive_ptr<c10d::ProcessGroupGloo> engine;
    std::string failure;         // why it was given up; empty while it works
    std::int64_t sequence = 0;   // collectives begun
    std::int64_t in_flight = 0;  // begun and not yet waited for

    Group() = default;
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

    // LibTorch's destructor joins threads that wait for lost peers until the timeout. A group with
    // something unfinished is therefore abandoned: its few threads end with the process.
    ~Group() {
      if (!failure.empty() || in_flight > 0) (void)engine.release();
    }

    void fail(std::string_view reason) noexcept {
      if (failure.empty()) failure = reason.empty() ? "no reason given" : reason;
    }
  };

  void connect() {
    const Deadline deadline = Deadline::in(meeting_.timeout);
    auto options = c10d::ProcessGroupGloo::Options::create(deadline.remaining());
    const launch::NoSigpipe guard;  // for Gloo's threads
    try {
      options->devices.push_back(device_for(options_));
      auto store = c10::make_intrusive<c10d::PrefixStore>("gloo/", meeting_.store);
      group_->engine = c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), rank(), world_size(), options);
    } catch (const std::exception& error) {
      throw CommError(message("Gloo: connecting ", world_size(), " ranks by ", endpoint_, " failed within ",
                              deadline.span_s(), " s. LibTorch says: ", launch::ControlPlane::first_line(error)));
    }
    group_->engine->setTimeout(std::chrono::ceil<std::chrono::milliseconds>(timeout()));
  }

  std::shared_ptr<gloo::transport::Device> device_for(const Options& options) {
    const char* variable = std::getenv("GLOO_SOCKET_IFNAME");
    const std::string interface =
        !options.interface.empty() || !options.hostname.empty() || variable == nullptr ? options.interface : variable;
    if (!interface.empty()) {
      endpoint_ = "interface " + interface;
      return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
    }
    const std::string& host = options.hostname.empty() ? meeting_.local_address : options.hostname;
    endpoint_ = "address " + host;
    return c10d::ProcessGroupGloo::createDeviceForHostname(host);
  }

  /// Refuses a group that was given up.
  void check_group(std::string_view operation) const;

  /// Gives the next work its place in the sequence.
  [[nodiscard]] Work begin(std::string_view operation, std::int64_t bytes);

  void check(std::string_view operation, const at::Tensor& tensor) const {
    check_group(operation);
    check_tensor(operation, tensor, device());
  }

  /// Gloo knows few dtypes, but what is only moved goes as bytes: any dtype.
  static at::Tensor as_bytes(const at::Tensor& tensor) { return tensor.detach().view({-1}).view(at::kByte); }

  /// The dtypes that Gloo reduces. A sum of flags would not be a flag.
  static void check_reducible(std::string_view operation, const at::Tensor& tensor, ReduceOp op) {
    using enum c10::ScalarType;
    const auto dtype = tensor.scalar_type();
    bool known = dtype == Bool && op != ReduceOp::sum;
    for (const auto one : {Float, Double, Half, BFloat16, Long, Int, Char, Byte}) known = known || dtype == one;
    ACCEL_CHECK(known, InvalidArgument, operation, ": Gloo cannot reduce ", tensor::spec(tensor),
                op == ReduceOp::sum ? " to its sum" : "",
                "; convert it to f32, f64, f16, bf16, i64, i32, i8 or u8 first");
  }

  [[nodiscard]] bool sends(const at::Tensor& tensor) const { return world_size() > 1 && tensor.numel() > 0; }

  static c10d::ReduceOp native(ReduceOp op) {
    if (op == ReduceOp::max) return c10d::ReduceOp::MAX;
    if (op == ReduceOp::min) return c10d::ReduceOp::MIN;
    return c10d::ReduceOp::SUM;
  }

  launch::Meeting meeting_;
  Options options_;
  launch::ControlPlane control_;
  std::shared_ptr<Group> group_;
  std::string endpoint_;
};

class Gloo::Work {
 public:
  Work(Work&&) noexcept = default;
  Work& operator=(Work&&) noexcept = default;

  void wait() { wait_until(Deadline::in(timeout_)); }

  void wait_until(Deadline deadline) {
    while (!parts_.empty()) {
      try {
        ACCEL_CHECK(parts_.back()->wait(deadline.remaining()), CommError, "it was aborted");
      } catch (const std::exception& error) {
        const std::string native = launch::ControlPlane::first_line(error);
        group_->fail(message(operation_, " number ", sequence_, " failed: ", native));
        throw CommError(message(operation_, " number ", sequence_, " of ", bytes_, " failed",
                                deadline.passed() ? message(" after ", deadline.span_s(), " s without an answer") : "",
                                "; a peer has ended, hangs, or does not call the same operation. Gloo says: ", native));
      }
      parts_.pop_back();
      if (parts_.empty()) --group_->in_flight;
    }
    if (scattered_.defined()) {
      output_.view({-1}).copy_(scattered_);
      scattered_.reset();
    }
    tensors_.clear();
  }

  [[nodiscard]] bool done() const {
    return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->isCompleted(); });
  }

 private:
  friend class Gloo;

  Work(std::shared_ptr<Group> group, std::string_view operation, std::int64_t bytes, Seconds timeout)
      : group_(std::move(group)),
        operation_(operation),
        sequence_(group_->sequence),
        bytes_{bytes},
        timeout_(timeout) {}

  /// Hands `tensors` to the engine by `start`; what the engine refuses is the caller's to hear.
  template <class Start>
  void run(std::vector<at::Tensor> tensors, Start&& start) {
    tensors_ = std::move(tensors);
    try {
      parts_.push_back(start(tensors_));
    } catch (const std::exception& error) {
      group_->fail(message(operation_, " number ", sequence_, " could not start"));
      throw CommError(message(operation_, " number ", sequence_, " of ", bytes_,
                              " could not start. Gloo says: ", launch::ControlPlane::first_line(error)));
    }
    if (parts_.size() == 1) ++group_->in_flight;
  }

  std::shared_ptr<Group> group_;
  std::string_view operation_;  // a literal
  std::int64_t sequence_;
  Bytes bytes_;
  Seconds timeout_;
  std::vector<c10::intrusive_ptr<c10d::Work>> parts_;
  std::vector<at::Tensor> tensors_;  // kept until the engine is done with them
  at::Tensor scattered_;             // reduce_scatter: this rank's part of the sum ...
  at::Tensor output_;                // ... and where it goes
};

inline void Gloo::check_group(std::string_view operation) const {
  ACCEL_CHECK(group_->failure.empty(), CommError, operation,
              ": this group of ranks was given up earlier: ", group_->failure, "; end the run and resume it");
}

inline Gloo::Work Gloo::begin(std::string_view operation, std::int64_t bytes) {
  ++group_->sequence;
  return {group_, operation, bytes, timeout()};
}

inline Gloo::Work Gloo::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  check("all_reduce", tensor);
  check_reducible("all_reduce", tensor, op);
  Work work = begin("all_reduce", static_cast<std::int64_t>(tensor.nbytes()));
  if (sends(tensor))
    work.run({tensor}, [&](auto& tensors) { return group_->engine->allreduce(tensors, {.reduceOp = native(op)}); });
  return work;
}

inline Gloo::Work Gloo::all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
  check_group("all_reduce");
  std::int64_t bytes = 0;
  for (const auto& tensor : tensors) {
    check("all_reduce", tensor);
    check_reducible("all_reduce", tensor, op);
    bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  Work work = begin("all_reduce", bytes);
  // One after the other: Gloo's coalesced form copies into a buffer of its own, and gains nothing.
  for (const auto& tensor : tensors)
    if (sends(tensor))
      work.run({tensor}, [&](auto& one) { return group_->engine->allreduce(one, {.reduceOp = native(op)}); });
  return work;
}

inline Gloo::Work Gloo::broadcast(const at::Tensor& tensor, int root) {
  check("broadcast", tensor);
  check_peer("broadcast", root, world_size());
  Work work = begin("broadcast", static_cast<std::int64_t>(tensor.nbytes()));
  if (sends(tensor))
    work.run({as_bytes(tensor)}, [&](auto& tensors) { return group_->engine->broadcast(tensors, {.rootRank = root}); });
  return work;
}

inline Gloo::Work Gloo::all_gather(at::Tensor& output, const at::Tensor& input) {
  check("all_gather", output);
  check("all_gather", input);
  check_parts("all_gather", output, input, world_size());
  Work work = begin("all_gather", static_cast<std::int64_t>(output.nbytes()));
  if (sends(input))
    work.run({as_bytes(output), as_bytes(input)},
             [&](auto& tensors) { return group_->engine->_allgather_base(tensors[0], tensors[1]); });
  else if (input.numel() > 0)
    output.view({-1}).copy_(input.view({-1}));
  return work;
}

inline Gloo::Work Gloo::reduce_scatter(at::Tensor& output, const at::Tensor& input, ReduceOp op) {
  check("reduce_scatter", output);
  check("reduce_scatter", input);
  check_parts("reduce_scatter", input, output, world_size());
  check_reducible("reduce_scatter", input, op);
  // Gloo's own takes four times as long as its all_reduce: sum everything, keep this rank's part.
  at::Tensor sum = input.view({-1}).clone();
  Work work = begin("reduce_scatter", static_cast<std::int64_t>(input.nbytes()));
  if (sends(sum))
    work.run({sum}, [&](auto& tensors) { return group_->engine->allreduce(tensors, {.reduceOp = native(op)}); });
  work.scattered_ = sum.narrow(0, rank() * output.numel(), output.numel());
  work.output_ = output;
  return work;
}

inline Gloo::Work Gloo::send(const at::Tensor& tensor, int peer) {
  check("send", tensor);
  check_peer("send", peer, world_size());
  ACCEL_CHECK(peer != rank(), InvalidArgument, "send: rank ", peer, " is this rank itself");
  const launch::NoSigpipe guard;  // Gloo writes from this thread
  Work work = begin("send", static_cast<std::int64_t>(tensor.nbytes()));
  if (sends(tensor))
    work.run({as_bytes(tensor)}, [&](auto& tensors) { return group_->engine->send(tensors, peer, 0); });
  return work;
}

inline Gloo::Work Gloo::recv(at::Tensor& tensor, int peer) {
  check("recv", tensor);
  check_peer("recv", peer, world_size());
  ACCEL_CHECK(peer != rank(), InvalidArgument, "recv: rank ", peer, " is this rank itself");
  const launch::NoSigpipe guard;  // Gloo writes from this thread
  Work work = begin("recv", static_cast<std::int64_t>(tensor.nbytes()));
  if (sends(tensor))
    work.run({as_bytes(tensor)}, [&](auto& tensors) { return group_->engine->recv(tensors, peer, 0); });
  return work;
}

inline Gloo Gloo::split(std::span<const int> ranks, std::string_view part_name) {
  check_group("split");
  launch::Meeting part = meeting_;
  part.peers.clear();
  part.topology.world_size = static_cast<int>(ranks.size());
  part.topology.rank = -1;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    check_peer("split", ranks[i], world_size());
    if (ranks[i] == rank()) part.topology.rank = static_cast<int>(i);
    part.peers.push_back(meeting_.peers[static_cast<std::size_t>(ranks[i])]);
  }
  ACCEL_CHECK(part.topology.rank >= 0, InvalidArgument, "split: rank ", rank(), " is not a member of group \"",
              part_name, "\"; only its members call split");
  if (meeting_.store) part.store = c10::make_intrusive<c10d::PrefixStore>(message("split/", part_name), meeting_.store);
  if (ranks.size() == 1) part.store = {};
  return Gloo(part, options_);
}

}  // namespace accel::inline v0_1::backend

static_assert(accel::Backend<accel::backend::Gloo>);
