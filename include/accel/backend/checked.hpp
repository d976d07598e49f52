// Checked: an adaptor for finding out where ranks part ways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>

namespace accel::inline v0_1::backend {

/// A backend whose ranks must call the same operation with equal shapes and dtypes: where they do not,
/// every rank's CommError names all the calls. Without it such ranks wait for each other until the
/// deadline, compute with what was never meant for them, or die: Gloo ends the process of a rank that
/// receives more than it asked for.
///
/// Before every collective an all_reduce of 16 bytes compares what the ranks call, and is waited for:
/// what differs is never sent. It runs in a group of its own, which no wrong call can disturb. Texts are
/// exchanged only when something differs. send and recv, which two ranks call, are passed through.
///
/// Cost     an all_reduce of 16 bytes per collective, for which the host waits; less overlap by that.
/// Example  Accelerator<backend::Checked<backend::Gloo>, precision::Fp32>
template <Backend B>
class Checked {
 public:
  static constexpr std::string_view name = "checked";

  using Options = typename B::Options;
  using Work = WorkOf<B>;

  Checked(const launch::Meeting& meeting, const Options& options) : Checked(B(meeting, options)) {}

  static void check_launch(std::string_view family, int world_size)
    requires requires { B::check_launch(family, world_size); }
  {
    B::check_launch(family, world_size);
  }

  [[nodiscard]] int rank() const { return inner_.rank(); }
  [[nodiscard]] int world_size() const { return inner_.world_size(); }
  [[nodiscard]] c10::Device device() const { return inner_.device(); }
  [[nodiscard]] Seconds timeout() const { return inner_.timeout(); }
  [[nodiscard]] std::string describe() const { return description(inner_); }

  [[nodiscard]] Work all_reduce(at::Tensor tensor, ReduceOp op) {
    compare("all_reduce", word(op), {&tensor, 1});
    return inner_.all_reduce(tensor, op);
  }
  [[nodiscard]] Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    compare("all_reduce", word(op), tensors);
    return inner_.all_reduce(tensors, op);
  }
  [[nodiscard]] Work broadcast(at::Tensor tensor, int root) {
    check_peer("broadcast", root, world_size());
    compare("broadcast", message("from ", root), {&tensor, 1});
    return inner_.broadcast(tensor, root);
  }
  [[nodiscard]] Work all_gather(at::Tensor output, at::Tensor input) {
    check_both("all_gather", output, input);
    check_parts("all_gather", output, input, world_size());
    compare("all_gather", {}, {&input, 1});
    return inner_.all_gather(output, input);
  }
  [[nodiscard]] Work reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op) {
    check_both("reduce_scatter", output, input);
    check_parts("reduce_scatter", input, output, world_size());
    compare("reduce_scatter", word(op), {&input, 1});
    return inner_.reduce_scatter(output, input, op);
  }
  [[nodiscard]] Work send(at::Tensor tensor, int peer) { return inner_.send(tensor, peer); }
  [[nodiscard]] Work recv(at::Tensor tensor, int peer) { return inner_.recv(tensor, peer); }

  [[nodiscard]] at::Tensor allocate(Bytes bytes) { return inner_.allocate(bytes); }
  [[nodiscard]] Checked split(std::span<const int> ranks, std::string_view part_name) {
    return Checked(inner_.split(ranks, part_name));
  }
  [[nodiscard]] launch::ControlPlane& control() { return inner_.control(); }
  void abort(std::string_view reason) noexcept { inner_.abort(reason); }

  /// The backend that does the work.
  [[nodiscard]] B& inner() { return inner_; }

 private:
  explicit Checked(B&& inner) : inner_(std::move(inner)) {
    if (world_size() == 1) return;
    std::vector<int> all(static_cast<std::size_t>(world_size()));
    std::iota(all.begin(), all.end(), 0);
    checks_.emplace(inner_.split(all, "checked"));
  }

  static std::string_view word(ReduceOp op) {
    return op == ReduceOp::sum ? "sum" : op == ReduceOp::max ? "max" : "min";
  }

  /// FNV-1a: equal on every host.
  static std::int64_t hash(std::string_view text) {
    std::uint64_t value = 0xcbf29ce484222325U;
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
    return static_cast<std::int64_t>(value);
  }

  void check_both(std::string_view operation, const at::Tensor& output, const at::Tensor& input) {
    control().check_failure(operation);
    check_tensor(operation, output, device());
    check_tensor(operation, input, device());
  }

  /// Throws on every rank if they do not call the same. What only this rank's call has wrong is refused
  /// first: the others do not know of it.
  void compare(std::string_view operation, std::string_view how, std::span<const at::Tensor> tensors) {
    control().check_failure(operation);
    for (const auto& tensor : tensors) check_tensor(operation, tensor, device());
    ++number_;
    if (!checks_) return;
    std::ostringstream text;
    text << operation << (how.empty() ? "" : " ") << how << " of";
    if (tensors.empty()) text << " nothing";
    Bytes bytes;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      text << (i == 0 ? " " : ", ") << tensor::spec(tensors[i]);
      bytes.count += static_cast<std::int64_t>(tensors[i].nbytes());
    }
    const std::string call = text.str();
    if (all_call(hash(call), message(operation, " number ", number_, " of ", bytes))) return;

    const std::string title = message(operation, " number ", number_, ": the ranks do not call the same");
    const auto calls = control().all_gather(title, call, Deadline::in(timeout()));
    std::ostringstream list;
    for (std::size_t r = 0; r < calls.size(); ++r)
      list << (r == 0 ? ": rank " : ", rank ") << r << " calls " << calls[r];
    const std::string problem =
        message(title, list.str(),
                "; every rank must call the same collectives, in the same order, with equal shapes and dtypes");
    control().give_up(problem);
    throw CommError(problem);
  }

  /// Whether every rank has this hash: then the least is this one, and so is the least complement.
  bool all_call(std::int64_t hash, const std::string& title) {
    at::Tensor least = at::empty({2}, at::kLong);
    auto* const values = least.template mutable_data_ptr<std::int64_t>();
    values[0] = hash;
    values[1] = ~hash;
    least = least.to(device());
    try {
      auto work = checks_->all_reduce(least, ReduceOp::min);
      work.wait();
    } catch (const CommError& error) {
      throw CommError(message(title, ", which is compared before: ", error.what()));
    }
    const at::Tensor found = least.cpu();
    const auto* const agreed = found.template const_data_ptr<std::int64_t>();
    return agreed[0] == hash && agreed[1] == ~hash;
  }

  B inner_;
  std::optional<B> checks_;  // none at one rank
  std::int64_t number_ = 0;  // collectives begun
};

}  // namespace accel::inline v0_1::backend
