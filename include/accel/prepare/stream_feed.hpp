// StreamFeed: one pass over a stream, as this rank sees it: read by every rank, by rank 0 for all, or sharded by the
// stream itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/data/ahead.hpp>
#include <accel/data/position.hpp>
#include <accel/data/round.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/prepare/link.hpp>
#include <accel/tensor/packed.hpp>
#include <accel/tensor/state_dict.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::prepare {

namespace detail {

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
      ACCEL_CHECK(data::RoundReader<D>::restarts, InvalidArgument, "resume: even_batches needs the epoch's first rows ",
                  "again, and the stream has no start(epoch) to read them by; give it one, or leave even_batches out");
      reader_.start(start.from.epoch, 0, std::nullopt);
      head_ = reader_.read(deal.full()).rows;
    }
    reader_.start(start.from.epoch, start.from.rows, start.state);
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

/// What `make()` gives, one after the other, made by a thread ahead of time if `prefetch` is not 0.
template <class Item>
class InOrder {
 public:
  InOrder(std::function<Item()> make, int prefetch, double timeout_s) : make_(std::move(make)), patience_(timeout_s) {
    if (prefetch > 0)
      ahead_.emplace(1, prefetch, 0, std::numeric_limits<std::int64_t>::max(),
                     [how = make_](std::int64_t, int) { return how(); });
  }

  [[nodiscard]] Item take() { return ahead_ ? *ahead_->take(patience_) : make_(); }
  [[nodiscard]] bool is_ready() const { return ahead_ && ahead_->has_next(); }
  [[nodiscard]] Seconds patience() const { return patience_; }

 private:
  std::function<Item()> make_;
  Seconds patience_;
  std::optional<data::Ahead<Item>> ahead_;
};

/// Every rank reads all rows and keeps its own.
template <class L>
class ByRank {
 public:
  using Own = OwnRows<typename L::Row>;

  ByRank(const std::shared_ptr<L>& loader, const PassStart& start)
      : rounds_(
            [loader, rank = start.rank,
             dealt = std::make_shared<Dealt>(loader->dataset(), loader->deal(start.world_size), start)] {
              const c10::AutoGradMode no_grad(false);
              auto round = dealt->next();
              const std::int64_t count = std::ssize(round.rows);
              if (count == 0) return Own{};
              auto parts = std::make_shared<const OneRound>(dealt->deal(), count);
              return Own{dealt->rows_of(round, parts->part(0, rank)), parts, count, round.is_last,
                         std::move(round.state)};
            },
            loader->options().prefetch, loader->options().timeout_s) {}

  [[nodiscard]] Own next() { return rounds_.take(); }
  [[nodiscard]] bool is_ready() const { return rounds_.is_ready(); }

 private:
  using Dealt = DealtRounds<std::remove_reference_t<decltype(std::declval<L&>().dataset())>>;

  InOrder<Own> rounds_;
};

/// Rank 0 reads and sends: while the ranks compute on one round, the next is on its way.
///
/// Cost     of a round one exchange over the control plane, and a broadcast of all its rows.
template <class L>
class Dispatched {
 public:
  using Own = OwnRows<typename L::Row>;

  Dispatched(const std::shared_ptr<L>& loader, const std::shared_ptr<Link>& link, const PassStart& start)
      : link_(link),
        deal_(loader->deal(start.world_size)),
        rank_(start.rank),
        patience_(Seconds(loader->options().timeout_s)) {
    if (rank_ != 0) return;
    std::shared_ptr<Dealt> dealt;
    // What the stream throws here, too, is for all ranks.
    auto make = [loader, start, deal = deal_, dealt]() mutable {
      const c10::AutoGradMode no_grad(false);
      if (!dealt) dealt = std::make_shared<Dealt>(loader->dataset(), deal, start);
      auto round = dealt->next();
      Message message{.rows = std::ssize(round.rows), .is_last = round.is_last};
      std::vector<at::Tensor> parcels;
      if (message.rows > 0)
        for (int rank = 0; rank < start.world_size; ++rank) {
          parcels.push_back(tensor::pack(dealt->rows_of(round, deal.part(message.rows, rank))));
          message.sizes.push_back(parcels.back().numel());
        }
      if (!parcels.empty()) message.bytes = at::cat(parcels);
      message.state = std::move(round.state);
      return message;
    };
    messages_.emplace(std::move(make), loader->options().prefetch, loader->options().timeout_s);
  }
  Dispatched(const Dispatched&) = delete;
  Dispatched& operator=(const Dispatched&) = delete;
  ~Dispatched() {
    // What is on its way comes to all ranks, or none would be done with it.
    try {
      if (arriving_) (void)arriving_->wait();
    } catch (const std::exception&) {
      // The group was given up; who asks for anything of it hears why.
    }
  }

