// BatchList: an epoch of batches of different sizes, dealt to the ranks one after the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/data/order.hpp>
#include <accel/data/round.hpp>

namespace accel::inline v0_1::data {

/// Cuts the order of an epoch into batches: their sizes, from the front. What they leave over is not visited.
/// A pure function, so that all ranks cut alike.
struct Batching {
  std::string name;  // compared between ranks, and with what a saved position belongs to
  std::function<std::vector<std::int64_t>(const Order&)> sizes;
};

struct TokenBudgetOptions {
  std::int64_t tokens = 4096;  // of a batch at most, padding included: rows x the longest of them
  std::int64_t rows = 0;       // of a batch at most; 0: as many as fit
};

/// As many rows, in the order of the epoch, as fit the budget when they are padded to the longest.
///
/// Cost     a pass over the order at the start of every epoch.
/// Throws   InvalidArgument for a row longer than the budget, or one without a length.
[[nodiscard]] inline Batching token_budget(std::vector<std::int64_t> lengths, const TokenBudgetOptions& options) {
  ACCEL_CHECK(options.tokens >= 1 && options.rows >= 0, InvalidArgument,
              "token_budget: expected tokens >= 1 and rows >= 0, found ", options.tokens, " and ", options.rows);
  return {.name = message("token_budget ", options.tokens, " ", options.rows, " by ", fnv1a(lengths)),
          .sizes = [lengths = std::move(lengths), options](const Order& order) {
            std::vector<std::int64_t> sizes;
            std::int64_t longest = 0;
            for (std::int64_t i = 0; i < order.size(); ++i) {
              const std::int64_t row = order[i];
              ACCEL_CHECK(row < std::ssize(lengths), InvalidArgument, "token_budget: row ", row,
                          " has no length, there are ", lengths.size(), "; give one per row of the dataset");
              const std::int64_t length = lengths[static_cast<std::size_t>(row)];
              ACCEL_CHECK(length >= 0 && length <= options.tokens, InvalidArgument, "token_budget: row ", row, " has ",
                          length, " tokens, expected 0 to tokens = ", options.tokens,
                          "; cut it, leave it out, or raise the budget");
              const std::int64_t rows = sizes.empty() ? 0 : sizes.back();
              const std::int64_t padded = std::max({longest, length, std::int64_t{1}});
              const bool fits = rows + 1 <= options.tokens / padded && (options.rows == 0 || rows < options.rows);
              if (sizes.empty() || !fits) {
                sizes.push_back(1);
                longest = length;
              } else {
                ++sizes.back();
                longest = std::max(longest, length);
              }
            }
            return sizes;
          }};
}

struct BatchListOptions {
  std::int64_t rows = 0;              // of the order
  std::vector<std::int64_t> sizes{};  // of the batches; together at most `rows`
  int world_size = 1;
  Tail tail = Tail::every_row;

  // What an earlier run has done of the epoch, maybe with another number of ranks.
  std::int64_t done_rows = 0;
  std::int64_t done_rounds = 0;
};

/// Batch i of those that are left goes to rank i mod world_size. In a last round with too few of them, the other ranks
/// get, by tail:
///
///   every_row    one filler row that counts and weighs nothing
///   wrap_around  the epoch's first batches again, whole, that weigh and do not count
///   drop         and uneven: the round does not take place; or they get nothing
///
/// Throws   InvalidArgument for a batch without rows, for more rows than there are, or if `done_rows` ends in the
///          middle of a batch.
/// Source   accelerate.data_loader.BatchSamplerShard 1.15.0 (Apache-2.0), batches of dynamic size.
class BatchList final : public Rounds {
 public:
  explicit BatchList(BatchListOptions options) : options_(std::move(options)) {
    ACCEL_CHECK(options_.tail != Tail::wrap_even, InvalidArgument, "batches of different sizes are not split evenly");
    ends_.reserve(options_.sizes.size());
    std::int64_t end = 0;
    for (const std::int64_t size : options_.sizes) {
      ACCEL_CHECK(size >= 1 && size <= options_.rows - end, InvalidArgument, "batch ", ends_.size(), ": expected 1 to ",
                  options_.rows - end, " rows, as many as are left of ", options_.rows, ", found ", size);
      ends_.push_back(end += size);
    }
    const auto next = std::upper_bound(ends_.begin(), ends_.end(), options_.done_rows);
    first_ = next - ends_.begin();
    ACCEL_CHECK(options_.done_rows == begin_of(first_), InvalidArgument, "resume: ", options_.done_rows,
                " rows are done, which ends in the middle of a batch; the batches are cut otherwise than they were");
    const std::int64_t left = std::ssize(ends_) - first_;
    const bool has_short = left % options_.world_size != 0 && options_.tail != Tail::drop;
    rounds_ = options_.done_rounds + left / options_.world_size + (has_short ? 1 : 0);
  }

