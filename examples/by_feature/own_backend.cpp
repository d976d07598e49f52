// A backend of your own: Postal carries tensors as bytes through the store of the rendezvous. It is slow,
// needs nothing but what every job has anyway, and adds in the order of ranks: the same sum, to the last
// bit, whatever the buckets. Run it as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/own_backend
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <accel/accelerator.hpp>

using accel::Deadline;
using accel::ReduceOp;

class Postal {
 public:
  static constexpr std::string_view name = "postal";

  struct Options {
    double timeout_s = 60;
  };

  /// Every call below ends when its result is there: there is nothing left to wait for.
  struct Work {
    void wait() {}
    void wait_until(Deadline) {}
    bool done() const { return true; }
  };

  Postal(const accel::launch::Meeting& meeting, const Options& options)
      : meeting_(meeting), options_(options), control_(meeting.control_plane()) {}

  int rank() const { return meeting_.topology.rank; }
  int world_size() const { return meeting_.topology.world_size; }
  c10::Device device() const { return c10::Device(c10::DeviceType::CPU); }
  accel::Seconds timeout() const { return accel::Seconds(options_.timeout_s); }

  Work all_reduce(at::Tensor tensor, ReduceOp op) {
    accel::backend::check(*this, "all_reduce", tensor);
    const auto parts = exchange("all_reduce", tensor);
    at::Tensor result = parts.front();
    for (std::size_t r = 1; r < parts.size(); ++r) {
      if (op == ReduceOp::sum) result.add_(parts[r]);
      if (op == ReduceOp::max) result = at::maximum(result, parts[r]);
      if (op == ReduceOp::min) result = at::minimum(result, parts[r]);
    }
    tensor.copy_(result);
    return {};
  }
  Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) {
    for (const auto& tensor : tensors) accel::backend::check(*this, "all_reduce", tensor);
    for (const auto& tensor : tensors) all_reduce(tensor, op);
    return {};
  }
  Work broadcast(at::Tensor tensor, int root) {
    accel::backend::check(*this, "broadcast", tensor);
    accel::backend::check_peer("broadcast", root, world_size());
    tensor.copy_(exchange("broadcast", tensor)[static_cast<std::size_t>(root)]);
    return {};
  }
  Work all_gather(at::Tensor output, at::Tensor input) {
    accel::backend::check(*this, "all_gather", output);
    accel::backend::check(*this, "all_gather", input);
    accel::backend::check_parts("all_gather", output, input, world_size());
    auto parts = exchange("all_gather", input);
    for (auto& part : parts) part = part.view({-1});
    output.view({-1}).copy_(at::cat(parts));
    return {};
  }
  Work reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op) {
    accel::backend::check(*this, "reduce_scatter", output);
    accel::backend::check(*this, "reduce_scatter", input);
    accel::backend::check_parts("reduce_scatter", input, output, world_size());
    at::Tensor sum = input.view({-1}).clone();
    all_reduce(sum, op);
    output.view({-1}).copy_(sum.narrow(0, rank() * output.numel(), output.numel()));
    return {};
  }
  Work send(at::Tensor tensor, int peer) {
    accel::backend::check_message(*this, "send", tensor, peer);
    post(letter(rank(), peer, sent_[peer]++), tensor);
    return {};
  }
  Work recv(at::Tensor tensor, int peer) {
    accel::backend::check_message(*this, "recv", tensor, peer);
    const std::string key = letter(peer, rank(), received_[peer]++);
    tensor.copy_(fetch("recv", control_.begin("recv"), key, tensor, Deadline::in(timeout())));
    meeting_.store->deleteKey(key);
    return {};
  }

  at::Tensor allocate(accel::Bytes bytes) { return at::empty({bytes.count}, at::kByte); }
  Postal split(std::span<const int> ranks, std::string_view part) {
    control_.check_failure("split");
    return Postal(meeting_.part(ranks, part), options_);
  }
  accel::launch::ControlPlane& control() { return control_; }
  void abort(std::string_view reason) noexcept { control_.give_up(reason); }

 private:
  /// Everybody's tensor, by rank.
  std::vector<at::Tensor> exchange(std::string_view operation, const at::Tensor& tensor) {
    const auto number = control_.begin(operation);
    if (world_size() == 1) return {tensor.clone()};
    const auto key = [&](std::int64_t of, int from) { return accel::message("all/", of, "/", from); };
    post(key(number, rank()), tensor);
    const Deadline deadline = Deadline::in(timeout());
    std::vector<at::Tensor> parts;
    for (int from = 0; from < world_size(); ++from)
      parts.push_back(fetch(operation, number, key(number, from), tensor, deadline));
    // Everybody has posted this one, so everybody has read the one before.
    meeting_.store->deleteKey(key(std::exchange(last_, number), rank()));
    return parts;
  }

  static std::string letter(int from, int to, int number) {
    return accel::message("from/", from, "/to/", to, "/", number);
  }

  void post(const std::string& key, const at::Tensor& tensor) {
    const auto* bytes = static_cast<const std::uint8_t*>(tensor.const_data_ptr());
    meeting_.store->set(key, std::vector<std::uint8_t>(bytes, bytes + tensor.nbytes()));
  }

  at::Tensor fetch(std::string_view operation, std::int64_t number, const std::string& key, const at::Tensor& like,
                   Deadline deadline) {
    try {
      // LibTorch's store may block for ever: wait aside, and hear whether the other ranks are well.
      const auto bytes = accel::launch::within(
          deadline,
          [store = meeting_.store, key, deadline] {
            store->wait({key}, deadline.remaining());
            return store->get(key);
          },
          [&] { return control_.failed() || control_.missed_by(number, 0); });
      at::Tensor tensor = at::empty_like(like);
      ACCEL_CHECK(bytes.size() == tensor.nbytes(), accel::CommError, "expected ", tensor.nbytes(), " bytes, found ",
                  bytes.size());
      std::copy(bytes.begin(), bytes.end(), static_cast<std::uint8_t*>(tensor.mutable_data_ptr()));
      return tensor;
    } catch (const std::exception& error) {
      control_.fail(accel::message(operation, " number ", number, " of ", like.nbytes(), " B failed",
                                   deadline.passed() ? accel::message(" after ", deadline.span_s(), " s") : "", ": ",
                                   accel::first_line(error)),
                    number);
    }
  }

  accel::launch::Meeting meeting_;
  Options options_;
  accel::launch::ControlPlane control_;
  std::map<int, int> sent_;      // letters, by receiver
  std::map<int, int> received_;  // letters, by sender
  std::int64_t last_ = 0;        // the exchange before
};

static_assert(accel::Backend<Postal>);

#ifndef ACCEL_EXAMPLE_AS_HEADER  // the tests hold Postal to the laws of a backend
int main() {
  accel::Accelerator<Postal, accel::precision::Fp32> accelerator;

  torch::manual_seed(0);
  const auto x = torch::linspace(-1, 1, 64).view({64, 1});
  auto net = std::make_shared<torch::nn::LinearImpl>(1, 1);
  torch::optim::SGD sgd(net->parameters(), /*lr=*/0.2);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  for (int step = 0; step < 200; ++step) {
    // Every rank sees rows of its own.
    const auto rows = x.slice(0, accelerator.rank(), std::nullopt, accelerator.world_size());
    optimizer.zero_grad();
    accelerator.backward(torch::mse_loss(model(rows), 3 * rows + 1));
    optimizer.step();
  }
  accelerator.print("y = ", net->weight.item<float>(), " x + ", net->bias.item<float>());
}
#endif