  [[nodiscard]] Own next() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (!current_) announce(/*may_wait=*/true);
    auto message = *std::exchange(current_, std::nullopt);
    if (message.rows == 0) return {};
    const at::Tensor bytes = std::exchange(arriving_, nullptr)->wait();
    std::int64_t begin = 0;
    for (int rank = 0; rank < rank_; ++rank) begin += message.sizes[static_cast<std::size_t>(rank)];
    const at::Tensor own = bytes.narrow(0, begin, message.sizes[static_cast<std::size_t>(rank_)]);
    Own result{tensor::unpack<std::vector<typename L::Row>>(own), std::make_shared<const OneRound>(deal_, message.rows),
               message.rows, message.is_last, std::move(message.state)};
    // Not now: this round is whole. All ranks hear of it alike.
    try {
      if (!result.is_last) announce(/*may_wait=*/false);
    } catch (...) {
      failure_ = std::current_exception();
    }
    return result;
  }

  [[nodiscard]] bool is_ready() const { return false; }

 private:
  using Dealt = DealtRounds<std::remove_reference_t<decltype(std::declval<L&>().dataset())>>;

  struct Message {
    std::int64_t rows = 0;  // of the round; 0: the epoch is over
    bool is_last = false;
    std::vector<std::int64_t> sizes{};  // of each rank's part of the bytes
    at::Tensor bytes{};                 // on rank 0
    std::optional<tensor::StateDict> state{};
  };

  /// All ranks hear what the next round is like, and it is sent. If rank 0 has not read it yet, and does not have to
  /// wait, they hear that.
  void announce(bool may_wait) {
    std::optional<Message> message;
    std::exception_ptr error;
    std::string text = "later";
    if (rank_ == 0 && (may_wait || messages_->is_ready())) {
      try {
        message = messages_->take();
        text = "";
        for (const std::int64_t number : {message->rows, std::int64_t{message->is_last}})
          text += std::to_string(number) + " ";
        for (const std::int64_t size : message->sizes) text += std::to_string(size) + " ";
      } catch (const std::exception& thrown) {
        error = std::current_exception();
        text = "!" + first_line(thrown);
      }
    }
    text = link_->broadcast("dispatch: the next round", text, patience_);
    if (error) std::rethrow_exception(error);
    ACCEL_CHECK(!text.starts_with('!'), DataError, "rank 0, which reads the stream, failed: ", text.substr(1));
    if (text == "later") return;
    if (!message) {
      std::istringstream numbers(text);
      message.emplace();
      numbers >> message->rows >> message->is_last;
      for (std::int64_t size = 0; numbers >> size;) message->sizes.push_back(size);
    }
    std::int64_t total = 0;
    for (const std::int64_t size : message->sizes) total += size;
    if (message->rows > 0) arriving_ = link_->send(message->bytes, total);
    message->bytes = at::Tensor();
    current_ = std::move(message);
  }

  std::shared_ptr<Link> link_;
  data::Deal deal_;
  int rank_;
  Seconds patience_;
  std::optional<InOrder<Message>> messages_;  // on rank 0
  std::optional<Message> current_;            // announced
  std::unique_ptr<ArrivingBytes> arriving_;   // its bytes
  std::exception_ptr failure_;                // of the announcement that nobody has asked for yet
};

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
      : link_(link), rank_(start.rank) {
    auto reader = std::make_shared<data::RoundReader<D>>(loader->dataset());
    const std::int64_t count = loader->options().batch_size;
    auto make = [loader, reader, start, count, begun = false, over = false, spare = spare_,
                 end_state = std::optional<tensor::StateDict>()]() mutable {
      const c10::AutoGradMode no_grad(false);
      if (!std::exchange(begun, true)) {
        if (start.from.rows > 0 && data::RoundReader<D>::restarts) {
          reader->start(start.from.epoch, 0, std::nullopt);
          *spare = reader->read(1).rows;
        }
        auto state = start.state;
        const std::int64_t own_rows = state ? state->integer("rows") : 0;
        if (state) state = state->below("own.");
        reader->start(start.from.epoch, own_rows, state && !state->empty() ? state : std::nullopt);
      }
      data::ReadRound<Row> round{.is_last = true, .state = end_state};
      if (!over) round = reader->read(count);
      over = round.is_last;
      end_state = round.state;
      return round;
    };
    rounds_.emplace(std::move(make), loader->options().prefetch, loader->options().timeout_s);
    if (start.state) own_rows_ = start.state->integer("rows");
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
    const auto texts = link_->all_gather("loader: the rows that every rank's stream gives", text);
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
                data::RoundReader<D>::restarts ? "" : ", or give the stream a start(epoch), to read one again");
    result.parts = std::make_shared<const OneRound>(std::move(parts));
    result.rows = round.rows.empty() ? *spare_ : std::move(round.rows);
    own_rows_ += result.parts->part(0, rank_).counted;
    result.state.emplace();
    result.state->add("rows", own_rows_);
    if (round.state) result.state->add("own.", *round.state);
    return result;
  }

  [[nodiscard]] bool is_ready() const { return false; }

 private:
  using D = std::remove_reference_t<decltype(std::declval<L&>().dataset())>;

  std::shared_ptr<Link> link_;
  int rank_;
  // The epoch's first row, to fill in with. The thread that reads writes it, if at all, before it hands out anything.
  std::shared_ptr<std::vector<Row>> spare_ = std::make_shared<std::vector<Row>>();
  std::optional<InOrder<data::ReadRound<Row>>> rounds_;
  std::int64_t own_rows_ = 0;  // handed out in this epoch
};

}  // namespace detail

