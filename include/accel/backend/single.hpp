// Single: one rank. Every collective is the identity.
#pragma once

#include <exception>
#include <span>
#include <string>
#include <string_view>

#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>

namespace accel::inline v0_1::backend {

/// One process on the device of its options; nothing is sent anywhere.
///
/// Throws   ConfigError if the environment describes more than one rank.
class Single {
 public:
  static constexpr std::string_view name = "single";

  struct Options {
    std::string device = "cpu";  // as LibTorch spells it: "cpu", "cuda:0"
    double timeout_s = 600;      // of wait(); nothing is ever waited for
  };

  struct Work {
    void wait() {}
    void wait_until(Deadline) {}
    [[nodiscard]] bool done() const { return true; }
  };

  Single(const launch::Meeting& meeting, const Options& options)
      : device_(parse_device(options.device)), timeout_(options.timeout_s) {
    check_launch(meeting.family, meeting.topology.world_size);
  }

  /// Asked before the rendezvous: there is nobody to wait for.
  static void check_launch(std::string_view family, int world_size) {
    ACCEL_CHECK(world_size == 1, ConfigError, "backend::Single is for one rank, but ", family, " started ", world_size,
                "; use backend::Gloo, or start one process");
  }

  [[nodiscard]] int rank() const { return 0; }
  [[nodiscard]] int world_size() const { return 1; }
  [[nodiscard]] c10::Device device() const { return device_; }
  [[nodiscard]] Seconds timeout() const { return timeout_; }
  [[nodiscard]] std::string describe() const {
    return message("one rank on ", device_.str(), ", timeout_s = ", timeout_.count());
  }

  [[nodiscard]] Work all_reduce(const at::Tensor& tensor, ReduceOp) {
    check(*this, "all_reduce", tensor);
    return {};
  }
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp) {
    for (const auto& tensor : tensors) check(*this, "all_reduce", tensor);
    return {};
  }
  [[nodiscard]] Work broadcast(const at::Tensor& tensor, int root) {
    check(*this, "broadcast", tensor);
    check_peer("broadcast", root, 1);
    return {};
  }
  [[nodiscard]] Work all_gather(at::Tensor& output, const at::Tensor& input) {
    return copy("all_gather", output, input);
  }
  [[nodiscard]] Work reduce_scatter(at::Tensor& output, const at::Tensor& input, ReduceOp) {
    return copy("reduce_scatter", output, input);
  }
  [[nodiscard]] Work send(const at::Tensor& tensor, int peer) { return no_peer("send", tensor, peer); }
  [[nodiscard]] Work recv(at::Tensor& tensor, int peer) { return no_peer("recv", tensor, peer); }

  [[nodiscard]] at::Tensor allocate(Bytes bytes) {
    return at::empty({bytes.count}, at::TensorOptions().dtype(at::kByte).device(device_));
  }

  [[nodiscard]] Single split(std::span<const int> ranks, std::string_view) {
    control_.check_failure("split");
    ACCEL_CHECK(ranks.size() == 1 && ranks.front() == 0, InvalidArgument, "split: a group of one has only rank 0");
    Single part(launch::Meeting{}, Options{.device = device_.str(), .timeout_s = timeout_.count()});
    return part;
  }

  [[nodiscard]] launch::ControlPlane& control() { return control_; }
  void abort(std::string_view reason) noexcept { control_.give_up(reason); }

 private:
  static c10::Device parse_device(const std::string& text) {
    try {
      // "cuda" means the current one, which tensors call "cuda:0": asked of a tensor.
      return at::empty({0}, at::TensorOptions().device(c10::Device(text))).device();
    } catch (const std::exception& error) {
      throw ConfigError(message("Single: device = \"", text,
                                "\" is no device that can be used here. LibTorch says: ", first_line(error)));
    }
  }

  Work copy(std::string_view operation, at::Tensor& output, const at::Tensor& input) {
    check(*this, operation, output);
    check(*this, operation, input);
    check_parts(operation, output, input, 1);
    output.view({-1}).copy_(input.view({-1}));
    return {};
  }

  [[noreturn]] Work no_peer(std::string_view operation, const at::Tensor& tensor, int peer) {
    check(*this, operation, tensor);
    throw InvalidArgument(message(operation, ": rank ", peer, " is not another rank of a group of one"));
  }

  c10::Device device_;
  Seconds timeout_;
  launch::ControlPlane control_;
};

}  // namespace accel::inline v0_1::backend

static_assert(accel::Backend<accel::backend::Single>);
