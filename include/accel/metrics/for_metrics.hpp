// For metrics: gather what the ranks computed for a round, without fillers and repeated rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/object.hpp>
#include <accel/core/error.hpp>
#include <accel/data/position.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::metrics {

/// What every rank holds of the current round of `pass`, and how much of it counts.
///
/// Throws   InvalidArgument if no loader is in flight, or not every rank has a batch.
[[nodiscard]] inline std::vector<collective::Rows> rows_of(const data::Pass* pass) {
  ACCEL_CHECK(pass != nullptr, InvalidArgument,
              "gather_for_metrics: no prepared loader is in flight; call it inside the loop over one, or use gather");
  ACCEL_CHECK(pass->position.has_all_ranks, InvalidArgument, "gather_for_metrics: this is the last round of an uneven ",
              "loader, in which some ranks have no batch and so do not come here; use the loader's default, which ",
              "gives every rank one, or add up metrics on each rank and reduce them behind the loop");
  std::vector<collective::Rows> rows;
  for (int rank = 0; rank < pass->rounds->world_size(); ++rank) {
    const data::Part part = pass->rounds->part(pass->position.index, rank);
    rows.push_back({part.held, part.counted});
  }
  return rows;
}

/// Every tensor of `tree`, which has a row per row of the current batch of `pass`, concatenated over
/// the ranks: every row of the dataset once in an epoch, in the order of the samples of each round.
///
/// Shape    [rows of this rank's batch, ...] -> [rows of the round, ...]
/// Cost     one all_gather per tensor. What the others hold follows from the plan; it is not asked.
/// Throws   InvalidArgument if no loader is in flight or a tensor's rows are not those of the batch.
/// Differs  Accelerate cuts whatever it is given on the last batch, and hides errors.
template <Backend B, class Tree>
[[nodiscard]] Tree gather_for_metrics(B& backend, const data::Pass* pass, Tree tree) {
  const auto rows = rows_of(pass);
  const std::int64_t own = rows[static_cast<std::size_t>(backend.rank())].held;
  tensor::visit(tree, [&](const at::Tensor& tensor) {
    ACCEL_CHECK(tensor.dim() > 0 && tensor.size(0) == own, InvalidArgument, "gather_for_metrics: expected ", own,
                " rows, as the batch has, found ", tensor::spec(tensor),
                "; use gather for what is not one row per sample");
  });
  return tensor::map(std::move(tree),
                     [&](const at::Tensor& tensor) { return collective::gather_rows(backend, tensor, rows); });
}

/// The same for values that are no tensors, one per row of the batch: texts, numbers, what becomes JSON.
///
/// Cost     that of collective::gather_object.
template <Backend B, collective::JsonLike T>
[[nodiscard]] std::vector<T> gather_for_metrics(B& backend, const data::Pass* pass, std::vector<T> values) {
  const auto rows = rows_of(pass);
  const std::int64_t own = rows[static_cast<std::size_t>(backend.rank())].held;
  ACCEL_CHECK(std::ssize(values) == own, InvalidArgument, "gather_for_metrics: expected ", own,
              " values, one per row of the batch, found ", values.size(), "; use gather_object for others");
  auto of_ranks = collective::gather_object(backend, values);
  std::vector<T> all;
  for (std::size_t rank = 0; rank < of_ranks.size(); ++rank)
    all.insert(all.end(), std::make_move_iterator(of_ranks[rank].begin()),
               std::make_move_iterator(of_ranks[rank].begin() + rows[rank].kept));
  return all;
}

/// The same for several, as a tuple.
template <Backend B, class First, class... Others>
  requires(sizeof...(Others) > 0)
[[nodiscard]] std::tuple<First, Others...> gather_for_metrics(B& backend, const data::Pass* pass, First first,
                                                              Others... others) {
  // Braces: from left to right, which is the order on the wire.
  return {gather_for_metrics(backend, pass, std::move(first)), gather_for_metrics(backend, pass, std::move(others))...};
}

}  // namespace accel::inline v0_1::metrics