  [[nodiscard]] int world_size() const override { return options_.world_size; }
  [[nodiscard]] std::int64_t rounds() const { return rounds_; }

  [[nodiscard]] std::int64_t batches(int rank) const {
    if (rounds_ == options_.done_rounds) return rounds_;
    return part(rounds_ - 1, rank).held > 0 ? rounds_ : rounds_ - 1;
  }

  /// Part::first counts from the first row of the epoch here: batches of a round need not lie side by side.
  [[nodiscard]] Part part(std::int64_t round, int rank) const override {
    ACCEL_CHECK(round >= options_.done_rounds && round < rounds_, InvalidArgument, "round: expected ",
                options_.done_rounds, " to ", rounds_ - 1, ", found ", round);
    const std::int64_t batch = first_ + (round - options_.done_rounds) * options_.world_size + rank;
    const auto count = std::ssize(ends_);
    if (batch < count) {
      const std::int64_t size = size_of(batch);
      return {.first = begin_of(batch), .held = size, .counted = size, .weight = size};
    }
    if (options_.tail == Tail::uneven) return {};
    if (options_.tail == Tail::every_row) return {.held = 1};
    const std::int64_t repeated = (batch - count) % count;
    return {.first = begin_of(repeated), .held = size_of(repeated), .weight = size_of(repeated)};
  }

  [[nodiscard]] std::int64_t weight(std::int64_t round) const override {
    std::int64_t sum = 0;
    for (int rank = 0; rank < options_.world_size; ++rank) sum += part(round, rank).weight;
    return sum;
  }

  [[nodiscard]] Share share(std::int64_t round, int rank) const {
    const Part own = part(round, rank);
    Share share{{}, own.counted, own.weight};
    share.positions.resize(static_cast<std::size_t>(own.held));
    for (std::size_t i = 0; i < share.positions.size(); ++i)
      share.positions[i] = own.first + static_cast<std::int64_t>(i);
    return share;
  }

  /// Rows of the epoch that are done when `rounds` rounds of it are.
  [[nodiscard]] std::int64_t rows_after(std::int64_t rounds_done) const {
    if (rounds_done >= rounds_) return options_.rows;
    return begin_of(first_ + (rounds_done - options_.done_rounds) * options_.world_size);
  }

  /// Rows of the last round if it has too few batches; else 0.
  [[nodiscard]] std::int64_t remainder() const {
    const std::int64_t short_by = (std::ssize(ends_) - first_) % options_.world_size;
    if (short_by == 0 || options_.tail == Tail::drop) return 0;
    return ends_.back() - begin_of(std::ssize(ends_) - short_by);
  }

 private:
  [[nodiscard]] std::int64_t begin_of(std::int64_t batch) const {
    return batch == 0 ? 0 : ends_[static_cast<std::size_t>(batch) - 1];
  }
  [[nodiscard]] std::int64_t size_of(std::int64_t batch) const {
    return ends_[static_cast<std::size_t>(batch)] - begin_of(batch);
  }

  BatchListOptions options_;
  std::vector<std::int64_t> ends_;  // of each batch, in rows of the epoch
  std::int64_t first_ = 0;          // batch that is not done
  std::int64_t rounds_ = 0;
};

}  // namespace accel::inline v0_1::data
