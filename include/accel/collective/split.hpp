// Split: a part for each rank of what all have. Nothing is sent.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <accel/core/error.hpp>
#include <accel/core/range.hpp>
#include <accel/tensor/tree.hpp>
#include <accel/tensor/tree_path.hpp>

namespace accel::inline v0_1::collective {

struct SplitOptions {
  bool pad = false;  // every rank gets as many rows, and is told how many are its own
};

/// A part of a tree that was padded to the size of the largest part.
template <class Tree>
struct Part {
  Tree values;
  std::int64_t valid = 0;  // of its rows, from the front, are its own; the rest repeat the last row of the whole
};

/// The size of the largest part.
[[nodiscard]] constexpr std::int64_t largest_part(std::int64_t length, int world_size) {
  return split_range(length, 0, world_size).size();
}

namespace detail {

/// Calls `visitor(path, holder&)` for what has rows: tensors, and vectors, whose elements are theirs.
template <class Tree, class Visitor>
void for_each_holder(Tree& tree, std::string& path, Visitor&& visitor) {
  using T = std::remove_const_t<Tree>;
  if constexpr (std::derived_from<T, at::Tensor>) {
    if (tree.defined()) visitor(std::as_const(path), tree);
  } else if constexpr (tensor::is_a<T, std::vector>) {
    visitor(std::as_const(path), tree);
  } else if constexpr (!tensor::detail::Leaf<T>) {
    tensor::for_each_part(tree, [&](const auto& step, auto& part) {
      tensor::within_step(path, step, [&] { for_each_holder(part, path, visitor); });
    });
  }
}
template <class Tree, class Visitor>
void for_each_holder(Tree& tree, Visitor&& visitor) {
  std::string path;
  for_each_holder(tree, path, visitor);
}

template <class Holder>
[[nodiscard]] std::int64_t rows_of(const Holder& holder) {
  if constexpr (std::derived_from<Holder, at::Tensor>)
    return holder.dim() == 0 ? -1 : holder.size(0);
  else
    return static_cast<std::int64_t>(holder.size());
}

/// The rows that all holders of `tree` have.
///
/// Throws   InvalidArgument, with both paths, unless they have equally many; and if there is none.
template <class Tree>
[[nodiscard]] std::int64_t common_rows(std::string_view subject, const Tree& tree) {
  static_assert(!tensor::detail::Leaf<Tree> || tensor::is_a<Tree, std::vector>,
                "accel splits tensors, vectors, and what holds these; not a number or text");
  std::optional<std::pair<std::string, std::int64_t>> first;
  for_each_holder(tree, [&](const std::string& path, const auto& holder) {
    const std::int64_t rows = rows_of(holder);
    ACCEL_CHECK(rows >= 0, InvalidArgument, subject, ": expected tensors with rows, found a scalar",
                path.empty() ? "" : " at ", path);
    if (!first) first.emplace(path, rows);
    ACCEL_CHECK(first->second == rows, InvalidArgument, subject, ": expected equally many rows, found ", first->second,
                " at ", first->first, " and ", rows, " at ", path);
  });
  ACCEL_CHECK(first.has_value(), InvalidArgument, subject, ": expected tensors or vectors, found neither");
  return first->second;
}

/// Keeps the rows of `range`, and repeats the last of all behind them until there are `padded`.
template <class Holder>
void keep(Holder& holder, Range range, std::int64_t padded) {
  const std::int64_t missing = padded - range.size();
  if constexpr (std::derived_from<Holder, at::Tensor>) {
    if (range == Range{0, holder.size(0)} && missing == 0) return;
    const at::Tensor part = holder.narrow(0, range.begin, range.size());
    if (missing == 0) return void(holder = part);
    auto shape = holder.sizes().vec();
    shape[0] = missing;
    holder = at::cat({part, holder.narrow(0, holder.size(0) - 1, 1).expand(shape)});
  } else {
    Holder last;
    if (missing > 0) last.push_back(holder.back());
    holder.erase(holder.begin() + range.end, holder.end());
    holder.erase(holder.begin(), holder.begin() + range.begin);
    for (std::int64_t k = 0; k < missing; ++k) holder.push_back(last.front());
  }
}

template <class Tree>
void keep_rows(Tree& tree, Range range, std::int64_t padded) {
  for_each_holder(tree, [&](const std::string&, auto& holder) { keep(holder, range, padded); });
}

}  // namespace detail

/// This rank's part of what all ranks have: of tensors along dimension 0, without a copy, of vectors elements, of maps,
/// pairs and structs those of each, which must be equally many. Numbers and texts in them stay whole. At one rank it is
/// the tree itself.
///
/// Shape    parts follow each other in the order of ranks; the first ones may have one row more, the last ones none.
/// Order    nothing is sent: every rank finds its part by itself.
/// Throws   InvalidArgument, with the paths, if rows are not equally many.
/// Differs  Accelerate changes a map of its caller's.
template <class Tree>
[[nodiscard]] Tree split(Tree tree, int rank, int world_size) {
  const std::int64_t rows = detail::common_rows("split_between_processes", tree);
  detail::keep_rows(tree, split_range(rows, rank, world_size), split_range(rows, rank, world_size).size());
  return tree;
}

/// The same, and how many rows are this rank's own; if `options.pad`, behind these it repeats the last row of the
/// whole until it has as many as every other rank.
///
/// Differs  Accelerate does not say how many are valid, and cannot do it for tuples.
template <class Tree>
[[nodiscard]] Part<Tree> split(Tree tree, int rank, int world_size, const SplitOptions& options) {
  const std::int64_t rows = detail::common_rows("split_between_processes", tree);
  const Range own = split_range(rows, rank, world_size);
  detail::keep_rows(tree, own, options.pad ? largest_part(rows, world_size) : own.size());
  return {std::move(tree), own.size()};
}

}  // namespace accel::inline v0_1::collective
