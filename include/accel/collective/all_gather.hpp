// All-gather: everybody's rows, one after the other, on every rank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

/// Rows that a rank holds, and how many of them, from the front, the result keeps.
struct Rows {
  std::int64_t held = 0;
  std::int64_t kept = 0;
};

/// Concatenates `mine` over the ranks along dimension 0, in the order of ranks. `rows` says, by
/// rank, what everybody holds: nothing about sizes is sent.
///
/// Shape    [rows[rank].held, ...] -> [sum of kept, ...]
/// Cost     one all_gather of the largest part; a copy more where parts are unequal.
template <Backend B>
[[nodiscard]] at::Tensor gather_rows(B& backend, const at::Tensor& mine, std::span<const Rows> rows) {
  const c10::AutoGradMode no_grad(false);
  std::int64_t most = 0;
  std::int64_t total = 0;
  for (const auto& part : rows) {
    most = std::max(most, part.held);
    total += part.kept;
  }
  // A conjugate or negative is often only marked as such: its memory holds what it was made of.
  at::Tensor input = mine.detach().resolve_conj().resolve_neg().contiguous();
  auto shape = input.sizes().vec();
  shape[0] = most;
  if (input.size(0) < most) {
    const at::Tensor padded = at::empty(shape, input.options());
    padded.narrow(0, 0, input.size(0)).copy_(input);
    padded.narrow(0, input.size(0), most - input.size(0)).zero_();
    input = padded;
  }
  shape[0] = most * backend.world_size();
  at::Tensor output = at::empty(shape, input.options());
  auto work = backend.all_gather(output, input);
  backend::wait_on_host(backend, work);
  if (total == output.size(0)) return output;
  std::vector<at::Tensor> parts;
  for (std::size_t rank = 0; rank < rows.size(); ++rank)
    parts.push_back(output.narrow(0, static_cast<std::int64_t>(rank) * most, rows[rank].kept));
  return at::cat(parts);
}

namespace detail {

/// Gathers `rows_of(path, tensor)` for every tensor of `tree`.
template <Backend B, class Tree, class RowsOf>
[[nodiscard]] Tree gather(B& backend, std::string_view subject, Tree tree, RowsOf&& rows_of) {
  const std::vector<Said> said = agree_on_trees(
      backend, subject,
      "only rows, the first dimension, written *, may differ; pad_across_processes makes another dimension equal",
      subject, tree, [&](const std::string& path, const at::Tensor& tensor, std::vector<std::int64_t>& sizes) {
        const at::Tensor own = rows_of(path, tensor);
        sizes.push_back(own.size(0));
        return tensor::spec_without_rows(own);
      });
  std::size_t number = 0;
  return tensor::map(std::move(tree), [&](const at::Tensor& tensor) {
    const at::Tensor own = rows_of(std::string(), tensor).detach();
    if (backend.world_size() == 1) return own;
    std::vector<Rows> rows;
    for (const auto& of_rank : said) rows.push_back({.held = of_rank.sizes[number], .kept = of_rank.sizes[number]});
    ++number;
    return gather_rows(backend, own, rows);
  });
}

}  // namespace detail

/// Every tensor of `tree`, concatenated over the ranks along dimension 0, in the order of ranks.
/// Scalars become one row. The result has no autograd history, at one rank neither. Ranks may hold
/// different numbers of rows, none included; all else must be equal. Numbers and texts stay this rank's.
///
/// Cost     one round over the control plane, then one all_gather per tensor.
/// Throws   InvalidArgument on every rank, naming both and the path, if trees, dtypes or shapes differ, or if a rank
///          holds a tensor on another device, a sparse or a quantized one.
/// Differs  Accelerate asks for equal shapes and hangs otherwise.
template <Backend B, class Tree>
[[nodiscard]] Tree all_gather(B& backend, Tree tree) {
  return detail::gather(backend, "gather", std::move(tree), [](const std::string&, const at::Tensor& tensor) {
    return tensor.dim() == 0 ? tensor.reshape({1}) : tensor;
  });
}

}  // namespace accel::inline v0_1::collective
