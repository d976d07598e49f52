// Broadcast: what one rank holds, on every rank.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

/// Overwrites `tensors` with those of rank `root`, in place. Shapes, strides and dtypes must be equal.
///
/// Cost     one broadcast per 25 MiB and dtype, and a copy in and out of the flat buffer.
/// Order    collective; complete when it returns.
template <Backend B>
void broadcast_coalesced(B& backend, std::span<const at::Tensor> tensors, int root) {
  if (backend.world_size() == 1) return;
  const c10::AutoGradMode no_grad(false);
  std::vector<at::Tensor> elements;
  for (const auto& tensor : tensors) elements.push_back(tensor::without_expansion(tensor.detach()));
  tensor::for_each_group(elements, 25_MiB /* as DDP */, [&](const std::vector<at::Tensor>& group) {
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

/// The same for tensors that are broadcast again and again: in one message, whatever their dtypes, and
/// from memory that stays. Autograd does not see that they change, as it does not where a layer
/// updates its statistics: a graph that is kept can be gone through again.
///
/// Memory   a copy of the tensors.
template <Backend B>
class RepeatedBroadcast {
 public:
  RepeatedBroadcast(B& backend, std::vector<at::Tensor> tensors, int root)
      : backend_(&backend), root_(root), tensors_(std::move(tensors)), elements_(tensors_.size()) {
    constexpr std::int64_t alignment = 16;  // bytes: of the widest dtype
    const auto end_of = [](std::int64_t begin, const at::Tensor& part) {
      const auto end = begin + static_cast<std::int64_t>(part.nbytes());
      return (end + alignment - 1) / alignment * alignment;
    };
    look_at_tensors();
    std::int64_t bytes = 0;
    for (const auto& part : elements_) bytes = end_of(bytes, part);
    if (bytes == 0) return;
    message_ = backend.allocate({bytes});
    std::int64_t begin = 0;
    for (const auto& part : elements_) {
      const auto size = static_cast<std::int64_t>(part.nbytes());
      parts_.push_back(message_.narrow(0, begin, size).view(part.scalar_type()).view(part.sizes()));
      begin = end_of(begin, part);
    }
  }

  void start() {
    if (!message_.defined()) return;
    const c10::AutoGradMode no_grad(false);
    look_at_tensors();
    if (backend_->rank() == root_) at::_foreach_copy_(parts_, elements_);
    work_.emplace(backend_->broadcast(message_, root_));
  }

  void wait() {
    if (!work_) return;
    const c10::AutoGradMode no_grad(false);
    work_->wait();
    work_.reset();
    if (backend_->rank() != root_) at::_foreach_copy_(elements_, parts_);
  }

 private:
  /// A tensor may have got other memory since.
  void look_at_tensors() {
    for (std::size_t i = 0; i < tensors_.size(); ++i)
      if (!elements_[i].defined() || elements_[i].const_data_ptr() != tensors_[i].const_data_ptr())
        elements_[i] = tensor::without_expansion(tensors_[i].variable_data());
  }

  B* backend_;
  int root_;
  std::vector<at::Tensor> tensors_;
  std::vector<at::Tensor> elements_;  // of each, with a version counter of its own
  at::Tensor message_;                // u8[bytes]; undefined if there is nothing to send
  std::vector<at::Tensor> parts_;     // of the message, like elements_
  std::optional<backend::WorkOf<B>> work_;
};

/// Overwrites every tensor of `tree` with rank `root`'s, in place, and returns the tree.
template <Backend B, class Tree>
Tree broadcast(B& backend, Tree tree, int root) {
  backend::check_peer("broadcast", root, backend.world_size());
  const auto tensors = tensor::leaves(tree);
  broadcast_coalesced(backend, tensors, root);
  return tree;
}

}  // namespace accel::inline v0_1::collective
