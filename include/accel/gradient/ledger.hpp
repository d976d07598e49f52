// Ledger: what the gradients of a model are between two backwards. Known here and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>

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
      : parameters_(std::move(parameters)), world_size_(world_size), standing_(parameters_.size()) {
    for (const auto& parameter : parameters_)
      if (parameter.numel() == 1) numbers_.push_back(parameter);
  }

  [[nodiscard]] const std::vector<at::Tensor>& parameters() const { return parameters_; }

  /// They are this rank's share and wait for the last backward of a step: zero_grad keeps them.
  [[nodiscard]] bool waiting() const { return state_ == State::waiting; }

  /// They are parts of sums. Over as soon as they are cleared, by whom ever.
  [[nodiscard]] bool torn() const {
    if (state_ != State::torn) return false;
    for (const auto& parameter : parameters_)
      if (parameter.grad().defined()) return true;
    return false;
  }

  /// A backward begins; `synchronises` if it reduces.
  void begin(bool synchronises) {
    if (state_ == State::torn) state_ = State::means;  // there is nothing left of them, see torn()
    // At one rank a mean is kept as it is; but a window may be cut short, see rescale().
    if (state_ == State::means && (world_size_ > 1 || !synchronises)) share_out();
    mark_ = mark();
    in_backward_ = true;
  }

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
    part_numbers();
  }

  /// It has ended, and they are means.
  void reduced() {
    in_backward_ = false;
    state_ = State::means;
    for (auto& one : standing_) one.stands = false;
    if (world_size_ == 1) part_numbers();
  }

  /// It threw, if one had begun.
  void threw() {
    if (!std::exchange(in_backward_, false)) return;
    if (touched())
      state_ = State::torn;
    else if (state_ == State::means)
      restore();
  }

  /// Whether this rank has something new for parameter i, not only a mean that stands.
  [[nodiscard]] bool has_news(std::size_t i) const {
    const at::Tensor& gradient = parameters_[i].grad();
    return gradient.defined() && !(standing_[i].is_in(gradient) && standing_[i].version == gradient._version());
  }

  /// Nobody had news for parameter i: its mean, where one stood, is what it was.
  void restore(std::size_t i) {
    at::Tensor& gradient = parameters_[i].mutable_grad();
    if (standing_[i].stands && gradient.defined()) gradient.copy_(standing_[i].mean);
  }

  /// Multiplies what waits for a reduction; the means that stood before it stay what they are.
  void rescale(double factor) {
    if (!waiting()) return;
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (!has_news(i)) continue;
      at::Tensor& gradient = parameters_[i].mutable_grad();
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

  void share_out() {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      at::Tensor& gradient = parameters_[i].mutable_grad();
      Standing& one = standing_[i];
      one.stands = gradient.defined();
      if (!one.stands) {
        one.mean.reset();
        continue;
      }
      if (gradient.is_sparse()) gradient = gradient.to_dense();
      if (one.mean.defined() && one.mean.strides() == gradient.strides() && one.mean.sizes() == gradient.sizes())
        one.mean.copy_(gradient);
      else
        one.mean = gradient.detach().clone();
      if (world_size_ > 1) gradient.mul_(1.0 / world_size_);
      one.share = gradient.getIntrusivePtr();
      one.version = gradient._version();
    }
  }

  void restore() {
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (world_size_ > 1) restore(i);
      standing_[i].stands = false;
    }
  }

  /// A number that changes when backward adds to a gradient: it makes a tensor, or a new version of one.
  ///
  /// Cost     some nanoseconds per parameter, and no allocation: every backward pays it twice.
  [[nodiscard]] std::uint64_t mark() const {
    std::uint64_t mark = 0;
    for (const auto& parameter : parameters_) {
      const at::Tensor& gradient = parameter.grad();
      constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;  // Fibonacci hashing
      mark = (mark + reinterpret_cast<std::uintptr_t>(gradient.unsafeGetTensorImpl())) * golden;
      if (gradient.defined()) mark = (mark + static_cast<std::uint64_t>(gradient._version())) * golden;
    }
    return mark;
  }

  /// Autograd hands one tensor to all that a sum of single numbers is made of, and they keep it as their
  /// gradient: the next backward would add to it once for each.
  void part_numbers() {
    for (auto& number : numbers_) {
      at::Tensor& gradient = number.mutable_grad();
      if (gradient.defined() && !gradient.is_sparse() && gradient.storage().use_count() > 1 &&
          gradient.use_count() == 1)
        gradient = gradient.detach().clone();
    }
  }

  std::vector<at::Tensor> parameters_;
  int world_size_ = 1;
  State state_ = State::means;
  std::vector<Standing> standing_;   // by parameter
  std::vector<at::Tensor> numbers_;  // parameters of one element
  bool in_backward_ = false;
  std::uint64_t mark_ = 0;  // when the backward began
};

}  // namespace accel::inline v0_1::gradient
