// Reducer: autograd hooks fill buckets, full buckets start their reduction, the end waits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/gradient/bucket.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/gradient/hooks.hpp>
#include <accel/gradient/ledger.hpp>
#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::gradient {

struct ReducerOptions {
  BucketCaps caps{};
  bool overlap = true;            // start a bucket when it is full; false: all of them after backward
  bool broadcast_buffers = true;  // rank 0's, whenever a backward has reduced their model: DDP's default
};

/// Sums the gradients of one model over the ranks while backward still runs.
///
/// begin(), then autograd, then start_rest() and wait(). The root gradient of backward carries
/// 1/world_size (or a rank's share of the rows), so that the sums on the wire arrive as the mean that
/// DDP leaves. What the gradients are in between, `ledger` knows; it must outlive the reducer.
///
/// Memory   one more copy of the trainable parameters; `.grad` are views of it after a reduction. A copy
///          more for each step whose gradients somebody keeps.
/// Order    buckets start in the order of the plan, which is the same on all ranks.
/// Source   Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training.
/// Differs  from DDP: no traversal of the graph to find unused parameters, no planning in step 2. A
///          sparse gradient is reduced as a dense one.
template <Backend B>
class Reducer final : public Watch {
 public:
  Reducer(std::vector<tensor::NamedTensor> parameters, Ledger& ledger, B& backend, const ReducerOptions& options)
      : parameters_(std::move(parameters)),
        ledger_(&ledger),
        backend_(&backend),
        overlap_(options.overlap),
        bucket_of_(parameters_.size()),
        arrivals_(parameters_.size(), 0),
        stray_(parameters_.size(), 0),
        hooks_(ledger.parameters(), [this](std::size_t i) { arrived(i); }) {
    std::vector<ParameterSize> sizes;
    for (const auto& [name, tensor] : parameters_)
      sizes.push_back({tensor.numel(), tensor.scalar_type(), tensor.device()});
    const auto plan = plan_buckets(sizes, options.caps);
    for (std::size_t b = 0; b < plan.size(); ++b) {
      buckets_.emplace_back(plan[b], ledger.parameters(), backend.allocate(Bucket::bytes(plan[b])).view(plan[b].dtype));
      for (const std::size_t i : plan[b].parameters) bucket_of_[i] = b;
    }
    pending_.resize(buckets_.size());
    works_.reserve(buckets_.size());
  }

  [[nodiscard]] std::size_t buckets() const { return buckets_.size(); }

  /// What the next backward is to do: add up on this rank; reduce at its end; or reduce each bucket as
  /// soon as it is full. That only where the model is the only one, so that every rank's backward
  /// touches it: several fill their buckets in an order that may depend on the rank.
  enum class Task { add_up, reduce_after, reduce_meanwhile };

  ///
  /// Order    before Ledger::begin(), which writes to gradients.
  void begin(Task task) {
    const c10::AutoGradMode no_grad(false);
    forget_cleared_strays();
    works_.clear();
    for (auto& bucket : buckets_) bucket.leave_to_holders();
    next_ = 0;
    std::fill(arrivals_.begin(), arrivals_.end(), std::uint8_t{0});
    for (std::size_t b = 0; b < buckets_.size(); ++b) pending_[b] = buckets_[b].size();
    reduces_ = task != Task::add_up;
    meanwhile_ = task == Task::reduce_meanwhile && overlap_;
    listens_ = true;
  }

  /// Backward is over: what comes from now on is nobody's that was announced.
  void end() { listens_ = false; }

  /// Starts the buckets that backward has not.
  void start_rest() {
    const c10::AutoGradMode no_grad(false);
    while (next_ < buckets_.size()) start_next();
  }

  /// Until every gradient has arrived.
  void wait() {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t b = 0; b < works_.size(); ++b) {
      works_[b].wait();
      buckets_[b].settle(*ledger_);
    }
  }

  [[nodiscard]] const std::string* stray(std::span<const at::Tensor> parameters) const override {
    if (strays_ == 0) return nullptr;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (stray_[i] != 0 && parameters_[i].tensor.grad().defined() &&
          tensor::is_among(parameters_[i].tensor, parameters))
        return &parameters_[i].name;
    return nullptr;
  }

  void clear_stray(std::span<const at::Tensor> parameters) override {
    for (std::size_t i = 0; strays_ > 0 && i < parameters_.size(); ++i)
      if (stray_[i] != 0 && tensor::is_among(parameters_[i].tensor, parameters)) {
        stray_[i] = 0;
        --strays_;
      }
  }

  [[nodiscard]] const std::string* lost_hook() const override {
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (arrivals_[i] == 0 && parameters_[i].tensor.requires_grad() && hooks_.lost(i)) return &parameters_[i].name;
    return nullptr;
  }

 private:
  /// net->zero_grad() tells nobody, but leaves no gradient.
  void forget_cleared_strays() {
    for (std::size_t i = 0; strays_ > 0 && i < parameters_.size(); ++i)
      if (stray_[i] != 0 && !parameters_[i].tensor.grad().defined()) {
        stray_[i] = 0;
        --strays_;
      }
  }

  void arrived(std::size_t i) {
    if (!listens_) {
      if (stray_[i] == 0) ++strays_;
      stray_[i] = 1;
      return;
    }
    ++arrivals_[i];
    if (!reduces_) return;
    ACCEL_CHECK(arrivals_[i] == 1, InvalidArgument, "the gradient of ", parameters_[i].name,
                " arrived twice in one backward, as it does when a part of the model runs backward by itself ",
                "(checkpointing); run it under no_sync, and reduce with a last backward");
    if (--pending_[bucket_of_[i]] > 0 || !meanwhile_) return;
    // Strictly in order, whichever is full first: all ranks must start the same one.
    const c10::AutoGradMode no_grad(false);
    while (next_ < buckets_.size() && pending_[next_] == 0) start_next();
  }

  void start_next() {
    Bucket& bucket = buckets_[next_];
    bucket.fill(*ledger_);
    works_.push_back(backend_->all_reduce(bucket.payload(), ReduceOp::sum));
    ++next_;
  }

  std::vector<tensor::NamedTensor> parameters_;
  Ledger* ledger_;
  B* backend_;
  bool overlap_;
  std::vector<std::size_t> bucket_of_;  // by parameter
  std::vector<std::uint8_t> arrivals_;  // in this backward, by parameter
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> pending_;       // parameters still missing, by bucket
  std::vector<backend::WorkOf<B>> works_;  // by bucket, as far as started
  std::size_t next_ = 0;                   // the bucket to start next
  bool listens_ = false;                   // a backward of the accelerator runs, ...
  bool reduces_ = false;                   // ... which is the last of a step, ...
  bool meanwhile_ = false;                 // ... and starts buckets while it runs
  std::size_t strays_ = 0;                 // gradients of a backward that nobody announced ...
  std::vector<std::uint8_t> stray_;        // ... and whether, by parameter
  Hooks hooks_;                            // last: no hook outlives what it calls
};

}  // namespace accel::inline v0_1::gradient
