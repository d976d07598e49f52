// ProcessControl: which rank does what, and when: the part of an accelerator that sends no tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/batch_size.hpp>
#include <accel/collective/first.hpp>
#include <accel/collective/random.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/topology.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/engine.hpp>

namespace accel::inline v0_1::prepare {

/// Who a process is among the ranks, what it alone does, and where all wait for each other. See Accelerator.
template <class B, class P>
class ProcessControl {
  static_assert(Backend<B>, "Accelerator<Backend, Precision>: the first is no accel::Backend, see below");
  static_assert(Precision<P>, "Accelerator<Backend, Precision>: the second is no accel::Precision, see below");

 public:
  // Who am I

  [[nodiscard]] int rank() const { return engine_->topology.rank; }
  [[nodiscard]] int world_size() const { return engine_->topology.world_size; }
  [[nodiscard]] int local_rank() const { return engine_->topology.local_rank; }
  [[nodiscard]] const launch::Topology& topology() const { return engine_->topology; }
  [[nodiscard]] bool is_main_process() const { return engine_->topology.is_main(); }
  [[nodiscard]] bool is_local_main_process() const { return engine_->topology.is_local_main(); }
  [[nodiscard]] bool is_last_process() const { return engine_->topology.is_last(); }
  [[nodiscard]] c10::Device device() const { return engine_->device; }

  // What one rank does for all. Nobody waits: what these give is a std::optional of what `body` gives, empty on ranks
  // that do not run it, or, if it gives nothing, whether it ran.

  template <class Body>
  auto on_main_process(Body&& body) {
    return only(is_main_process(), std::forward<Body>(body));
  }
  /// On the first rank of every host.
  template <class Body>
  auto on_local_main_process(Body&& body) {
    return only(is_local_main_process(), std::forward<Body>(body));
  }
  template <class Body>
  auto on_last_process(Body&& body) {
    return only(is_last_process(), std::forward<Body>(body));
  }
  template <class Body>
  auto on_process(int index, Body&& body) {
    return only_at("on_process", index, rank(), world_size(), std::forward<Body>(body));
  }
  /// On the rank of every host that is number `index` of its own.
  template <class Body>
  auto on_local_process(int index, Body&& body) {
    return only_at("on_local_process", index, local_rank(), engine_->topology.local_world_size,
                   std::forward<Body>(body));
  }

  // What one rank does before the others. All collective.

  /// Runs `body` on rank 0, then on the others, as to fill a cache that these then find; gives what it gave here. In it
  /// rank 0 is alone: a collective there is an error.
  ///
  /// Throws   what `body` throws; if it threw on rank 0, CommError with its text on the others, where it did not run.
  ///          CommError if it takes longer than `patience`; unset: the backend's timeout.
  template <class Body>
  auto main_process_first(Body&& body, std::optional<Seconds> patience = {}) {
    return first("main_process_first", is_main_process(), std::forward<Body>(body), patience);
  }
  /// The same on the first rank of every host, then, when all of these are done, on the others.
  template <class Body>
  auto local_main_process_first(Body&& body, std::optional<Seconds> patience = {}) {
    return first("local_main_process_first", is_local_main_process(), std::forward<Body>(body), patience);
  }

  /// Returns when every rank has come here; the error names those that have not.
  void wait_for_everyone() {
    at_rank([&] { control().barrier("wait_for_everyone", timeout()); });
  }

  /// Raises a flag that check_trigger() finds on every rank. Also from another thread or a signal handler.
  void set_trigger() noexcept { engine_->trigger = true; }

  /// Whether any rank has raised its flag since the last check. Collective.
  ///
  /// Cost     one round over the control plane; no device is waited for.
  [[nodiscard]] bool check_trigger() {
    return at_rank([&] {
      const auto flags = control().all_gather("check_trigger", engine_->trigger.exchange(false) ? "1" : "0", timeout());
      return std::find(flags.begin(), flags.end(), "1") != flags.end();
    });
  }

  // Random numbers

