// Ledger: what the gradients of a model are between two backwards. Known here and nowhere else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <accel/gradient/gradients.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/named_tensor.hpp>

namespace accel::inline v0_1::gradient {

/// The gradients of one model over the backwards that go through it, at any number of ranks.
///
/// Where defined they are means over the ranks (also before the first backward: DDP averages what was
/// there before), or they wait: this rank's share, from backwards that only added up; or they are
/// torn, by a backward that threw half-way.
///
/// A mean that still stands when a backward begins is divided among the ranks, so that the sum of old
/// and new arrives as mean + mean, as DDP leaves it. One that nothing was added to comes back bit for
/// bit: m / 3 * 3 is not m.
///
/// Memory   a copy of the gradients that stand, if they do: none where they are cleared after a step.
class Ledger {
 public:
  Ledger() = default;
  /// `parameters` are the trainable ones of the model.
  Ledger(std::vector<at::Tensor> parameters, int world_size)
      : parameters_(std::move(parameters)),
        world_size_(world_size),
        standing_(parameters_.size()),
        mark_of_none_(mark_of_none(parameters_.size())) {}

  [[nodiscard]] const std::vector<at::Tensor>& parameters() const { return parameters_; }

  /// They are this rank's share and wait for the last backward of a step: zero_grad keeps them. Over as
  /// soon as they are cleared, by whom ever.
  [[nodiscard]] bool waiting() const { return state_ == State::waiting && has_gradients(); }

  /// They are parts of sums. Over as soon as they are cleared, too.
  [[nodiscard]] bool torn() const { return state_ == State::torn && has_gradients(); }

  /// A backward begins; `synchronises` if it reduces. `memory()`, asked only if means stand: the flat tensors
  /// of which all gradients are views, or nothing if one lies elsewhere.
  template <class Memory>
  void begin(bool synchronises, Memory&& memory) {
    if (!has_gradients()) {  // as most steps begin
      forget();
      mark_ = mark_of_none_;
    } else {
      // At one rank a mean is kept as it is; but a window may be cut short, see rescale().
      if (state_ == State::means && (world_size_ > 1 || !synchronises)) share_out(memory());
      mark_ = mark();
    }
    in_backward_ = true;
  }

  /// A number that changes when anybody writes to a gradient: that makes a tensor, or a new version of one.
  ///
  /// Cost     some nanoseconds per parameter, and no allocation: every backward pays it twice.
  [[nodiscard]] std::uint64_t mark() const {
    std::uint64_t mark = 0;
    for (const auto& parameter : parameters_) {
      const at::Tensor& gradient = parameter.grad();
      mark = (mark + 1) * golden;
      if (!gradient.defined()) continue;
      mark = (mark + reinterpret_cast<std::uintptr_t>(gradient.unsafeGetTensorImpl())) * golden;
      mark = (mark + static_cast<std::uint64_t>(gradient._version())) * golden;
    }
    return mark;
  }

  /// Multiplies all that is there by `factor` (f32[]), means that stand as well as what waits.
  void multiply(const at::Tensor& factor) {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const at::Tensor& gradient = parameters_[i].grad();
      if (!gradient.defined()) continue;
      Standing& one = standing_[i];
      const bool is_news = has_news(i);
      const bool stands = one.is_in(gradient);
      gradient.mul_(factor);
      if (!stands) continue;
      one.mean.mul_(factor);
      if (!is_news) one.version = gradient._version();
    }
  }

  /// There is a gradient.
  [[nodiscard]] bool has_gradients() const { return has_any(parameters_); }

  /// The backward has added to one of them.
  [[nodiscard]] bool touched() const { return mark() != mark_; }

  /// There is something to reduce on this rank.
  [[nodiscard]] bool has_news() const { return waiting() || touched(); }

  /// It has ended, and nothing is reduced.
  void added_up() {
    in_backward_ = false;
    if (touched())
      state_ = State::waiting;
    else if (state_ == State::means)
      restore();
    part_shared(/*lone=*/true);
  }

  /// It has ended, and they are means.
  void reduced() {
    in_backward_ = false;
    state_ = State::means;
    agreed_ = true;
    for (std::size_t i = 0; stood_ && i < standing_.size(); ++i) standing_[i].stands = false;
    if (world_size_ == 1) part_shared(/*lone=*/true);
  }

