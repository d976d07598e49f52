// StreamLoader: rows that come one after the other, from a dataset without places or without an end.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/progress.hpp>
#include <accel/data/ahead.hpp>
#include <accel/data/collate.hpp>
#include <accel/data/round.hpp>
#include <accel/tensor/state_dict.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::data {

/// Rows one after the other: next() gives a std::optional of one, and nothing at the end of an epoch. Besides it may
/// have
///   start(std::int64_t epoch)            begins that epoch from its first row; without it the stream just goes on: so
///                                        does a loop over it, where another one was left by `break`
///   skip(std::int64_t rows)              passes over as many rows, or those that are left, without reading them
///   state_dict(), load_state_dict(...)   its position: tensor::Stateful
template <class D>
concept RowStream = requires(D& stream) {
  { stream.next().has_value() } -> std::convertible_to<bool>;
  *stream.next();
};

/// Whether an epoch of the stream can be begun again.
template <class D>
concept Restarts = requires(D& stream, std::int64_t epoch) { stream.start(epoch); };

/// Who reads a stream. There is no default: each has a price, and what one of them needs another breaks.
enum class Reading {
  by_rank,     // every rank reads all rows and keeps its own: the stream has to give the same ones on every rank
  dispatched,  // rank 0 reads, and sends the others theirs: for what can be read once; rows of any shape, and texts
  by_dataset,  // every rank's stream gives other rows, as files dealt to ranks do; they may be of different length
};

[[nodiscard]] inline std::string_view name_of(Reading reading) {
  if (reading == Reading::by_rank) return "by_rank";
  return reading == Reading::dispatched ? "dispatched" : "by_dataset";
}

struct StreamLoaderOptions {
  std::int64_t batch_size = 1;       // rows of one rank's batch
  std::optional<Reading> reading{};  // to be said

  // What becomes of rows that do not fill the last round. Neither: they are split evenly, every row counts once, and
  // gradients are weighted by rows.
  bool drop_last = false;     // they are left out
  bool even_batches = false;  // some of the epoch's first rows come again

  bool split_batches = false;  // batch_size is that of all ranks together
  int prefetch = 2;            // rounds whose rows a thread reads ahead; 0: the training thread does, when it needs one
  double timeout_s = 1800;     // for a round that the thread reads

  [[nodiscard]] Tail tail() const {
    if (drop_last) return Tail::drop;
    if (!even_batches) return Tail::every_row;
    return reading == Reading::dispatched ? Tail::wrap_even : Tail::wrap_around;  // each as Accelerate does
  }
};

namespace compat {

/// The options with Accelerate's defaults in place of ours.
///
/// Source   accelerate 1.15.0: IterableDatasetShard and DataLoaderDispatcher fill the last round up.
[[nodiscard]] inline StreamLoaderOptions accelerate(StreamLoaderOptions options) {
  options.even_batches = true;
  return options;
}

}  // namespace compat

/// A stream, who reads it, and how its rows become batches. `accelerator.prepare` makes it iterable.
///
/// Throws   InvalidArgument for options that can not be.
template <class D, class C = Stack>
class StreamLoader {
 public:
  static_assert(RowStream<D>, "a stream needs next(), which gives a std::optional of a row");

  using Stream = D;
  using Row = std::remove_cvref_t<decltype(*std::declval<D&>().next())>;
  using Batch = decltype(std::declval<const C&>()(std::declval<std::vector<Row>>()));

  explicit StreamLoader(D stream, StreamLoaderOptions options = {}, C collate = {})
      : stream_(std::move(stream)), options_(options), collate_(std::move(collate)) {
    ACCEL_CHECK(
        options_.reading, InvalidArgument, "reading: say who reads the stream: by_rank (every rank reads all ",
        "rows and keeps its own), dispatched (rank 0 reads, and sends the others theirs), or by_dataset (every ",
        "rank's stream gives other rows)");
    ACCEL_CHECK(options_.batch_size >= 1, InvalidArgument, "batch_size: expected at least 1, found ",
                options_.batch_size);
    ACCEL_CHECK(options_.prefetch >= 0 && options_.prefetch <= most_prefetched, InvalidArgument,
                "prefetch: expected 0 to ", most_prefetched, " rounds, found ", options_.prefetch);
    ACCEL_CHECK(options_.timeout_s > 0, InvalidArgument, "timeout_s: expected more than 0, found ", options_.timeout_s);
    const bool by_dataset = options_.reading == Reading::by_dataset;
    ACCEL_CHECK(!by_dataset || !(options_.even_batches || options_.drop_last || options_.split_batches),
                InvalidArgument,
                "by_dataset: every rank's batches are what its own stream gives, weighted by their rows; leave ",
                "even_batches, drop_last and split_batches out");
  }