  /// Seeds LibTorch's generators of the CPU and of all devices; gives the seed of this rank. Nothing is sent.
  std::uint64_t set_seed(std::uint64_t seed, const collective::SeedOptions& options = {}) {
    return collective::set_seed(seed, rank(), options);
  }

  /// Gives every rank the state of rank 0's generators: LibTorch's own of the CPU and of the device, or `generators`.
  /// Collective.
  void synchronize_rng_states() { synchronize_rng_states(collective::default_generators(device())); }
  void synchronize_rng_states(std::vector<at::Generator> generators) {
    at_rank([&] { collective::synchronize_rng_states(engine_->backend, generators); });
  }

  /// The largest batch size that all ranks have memory for: calls `body(batch_size)` with `first`, and with smaller
  /// ones, the same on all ranks, for as long as any rank runs out. Gives what `body` gave; of a body that gives
  /// nothing the size. Collective.
  ///
  /// At several ranks let the body use no collectives, as under no_sync(): where a rank runs out of memory while others
  /// wait for it, and in a backward that reduces, all that is left is an error, on every rank.
  ///
  /// Example  accelerator.find_executable_batch_size(128, [&](std::int64_t size) {
  ///            const auto guard = accelerator.no_sync();
  ///            accelerator.backward(loss(model(batch_of(size))));
  ///          });
  template <class Body>
  auto find_executable_batch_size(std::int64_t first, Body&& body, const collective::BatchSizeSearch& search = {}) {
    return at_rank([&] {
      return collective::find_executable_batch_size(engine_->backend, first, search, body,
                                                    [&](const std::string& what) {
                                                      engine_->log.info("find_executable_batch_size: ", what);
                                                      engine_->give_up_window();
                                                    });
    });
  }

  // Failures

  /// Runs `body`, and gives back what it gives. An exception that leaves it ends every rank of the job: the others'
  /// next or current call throws CommError with its text, of whatever type it is.
  ///
  /// Example  accelerator.run([&] { train(accelerator); });
  template <class Body>
  decltype(auto) run(Body&& body) {
    try {
      return std::forward<Body>(body)();
    } catch (const std::exception& error) {
      control().ended_by(first_line(error));
      throw;
    } catch (...) {
      control().ended_by("something that is no std::exception");
      throw;
    }
  }

  /// This rank cannot go on: every rank's next or current call throws CommError with `reason`. Not needed for an
  /// exception that leaves main, run() or the scope of the accelerator: the others hear of it.
  void abort(std::string_view reason) noexcept { engine_->backend.abort(reason); }

 protected:
  explicit ProcessControl(std::shared_ptr<Engine<B, P>> engine) : engine_(std::move(engine)) {}

  template <class Body>
  decltype(auto) at_rank(Body&& body) const {
    return engine_->at_rank(std::forward<Body>(body));
  }

  std::shared_ptr<Engine<B, P>> engine_;

 private:
  [[nodiscard]] launch::ControlPlane& control() { return engine_->backend.control(); }
  [[nodiscard]] Deadline timeout() const { return Deadline::in(engine_->backend.timeout()); }

  template <class Body>
  auto only(bool runs, Body&& body) {
    return at_rank([&] { return collective::run_if(runs, std::forward<Body>(body)); });
  }
  template <class Body>
  auto only_at(std::string_view call, int index, int own, int count, Body&& body) {
    return at_rank([&] {
      ACCEL_CHECK(index >= 0 && index < count, InvalidArgument, call, ": rank ", index, " is not in [0, ", count, ")");
      return collective::run_if(index == own, std::forward<Body>(body));
    });
  }
  template <class Body>
  auto first(std::string_view call, bool is_first, Body&& body, std::optional<Seconds> patience) {
    return at_rank([&] {
      return collective::first_then_others(control(), call, patience.value_or(engine_->backend.timeout()), is_first,
                                           std::forward<Body>(body));
    });
  }
};

}  // namespace accel::inline v0_1::prepare
