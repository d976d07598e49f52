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
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/gradient/bucket.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/gradient/gradients.hpp>
#include <accel/gradient/hooks.hpp>

namespace accel::inline v0_1::gradient {

struct ReducerOptions {
  BucketCaps caps{};
  bool overlap = true;  // start a bucket when it is full; false: all of them after backward
};

/// Sums the gradients of one model over the ranks while backward still runs.
///
/// begin(), then autograd, then finish(). The root gradient of backward carries 1/world_size (or a
/// rank's share of the rows), so that the sums on the wire arrive as the mean that DDP leaves.
///
/// Memory   one more copy of the trainable parameters; `.grad` are views of it after a reduction.
/// Order    buckets start in the order of the plan, which is the same on all ranks.
/// Source   Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training.
/// Differs  from DDP: no traversal of the graph to find unused parameters, no planning in step 2.
template <Backend B>
class Reducer final : public Watch {
 public:
  Reducer(std::vector<tensor::NamedTensor> parameters, B& backend, const ReducerOptions& options)
      : parameters_(std::move(parameters)),
        backend_(&backend),
        options_(options),
        bucket_of_(parameters_.size()),
        arrivals_(parameters_.size(), 0),
        stray_(parameters_.size(), 0),
        hooks_(tensors(parameters_), [this](std::size_t i) { arrived(i); }) {
    std::vector<ParameterSize> sizes;
    for (const auto& [name, tensor] : parameters_)
      sizes.push_back({tensor.numel(), tensor.scalar_type(), tensor.device()});
    const auto plan = plan_buckets(sizes, options.caps);
    for (std::size_t b = 0; b < plan.size(); ++b) {
      const std::int64_t numel = Bucket::numel(plan[b]);
      const auto bytes = numel * static_cast<std::int64_t>(c10::elementSize(plan[b].dtype));
      at::Tensor flat = backend.allocate({bytes}).view(plan[b].dtype);
      buckets_.emplace_back(plan[b], parameters_, std::move(flat));
      for (const std::size_t i : plan[b].parameters) bucket_of_[i] = b;
    }
    pending_.resize(buckets_.size());
    works_.reserve(buckets_.size());
  }

  [[nodiscard]] const std::vector<tensor::NamedTensor>& parameters() const { return parameters_; }
  [[nodiscard]] std::size_t buckets() const { return buckets_.size(); }

  /// The next backward reduces (`synchronise`), or only adds up on this rank. `only` says that this
  /// is the only model, so that backward must touch it.
  void begin(bool synchronise, bool only) {
    const c10::AutoGradMode no_grad(false);
    forget_cleared_strays();
    only_ = only;
    works_.clear();
    next_ = 0;
    touched_ = false;
    std::fill(arrivals_.begin(), arrivals_.end(), std::uint8_t{0});
    for (std::size_t b = 0; b < buckets_.size(); ++b) pending_[b] = buckets_[b].size();
    // Gradients that stand from an earlier reduction are means already. Each rank keeps its share of
    // them, so that the sum of old and new arrives as mean + mean, as DDP leaves it.
    standing_.clear();
    if (std::exchange(reduced_, false)) {
      standing_ = gradients_of(parameters_);
      if (!only_) untouched_ = clones(standing_);
      if (!standing_.empty()) at::_foreach_mul_(standing_, 1.0 / backend_->world_size());
    }
    mode_ = synchronise ? Mode::reduce : Mode::add_up;
  }

  [[nodiscard]] bool waiting() const override { return local_; }

  /// Whether a reduction of this model is due for this rank.
  [[nodiscard]] bool has_news() const { return only_ || touched_ || local_; }

  /// Waits until every gradient has arrived. `reduce` is has_news() of any rank: with several models,
  /// one that no rank's backward touched is passed over.
  void finish(bool reduce) {
    const c10::AutoGradMode no_grad(false);
    const Mode mode = std::exchange(mode_, Mode::idle);
    if (!touched_ && !(mode == Mode::reduce && reduce)) restore_standing();
    untouched_.clear();
    if (mode == Mode::add_up) {
      local_ = local_ || touched_;
      return;
    }
    if (!reduce) return;
    while (next_ < buckets_.size()) start_next();
    for (std::size_t b = 0; b < works_.size(); ++b) {
      works_[b].wait();
      buckets_[b].settle_unused();
    }
    local_ = false;
    reduced_ = true;
  }