/// Batches of a StreamLoader, round by round.
template <class D, class C>
class Feed<data::StreamLoader<D, C>> {
 public:
  using Loader = data::StreamLoader<D, C>;
  using Batch = typename Loader::Batch;

  Feed(std::shared_ptr<Loader> loader, const std::shared_ptr<Link>& link, const PassStart& start)
      : loader_(std::move(loader)), start_(start), rows_(start.from.rows), index_(start.from.batches) {
    const data::Reading reading = *loader_->options().reading;
    if (reading == data::Reading::by_dataset) {
      source_ = std::make_unique<detail::ByDataset<Loader>>(loader_, link, start);
    } else if (reading == data::Reading::by_rank || start.world_size == 1) {
      source_ = std::make_unique<detail::ByRank<Loader>>(loader_, start);
    } else if constexpr (tensor::is_tree<typename Loader::Row>()) {
      source_ = std::make_unique<detail::Dispatched<Loader>>(loader_, link, start);
    } else {
      throw InvalidArgument(
          "dispatched: rows of this type cannot be sent; use tensors, numbers, texts, and pairs, "
          "tuples, vectors, maps or structs of these");
    }
  }

  [[nodiscard]] std::optional<Delivery<Batch>> next() {
    if (is_over_) return std::nullopt;
    auto own = std::visit([](auto& source) { return source->next(); }, source_);
    if (own.in_round == 0) {
      is_over_ = true;
      return std::nullopt;
    }
    is_over_ = own.is_last;
    rows_ += own.in_round;
    const data::Part part = own.parts->part(0, start_.rank);
    const c10::AutoGradMode no_grad(false);
    Batch batch = loader_->collate()(std::move(own.rows));
    if (start_.pins_memory) batch = pinned(std::move(batch));
    const std::int64_t index = index_++;
    return Delivery<Batch>{.batch = std::move(batch),
                           .position = {.index = index,
                                        .length = own.is_last ? index_ : -1,
                                        .rows = part.counted,
                                        .weight_rows = part.weight,
                                        .round_rows = own.parts->weight(0),
                                        .last = own.is_last},
                           .rounds = own.parts,
                           .rows_after = rows_,
                           .state = std::move(own.state)};
  }

  /// Whether next() would return at once, without a word to the other ranks.
  [[nodiscard]] bool is_ready() const {
    return !is_over_ && std::visit([](const auto& source) { return source->is_ready(); }, source_);
  }

 private:
  std::shared_ptr<Loader> loader_;
  PassStart start_;
  std::variant<std::unique_ptr<detail::ByRank<Loader>>, std::unique_ptr<detail::Dispatched<Loader>>,
               std::unique_ptr<detail::ByDataset<Loader>>>
      source_;
  std::int64_t rows_, index_;
  bool is_over_ = false;
};

}  // namespace accel::inline v0_1::prepare
