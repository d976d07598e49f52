// The laws of the library: equalities between two ways of computing the same training.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using gradient::LossNormalization;
using gradient::ReducerOptions;

namespace {

constexpr int steps = 11;
constexpr std::int64_t rows_per_rank = 8;

torch::optim::AdamW adamw(Mlp& net) {
  return torch::optim::AdamW(net.parameters(), torch::optim::AdamWOptions(0.05));
}

/// sums += factor * summands, each product rounded before it is added.
void add_to(std::vector<torch::Tensor>& sums, const std::vector<torch::Tensor>& summands, double factor) {
  for (std::size_t i = 0; i < summands.size(); ++i) {
    const auto product = summands[i].detach() * factor;
    if (i < sums.size())
      sums[i] += product;
    else
      sums.push_back(product);
  }
}

/// The parameters after some steps of the prepared loop.
std::vector<torch::Tensor> trained(Rank rank, const Gloo::Options& options, std::int64_t rows = rows_per_rank) {
  torch::manual_seed(1);
  Gloo accelerator(options);
  auto net = std::make_shared<Mlp>();
  auto [model, optimizer, loader] = accelerator.prepare(
      net, adamw(*net), data::DataLoader{Noise(steps * rows * rank.world_size), {.batch_size = rows}});
  for (auto& batch : loader) {
    const auto micro_step = accelerator.accumulate(batch);
    optimizer.zero_grad();
    accelerator.backward(cross_entropy(model(batch.data), batch.target));
    optimizer.step();
  }
  return copies(net->parameters());
}

std::vector<torch::Tensor> trained(Rank rank, const ReducerOptions& options) {
  return trained(rank, Gloo::Options{.gradient = options});
}

/// The plain loop: no accel, one process, all rows at once.
std::vector<torch::Tensor> plainly_trained(std::int64_t rows) {
  torch::manual_seed(1);
  Mlp net;
  auto optimizer = adamw(net);
  const Noise data(steps * rows);
  for (int step = 0; step < steps; ++step) {
    const auto batch = data.get_batch(torch::arange(step * rows, (step + 1) * rows));
    optimizer.zero_grad();
    cross_entropy(net.forward(batch.data), batch.target).backward();
    optimizer.step();
  }
  return copies(net.parameters());
}

/// The same by hand in one process and plain LibTorch: each rank's micro-batches in turn, gradients scaled once and
/// added in the order of ranks.
std::vector<torch::Tensor> emulated(int world_size, int accumulation = 1,
                                    LossNormalization normalization = LossNormalization::window_length) {
  torch::manual_seed(1);
  Mlp net;
  auto optimizer = adamw(net);
  const Noise data(steps * rows_per_rank * world_size);
  for (int window = 0; window < steps; window += accumulation) {
    const int length = std::min(accumulation, steps - window);
    const int divisor = world_size * (normalization == LossNormalization::fixed_steps ? accumulation : length);
    std::vector<torch::Tensor> sums;
    for (int rank = 0; rank < world_size; ++rank) {
      std::vector<torch::Tensor> own;
      for (int step = window; step < window + length; ++step) {
        net.zero_grad();
        const auto begin = (step * world_size + rank) * rows_per_rank;
        const auto batch = data.get_batch(torch::arange(begin, begin + rows_per_rank));
        cross_entropy(net.forward(batch.data), batch.target).backward();
        add_to(own, gradients(net.parameters()), 1.0 / divisor);
      }
      add_to(sums, own, 1.0);
    }
    const auto parameters = net.parameters();
    for (std::size_t i = 0; i < sums.size(); ++i) parameters[i].mutable_grad() = sums[i];
    optimizer.step();
  }
  return copies(net.parameters());
}

/// Through Gloo's sockets the order of summation depends, from 3 ranks on, on the position in the buffer.
void require_same(const std::vector<torch::Tensor>& ours, const std::vector<torch::Tensor>& reference, Rank rank,
                  bool shared_memory) {
  if (shared_memory || rank.world_size < 3)
    REQUIRE(bits(ours) == bits(reference));
  else
    REQUIRE(distance(ours, reference) < 1e-5);
}

const gradient::BucketCaps many_buckets{.bucket_cap = 64_B, .last_bucket_cap = 32_B};
const gradient::BucketCaps growing_buckets{.bucket_cap = gradient::Caps({32_B, 200_B, 1_KiB}), .last_bucket_cap = 8_B};

}  // namespace

TEST_CASE("ranks equal an emulation in one process bit for bit, whatever the options; within 1e-5 at 3 over sockets",
          "[parity]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    const auto reference = emulated(rank.world_size);
    for (const bool shared_memory : {true, false})
      for (const bool overlap : {true, false})
        for (const bool broadcast_buffers : {true, false})
          for (const auto& caps : {gradient::BucketCaps{}, many_buckets, growing_buckets}) {
            CAPTURE(shared_memory, overlap, broadcast_buffers, caps.bucket_cap);
            Gloo::Options options;
            options.gradient = {.caps = caps, .overlap = overlap, .broadcast_buffers = broadcast_buffers};
            options.backend.shared_memory = shared_memory;
            require_same(trained(rank, options), reference, rank, shared_memory);
          }
  });
}