  /// Backward threw: nothing more will arrive. The other ranks reduce what this one has not, or wait
  /// for it: whatever it sends next would be taken for that, so the group cannot be used any more.
  void cancel() noexcept {
    if (std::exchange(mode_, Mode::idle) == Mode::reduce)
      backend_->abort("a backward that reduces threw on this rank");
    else if (!touched_)
      restore_standing();
  }

  [[nodiscard]] const std::string* stray(std::span<const at::Tensor> parameters) const override {
    if (strays_ == 0) return nullptr;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (stray_[i] != 0 && parameters_[i].tensor.grad().defined() && is_in(parameters_[i].tensor, parameters))
        return &parameters_[i].name;
    return nullptr;
  }

  void clear_stray(std::span<const at::Tensor> parameters) override {
    for (std::size_t i = 0; strays_ > 0 && i < parameters_.size(); ++i)
      if (stray_[i] != 0 && is_in(parameters_[i].tensor, parameters)) {
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
  enum class Mode { idle, add_up, reduce };

  static std::vector<at::Tensor> tensors(std::span<const tensor::NamedTensor> parameters) {
    std::vector<at::Tensor> result;
    for (const auto& [name, tensor] : parameters) result.push_back(tensor);
    return result;
  }

  /// Undoes what begin() did to means from an earlier reduction that nothing was added to.
  void restore_standing() {
    if (standing_.empty()) return;
    const c10::AutoGradMode no_grad(false);
    if (untouched_.empty())
      at::_foreach_mul_(standing_, static_cast<double>(backend_->world_size()));
    else
      at::_foreach_copy_(standing_, untouched_);
    reduced_ = true;
  }

  static bool is_in(const at::Tensor& one, std::span<const at::Tensor> tensors) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) { return tensor.is_same(one); });
  }

  static std::vector<at::Tensor> clones(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> result;
    for (const auto& tensor : tensors) result.push_back(tensor.clone());
    return result;
  }

  /// net->zero_grad() tells nobody, but leaves no gradient.
  void forget_cleared_strays() {
    for (std::size_t i = 0; strays_ > 0 && i < parameters_.size(); ++i)
      if (stray_[i] != 0 && !parameters_[i].tensor.grad().defined()) {
        stray_[i] = 0;
        --strays_;
      }
  }

  void arrived(std::size_t i) {
    if (mode_ == Mode::idle) {
      if (stray_[i] == 0) ++strays_;
      stray_[i] = 1;
      return;
    }
    touched_ = true;
    ++arrivals_[i];
    if (mode_ == Mode::add_up) return;
    ACCEL_CHECK(arrivals_[i] == 1, InvalidArgument, "the gradient of ", parameters_[i].name,
                " arrived twice in one backward, as it does when a part of the model runs backward by itself ",
                "(checkpointing); run it under no_sync, and reduce with a last backward");
    // Several models fill their buckets in an order that may depend on the rank: see finish().
    if (--pending_[bucket_of_[i]] > 0 || !options_.overlap || !only_) return;
    // Strictly in order, whichever is full first: all ranks must start the same one.
    while (next_ < buckets_.size() && pending_[next_] == 0) start_next();
  }

  void start_next() {
    buckets_[next_].fill();
    works_.push_back(backend_->all_reduce(buckets_[next_].flat(), ReduceOp::sum));
    ++next_;
  }

  std::vector<tensor::NamedTensor> parameters_;
  B* backend_;
  ReducerOptions options_;
  std::vector<std::size_t> bucket_of_;  // by parameter
  std::vector<std::uint8_t> arrivals_;  // in this backward, by parameter
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> pending_;       // parameters still missing, by bucket
  std::vector<backend::WorkOf<B>> works_;  // by bucket, as far as started
  std::size_t next_ = 0;                   // the bucket to start next
  std::vector<at::Tensor> standing_;       // means from an earlier reduction, scaled for this one ...
  std::vector<at::Tensor> untouched_;      // ... and as they were, should this backward pass them by
  Mode mode_ = Mode::idle;
  bool only_ = true;
  bool touched_ = false;    // a gradient arrived in this backward
  bool local_ = false;      // gradients of this rank wait for a reduction
  bool reduced_ = true;     // gradients, where defined, count as means: DDP averages what was there before, too
  std::size_t strays_ = 0;  // gradients of a backward that nobody announced ...
  std::vector<std::uint8_t> stray_;  // ... and whether, by parameter
  Hooks hooks_;                      // last: no hook outlives what it calls
};

}  // namespace accel::inline v0_1::gradient
