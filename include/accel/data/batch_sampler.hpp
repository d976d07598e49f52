// BatchPlan: how one epoch of rows is cut into rounds, one batch per rank and round.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::data {

/// What becomes of the rows that do not fill the last round.
enum class Tail {
  every_row,    // split as evenly as possible; each row exactly once, each rank in every round
  wrap_around,  // filled up with the first rows again: Accelerate's even_batches = true
  drop,         // left out: drop_last
  uneven,       // some ranks get a short batch or none: Accelerate's even_batches = false
};

struct BatchPlanOptions {
  std::int64_t rows = 0;
  std::int64_t batch_size = 1;  // of one rank; of all ranks together with split_batches
  int world_size = 1;
  Tail tail = Tail::every_row;
  bool split_batches = false;  // batch_size is the global one: more ranks, smaller batches
};

/// One rank's part of one round.
struct Share {
  std::vector<std::int64_t> positions;  // into the order of the epoch; empty only under Tail::uneven
  std::int64_t counted_rows = 0;        // the leading ones that metrics count, see BatchPlan
  std::int64_t weight_rows = 0;         // rows by which this rank's gradient weighs in the mean

  [[nodiscard]] std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
};

/// The cut of one epoch: a pure function of its options, the same on every rank.
///
/// A full round is Accelerate's: rank r gets the r-th slice of the global batch. Only the last
/// round depends on the tail. Counted and weighing rows differ where a row appears twice:
///
///   tail          last round, `tail` rows left            counted_rows         weight_rows
///   every_row     contiguous, even; else one filler row   own rows, filler 0   own rows, filler 0
///   wrap_around   full, continued with position 0, 1, ..  the unrepeated ones  all
///   drop          none                                    -                    -
///   uneven        r-th slice of what is there             all                  all
///
/// Cost     constructing and counting O(1), share() O(batch) for any round: resuming walks nothing.
/// Throws   InvalidArgument on a size below 1, a batch_size that split_batches cannot split evenly,
///          or a rank or round out of range.
/// Source   accelerate.data_loader.BatchSamplerShard 1.15.0 (Apache-2.0).
/// Differs  Accelerate has no every_row: its default repeats rows, and they enter the gradient.
class BatchPlan {
 public:
  explicit BatchPlan(const BatchPlanOptions& options) : options_(checked(options)) {
    slice_ = options_.split_batches ? options_.batch_size / options_.world_size : options_.batch_size;
    full_rounds_ = options_.rows / global_batch();
    tail_rows_ = options_.tail == Tail::drop ? 0 : options_.rows % global_batch();
  }

  [[nodiscard]] const BatchPlanOptions& options() const { return options_; }

  /// Rows of a full round over all ranks.
  [[nodiscard]] std::int64_t global_batch() const { return slice_ * options_.world_size; }

  /// Rounds of the epoch: the most batches any rank has.
  [[nodiscard]] std::int64_t rounds() const { return full_rounds_ + (tail_rows_ > 0 ? 1 : 0); }

  /// Batches of this rank: rounds(), or one less under Tail::uneven.
  [[nodiscard]] std::int64_t batches(int rank) const {
    check_rank(rank);
    return full_rounds_ + (tail_rows_ > 0 && held_rows(full_rounds_, rank) > 0 ? 1 : 0);
  }

  /// Rows of a last round that is not full; 0 if there is none.
  [[nodiscard]] std::int64_t remainder() const { return tail_rows_; }

  [[nodiscard]] Share share(std::int64_t round, int rank) const {
    Share share{{}, counted_rows(round, rank), weight_rows(round, rank)};
    const std::int64_t first = first_position(round, rank);
    share.positions.resize(static_cast<std::size_t>(held_rows(round, rank)));
    for (std::size_t i = 0; i < share.positions.size(); ++i) {
      share.positions[i] = wrapped(first + static_cast<std::int64_t>(i));
    }
    return share;
  }

  /// How many of the rank's rows, from the front, metrics count: no repetition, no filler.
  [[nodiscard]] std::int64_t counted_rows(std::int64_t round, int rank) const {
    check_round(round);
    check_rank(rank);
    if (is_full(round)) return slice_;
    if (options_.tail == Tail::every_row) return even_part(rank);
    return std::clamp<std::int64_t>(tail_rows_ - rank * slice_, 0, slice_);
  }

