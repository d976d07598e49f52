// Sampler: seed and epoch to the order of the rows, the same on every rank.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <accel/core/error.hpp>
#include <accel/data/order.hpp>
#include <accel/data/permutation.hpp>
#include <accel/data/random.hpp>

namespace accel::inline v0_1::data {

/// What an order is drawn from, and nothing else.
struct Draw {
  std::int64_t rows = 0;          // of the dataset
  std::uint64_t seed = 0;         // of the run, equal on all ranks
  std::int64_t epoch = 0;         // from 0
  std::int64_t global_batch = 1;  // rows of a full step over all ranks

  /// Of what is drawn once in an epoch, as accelerate's SeedableRandomSampler and torch's DistributedSampler do.
  [[nodiscard]] std::uint64_t epoch_seed() const { return seed + static_cast<std::uint64_t>(epoch); }
};

/// The samples of an epoch that does not end before the program does.
inline constexpr std::int64_t endless_samples = std::int64_t{1} << 60;

/// How an epoch visits a dataset. One's own is three lines:
///
///   Sampler backwards{.name = "backwards", .order = [](const Draw& draw) {
///     return Order::computed(draw.rows, [n = draw.rows](std::int64_t position) { return n - 1 - position; });
///   }};
///
/// `order` is a pure function: so every rank draws the same one without talking, and a resumed run the one it had.
/// State    none: seed and epoch say it all. LibTorch's default generator is not touched.
struct Sampler {
  std::string name;                                               // compared between ranks, and with a saved position
  std::function<Order(const Draw&)> order;                        // of one epoch
  std::function<std::int64_t(std::int64_t rows)> samples = same;  // of an epoch, over a dataset of as many rows

  [[nodiscard]] static std::int64_t same(std::int64_t rows) { return rows; }
};

namespace sampler {

/// Row 0, 1, 2, ...
[[nodiscard]] inline Sampler sequential() {
  return {.name = "sequential", .order = [](const Draw& draw) { return Order::sequential(draw.rows); }};
}

/// Every row once, in the order of torch.randperm: a Python run with the same seed sees the same rows.
///
/// Memory   4 bytes per row, and a pass over them at the start of an epoch: see permuted() for none.
[[nodiscard]] inline Sampler random() {
  return {.name = "random", .order = [](const Draw& draw) { return Order::shuffled(draw.rows, draw.epoch_seed()); }};
}

/// Every row once, in an order that is computed where it is looked at.
///
/// Memory   none, and an epoch begins at once, at any position, however large the dataset.
/// Differs  not PyTorch's order.
[[nodiscard]] inline Sampler permuted() {
  return {.name = "permuted", .order = [](const Draw& draw) {
            const auto key = derived_seed(draw.seed, static_cast<std::uint64_t>(draw.epoch));
            return Order::permuted(Permutation(draw.rows, key));
          }};
}

}  // namespace sampler

}  // namespace accel::inline v0_1::data
