// StreamFeed: one pass over a stream, as this rank sees it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/data/position.hpp>
#include <accel/data/round.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/prepare/detail/by_dataset.hpp>
#include <accel/prepare/detail/by_rank.hpp>
#include <accel/prepare/detail/dispatched.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/prepare/link.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::prepare {

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
    is_over_ = true;  // if it throws
    auto own = std::visit([](auto& source) { return source->next(); }, source_);
    if (own.in_round == 0) return std::nullopt;
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
                                        .round_rows = own.parts->weight(0)},
                           .rounds = own.parts,
                           .rows_after = rows_,
                           .state = std::move(own.state)};
  }

  [[nodiscard]] bool is_over() const { return is_over_; }

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
