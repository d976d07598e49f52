// DealtRounds: a stream read round by round, and each dealt to the ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/round.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare::detail {

/// Who holds what in the one round that there is of a stream at a time.
class OneRound final : public data::Rounds {
 public:
  explicit OneRound(std::vector<data::Part> parts) : parts_(std::move(parts)) {
    for (const data::Part& part : parts_) weight_ += part.weight;
  }
  OneRound(const data::Deal& deal, std::int64_t rows) {
    for (int rank = 0; rank < deal.options().world_size; ++rank) parts_.push_back(deal.part(rows, rank));
    weight_ = deal.weight(rows);
  }

  [[nodiscard]] int world_size() const override { return static_cast<int>(parts_.size()); }
  [[nodiscard]] data::Part part(std::int64_t, int rank) const override {
    return parts_[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] std::int64_t weight(std::int64_t) const override { return weight_; }

 private:
  std::vector<data::Part> parts_;
  std::int64_t weight_ = 0;
};

/// This rank's rows of a round.
template <class Row>
struct OwnRows {
  std::vector<Row> rows{};
  std::shared_ptr<const OneRound> parts{};
  std::int64_t in_round = 0;  // of all ranks, each once; 0: the epoch is over
  bool is_last = false;
  std::optional<tensor::StateDict> state{};
};

/// Reads an epoch round by round, and deals each.
template <class D>
class DealtRounds {
 public:
  using Row = typename data::RoundReader<D>::Row;

  DealtRounds(D& stream, const data::Deal& deal, const PassStart& start) : reader_(stream), deal_(deal) {
    const bool wraps = deal.options().tail == data::Tail::wrap_around || deal.options().tail == data::Tail::wrap_even;
    if (wraps && start.from.rows > 0) {
      ACCEL_CHECK(data::Restarts<D>, InvalidArgument, "resume: even_batches needs the epoch's first rows ",
                  "again, and the stream has no start(epoch) to read them by; give it one, or leave even_batches out");
      reader_.start(start.from.epoch, 0, std::nullopt);
      head_ = reader_.read(deal.full()).rows;
    }
    reader_.start(start.from.epoch, start.from.rows, start.state, start.is_known);
    keeps_head_ = wraps && start.from.rows == 0;
  }

  /// The next round; one without rows once none takes place any more.
  [[nodiscard]] data::ReadRound<Row> next() {
    if (is_over_) return {};
    auto round = held_ ? *std::exchange(held_, std::nullopt) : reader_.read(deal_.full());
    if (!deal_.takes_place(std::ssize(round.rows))) {
      is_over_ = true;
      return {};
    }
    // Rows that will be left out are no round that follows.
    if (deal_.options().tail == data::Tail::drop && !round.is_last) {
      held_ = reader_.read(deal_.full());
      round.is_last = !deal_.takes_place(std::ssize(held_->rows));
    }
    is_over_ = round.is_last;
    if (std::exchange(keeps_head_, false)) head_ = round.rows;
    return round;
  }

  /// The rows of a rank's part.
  [[nodiscard]] std::vector<Row> rows_of(const data::ReadRound<Row>& round, const data::Part& part) const {
    std::vector<Row> rows;
    rows.reserve(static_cast<std::size_t>(part.held));
    const std::int64_t count = std::ssize(round.rows);
    for (std::int64_t at = part.first; at < part.first + part.held; ++at) {
      if (at < count)
        rows.push_back(round.rows[static_cast<std::size_t>(at)]);
      else if (head_.empty())
        rows.push_back(round.rows.front());  // a filler: it is not counted, and weighs nothing
      else
        rows.push_back(head_[static_cast<std::size_t>((at - count) % std::ssize(head_))]);
    }
    return rows;
  }

  [[nodiscard]] const data::Deal& deal() const { return deal_; }

 private:
  data::RoundReader<D> reader_;
  data::Deal deal_;
  std::vector<Row> head_;  // the epoch's first round, where rows come again
  bool keeps_head_ = false;
  std::optional<data::ReadRound<Row>> held_;
  bool is_over_ = false;
};

}  // namespace accel::inline v0_1::prepare::detail
