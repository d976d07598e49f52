// Gloo: real ranks on CPUs, through LibTorch's own Gloo. The only header that sees the gloo stubs.
#pragma once

// LibTorch's header is empty without it; LibTorch's own targets define it.
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO 1
#endif

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <accel/backend/backend.hpp>
#include <accel/backend/detail/gloo_work.hpp>
#include <accel/backend/detail/neighbours.hpp>
#include <accel/backend/detail/shared_collectives.hpp>
#include <accel/launch/no_sigpipe.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::backend {

/// Processes on CPUs, on one host or on several.
///
/// Where all are on one host, all but send and recv goes through memory that they share: nothing is
/// copied into sockets, and what lies in allocate()'s memory not at all. describe() says whether, and
/// if not, why. It is the callers that make the progress: while none of them calls, nothing moves.
///
/// On one host they talk over the loopback address; on several over the address by which this
/// host reaches rank 0. `interface` or `hostname` choose another; GLOO_SOCKET_IFNAME, PyTorch's
/// variable, is taken for `interface` where that is empty.
///
/// Order    through shared memory a sum is that of the ranks' tensors in the order of the ranks, however
///          many there are; Gloo's own depends on their number and the place in the tensor.
/// Memory   3 MiB that are shared, and what is allocated. It is freed with the last process, in any case.
/// Throws   ConfigError on every rank if one of them cannot use its interface or address; CommError
///          if the ranks do not reach each other.
/// Differs  from c10d: a failed group is given up, and its destructor does not wait for it.
class Gloo {
 public:
  static constexpr std::string_view name = "gloo";

  struct Options {
    // Of a collective; unset: ACCEL_TIMEOUT_S, or 600, PyTorch's default for NCCL.
    std::optional<double> timeout_s{};
    std::string interface{};    // network interface, as in "eth0"
    std::string hostname{};     // or a name or address of this host
    bool shared_memory = true;  // where all ranks are on one host, and all say so
  };

  using Work = detail::GlooWork;

  Gloo(const launch::Meeting& meeting, const Options& options)
      : meeting_(meeting),
        options_(options),
        timeout_(timeout_of("Gloo", options.timeout_s, meeting)),
        group_(std::make_shared<detail::GlooGroup>(meeting.control_plane())),
        endpoint_(choose_endpoint(options)) {
    ACCEL_CHECK(options.interface.empty() || options.hostname.empty(), ConfigError, "Gloo: interface = \"",
                options.interface, "\" and hostname = \"", options.hostname, "\" are both set; choose one");
    if (world_size() > 1) connect();
  }

  [[nodiscard]] int rank() const { return meeting_.topology.rank; }
  [[nodiscard]] int world_size() const { return meeting_.topology.world_size; }
  [[nodiscard]] c10::Device device() const { return c10::Device(c10::DeviceType::CPU); }
  [[nodiscard]] Seconds timeout() const { return timeout_; }
  [[nodiscard]] std::string describe() const {
    return message("LibTorch's Gloo on the CPU, by ", world_size() == 1 ? "nothing: one rank" : endpoint_.text(),
                   world_size() == 1 ? ""
                   : group_->shared  ? ", reductions through shared memory"
                                     : ", through TCP: " + not_shared_,
                   ", timeout_s = ", timeout_.count());
  }

  [[nodiscard]] Work all_reduce(const at::Tensor& tensor, ReduceOp op) {
    check_reducible(*this, "Gloo", "all_reduce", tensor, op);
    Work work = begin("all_reduce", tensor.nbytes());
    start_all_reduce(work, tensor, op);
    return work;
  }

