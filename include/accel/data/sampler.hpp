// Sampler: seed and epoch to the order of the rows, PyTorch's own, the same on every rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::data {

/// The order in which an epoch visits `rows` rows: 0, 1, 2, ... or a permutation that depends on
/// seed + epoch alone, so that every rank draws the same one without talking.
///
/// Throws   InvalidArgument if rows is negative.
/// State    none: seed and epoch say it all. LibTorch's default generator is not touched.
/// Source   torch.randperm of a generator seeded with seed + epoch, as accelerate's
///          SeedableRandomSampler and torch's DistributedSampler draw it.
[[nodiscard]] inline std::vector<std::int64_t> epoch_order(std::int64_t rows, std::uint64_t seed, std::int64_t epoch,
                                                           bool shuffle) {
  ACCEL_CHECK(rows >= 0, InvalidArgument, "rows: expected 0 or more, found ", rows);
  std::vector<std::int64_t> order(static_cast<std::size_t>(rows));
  if (!shuffle) {
    std::iota(order.begin(), order.end(), std::int64_t{0});
    return order;
  }
  const auto generator = at::detail::createCPUGenerator(seed + static_cast<std::uint64_t>(epoch));
  const at::Tensor permutation =  // [rows], i64
      at::randperm(rows, generator, at::TensorOptions(c10::ScalarType::Long).device(c10::DeviceType::CPU));
  const auto* first = permutation.const_data_ptr<std::int64_t>();
  order.assign(first, first + rows);
  return order;
}

struct DistributedSamplerOptions {
  bool shuffle = true;
  std::uint64_t seed = 0;  // equal on all ranks
  bool drop_last = false;  // leave rows out, rather than repeat some, where ranks do not divide rows
};

/// One rank's rows, interleaved: rank r gets order[r], order[r + world_size], ...; every rank as
/// many.
///
/// Not what the loader uses (that is BatchPlan, which keeps a global batch together), but what a
/// loop ported from PyTorch expects.
///
/// Throws   InvalidArgument if rank is not in [0, world_size).
/// Source   torch.utils.data.DistributedSampler 2.11, index for index.
class DistributedSampler {
 public:
  DistributedSampler(std::int64_t rows, int rank, int world_size, DistributedSamplerOptions options = {})
      : rows_(rows), rank_(rank), world_size_(world_size), options_(options) {
    ACCEL_CHECK(rows >= 0, InvalidArgument, "rows: expected 0 or more, found ", rows);
    ACCEL_CHECK(world_size >= 1, InvalidArgument, "world_size: expected at least 1, found ", world_size);
    ACCEL_CHECK(rank >= 0 && rank < world_size, InvalidArgument, "rank: expected 0 to ", world_size - 1, ", found ",
                rank);
  }

  /// Without it every epoch has the order of epoch 0, as in PyTorch.
  void set_epoch(std::int64_t epoch) { epoch_ = epoch; }

  /// Rows of each rank.
  [[nodiscard]] std::int64_t size() const {
    return rows_ / world_size_ + (!options_.drop_last && rows_ % world_size_ != 0 ? 1 : 0);
  }

  [[nodiscard]] std::vector<std::int64_t> indices() const {
    const auto order = epoch_order(rows_, options_.seed, epoch_, options_.shuffle);
    std::vector<std::int64_t> mine(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const auto at = i * static_cast<std::size_t>(world_size_) + static_cast<std::size_t>(rank_);
      mine[i] = order[at % order.size()];  // past the end: the first rows again
    }
    return mine;
  }

 private:
  std::int64_t rows_;
  int rank_;
  int world_size_;
  DistributedSamplerOptions options_;
  std::int64_t epoch_ = 0;
};

}  // namespace accel::inline v0_1::data
