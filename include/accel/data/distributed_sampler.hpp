// DistributedSampler: PyTorch's, for loops ported from there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/order.hpp>

namespace accel::inline v0_1::data {

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
    const Order order = options_.shuffle ? Order::shuffled(rows_, options_.seed + static_cast<std::uint64_t>(epoch_))
                                         : Order::sequential(rows_);
    std::vector<std::int64_t> mine(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < mine.size(); ++i)
      mine[i] = order[(static_cast<std::int64_t>(i) * world_size_ + rank_) % rows_];  // past the end: the first again
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