  /// One after the other: Gloo's coalesced form copies into a buffer of its own, and gains nothing.
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    control().check_failure("all_reduce");
    std::size_t bytes = 0;
    for (const auto& tensor : tensors) {
      check_reducible(*this, "Gloo", "all_reduce", tensor, op);
      bytes += tensor.nbytes();
    }
    Work work = begin("all_reduce", bytes);
    for (const auto& tensor : tensors) start_all_reduce(work, tensor, op);
    return work;
  }

  [[nodiscard]] Work broadcast(const at::Tensor& tensor, int root) {
    check(*this, "broadcast", tensor);
    check_peer("broadcast", root, world_size());
    Work work = begin("broadcast", tensor.nbytes());
    if (shares(tensor, work.is_named()))
      work.run(moved(Call::broadcast, tensor, tensor, root));
    else if (sends(tensor))
      work.run({as_bytes(tensor)},
               [&](auto& engine, auto& tensors) { return engine.broadcast(tensors, {.rootRank = root}); });
    return work;
  }

  [[nodiscard]] Work all_gather(at::Tensor& output, const at::Tensor& input) {
    check(*this, "all_gather", output);
    check(*this, "all_gather", input);
    check_parts("all_gather", output, input, world_size());
    Work work = begin("all_gather", output.nbytes());
    if (shares(input, work.is_named()))
      work.run(moved(Call::all_gather, input, output));
    else if (sends(input))
      work.run({as_bytes(output), as_bytes(input)},
               [](auto& engine, auto& tensors) { return engine._allgather_base(tensors[0], tensors[1]); });
    else if (input.numel() > 0)
      output.view({-1}).copy_(input.view({-1}));
    return work;
  }

  /// Gloo's own takes four times as long as its all_reduce: sum everything, keep this rank's part.
  [[nodiscard]] Work reduce_scatter(at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    check(*this, "reduce_scatter", output);
    check_reducible(*this, "Gloo", "reduce_scatter", input, op);
    check_parts("reduce_scatter", input, output, world_size());
    if (shares(input, name_ != nullptr)) {
      Work work = begin("reduce_scatter", input.nbytes());
      work.run(reduced(Call::reduce_scatter, input, output, op));
      return work;
    }
    const at::Tensor sum = input.view({-1}).clone();
    Work work = begin("reduce_scatter", input.nbytes());
    start_all_reduce(work, sum, op);
    work.then_copy(sum.narrow(0, rank() * output.numel(), output.numel()), output);
    return work;
  }

  [[nodiscard]] Work send(const at::Tensor& tensor, int peer) {
    check_message(*this, "send", tensor, peer);
    const launch::NoSigpipe guard;  // Gloo writes from this thread
    Work work = begin_message("send", tensor, peer);
    if (sends(tensor))
      work.run({as_bytes(tensor)}, [&](auto& engine, auto& tensors) { return engine.send(tensors, peer, 0); });
    return work;
  }

  [[nodiscard]] Work recv(at::Tensor& tensor, int peer) {
    check_message(*this, "recv", tensor, peer);
    const launch::NoSigpipe guard;  // Gloo writes from this thread
    Work work = begin_message("recv", tensor, peer);
    if (sends(tensor))
      work.run({as_bytes(tensor)}, [&](auto& engine, auto& tensors) { return engine.recv(tensors, peer, 0); });
    return work;
  }

  /// Memory that the other ranks read where it is. It may outlive the backend.
  [[nodiscard]] at::Tensor allocate(Bytes bytes) {
    at::Tensor memory;
    if (group_->shared) memory = group_->shared->allocate(static_cast<std::size_t>(bytes.count));
    return memory.defined() ? memory : at::empty({bytes.count}, at::kByte);
  }

  /// Where the ranks share memory, the next collective is called so on this rank: where the ranks' names for it
  /// differ, nothing of it moves, and the error says both. A name costs no message. Null: it has none.
  void name_next(std::shared_ptr<const std::string> call) { name_ = std::move(call); }
  [[nodiscard]] bool compares_names() const { return group_->shared != nullptr; }

  /// A group of `ranks` of this one, in that order; `name` must be new. Called by its members only.
  [[nodiscard]] Gloo split(std::span<const int> ranks, std::string_view part_name) {
    control().check_failure("split");
    return Gloo(meeting_.part(ranks, part_name), options_);
  }

  /// Asked before every call: what the others read stays as it is until they can know that it may not.
  [[nodiscard]] launch::ControlPlane& control() {
    if (group_->control.failed()) group_->give_up();
    return group_->control;
  }

  void abort(std::string_view reason) noexcept {
    group_->control.give_up(reason);
    group_->give_up();
  }

 private:
  using Call = detail::Call::Kind;

  /// Where this rank listens: an interface, or a name or address.
  struct Endpoint {
    bool is_interface = false;
    std::string name;

    [[nodiscard]] std::string text() const { return (is_interface ? "interface " : "address ") + name; }

    [[nodiscard]] std::shared_ptr<gloo::transport::Device> open() const {
      return is_interface ? c10d::ProcessGroupGloo::createDeviceForInterface(name)
                          : c10d::ProcessGroupGloo::createDeviceForHostname(name);
    }
  };

  [[nodiscard]] Endpoint choose_endpoint(const Options& options) const {
    if (!options.interface.empty()) return {true, options.interface};
    if (!options.hostname.empty()) return {false, options.hostname};
    const char* const variable = std::getenv("GLOO_SOCKET_IFNAME");
    if (variable != nullptr && *variable != '\0') return {true, variable};
    return {false, meeting_.local_address};
  }

  void connect() {
    const Deadline deadline = Deadline::in(meeting_.timeout);
    const launch::NoSigpipe guard;  // for Gloo's threads
    auto device = open_on_all(deadline);
    try {
      group_->engine = launch::within(
          deadline,
          [device = std::move(device), meeting = meeting_, timeout = timeout(), deadline] {
            auto options = c10d::ProcessGroupGloo::Options::create(deadline.remaining());
            options->devices.push_back(device);
            // LibTorch takes 2. Where 3 ranks share 2 cores, steps take a tenth to a third less time with 4, as the
            // collectives that are under way need not wait for a late one; with 2 ranks, or with 8, it is all one.
            options->threads = 4;
            auto store = c10::make_intrusive<c10d::PrefixStore>("gloo/", meeting.store);
            auto engine = c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), meeting.topology.rank,
                                                                      meeting.topology.world_size, options);
            // Gloo's clock starts with a collective, this library's with the wait for it, which knows who is behind.
            engine->setTimeout(Deadline::in(2 * timeout).remaining());
            return c10::intrusive_ptr<c10d::Backend>(std::move(engine));
          },
          [this] { return group_->control.failed(); });
      // Nobody leaves it before all are connected: who left at once would break those that still are at it.
      auto sharing = detail::share_memory(meeting_, group_->control,
                                          options_.shared_memory ? "" : "has shared_memory = false", deadline);
      not_shared_ = std::move(sharing.why_not);
      if (sharing.neighbours)
        group_->shared = std::make_unique<detail::SharedCollectives>(std::move(sharing.neighbours), group_->control);
    } catch (const std::exception& error) {
      throw CommError(message("Gloo: rank ", rank(), " by ", endpoint_.text(), " did not reach the other ",
                              world_size() - 1, deadline.passed() ? message(" within ", deadline.span_s(), " s") : "",
                              "; look at their output, and set interface or hostname if this host has several ",
                              "networks. LibTorch says: ", first_line(error)));
    }
  }

  /// This rank's device; all ranks hear of one that has none, before anybody connects.
  std::shared_ptr<gloo::transport::Device> open_on_all(Deadline deadline) {
    std::shared_ptr<gloo::transport::Device> device;
    std::string problem;
    try {
      ACCEL_CHECK(!endpoint_.name.empty(), ConfigError, "no address of it is known to the other hosts: MASTER_ADDR ",
                  "leads to a loopback address, or nowhere");
      device = endpoint_.open();
    } catch (const std::exception& error) {
      problem = first_line(error);
      if (problem.empty()) problem = "no reason given";
    }
    const auto problems = control().all_gather("Gloo: choosing an address", problem, deadline);
    for (std::size_t r = 0; r < problems.size(); ++r)
      ACCEL_CHECK(problems[r].empty(), ConfigError, "Gloo: ", meeting_.peers[r], " cannot listen",
                  static_cast<int>(r) == rank() ? message(" on ", endpoint_.text()) : "", ": ", problems[r],
                  "; set interface or hostname in the backend's options, or GLOO_SOCKET_IFNAME");
    return device;
  }

  /// Gives the next work its place in the sequence: of the collectives, or of the messages.
  [[nodiscard]] Work begin(std::string_view operation, std::size_t bytes) {
    return {group_,
            {operation, group_->control.begin(operation), {static_cast<std::int64_t>(bytes)}},
            timeout(),
            std::exchange(name_, nullptr)};
  }
  [[nodiscard]] Work begin_message(std::string_view operation, const at::Tensor& tensor, int peer) {
    const Bytes bytes{static_cast<std::int64_t>(tensor.nbytes())};
    return {group_, {operation, group_->control.begin_message(operation), bytes, peer}, timeout()};
  }

  void start_all_reduce(Work& work, const at::Tensor& tensor, ReduceOp op) const {
    if (shares(tensor, work.is_named()))
      work.run(reduced(Call::all_reduce, tensor, tensor, op));
    else if (sends(tensor))
      work.run({tensor},
               [&](auto& engine, auto& tensors) { return engine.allreduce(tensors, {.reduceOp = native(op)}); });
  }

  /// Gloo knows few dtypes, but what is only moved goes as bytes: any dtype.
  static at::Tensor as_bytes(const at::Tensor& tensor) { return tensor.detach().view({-1}).view(at::kByte); }

  [[nodiscard]] bool sends(const at::Tensor& tensor) const { return world_size() > 1 && tensor.numel() > 0; }
  /// What has a name is compared, however little it is.
  [[nodiscard]] bool shares(const at::Tensor& tensor, bool is_named) const {
    return group_->shared && (tensor.numel() > 0 || is_named);
  }

  static detail::Operation reduced(Call kind, const at::Tensor& input, const at::Tensor& output, ReduceOp op) {
    return {{.kind = kind, .op = op, .dtype = input.scalar_type(), .bytes = input.nbytes()}, input, output};
  }
  static detail::Operation moved(Call kind, const at::Tensor& input, const at::Tensor& output, int root = 0) {
    return {{.kind = kind, .root = root, .bytes = input.nbytes()}, input, output};
  }

  static c10d::ReduceOp native(ReduceOp op) {
    if (op == ReduceOp::max) return c10d::ReduceOp::MAX;
    if (op == ReduceOp::min) return c10d::ReduceOp::MIN;
    return c10d::ReduceOp::SUM;
  }

  launch::Meeting meeting_;
  Options options_;
  Seconds timeout_;
  std::string not_shared_{};  // why the ranks do not share memory
  std::shared_ptr<detail::GlooGroup> group_;
  std::shared_ptr<const std::string> name_;  // of the next collective
  Endpoint endpoint_;
};

}  // namespace accel::inline v0_1::backend

static_assert(accel::Backend<accel::backend::Gloo>);