TEST_CASE("accumulation windows equal the emulation bit for bit, with either meaning of a short last one", "[parity]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const auto normalization : {LossNormalization::window_length, LossNormalization::fixed_steps})
      for (const int accumulation : {2, 3, 4}) {  // 11 micro-steps: the last window has 1, 2 and 3
        const auto reference = emulated(rank.world_size, accumulation, normalization);
        for (const bool overlap : {true, false})
          for (const auto& caps : {gradient::BucketCaps{}, many_buckets}) {
            CAPTURE(name_of(normalization), accumulation, overlap, caps.bucket_cap);
            Gloo::Options options{.accumulation_steps = accumulation, .loss_normalization = normalization};
            options.gradient = {.caps = caps, .overlap = overlap};
            REQUIRE(bits(trained(rank, options)) == bits(reference));
          }
      }
  });
}

TEST_CASE("broadcast_buffers leaves rank 0's statistics on every rank, and each rank its own without it", "[parity]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const bool broadcast_buffers : {true, false}) {
      Gloo accelerator({.gradient = {.broadcast_buffers = broadcast_buffers}});
      auto net = std::make_shared<torch::nn::BatchNorm1dImpl>(5);
      torch::nn::BatchNorm1d plain(5);
      const Noise data(steps * rows_per_rank * rank.world_size);
      auto [model, loader] = accelerator.prepare(net, data::DataLoader{data, {.batch_size = rows_per_rank}});
      int step = 0;
      for (auto& batch : loader) {
        accelerator.backward(model(batch.data).square().mean());
        const auto begin = (step++ * rank.world_size + (broadcast_buffers ? 0 : rank.rank)) * rows_per_rank;
        plain(data.get_batch(torch::arange(begin, begin + rows_per_rank)).data);
      }
      REQUIRE(step == steps);
      model.eval();
      (void)model(data.all.data.narrow(0, 0, 1));
      CAPTURE(broadcast_buffers);
      REQUIRE(bits(net->buffers()) == bits(plain->buffers()));
    }
  });
}

TEST_CASE("one rank equals plain LibTorch bit for bit", "[parity]") {
  on_ranks({1}, [](Rank rank) {
    torch::manual_seed(1);
    Mlp net;
    auto optimizer = adamw(net);
    const Noise data(steps * rows_per_rank);
    for (int step = 0; step < steps; ++step) {
      const auto batch = data.get_batch(torch::arange(step * rows_per_rank, (step + 1) * rows_per_rank));
      optimizer.zero_grad();
      cross_entropy(net.forward(batch.data), batch.target).backward();
      optimizer.step();
    }
    REQUIRE(bits(trained(rank, ReducerOptions{})) == bits(net.parameters()));
  });
}

TEST_CASE("overlapped equals not overlapped bit for bit, also over sockets", "[parity]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const bool shared_memory : {true, false}) {
      Gloo::Options options;
      options.gradient.caps = many_buckets;
      options.backend.shared_memory = shared_memory;
      const auto overlapped = trained(rank, options);
      options.gradient.overlap = false;
      REQUIRE(bits(trained(rank, options)) == bits(overlapped));
    }
  });
}

TEST_CASE("all ranks hold the same parameters after training, bit for bit", "[parity]") {
  on_ranks({2, 3}, [](Rank rank) {
    const auto own = trained(rank, ReducerOptions{});
    Gloo accelerator;
    for (const auto& parameter : own) {
      const auto first = accelerator.broadcast(parameter.clone());
      REQUIRE(bits({first}) == bits({parameter}));
    }
  });
}

TEST_CASE("ranks with a part of the batch equal one process with all of it, within 1e-4", "[parity]") {
  // Not bit for bit: a matrix product over 24 rows is not the sum of those over parts of it.
  on_ranks({1, 2, 3}, [](Rank rank) {
    REQUIRE(distance(trained(rank, Gloo::Options{}, 24 / rank.world_size), plainly_trained(24)) < 1e-4);
  });
}

TEST_CASE("with numbers that add exactly, four ranks equal one process bit for bit", "[parity]") {
  // Integers, and powers of two for rates and shares: no sum is rounded, so no order matters.
  on_ranks({2, 4}, [](Rank rank) {
    constexpr std::int64_t rows = 16;
    constexpr double rate = 0.0078125;  // 1/128
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer, loader] =
        accelerator.prepare(net, torch::optim::SGD(net->parameters(), rate),
                            data::DataLoader{Doubles{rows}, {.batch_size = rows / 2 / rank.world_size}});
    Line plain;
    torch::optim::SGD sgd(plain.parameters(), rate);
    const auto x = torch::arange(1, rows + 1, torch::kDouble);
    std::int64_t begin = 0;
    for (auto& batch : loader) {
      accelerator.backward(squared_error(model(batch.x), batch.y));
      optimizer.step();
      optimizer.zero_grad();
      const auto all = x.narrow(0, begin, rows / 2);
      squared_error(plain.forward(all), 2 * all).backward();
      sgd.step();
      sgd.zero_grad();
      begin += rows / 2;
      REQUIRE(bits({net->weight}) == bits({plain.weight}));
    }
    REQUIRE(begin == rows);
  });
}

TEST_CASE("accumulated micro-batches equal ranks: n windows of one rank are one step of n ranks", "[parity]") {
  on_ranks({1, 2}, [](Rank rank) {
    torch::manual_seed(1);
    Gloo accelerator({.accumulation_steps = 4 / rank.world_size});
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer, loader] =
        accelerator.prepare(net, adamw(*net), data::DataLoader{Noise(steps * 32), {.batch_size = 8}});
    for (auto& batch : loader) {
      auto micro_step = accelerator.accumulate(batch);
      optimizer.zero_grad();
      accelerator.backward(cross_entropy(model(batch.data), batch.target));
      optimizer.step();
    }
    REQUIRE(distance(copies(net->parameters()), plainly_trained(32)) < 1e-4);
  });
}
