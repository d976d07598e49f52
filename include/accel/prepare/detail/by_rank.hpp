// ByRank: a stream that every rank reads.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include <c10/core/GradMode.h>

#include <accel/prepare/detail/dealt_rounds.hpp>
#include <accel/prepare/detail/in_order.hpp>
#include <accel/prepare/feed.hpp>

namespace accel::inline v0_1::prepare::detail {

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
  using Dealt = DealtRounds<typename L::Stream>;

  InOrder<Own> rounds_;
};

}  // namespace accel::inline v0_1::prepare::detail
