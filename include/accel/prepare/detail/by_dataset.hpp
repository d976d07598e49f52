// ByDataset: a stream on every rank, of rows that no other rank has.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/data/round.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/prepare/detail/dealt_rounds.hpp>
#include <accel/prepare/detail/in_order.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/prepare/link.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare::detail {

/// Every rank's stream gives other rows. Where one has ended before the others, a row it had before fills in: it is
/// not counted, and weighs nothing.
///
/// Cost     of a round one exchange over the control plane.
template <class L>
class ByDataset {
 public:
  using Row = typename L::Row;
  using Own = OwnRows<Row>;

  ByDataset(const std::shared_ptr<L>& loader, const std::shared_ptr<Link>& link, const PassStart& start)
      : link_(link), rank_(start.rank), world_size_(start.world_size), patience_(Seconds(loader->options().timeout_s)) {
    auto reader = std::make_shared<data::RoundReader<D>>(loader->dataset());
    const std::int64_t count = loader->options().batch_size;
    auto make = [loader, reader, start, count, begun = false, over = false, spare = spare_,
                 end_state = std::optional<tensor::StateDict>()]() mutable {
      const c10::AutoGradMode no_grad(false);
      if (!std::exchange(begun, true)) {
        if (start.from.rows > 0 && data::Restarts<D>) {
          reader->start(start.from.epoch, 0, std::nullopt);
          *spare = reader->read(1).rows;
        }
        if (!start.is_known) {
          reader->start(start.from.epoch, start.from.batches * count, std::nullopt, /*known=*/false);
        } else if (start.from.rows > 0) {
          check_state(start);
          const auto own = start.state->below("own.");
          reader->start(start.from.epoch, start.state->integer("rows"),
                        own.empty() ? std::nullopt : std::optional(own));
        } else {
          reader->start(start.from.epoch, 0, std::nullopt);
        }
      }
      data::ReadRound<Row> round{.is_last = true, .state = end_state};
      if (!over) round = reader->read(count);
      over = round.is_last;
      end_state = round.state;
      return round;
    };
    rounds_.emplace(std::move(make), loader->options().prefetch, loader->options().timeout_s);
    if (!start.is_known)
      own_rows_ = start.from.batches * count;
    else if (start.state && start.state->has("rows"))
      own_rows_ = start.state->integer("rows");
  }

  [[nodiscard]] Own next() {
    data::ReadRound<Row> round;
    std::exception_ptr error;
    std::string text;
    try {
      round = rounds_->take();
      if (spare_->empty() && !round.rows.empty()) *spare_ = {round.rows.front()};  // the same after a resume
      text = message(round.rows.size(), " ", round.is_last, " ", spare_->size());
    } catch (const std::exception& thrown) {
      error = std::current_exception();
      text = "!" + first_line(thrown);
    }
    const auto texts = link_->all_gather("loader: the rows that every rank's stream gives", text, patience_);
    if (error) std::rethrow_exception(error);
    Own result{.is_last = true};
    std::vector<data::Part> parts;
    std::optional<std::size_t> without;
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      ACCEL_CHECK(!texts[rank].starts_with('!'), DataError, "rank ", rank, "'s stream failed: ", texts[rank].substr(1));
      std::istringstream numbers(texts[rank]);
      std::int64_t count = 0, spares = 0;
      bool is_last = false;
      numbers >> count >> is_last >> spares;
      if (count + spares == 0) without = rank;
      parts.push_back({.held = std::max<std::int64_t>(count, 1), .counted = count, .weight = count});
      result.in_round += count;
      result.is_last = result.is_last && is_last;
    }
    if (result.in_round == 0) return result;
    ACCEL_CHECK(!without, InvalidArgument, "loader: the stream of rank ", *without, " has no rows where others have ",
                "some, so that it has nothing to take part with; deal the data so that every rank gets a row",
                data::Restarts<D> ? "" : ", or give the stream a start(epoch), to read one again");
    result.parts = std::make_shared<const OneRound>(std::move(parts));
    result.rows = round.rows.empty() ? *spare_ : std::move(round.rows);
    own_rows_ += result.parts->part(0, rank_).counted;
    result.state.emplace();
    result.state->add("rows", own_rows_);
    result.state->add("rank", rank_);
    result.state->add("ranks", world_size_);
    if (round.state) result.state->add("own.", *round.state);
    return result;
  }

  [[nodiscard]] bool is_ready() const { return false; }

 private:
  using D = typename L::Stream;

  /// A state of another rank, or of another number of them, is of other rows.
  static void check_state(const PassStart& start) {
    ACCEL_CHECK(start.state, CheckpointError, "loader: there is no saved position of this rank's stream; save ",
                "state_dict() on every rank, and load on each its own");
    const auto rank = start.state->integer("rank");
    const auto ranks = start.state->integer("ranks");
    ACCEL_CHECK(rank == start.rank && ranks == start.world_size, CheckpointError, "loader: the saved position is of ",
                "rank ", rank, " of ", ranks, ", and this is rank ", start.rank, " of ", start.world_size,
                "; every rank's stream gives other rows, so load on each its own, with as many ranks");
  }

  std::shared_ptr<Link> link_;
  int rank_, world_size_;
  Seconds patience_;
  // The epoch's first row, to fill in with. The thread that reads writes it, if at all, before it hands out anything.
  std::shared_ptr<std::vector<Row>> spare_ = std::make_shared<std::vector<Row>>();
  std::optional<InOrder<data::ReadRound<Row>>> rounds_;
  std::int64_t own_rows_ = 0;  // handed out in this epoch
};

}  // namespace accel::inline v0_1::prepare::detail
