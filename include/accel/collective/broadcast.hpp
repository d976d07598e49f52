// Broadcast: what one rank holds, on every rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/spec.hpp>
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
    backend::wait_on_host(backend, work);
    if (backend.rank() != root) copy(false);
  });
}

/// The same for tensors that are broadcast again and again: in one message, whatever their dtypes, and
/// from memory that stays. What arrives is put where it belongs later, group by group.
///
/// Autograd does not see that they change, as it does not where a layer updates its statistics.
///
/// Memory   a copy of the tensors.
template <Backend B>
class RepeatedBroadcast {
 public:
  using Group = std::vector<at::Tensor>;

  RepeatedBroadcast(B& backend, const std::vector<Group>& groups, int root) : backend_(&backend), root_(root) {
    constexpr std::int64_t alignment = 16;  // bytes: of the widest dtype
    const auto end_of = [](std::int64_t begin, const at::Tensor& part) {
      const auto end = begin + static_cast<std::int64_t>(part.nbytes());
      return (end + alignment - 1) / alignment * alignment;
    };
    for (const auto& tensors : groups) groups_.push_back({.tensors = tensors});
    std::int64_t bytes = 0;
    for (auto& group : groups_) {
      group.look_at_tensors();
      for (const auto& part : group.elements) bytes = end_of(bytes, part);
    }
    if (bytes == 0) return;
    message_ = backend.allocate({bytes});
    arrived_ = message_;
    if constexpr (backend::waits_on_stream<B>) arrived_ = at::zeros_like(message_);
    std::int64_t begin = 0;
    for (auto& group : groups_) {
      for (const auto& part : group.elements) {
        const auto size = static_cast<std::int64_t>(part.nbytes());
        const auto view = [&](const at::Tensor& bytes_of) {
          return bytes_of.narrow(0, begin, size).view(part.scalar_type()).view(part.sizes());
        };
        group.parts.push_back(view(message_));
        group.arrived_parts.push_back(view(arrived_));
        begin = end_of(begin, part);
      }
    }
    const c10::AutoGradMode no_grad(false);
    for (auto& group : groups_)
      if (!group.parts.empty()) at::_foreach_copy_(group.arrived_parts, group.elements);
  }

  /// Sends what rank `root` holds now.
  void start() {
    if (!message_.defined()) return;
    const c10::AutoGradMode no_grad(false);
    if (backend_->rank() == root_)
      for (auto& group : groups_) {
        group.look_at_tensors();
        if (!group.parts.empty()) at::_foreach_copy_(group.parts, group.elements);
      }
    work_.emplace(backend_->broadcast(message_, root_));
  }

  /// `lost` (f32[] on the device, or undefined): 1 if what was sent behind it never came to its end. Then what arrived
  /// the last time stays, where the host does not wait to know it.
  void wait(const at::Tensor& lost = {}) {
    if (!work_) return;
    if constexpr (backend::waits_on_stream<B>) {
      const c10::AutoGradMode no_grad(false);
      lost.defined() ? work_->wait() : backend::wait_on_host(*backend_, *work_);
      arrived_.copy_(lost.defined() ? at::where(lost.ne(0), arrived_, message_) : message_);
    } else {
      work_->wait();
    }
    work_.reset();
    if (backend_->rank() == root_) return;
    for (auto& group : groups_) group.arrived = true;
  }

  /// Overwrites the tensors of a group with what has arrived since the last time, if anything has.
  void put(std::size_t group_number) {
    State& group = groups_[group_number];
    if (!std::exchange(group.arrived, false) || group.parts.empty()) return;
    const c10::AutoGradMode no_grad(false);
    group.look_at_tensors();
    at::_foreach_copy_(group.elements, group.arrived_parts);
  }

  void put_all() {
    for (std::size_t number = 0; number < groups_.size(); ++number) put(number);
  }

 private:
  struct State {
    Group tensors;
    Group elements{};       // of each, with a version counter of its own
    Group parts{};          // of the message, like elements
    Group arrived_parts{};  // of what has arrived, the same
    bool arrived = false;

    /// A tensor may have got other memory since.
    void look_at_tensors() {
      elements.resize(tensors.size());
      for (std::size_t i = 0; i < tensors.size(); ++i)
        if (!elements[i].defined() || elements[i].const_data_ptr() != tensors[i].const_data_ptr())
          elements[i] = tensor::without_expansion(tensors[i].variable_data());
    }
  };

  B* backend_;
  int root_;
  std::vector<State> groups_;
  at::Tensor message_;  // u8[bytes]; undefined if there is nothing to send
  at::Tensor arrived_;  // the same memory, but where the host does not wait: then what has come for certain
  std::optional<backend::WorkOf<B>> work_;
};

/// Overwrites every tensor of `tree` with rank `root`'s, in place, and returns the tree. Numbers and texts stay this
/// rank's: broadcast_object sends them, too.
///
/// Shape    equal on all ranks, and where a tensor is expanded, expanded alike.
/// Cost     one round over the control plane, then one broadcast per 25 MiB and dtype.
/// Throws   InvalidArgument on every rank, naming both and the path, if trees, dtypes, shapes or roots differ, or if a
///          rank holds a tensor on another device.
template <Backend B, class Tree>
Tree broadcast(B& backend, Tree tree, int root) {
  agree_on_trees(backend, "broadcast", "give every rank tensors of equal shape and dtype, or use broadcast_object",
                 message("from rank ", root), tree, [&](const std::string&, const at::Tensor& tensor, auto&) {
                   const std::string own = tensor::spec(tensor::without_expansion(tensor.detach()));
                   const std::string shown = tensor::spec(tensor);
                   return own == shown ? shown : message(shown, " expanded from ", own);
                 });
  backend::check_peer("broadcast", root, backend.world_size());
  broadcast_coalesced(backend, tensor::leaves(tree), root);
  return tree;
}

}  // namespace accel::inline v0_1::collective