  /// It threw, if one had begun.
  void threw() {
    if (!std::exchange(in_backward_, false)) return;
    if (touched())
      state_ = State::torn;
    else if (state_ == State::means)
      restore();
  }

  /// zero_grad for those of `which` that are this model's: means go, what waits for a reduction stays.
  /// What is torn goes as a whole, to none.
  void clear(std::span<const at::Tensor> which, bool set_to_none) {
    const c10::AutoGradMode no_grad(false);
    if (torn()) return let_go();
    const bool waits = waiting();
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      at::Tensor& gradient = parameters_[i].mutable_grad();
      if (!gradient.defined() || (waits && !standing_[i].is_in(gradient))) continue;
      if (!tensor::is_among(parameters_[i], which)) continue;
      if (waits && has_news(i))
        gradient.sub_(standing_[i].mean, 1.0 / world_size_);
      else if (set_to_none)
        gradient.reset();
      else
        gradient.detach_().zero_();
      standing_[i].stands = false;
    }
  }

  /// Nothing is left of them.
  void let_go() {
    for (auto& parameter : parameters_) parameter.mutable_grad().reset();
    state_ = State::means;
  }

  /// Whether this rank has something new for parameter i, not only a mean that stands. Before the first
  /// reduction nobody knows whether what stands is one: DDP averages it.
  [[nodiscard]] bool has_news(std::size_t i) const {
    const at::Tensor& gradient = parameters_[i].grad();
    return gradient.defined() &&
           !(agreed_ && standing_[i].is_in(gradient) && standing_[i].version == gradient._version());
  }

  /// Nobody had news for parameter i: its mean, where one stood, is what it was.
  void restore(std::size_t i) {
    const at::Tensor& gradient = parameters_[i].grad();
    if (standing_[i].stands && gradient.defined()) gradient.copy_(standing_[i].mean);
  }

  /// A mean of an earlier step stands below what waits.
  [[nodiscard]] bool has_means_below() const {
    return std::any_of(standing_.begin(), standing_.end(), [](const Standing& one) { return one.stands; });
  }

  /// What there is goes, and `gradients` (by parameter; undefined: none) wait in its place.
  void load_waiting(std::span<const at::Tensor> gradients) {
    let_go();
    forget();
    for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].mutable_grad() = gradients[i];
    state_ = State::waiting;
    mark_ = mark();
  }

  /// Multiplies what waits for a reduction; the means that stood before it stay what they are.
  void rescale(double factor) {
    if (!waiting()) return;
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (!has_news(i)) continue;
      const at::Tensor& gradient = parameters_[i].grad();
      gradient.mul_(factor);
      if (standing_[i].is_in(gradient)) gradient.add_(standing_[i].mean, (1.0 - factor) / world_size_);
    }
  }

 private:
  enum class State { means, waiting, torn };

  /// A mean as it was, and how to see that nothing was added to this rank's share of it.
  struct Standing {
    bool stands = false;
    at::Tensor mean;  // its memory serves again
    // Weak: whether somebody else holds a gradient is asked elsewhere. And its address is nobody's meanwhile.
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> share{
        c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>()};
    std::int64_t version = 0;

    [[nodiscard]] bool is_in(const at::Tensor& gradient) const {
      return stands && share._unsafe_get_target() == gradient.unsafeGetTensorImpl();
    }
  };

  /// Nothing stands.
  void forget() {
    state_ = State::means;
    if (!std::exchange(stood_, false)) return;
    means_.clear();
    for (auto& one : standing_) {
      one.stands = false;
      one.mean.reset();
    }
  }

  void share_out(const std::vector<at::Tensor>& memory) {
    const c10::AutoGradMode no_grad(false);
    stood_ = true;
    if (memory.empty()) {
      part_shared(/*lone=*/false);
      for (std::size_t i = 0; i < parameters_.size(); ++i) keep_mean(i);
    } else {
      keep_means(memory);
    }
    // Nothing is left half-way should a copy fail: this allocates nothing.
    for (const auto& flat : memory) flat.mul_(1.0 / world_size_);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Standing& one = standing_[i];
      const at::Tensor& gradient = parameters_[i].grad();
      one.stands = gradient.defined();
      if (!one.stands) continue;
      if (!memory.empty())
        gradient.unsafeGetTensorImpl()->bump_version();  // autograd is told of what it cannot see
      else if (world_size_ > 1)
        gradient.mul_(1.0 / world_size_);
      one.share = gradient.getIntrusivePtr();
      one.version = gradient._version();
    }
  }

  /// The same as keep_mean() for all of them, which lie in `memory`.
  ///
  /// Cost     a copy of the memory, and some nanoseconds per parameter.
  void keep_means(const std::vector<at::Tensor>& memory) {
    means_.resize(memory.size());
    for (std::size_t k = 0; k < memory.size(); ++k) {
      // Buckets that were planned anew may stand in another order, of another dtype and equally many elements.
      const bool serves = means_[k].defined() && means_[k].sizes() == memory[k].sizes() &&
                          means_[k].scalar_type() == memory[k].scalar_type() &&
                          means_[k].device() == memory[k].device();
      if (!serves) means_[k] = at::empty_like(memory[k]);
      means_[k].copy_(memory[k]);
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const at::Tensor& gradient = parameters_[i].grad();
      if (!gradient.defined()) continue;
      std::size_t k = 0;
      while (memory[k].const_data_ptr() != gradient.storage().data()) ++k;
      at::Tensor& mean = standing_[i].mean;
      if (!mean.defined() || !mean.is_alias_of(means_[k]) || mean.storage_offset() != gradient.storage_offset())
        mean = tensor::view_like(means_[k], gradient.storage_offset(), gradient);
    }
  }

  void keep_mean(std::size_t i) {
    at::Tensor& gradient = parameters_[i].mutable_grad();
    at::Tensor& mean = standing_[i].mean;
    standing_[i].stands = false;
    if (!gradient.defined()) {
      mean.reset();
      return;
    }
    if (gradient.is_sparse())
      gradient = gradient.to_dense();
    else if (!gradient.is_non_overlapping_and_dense())  // set by hand; nothing could be added to it
      gradient = gradient.detach().clone(at::MemoryFormat::Contiguous);
    if (mean.defined() && mean.strides() == gradient.strides() && mean.sizes() == gradient.sizes())
      mean.copy_(gradient);
    else
      mean = gradient.detach().clone();
  }

  void restore() {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (world_size_ > 1) restore(i);
      standing_[i].stands = false;
    }
  }

  /// The same where none is defined.
  [[nodiscard]] static std::uint64_t mark_of_none(std::size_t parameters) {
    std::uint64_t mark = 0;
    for (; parameters > 0; --parameters) mark = (mark + 1) * golden;
    return mark;
  }

  /// Autograd hands one tensor to all that a sum is made of, and they may keep it as their gradient: the
  /// next backward would add to it once for each, and clipping scale it so. Gives each its own.
  ///
  /// `lone` passes over gradients of which somebody has a handle, as the buckets have of theirs.
  void part_shared(bool lone) {
    shared_.clear();
    for (auto& parameter : parameters_) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined() || gradient.is_sparse() || gradient.numel() == 0) continue;
      const bool has_handle = gradient.use_count() > 1;
      if (lone ? !has_handle && gradient.storage().use_count() > 1 : has_handle || gradient.storage().use_count() > 1)
        shared_.push_back(&gradient);
    }
    const auto begin_of = [](const at::Tensor* one) { return static_cast<const char*>(one->const_data_ptr()); };
    std::sort(shared_.begin(), shared_.end(),
              [&](auto* a, auto* b) { return std::less<>()(begin_of(a), begin_of(b)); });
    const char* end = nullptr;  // of those seen
    for (at::Tensor* gradient : shared_) {
      const char* const begin = begin_of(gradient);
      const char* const own_end = begin + gradient->nbytes();
      if (end != nullptr && std::less<>()(begin, end)) *gradient = gradient->detach().clone();
      if (end == nullptr || std::less<>()(end, own_end)) end = own_end;
    }
  }

  static constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;  // Fibonacci hashing

  std::vector<at::Tensor> parameters_;
  int world_size_ = 1;
  State state_ = State::means;
  std::vector<Standing> standing_;   // by parameter
  std::vector<at::Tensor> means_;    // what their means are views of, where gradients are views, too
  std::vector<at::Tensor*> shared_;  // of part_shared()
  bool agreed_ = false;              // there has been a reduction, so that means are the same on all ranks
  bool stood_ = false;               // some mean may stand, or has left its memory
  bool in_backward_ = false;
  std::uint64_t mark_of_none_ = 0;
  std::uint64_t mark_ = 0;  // when the backward began
};

}  // namespace accel::inline v0_1::gradient
