// Arrival order: in which gradients arrive on rank 0, for the buckets of all ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>

namespace accel::inline v0_1::gradient {

/// Looked at in one backward, then agreed on without a wait: sent behind its buckets, taken before the next.
///
/// Memory   4 bytes per parameter, until it is taken.
template <Backend B>
class ArrivalOrder {
 public:
  /// `observes` the next backward that reduces.
  explicit ArrivalOrder(bool observes = false) : observes_(observes) {}

  [[nodiscard]] bool observes() const { return observes_; }

  void note(std::size_t i) {
    if (observes_) seen_.push_back(static_cast<std::int32_t>(i));
  }

  /// That backward is over. If buckets can be `better` for it rank 0's order goes to all, those of `all` that
  /// have not `arrived` last.
  ///
  /// Order    every rank; nobody waits for it.
  void finish(B& backend, bool better, std::span<const std::size_t> all, std::span<const std::uint8_t> arrived) {
    if (!observes_) return;
    observes_ = false;
    if (!better) return;
    for (const std::size_t i : all)
      if (arrived[i] == 0) seen_.push_back(static_cast<std::int32_t>(i));
    sent_ = at::empty({static_cast<std::int64_t>(seen_.size())}, at::kInt);
    std::copy(seen_.begin(), seen_.end(), sent_.template mutable_data_ptr<std::int32_t>());
    seen_ = {};
    sent_ = sent_.to(backend.device());
    backend_ = &backend;
    work_.emplace(backend.broadcast(sent_, 0));
  }

  /// What was sent, once.
  [[nodiscard]] std::optional<std::vector<std::size_t>> take() {
    if (!work_) return std::nullopt;
    backend::wait_on_host(*backend_, *work_);
    work_.reset();
    const at::Tensor host = std::exchange(sent_, at::Tensor()).cpu();
    const auto* const begin = host.template const_data_ptr<std::int32_t>();
    return std::vector<std::size_t>(begin, begin + host.numel());
  }

 private:
  bool observes_;
  std::vector<std::int32_t> seen_;
  at::Tensor sent_;
  B* backend_ = nullptr;  // it was sent by
  std::optional<backend::WorkOf<B>> work_;
};

}  // namespace accel::inline v0_1::gradient