  /// Rows the rank holds in this round, repetitions and filler included.
  [[nodiscard]] std::int64_t held_rows(std::int64_t round, int rank) const {
    if (options_.tail == Tail::wrap_around) return slice_;
    const std::int64_t counted = counted_rows(round, rank);
    return options_.tail == Tail::every_row ? std::max<std::int64_t>(counted, 1) : counted;
  }

  /// How many rows the rank's gradient speaks for. A filler batch speaks for none.
  [[nodiscard]] std::int64_t weight_rows(std::int64_t round, int rank) const {
    const std::int64_t counted = counted_rows(round, rank);
    return options_.tail == Tail::wrap_around ? slice_ : counted;
  }

  /// The sum of weight_rows over the ranks: what a rank's weight is divided by.
  [[nodiscard]] std::int64_t round_rows(std::int64_t round) const {
    check_round(round);
    return is_full(round) || options_.tail == Tail::wrap_around ? global_batch() : tail_rows_;
  }

 private:
  [[nodiscard]] static BatchPlanOptions checked(const BatchPlanOptions& options) {
    ACCEL_CHECK(options.rows >= 0, InvalidArgument, "rows: expected 0 or more, found ", options.rows);
    ACCEL_CHECK(options.batch_size >= 1, InvalidArgument, "batch_size: expected at least 1, found ",
                options.batch_size);
    ACCEL_CHECK(options.world_size >= 1, InvalidArgument, "world_size: expected at least 1, found ",
                options.world_size);
    ACCEL_CHECK(!options.split_batches || options.batch_size % options.world_size == 0, InvalidArgument,
                "batch_size: expected a multiple of world_size = ", options.world_size, " with split_batches, found ",
                options.batch_size,
                "; choose such a batch_size, or give the size of one rank's batch without split_batches");
    constexpr auto most = std::numeric_limits<std::int64_t>::max();
    // Half the range: first_position of the last round may then pass `rows` without overflow.
    ACCEL_CHECK(options.batch_size <= most / 2 / options.world_size && options.rows <= most / 2, InvalidArgument,
                "batch_size x world_size and rows: expected at most ", most / 2,
                ", found batch_size = ", options.batch_size, ", world_size = ", options.world_size,
                ", rows = ", options.rows);
    return options;
  }

  void check_rank(int rank) const {
    ACCEL_CHECK(rank >= 0 && rank < options_.world_size, InvalidArgument, "rank: expected 0 to ",
                options_.world_size - 1, ", found ", rank);
  }

  void check_round(std::int64_t round) const {
    ACCEL_CHECK(round >= 0 && round < rounds(), InvalidArgument, "round: expected 0 to ", rounds() - 1, " (", rounds(),
                " rounds), found ", round);
  }

  [[nodiscard]] bool is_full(std::int64_t round) const { return round < full_rounds_; }

  /// The rank's part of the tail rows: even, the first ranks one more.
  [[nodiscard]] std::int64_t even_part(int rank) const {
    return tail_rows_ / options_.world_size + (rank < tail_rows_ % options_.world_size ? 1 : 0);
  }

  [[nodiscard]] std::int64_t first_position(std::int64_t round, int rank) const {
    const std::int64_t start = round * global_batch();
    if (is_full(round) || options_.tail != Tail::every_row) return start + rank * slice_;
    if (even_part(rank) == 0) return options_.rows;  // the filler wraps to position 0
    return start + rank * (tail_rows_ / options_.world_size) +
           std::min<std::int64_t>(rank, tail_rows_ % options_.world_size);
  }

  /// Past its end the epoch begins again, over and over if it is shorter than a round.
  [[nodiscard]] std::int64_t wrapped(std::int64_t position) const { return position % options_.rows; }

  BatchPlanOptions options_;
  std::int64_t slice_ = 0;  // rows of one rank in a full round
  std::int64_t full_rounds_ = 0;
  std::int64_t tail_rows_ = 0;
};

}  // namespace accel::inline v0_1::data
