// Loader: this rank's batches, on its device, epoch by epoch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/loader.hpp>
#include <accel/data/position.hpp>
#include <accel/data/sampler.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::prepare {

/// A prepared DataLoader: `for (auto& batch : loader)`, or `for (auto& [data, target] : loader)`.
///
/// Every begin() starts the next epoch, whether the one before was finished or left by `break`.
/// Order    no communication: the order depends on seed and epoch, which all ranks share.
template <class D>
class Loader {
 public:
  using Batch = typename data::DataLoader<D>::Batch;
  class Iterator;

  Loader(std::shared_ptr<data::DataLoader<D>> loader, std::shared_ptr<Session> session, std::uint64_t seed)
      : loader_(std::move(loader)),
        session_(std::move(session)),
        plan_(loader_->plan(session_->topology.world_size)),
        seed_(seed) {}

  [[nodiscard]] Iterator begin();
  [[nodiscard]] std::default_sentinel_t end() const { return {}; }

  /// Batches of an epoch, on this rank.
  [[nodiscard]] std::int64_t size() const { return plan_.batches(session_->topology.rank); }
  /// Rows of the dataset.
  [[nodiscard]] std::int64_t rows() const { return plan_.options().rows; }
  /// Rows of the last round if it is not full, over all ranks; else 0.
  [[nodiscard]] std::int64_t remainder() const { return plan_.remainder(); }
  [[nodiscard]] const data::BatchPlan& plan() const { return plan_; }
  /// Where the batch that was handed out last stands in its epoch; `position().is_last()` inside the
  /// loop says whether another one follows.
  [[nodiscard]] const data::Position& position() const { return *position_; }

  /// The epoch that the next begin() starts, and a way to choose it.
  [[nodiscard]] std::int64_t epoch() const { return epoch_; }
  void set_epoch(std::int64_t epoch) { epoch_ = epoch; }

  [[nodiscard]] D& dataset() { return loader_->dataset(); }

 private:
  friend class Iterator;

  std::shared_ptr<data::DataLoader<D>> loader_;
  std::shared_ptr<Session> session_;
  data::BatchPlan plan_;
  std::uint64_t seed_;
  std::int64_t epoch_ = 0;
  std::shared_ptr<data::Position> position_ = std::make_shared<data::Position>();  // written by the pass
};

/// An input iterator that owns the pass: when it goes, the pass is over.
template <class D>
class Loader<D>::Iterator {
 public:
  using value_type = Batch;
  using difference_type = std::ptrdiff_t;

  Batch& operator*() const { return *run_->batch; }

  Iterator& operator++() {
    run_->session->at_rank([&] { run_->advance(); });
    return *this;
  }
  void operator++(int) { ++*this; }

  bool operator==(std::default_sentinel_t) const { return !run_->batch.has_value(); }

 private:
  friend class Loader;

  /// Stays in place while the iterator moves: accumulate(batch) knows the batch by its address.
  struct Run {
    Run(const Loader& from, std::int64_t epoch)
        : loader(from.loader_),
          session(from.session_),
          plan(from.plan_),
          shown(from.position_),
          order(data::epoch_order(plan.options().rows, from.seed_, epoch, loader->options().shuffle)) {
      pass.plan = &plan;
      pass.position.index = -1;
      pass.position.length = plan.batches(session->topology.rank);
      advance();
      if (batch) session->in_flight.enter(&pass);
    }

    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() { session->in_flight.leave(&pass); }

    void advance() {
      const int rank = session->topology.rank;
      auto& at = pass.position;
      if (++at.index >= at.length) {
        batch.reset();
        session->in_flight.leave(&pass);
        return;
      }
      auto share = plan.share(at.index, rank);
      for (auto& position : share.positions) position = order[static_cast<std::size_t>(position)];
      batch = tensor::map(loader->fetch(share.positions),
                          [&](const at::Tensor& tensor) { return tensor.to(session->device, /*non_blocking=*/true); });
      at.rows = share.counted_rows;
      at.weight_rows = share.weight_rows;
      at.round_rows = plan.round_rows(at.index);
      *shown = at;
      pass.batch_begin = reinterpret_cast<const std::byte*>(std::addressof(*batch));  // only compared
      pass.batch_end = pass.batch_begin + sizeof(Batch);
    }

    std::shared_ptr<data::DataLoader<D>> loader;
    std::shared_ptr<Session> session;
    data::BatchPlan plan;
    std::shared_ptr<data::Position> shown;
    std::vector<std::int64_t> order;  // [rows], of this epoch
    std::optional<Batch> batch;
    data::Pass pass;
  };

  Iterator(const Loader& loader, std::int64_t epoch) : run_(std::make_unique<Run>(loader, epoch)) {}

  std::unique_ptr<Run> run_;
};

template <class D>
typename Loader<D>::Iterator Loader<D>::begin() {
  return session_->at_rank([&] { return Iterator(*this, epoch_++); });
}

}  // namespace accel::inline v0_1::prepare
