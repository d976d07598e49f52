// Feed: one pass over a map-style dataset, as this rank sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/data/ahead.hpp>
#include <accel/data/cursor.hpp>
#include <accel/data/loader.hpp>
#include <accel/data/position.hpp>
#include <accel/tensor/state_dict.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::prepare {

/// A batch on its way to the user, still on the host.
template <class Batch>
struct Delivery {
  Batch batch;
  data::Position position;
  std::shared_ptr<const data::Rounds> rounds;  // of the position
  std::int64_t rows_after = 0;                 // of the epoch, of all ranks, with this batch
  std::optional<tensor::StateDict> state{};    // of the stream behind it
};

/// Where a pass begins, and for whom.
struct PassStart {
  int rank = 0;
  int world_size = 1;
  std::uint64_t seed = 0;
  data::Cursor from;
  bool is_known = true;                      // the rows before it were read before, or are the user's to skip
  bool pins_memory = false;                  // batches go to a GPU
  std::optional<tensor::StateDict> state{};  // of the stream at `from`
};

/// Pinned, where a copy to a GPU is to overlap with what it computes.
template <class Batch>
[[nodiscard]] Batch pinned(Batch batch) {
  return tensor::map(std::move(batch), [](const at::Tensor& tensor) {
    return tensor.device().is_cpu() && tensor.numel() > 0 ? tensor.pin_memory() : tensor;
  });
}

template <class L>
class Feed;

/// Batches of a DataLoader in the order of the plan, made here or by its workers.
template <class D, class C>
class Feed<data::DataLoader<D, C>> {
 public:
  using Loader = data::DataLoader<D, C>;
  using Batch = typename Loader::Batch;

  Feed(std::shared_ptr<Loader> loader, const PassStart& start)
      : shared_(std::make_shared<Shared>(std::move(loader), start)),
        next_(start.from.batches),
        end_(shared_->plan.batches(start.rank)) {
    const auto& options = shared_->loader->options();
    if (options.workers == 0 || next_ >= end_) return;
    ahead_.emplace(options.workers, std::int64_t{options.prefetch} * options.workers, next_, end_,
                   Seconds(options.timeout_s),
                   [shared = shared_](std::int64_t round, int worker) { return shared->make(round, worker); });
  }

  [[nodiscard]] std::optional<Delivery<Batch>> next() {
    if (next_ >= end_) return std::nullopt;
    const std::int64_t round = next_;
    next_ = end_;  // if it throws
    auto batch = ahead_ ? ahead_->take() : std::optional(shared_->make(round, 0));
    next_ = round + 1;
    const auto& rounds = shared_->plan.parts();
    const data::Part own = rounds.part(round, shared_->start.rank);
    Delivery<Batch> delivery{.batch = *std::move(batch),
                             .position = {.index = round,
                                          .length = end_,
                                          .rows = own.counted,
                                          .weight_rows = own.weight,
                                          .round_rows = rounds.weight(round)},
                             .rounds = {shared_, &rounds},
                             .rows_after = shared_->plan.rows_after(next_)};
    // Only the last round may lack a rank.
    if (delivery.position.is_last())
      for (int rank = 0; rank < rounds.world_size(); ++rank)
        if (rounds.part(round, rank).held == 0) delivery.position.has_all_ranks = false;
    return delivery;
  }

  /// Whether next() would return at once.
  [[nodiscard]] bool is_ready() const { return ahead_ && ahead_->has_next(); }

 private:
  /// What the workers use; it lives as long as one of them does.
  struct Shared {
    Shared(std::shared_ptr<Loader> of, const PassStart& from)
        : loader(std::move(of)),
          start(from),
          plan(loader->epoch(from.seed, from.from, from.world_size)),
          readers(loader->readers(from.seed, from.from.epoch)),
          rows(loader->rows()) {}

    [[nodiscard]] Batch make(std::int64_t round, int worker) {
      const c10::AutoGradMode no_grad(false);
      std::vector<std::int64_t> positions, places;
      {
        const std::lock_guard lock(mutex);  // an order may be computed, and keep what it has computed
        positions = plan.share(round, start.rank).positions;
        for (const std::int64_t position : positions) {
          places.push_back(plan.order()[position]);
          ACCEL_CHECK(places.back() >= 0 && places.back() < rows, InvalidArgument, "the sampler gave row ",
                      places.back(), " at position ", position, ", and the dataset has ", rows, " rows");
        }
      }
      Batch batch = readers[static_cast<std::size_t>(worker)](places, positions);
      return start.pins_memory ? pinned(std::move(batch)) : batch;
    }

    std::shared_ptr<Loader> loader;
    PassStart start;
    data::EpochPlan plan;
    std::vector<typename Loader::Reader> readers;  // of each worker, or of the thread that trains
    std::int64_t rows;
    std::mutex mutex;  // of the order
  };

  std::shared_ptr<Shared> shared_;
  std::int64_t next_, end_;  // rounds
  std::optional<data::Ahead<Batch>> ahead_;
};

}  // namespace accel::inline v0_1::prepare
