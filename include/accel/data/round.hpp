// Round: one batch per rank; how its rows are dealt to them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/range.hpp>

namespace accel::inline v0_1::data {

/// What becomes of the rows that do not fill the last round.
enum class Tail {
  every_row,    // split as evenly as possible; each row exactly once, each rank in every round
  wrap_around,  // filled up with the first rows again: Accelerate's even_batches = true
  wrap_even,    // filled up to a multiple of the ranks, and split: what Accelerate dispatches from rank 0
  drop,         // left out: drop_last
  uneven,       // some ranks get a short batch or none: Accelerate's even_batches = false
};

/// One rank's part of a round. Where a row appears twice, fewer rows are counted than weigh:
///
///   tail         last round, short of rows           counted                 weight
///   every_row    contiguous, even; else one filler   own rows, filler 0      own rows, filler 0
///   wrap_around  full, continued with row 0, 1, ..   the unrepeated ones     all
///   wrap_even    even, continued with row 0, 1, ..   the unrepeated ones     all
///   drop         none                                -                       -
///   uneven       r-th slice of what is there         all                     all
struct Part {
  std::int64_t first = 0;    // from the first row of the round; behind its last one the epoch begins again
  std::int64_t held = 0;     // rows of this rank's batch, repetitions and filler included; 0 only under Tail::uneven
  std::int64_t counted = 0;  // of those the leading ones that metrics count: no repetition, no filler
  std::int64_t weight = 0;   // rows that this rank's gradient speaks for; a filler speaks for none

  bool operator==(const Part&) const = default;
};

/// One rank's part of one round, row by row.
struct Share {
  std::vector<std::int64_t> positions;  // into the order of the epoch; empty only under Tail::uneven
  std::int64_t counted_rows = 0;        // the leading ones that metrics count, see Part
  std::int64_t weight_rows = 0;         // rows by which this rank's gradient weighs in the mean

  [[nodiscard]] std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
};

struct DealOptions {
  std::int64_t batch_size = 1;  // of one rank; of all ranks together with split_batches
  int world_size = 1;
  Tail tail = Tail::every_row;
  bool split_batches = false;  // batch_size is the global one: more ranks, smaller batches
};

/// How rounds are dealt: a pure function of the options and of the rows that a round has.
///
/// A full round is Accelerate's: rank r gets the r-th slice of the global batch. With split_batches a batch_size that
/// the ranks do not divide is dealt like a tail, 64 to 3 ranks as 22, 21, 21.
///
/// Throws   InvalidArgument on a size below 1; with split_batches on a batch_size below world_size, or one that a tail
///          with equal batches cannot split evenly.
/// Source   accelerate.data_loader 1.15.0 (Apache-2.0): BatchSamplerShard, IterableDatasetShard, DataLoaderDispatcher.
/// Differs  Accelerate has no every_row: its default repeats rows, and they enter the gradient. It splits no batch
///          unevenly, and where ranks outnumber rows, its dispatcher gives some of them empty tensors.
class Deal {
 public:
  explicit Deal(const DealOptions& options) : options_(checked(options)) {
    full_ = options_.split_batches ? options_.batch_size : options_.batch_size * options_.world_size;
  }

  [[nodiscard]] const DealOptions& options() const { return options_; }

  /// Rows of a full round over all ranks.
  [[nodiscard]] std::int64_t full() const { return full_; }

  /// Whether a round of that many rows takes place.
  [[nodiscard]] bool takes_place(std::int64_t rows) const {
    return rows > 0 && (rows == full_ || options_.tail != Tail::drop);
  }

  /// The rank's part of a round of `rows` rows.
  [[nodiscard]] Part part(std::int64_t rows, int rank) const {
    ACCEL_CHECK(rank >= 0 && rank < options_.world_size, InvalidArgument, "rank: expected 0 to ",
                options_.world_size - 1, ", found ", rank);
    if (options_.tail == Tail::every_row || options_.tail == Tail::drop) {
      const Range own = split_range(rows, rank, options_.world_size);
      if (own.size() == 0) return {.first = rows, .held = 1};
      return {.first = own.begin, .held = own.size(), .counted = own.size(), .weight = own.size()};
    }
    const std::int64_t slice = slice_of(rows);
    const std::int64_t first = rank * slice;
    const std::int64_t counted = std::clamp<std::int64_t>(rows - first, 0, slice);
    if (options_.tail == Tail::uneven) return {first, counted, counted, counted};
    return {first, slice, counted, slice};
  }

  /// The sum of weight over the ranks: what a rank's weight is divided by.
  [[nodiscard]] std::int64_t weight(std::int64_t rows) const {
    const bool repeats = options_.tail == Tail::wrap_around || options_.tail == Tail::wrap_even;
    return repeats ? slice_of(rows) * options_.world_size : rows;
  }

 private:
  [[nodiscard]] static DealOptions checked(const DealOptions& options) {
    ACCEL_CHECK(options.batch_size >= 1, InvalidArgument, "batch_size: expected at least 1, found ",
                options.batch_size);
    ACCEL_CHECK(options.world_size >= 1, InvalidArgument, "world_size: expected at least 1, found ",
                options.world_size);
    const bool equal = options.tail != Tail::every_row && options.tail != Tail::drop;
    ACCEL_CHECK(!options.split_batches || !equal || options.batch_size % options.world_size == 0, InvalidArgument,
                "batch_size: expected a multiple of world_size = ", options.world_size,
                " with split_batches and batches of equal size, found ", options.batch_size,
                "; choose such a batch_size, give the size of one rank's batch without split_batches, or leave "
                "even_batches out: then ranks get a row more or less, and weigh by it");
    ACCEL_CHECK(!options.split_batches || options.batch_size >= options.world_size, InvalidArgument,
                "batch_size: expected at least world_size = ", options.world_size, " with split_batches, found ",
                options.batch_size, "; every rank needs a row of every batch");
    constexpr auto most = std::numeric_limits<std::int64_t>::max();
    ACCEL_CHECK(options.batch_size <= most / 4 / options.world_size, InvalidArgument,
                "batch_size x world_size: expected at most ", most / 4, ", found batch_size = ", options.batch_size,
                ", world_size = ", options.world_size);
    return options;
  }

  /// Rows of every rank's batch where all are of one size.
  [[nodiscard]] std::int64_t slice_of(std::int64_t rows) const {
    if (options_.tail == Tail::wrap_even) return (rows + options_.world_size - 1) / options_.world_size;
    return full_ / options_.world_size;
  }

  DealOptions options_;
  std::int64_t full_ = 0;
};

/// Who holds what in the rounds of a pass, on every rank the same.
class Rounds {
 public:
  virtual ~Rounds() = default;

  [[nodiscard]] virtual int world_size() const = 0;
  [[nodiscard]] virtual Part part(std::int64_t round, int rank) const = 0;
  /// The sum of the parts' weights.
  [[nodiscard]] virtual std::int64_t weight(std::int64_t round) const = 0;
};

}  // namespace accel::inline v0_1::data
