// All-gather: everybody's rows, one after the other, on every rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
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
  at::Tensor input = mine.detach().contiguous();
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

/// Every tensor of `tree`, concatenated over the ranks along dimension 0, in the order of ranks.
/// Scalars become one row. The result has no autograd history, at one rank neither. Ranks may hold
/// different numbers of rows; all else must be equal.
///
/// Cost     one agreement over the control plane, then one all_gather per tensor.
/// Throws   InvalidArgument on every rank, naming both, if trees, dtypes or shapes differ.
/// Differs  Accelerate asks for equal shapes and hangs otherwise.
template <Backend B, class Tree>
[[nodiscard]] Tree all_gather(B& backend, Tree tree) {
  const auto as_rows = [](const at::Tensor& tensor) {
    return tensor.dim() == 0 ? tensor.detach().view({1}) : tensor.detach();
  };
  if (backend.world_size() == 1) return tensor::map(std::move(tree), as_rows);
  std::string outline;  // what must be equal, then the rows: "f32[., 4] i64[.] |8 8"
  std::string sizes;
  tensor::visit(tree, [&](const at::Tensor& tensor) {
    auto spec = tensor::Spec::of(as_rows(tensor));
    sizes += std::to_string(spec.shape.front()) + " ";
    spec.shape.front() = 0;
    outline += spec.text() + " ";
  });
  const auto texts = backend.control().all_gather("gather", outline + "|" + sizes, Deadline::in(backend.timeout()));
  std::vector<std::istringstream> counts;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const std::size_t bar = texts[rank].find('|');
    const std::string theirs = texts[rank].substr(0, bar);
    const std::string reference = texts.front().substr(0, texts.front().find('|'));
    ACCEL_CHECK(theirs == reference, InvalidArgument, "gather: rank ", rank, " holds ", theirs, "but rank 0 holds ",
                reference, "(rows, the first dimension, written as 0, may differ); give every rank the same kind");
    counts.emplace_back(texts[rank].substr(bar + 1));
  }
  return tensor::map(std::move(tree), [&](const at::Tensor& tensor) {
    std::vector<Rows> rows(counts.size());
    for (std::size_t rank = 0; rank < rows.size(); ++rank) {
      counts[rank] >> rows[rank].held;
      rows[rank].kept = rows[rank].held;
    }
    return gather_rows(backend, as_rows(tensor), rows);
  });
}

}  // namespace accel::inline v0_1::collective
