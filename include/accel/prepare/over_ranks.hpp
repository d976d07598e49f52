// OverRanks: values over the ranks: the part of an accelerator that gathers, reduces, sends and splits them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <accel/backend/backend.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/collective/object.hpp>
#include <accel/collective/pad.hpp>
#include <accel/collective/reduce.hpp>
#include <accel/collective/scatter.hpp>
#include <accel/collective/split.hpp>
#include <accel/metrics/for_metrics.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/engine.hpp>
#include <accel/prepare/process_control.hpp>

namespace accel::inline v0_1::prepare {

/// Trees of tensors (a tensor, pair, tuple, vector, map, struct, or several in one another) and other values over the
/// ranks. See Accelerator.
///
/// Order    all are collective but split_between_processes.
/// Throws   InvalidArgument on every rank, before anything is sent, where ranks do not bring the same kind, or one of
///          them what cannot be sent: it names both ranks and the path, such as `[0].image` or `["mask"]`. Only
///          gather_for_metrics, which is called for every batch, asks nobody: there the rank throws that is wrong.
template <class B, class P>
class OverRanks : public ProcessControl<B, P> {
 public:
  /// Everybody's rows, in the order of ranks. Ranks may hold different numbers of rows.
  template <class Tree>
  [[nodiscard]] Tree gather(Tree tree) {
    return at_rank([&] { return collective::all_gather(engine_->backend, std::move(tree)); });
  }

  /// Like gather, for values with one row per row of the current batch: fillers and repetitions are
  /// left out, so that an epoch gives every row of the dataset once. Several values give a tuple.
  template <class... Trees>
  [[nodiscard]] auto gather_for_metrics(Trees... trees) {
    return at_rank([&] {
      return metrics::gather_for_metrics(engine_->backend, engine_->in_flight.innermost(), std::move(trees)...);
    });
  }

  /// Sum, mean, max or min over the ranks, in new tensors.
  template <class Tree>
  [[nodiscard]] Tree reduce(Tree tree, collective::Reduction reduction = collective::Reduction::sum) {
    return at_rank([&] { return collective::reduce(engine_->backend, std::move(tree), reduction); });
  }

  /// Overwrites the tensors of `tree` with those of rank `from`, and returns it. Numbers and texts in it stay.
  template <class Tree>
  Tree broadcast(Tree tree, int from = 0) {
    return at_rank([&] { return collective::broadcast(engine_->backend, std::move(tree), from); });
  }

  /// Tensors whose size along a dimension differs between ranks get the largest, filled up with a value.
  template <class Tree>
  [[nodiscard]] Tree pad_across_processes(Tree tree, const collective::PadOptions& options = {}) {
    return at_rank([&] { return collective::pad_across_processes(engine_->backend, std::move(tree), options); });
  }

  /// Everybody's `value`, by rank: JSON, what becomes JSON, or any tree with its numbers and texts.
  template <class T>
  [[nodiscard]] std::vector<T> gather_object(const T& value) {
    return at_rank([&] { return collective::gather_object(engine_->backend, value); });
  }

  /// Rank `from`'s `value`, of the same kinds, on every rank. The others need not know what it is like.
  template <class T>
  [[nodiscard]] T broadcast_object(const T& value, int from = 0) {
    return at_rank([&] { return collective::broadcast_object(engine_->backend, value, from); });
  }

  /// This rank's part of what all have: rows of tensors, elements of vectors, of maps and structs those of each.
  template <class Tree>
  [[nodiscard]] Tree split_between_processes(Tree tree) const {
    return at_rank([&] { return collective::split(std::move(tree), this->rank(), this->world_size()); });
  }
  /// The same with {.pad = true}: as many rows on every rank, and how many of them are its own.
  template <class Tree>
  [[nodiscard]] collective::Part<Tree> split_between_processes(Tree tree,
                                                               const collective::SplitOptions& options) const {
    return at_rank([&] { return collective::split(std::move(tree), this->rank(), this->world_size(), options); });
  }

  /// What the ranks made of their parts, joined, without the rows behind the first `valid` of each.
  template <class Tree>
  [[nodiscard]] Tree gather_split(Tree tree, std::int64_t valid) {
    return at_rank([&] { return collective::gather_split(engine_->backend, std::move(tree), valid); });
  }

  /// This rank's part of what rank `from` has, as of split_between_processes. The others bring anything of that type.
  template <class Tree>
  [[nodiscard]] Tree scatter(const Tree& tree, int from = 0) {
    return at_rank([&] { return collective::scatter(engine_->backend, tree, from); });
  }

 protected:
  using ProcessControl<B, P>::ProcessControl;
  using ProcessControl<B, P>::at_rank;
  using ProcessControl<B, P>::engine_;
};

}  // namespace accel::inline v0_1::prepare
