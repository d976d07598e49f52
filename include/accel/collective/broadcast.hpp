// Broadcast: what one rank holds, on every rank.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

/// Overwrites `tensors` with those of rank `root`, in place. Shapes and dtypes must be equal.
///
/// Cost     one broadcast per 25 MiB and dtype, and a copy in and out of the flat buffer.
/// Order    collective; complete when it returns.
template <Backend B>
void broadcast_coalesced(B& backend, std::span<const at::Tensor> tensors, int root) {
  if (backend.world_size() == 1) return;
  const c10::AutoGradMode no_grad(false);
  tensor::for_each_group(tensors, 25_MiB /* as DDP */, [&](const std::vector<at::Tensor>& group) {
    at::Tensor flat = tensor::flat_buffer(group);  // [sum of numel]
    const auto copy = [&](bool in) {
      std::int64_t offset = 0;
      for (const auto& part : group) {
        const at::Tensor view = flat.narrow(0, offset, part.numel()).view(part.sizes());
        in ? view.copy_(part) : part.copy_(view);
        offset += part.numel();
      }
    };
    if (backend.rank() == root) copy(true);
    auto work = backend.broadcast(flat, root);
    work.wait();
    if (backend.rank() != root) copy(false);
  });
}

/// Overwrites every tensor of `tree` with rank `root`'s, in place, and returns the tree.
template <Backend B, class Tree>
Tree broadcast(B& backend, Tree tree, int root) {
  backend::check_peer("broadcast", root, backend.world_size());
  const auto tensors = tensor::leaves(tree);
  broadcast_coalesced(backend, tensors, root);
  return tree;
}

}  // namespace accel::inline v0_1::collective
