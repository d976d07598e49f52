// BatchPlan: how one epoch of rows is cut into rounds, one batch per rank and round.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <accel/core/error.hpp>
#include <accel/data/round.hpp>

namespace accel::inline v0_1::data {

struct BatchPlanOptions {
  std::int64_t rows = 0;
  std::int64_t batch_size = 1;  // of one rank; of all ranks together with split_batches
  int world_size = 1;
  Tail tail = Tail::every_row;
  bool split_batches = false;  // batch_size is the global one: more ranks, smaller batches

  // What an earlier run has done of the epoch, maybe with another number of ranks.
  std::int64_t done_rows = 0;
  std::int64_t done_rounds = 0;
};

/// The cut of one epoch: a pure function of its options, the same on every rank. What every round is dealt like, Deal
/// says; only the last one may be short of rows.
///
/// Cost     constructing and counting O(1), share() O(batch) for any round: resuming walks nothing.
/// Throws   InvalidArgument for what Deal refuses, or a rank or round out of range.
class BatchPlan final : public Rounds {
 public:
  explicit BatchPlan(const BatchPlanOptions& options)
      : options_(options),
        deal_({.batch_size = options.batch_size,
               .world_size = options.world_size,
               .tail = options.tail,
               .split_batches = options.split_batches}) {
    // Half the range: what share() adds up may then pass `rows` without overflow.
    constexpr auto most = std::numeric_limits<std::int64_t>::max() / 2;
    ACCEL_CHECK(options.rows >= 0 && options.rows <= most, InvalidArgument, "rows: expected 0 to ", most, ", found ",
                options.rows);
    ACCEL_CHECK(options.done_rows >= 0 && options.done_rows <= options.rows && options.done_rounds >= 0,
                InvalidArgument, "resume: expected 0 to ", options.rows, " rows to be done, found ", options.done_rows,
                " in ", options.done_rounds, " batches");
    const std::int64_t left = options.rows - options.done_rows;
    full_rounds_ = options.done_rounds + left / deal_.full();
    tail_rows_ = deal_.takes_place(left % deal_.full()) ? left % deal_.full() : 0;
  }

  [[nodiscard]] const BatchPlanOptions& options() const { return options_; }
  [[nodiscard]] int world_size() const override { return options_.world_size; }

  /// Rows of a full round over all ranks.
  [[nodiscard]] std::int64_t global_batch() const { return deal_.full(); }

  /// Rounds of the epoch, those that are done included: the most batches any rank has.
  [[nodiscard]] std::int64_t rounds() const { return full_rounds_ + (tail_rows_ > 0 ? 1 : 0); }

  /// Batches of this rank: rounds(), or one less under Tail::uneven.
  [[nodiscard]] std::int64_t batches(int rank) const {
    if (tail_rows_ == 0) return full_rounds_;
    return full_rounds_ + (part(full_rounds_, rank).held > 0 ? 1 : 0);
  }

  /// Rows of a last round that is not full; 0 if there is none.
  [[nodiscard]] std::int64_t remainder() const { return tail_rows_; }

  [[nodiscard]] Share share(std::int64_t round, int rank) const {
    const Part own = part(round, rank);
    Share share{{}, own.counted, own.weight};
    share.positions.resize(static_cast<std::size_t>(own.held));
    const std::int64_t first = begin_of(round);
    const std::int64_t in_round = rows_of(round);
    for (std::size_t i = 0; i < share.positions.size(); ++i) {
      const std::int64_t at = own.first + static_cast<std::int64_t>(i);
      // Past its end the epoch begins again, over and over if it is shorter than a round.
      share.positions[i] = at < in_round ? first + at : (at - in_round) % options_.rows;
    }
    return share;
  }

  [[nodiscard]] Part part(std::int64_t round, int rank) const override { return deal_.part(rows_of(round), rank); }
  [[nodiscard]] std::int64_t weight(std::int64_t round) const override { return deal_.weight(rows_of(round)); }

  /// Rows of all ranks in this round, each once.
  [[nodiscard]] std::int64_t rows_of(std::int64_t round) const {
    ACCEL_CHECK(round >= options_.done_rounds && round < rounds(), InvalidArgument, "round: expected ",
                options_.done_rounds, " to ", rounds() - 1, " (", rounds(), " rounds), found ", round);
    return round < full_rounds_ ? deal_.full() : tail_rows_;
  }

  /// Rows of the epoch that are done when `rounds` rounds of it are.
  [[nodiscard]] std::int64_t rows_after(std::int64_t rounds_done) const {
    if (rounds_done >= rounds()) return options_.rows;
    return begin_of(rounds_done);
  }

 private:
  [[nodiscard]] std::int64_t begin_of(std::int64_t round) const {
    return options_.done_rows + (round - options_.done_rounds) * deal_.full();
  }

  BatchPlanOptions options_;
  Deal deal_;
  std::int64_t full_rounds_ = 0;
  std::int64_t tail_rows_ = 0;
};

}  // namespace accel::inline v0_1::data