  [[nodiscard]] D& dataset() { return stream_; }
  [[nodiscard]] const StreamLoaderOptions& options() const { return options_; }
  [[nodiscard]] const C& collate() const { return collate_; }

  [[nodiscard]] std::string describe() const { return message("a stream, ", name_of(*options_.reading)); }
  [[nodiscard]] std::string describe_batches() const {
    return message(", batch_size ", options_.batch_size, options_.drop_last ? ", drop_last" : "",
                   options_.even_batches ? ", even_batches" : "", options_.split_batches ? ", split_batches" : "");
  }

  /// Whether passes that are under way at once would read one stream.
  [[nodiscard]] bool has_one_reader() const { return true; }

  [[nodiscard]] Deal deal(int world_size) const {
    return Deal({.batch_size = options_.batch_size,
                 .world_size = world_size,
                 .tail = options_.tail(),
                 .split_batches = options_.split_batches});
  }

 private:
  D stream_;
  StreamLoaderOptions options_;
  C collate_;
};

template <class T>
inline constexpr bool is_stream_loader = false;
template <class D, class C>
inline constexpr bool is_stream_loader<StreamLoader<D, C>> = true;

/// Rows of one round, and what is known behind them.
template <class Row>
struct ReadRound {
  std::vector<Row> rows{};
  bool is_last = false;                      // the stream has ended behind them
  std::optional<tensor::StateDict> state{};  // of the stream behind them, where it has one
};

/// Reads a stream round by round, a row further than it has given out, so as to know which round is the last.
///
/// Throws   DataError with the number of the row in its epoch, and what the stream threw nested in it.
template <class D>
class RoundReader {
 public:
  using Row = std::remove_cvref_t<decltype(*std::declval<D&>().next())>;

  explicit RoundReader(D& stream) : stream_(&stream) {}

  /// Begins an epoch and passes over its first `rows` rows: by its state, if there is one; or by skip(); or by reading
  /// them. If they are `known` to be there, it is an error where the stream ends before.
  void start(std::int64_t epoch, std::int64_t rows, const std::optional<tensor::StateDict>& state, bool known = true) {
    position_ = rows;
    ahead_.reset();
    has_ended_ = false;
    if constexpr (tensor::Stateful<D>) {
      if (state) return asked([&] { stream_->load_state_dict(*state); });
    }
    if constexpr (Restarts<D>) asked([&] { stream_->start(epoch); });
    if constexpr (requires { stream_->skip(rows); }) {
      if (rows > 0) asked([&] { stream_->skip(rows); });
    } else {
      Progress progress("reading to where the stream goes on", rows, Counted::rows);
      for (position_ = 0; position_ < rows; ++position_) {
        if (!asked([&] { return stream_->next(); }).has_value()) {
          ACCEL_CHECK(!known, DataError, "resume: the stream ended after ", position_, " rows, and ", rows,
                      " of them were done; it is not the one that was read before");
          has_ended_ = true;
          break;
        }
        progress.reached(position_);
      }
    }
  }

  /// Up to `count` rows; fewer only at the end.
  [[nodiscard]] ReadRound<Row> read(std::int64_t count) {
    ReadRound<Row> round{.is_last = has_ended_};
    for (; std::ssize(round.rows) < count && !has_ended_; ++position_) {
      auto row = ahead_ ? std::exchange(ahead_, std::nullopt) : asked([&] { return stream_->next(); });
      if (!row) {
        has_ended_ = true;
        break;
      }
      round.rows.push_back(std::move(*row));
    }
    if constexpr (tensor::Stateful<D>) round.state = copied(stream_->state_dict());
    if (!has_ended_) ahead_ = asked([&] { return stream_->next(); });
    has_ended_ = !ahead_.has_value();
    round.is_last = has_ended_;
    return round;
  }

 private:
  template <class Ask>
  auto asked(const Ask& ask) {
    try {
      return ask();
    } catch (const std::exception& error) {
      std::throw_with_nested(
          DataError(message("the stream could not give row ", position_, " of its epoch: ", first_line(error))));
    }
  }

  /// The stream reads on at once, and may keep its state in the tensors that it gives.
  [[nodiscard]] static tensor::StateDict copied(const tensor::StateDict& state) {
    tensor::StateDict copy;
    for (const auto& [name, tensor] : state.entries()) copy.add(name, tensor.clone());
    return copy;
  }

  D* stream_;
  bool has_ended_ = false;
  std::optional<Row> ahead_;
  std::int64_t position_ = 0;  // of the next row, in the epoch
};

}  // namespace accel::inline v0_1::data
