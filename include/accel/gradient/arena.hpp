// Arena: the memory of gradients. Each has its place in it, next to those it travels with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <c10/core/Storage.h>

#include <accel/core/units.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/tensor/flat.hpp>

namespace accel::inline v0_1::gradient {

/// The gradients of parameters in flat memory, a segment per model, dtype and device, and `.grad` as views
/// of it. The views are made once; the memory stays where it is, as other ranks may know it.
///
/// What somebody holds of an earlier gradient is never written to: see leave_to_holders().
class Arena {
 public:
  Arena() = default;
  Arena(Arena&&) = default;
  Arena& operator=(Arena&&) = default;

  /// `memory`: for each segment of the layout u8[bytes], of whatever contents.
  Arena(std::vector<at::Tensor> parameters, Layout layout, const std::vector<at::Tensor>& memory)
      : parameters_(std::move(parameters)), layout_(std::move(layout)), views_(parameters_.size()) {
    for (std::size_t s = 0; s < layout_.segments.size(); ++s) {
      const auto& segment = layout_.segments[s];
      segments_.push_back({memory[s].narrow(0, 0, bytes(segment).count).view(segment.dtype), {}, 0});
      segments_.back().flat.zero_();  // what aligns is sent, and summed, as well
    }
    for (const auto& place : layout_.places) ++segments_[place.segment].views;
    for (std::size_t s = 0; s < segments_.size(); ++s) give_views(s);
  }

  /// What a segment needs.
  [[nodiscard]] static Bytes bytes(const Layout::Segment& segment) {
    return {segment.numel * static_cast<std::int64_t>(c10::elementSize(segment.dtype))};
  }

  [[nodiscard]] const Layout& layout() const { return layout_; }
  [[nodiscard]] const std::vector<at::Tensor>& parameters() const { return parameters_; }

  /// The gradients of [begin, end) of a segment, for sums over the ranks. Those of complex numbers are sums
  /// of their parts.
  [[nodiscard]] at::Tensor payload(const PlannedBucket& bucket) const {
    return tensor::real_parts(segments_[bucket.segment].flat.slice(0, bucket.begin, bucket.end));
  }

  /// Parameter i's gradient is its view.
  [[nodiscard]] bool is_in_place(std::size_t i) const {
    return parameters_[i].grad().unsafeGetTensorImpl() == views_[i].unsafeGetTensorImpl();
  }

  /// Parameter i's place as a tensor like it, whether that is its gradient now or not.
  [[nodiscard]] const at::Tensor& view(std::size_t i) const { return views_[i]; }

  /// On the CPU a gradient moves in as soon as it is there: it is warm then, and what autograd made it in
  /// serves for the next. A GPU takes a bucket at once.
  [[nodiscard]] bool moves_at_once(std::size_t i) const { return parameters_[i].device().is_cpu(); }

  /// The gradients that parameters [first, end) have: those in place as ranges of memory, as long as nothing
  /// lies between them, and others one by one. None is without an element.
  [[nodiscard]] std::vector<at::Tensor> pieces(std::size_t first, std::size_t end) const {
    std::vector<at::Tensor> all;
    std::size_t segment = 0;
    std::int64_t begin = 0;
    std::int64_t until = -1;           // where the range that is open ends
    const at::Tensor* only = nullptr;  // the gradient that it consists of, if it is one
    const auto close = [&] {
      if (until > begin) all.push_back(only != nullptr ? *only : segments_[segment].flat.slice(0, begin, until));
      until = -1;
    };
    for (const std::size_t i : layout_.order) {
      const at::Tensor& gradient = parameters_[i].grad();
      if (i < first || i >= end || !gradient.defined() || gradient.numel() == 0) continue;
      if (!is_in_place(i)) {
        all.push_back(gradient);
        continue;
      }
      const Layout::Place& place = layout_.places[i];
      if (place.segment == segment && place.offset == until) {
        only = nullptr;
      } else {
        close();
        segment = place.segment;
        begin = place.offset;
        only = &gradient;
      }
      until = place.end();
    }
    close();
    return all;
  }

  /// The flat memory of a model, by its parameters [first, end), if each gradient that there is lies in its
  /// place; else nothing.
  [[nodiscard]] std::vector<at::Tensor> memory_of(std::size_t first, std::size_t end) const {
    for (std::size_t i = first; i < end; ++i)
      if (parameters_[i].grad().defined() && !is_in_place(i)) return {};
    std::vector<at::Tensor> memory;
    const std::size_t model = layout_.segments[layout_.places[first].segment].model;
    for (std::size_t s = 0; s < segments_.size(); ++s)
      if (layout_.segments[s].model == model) memory.push_back(segments_[s].flat);
    return memory;
  }

  /// Before anything is written: somebody may hold a gradient of an earlier step that will be. They keep
  /// what they see, in other memory. What holds a gradient that is still its parameter's follows it, as
  /// it does in LibTorch.
  ///
  /// Cost     two comparisons per parameter, unless somebody does.
  void leave_to_holders() {
    for (auto& segment : segments_) segment.cleared = 0;
    for (std::size_t i = 0; i < views_.size(); ++i) {
      if (is_in_place(i)) continue;
      Segment& segment = segments_[layout_.places[i].segment];
      ++segment.cleared;
      if (views_[i].use_count() == 1) continue;
      views_[i].set_data(views_[i].clone());
      views_[i] = make_view(i);
    }
    // By a tensor that shares the memory, as `.detach()` gives: whose, a storage does not tell.
    for (std::size_t s = 0; s < segments_.size(); ++s)
      if (segments_[s].cleared > 0 && segments_[s].storage.use_count() != 1 + segments_[s].views) part_storages(s);
  }

  /// Brings parameter i's gradient, which is elsewhere, into its place, times `factor`.
  void move_in(std::size_t i, double factor = 1.0) {
    copy(dense_gradient(i), i, factor);
    take_place(i);
  }

  /// The same for all of `which` that are elsewhere, in one pass where a call costs more than it moves.
  void move_in_all(std::span<const std::size_t> which) {
    elsewhere_.clear();
    for (const std::size_t i : which) {
      if (!parameters_[i].grad().defined() || is_in_place(i)) continue;
      if (moves_at_once(i))
        move_in(i);
      else
        elsewhere_.push_back(i);
    }
    if (elsewhere_.empty()) return;
    for (const std::size_t i : elsewhere_) {
      sources_.push_back(dense_gradient(i).variable_data());
      targets_.push_back(views_[i]);
    }
    at::_foreach_copy_(targets_, sources_);
    sources_.clear();
    targets_.clear();
    for (const std::size_t i : elsewhere_) take_place(i);
  }

  /// Nothing is what this rank has for parameter i.
  void zero(std::size_t i) {
    const at::Tensor& view = views_[i];
    if (view.numel() == 0) return;
    if (view.is_cpu())
      std::memset(view.mutable_data_ptr(), 0, view.nbytes());
    else
      view.zero_();
  }

  /// What has arrived in its place becomes parameter i's gradient.
  void show(std::size_t i) { parameters_[i].mutable_grad() = views_[i]; }

  /// Other places, in other memory, as in the constructor. Gradients move along.
  void move_to(Layout layout, const std::vector<at::Tensor>& memory) {
    leave_to_holders();
    Arena other(parameters_, std::move(layout), memory);
    for (std::size_t i = 0; i < views_.size(); ++i)
      if (is_in_place(i)) {
        other.views_[i].copy_(views_[i]);
        other.adopt(views_[i], i);
      }
    *this = std::move(other);
  }

 private:
  struct Segment {
    at::Tensor flat;       // the memory as the backend has given it; never in a user's hands
    c10::Storage storage;  // the same memory once more, of which gradients are views: counts who holds any
    std::size_t views = 0;
    std::size_t cleared = 0;  // of them, that are nobody's gradient now
  };

  void give_views(std::size_t s) {
    Segment& segment = segments_[s];
    auto* const memory = segment.flat.mutable_data_ptr();
    const auto size = static_cast<std::size_t>(bytes(layout_.segments[s]).count);
    segment.storage =
        c10::Storage(c10::Storage::use_byte_size_t(), size,
                     c10::DataPtr(
                         memory, new at::Tensor(segment.flat),  // kept as long as anybody's view of it
                         [](void* kept) { delete static_cast<at::Tensor*>(kept); }, segment.flat.device()));
    for (std::size_t i = 0; i < views_.size(); ++i)
      if (layout_.places[i].segment == s) views_[i] = make_view(i);
  }

  /// Shares the memory without being a view to autograd: LibTorch's zero_grad calls detach_ on it.
  [[nodiscard]] at::Tensor make_view(std::size_t i) const {
    const Layout::Place& place = layout_.places[i];
    const Segment& segment = segments_[place.segment];
    const at::Tensor flat =
        at::empty({0}, segment.flat.options()).set_(segment.storage, 0, segment.flat.sizes(), segment.flat.strides());
    return tensor::view_like(flat, place.offset, parameters_[i]).variable_data();
  }

  /// The storage that others know goes on with a copy, and the memory gets a new one, which is ours.
  void part_storages(std::size_t s) {
    const auto old = views_;
    const c10::Storage theirs = segments_[s].storage;
    const at::Tensor copy = segments_[s].flat.clone();
    const c10::DataPtr ours = theirs.set_data_ptr(copy.storage().set_data_ptr(c10::DataPtr(nullptr, copy.device())));
    give_views(s);
    for (std::size_t i = 0; i < views_.size(); ++i)
      if (layout_.places[i].segment == s && parameters_[i].grad().unsafeGetTensorImpl() == old[i].unsafeGetTensorImpl())
        adopt(old[i], i);
  }

  [[nodiscard]] const at::Tensor& dense_gradient(std::size_t i) const {
    at::Tensor& gradient = parameters_[i].mutable_grad();
    if (gradient.is_sparse()) gradient = gradient.to_dense();
    return gradient;
  }

  /// What was copied to its place is the gradient there from now on.
  void take_place(std::size_t i) {
    at::Tensor& gradient = parameters_[i].mutable_grad();
    // A handle in the user's hands stays the gradient, as it does where LibTorch adds to it.
    if (gradient.use_count() > 1 && !gradient.requires_grad())
      adopt(gradient, i);
    else
      gradient = views_[i];
  }

  /// Makes `gradient` the view of parameter i: the same tensor to whoever has it, in our memory.
  void adopt(at::Tensor gradient, std::size_t i) {
    gradient.set_data(views_[i]);
    views_[i] = std::move(gradient);
  }

  void copy(const at::Tensor& gradient, std::size_t i, double factor) {
    at::Tensor& view = views_[i];
    if (view.numel() == 0) return;
    const bool as_it_lies = view.is_cpu() && gradient.is_cpu() && gradient.scalar_type() == view.scalar_type() &&
                            gradient.strides() == view.strides() && gradient.sizes() == view.sizes() &&
                            view.is_non_overlapping_and_dense() && !gradient.is_conj() && !gradient.is_neg();
    if (as_it_lies && factor == 1.0)
      std::memcpy(view.mutable_data_ptr(), gradient.const_data_ptr(), view.nbytes());
    else if (as_it_lies && view.scalar_type() == at::kFloat)
      multiply<float>(gradient, factor, view);
    else if (as_it_lies && view.scalar_type() == at::kDouble)
      multiply<double>(gradient, factor, view);
    else if (factor == 1.0)
      view.copy_(gradient);
    else
      at::mul_out(view, gradient.detach(), at::native::wrapped_scalar_tensor(factor));
  }

  /// The same numbers as LibTorch's mul, which allocates.
  template <class T>
  static void multiply(const at::Tensor& gradient, double factor, at::Tensor& view) {
    const T* const from = gradient.const_data_ptr<T>();
    T* const to = view.mutable_data_ptr<T>();
    const T by = static_cast<T>(factor);
    for (std::int64_t k = 0; k < view.numel(); ++k) to[k] = from[k] * by;
  }

  std::vector<at::Tensor> parameters_;
  Layout layout_;
  std::vector<at::Tensor> views_;  // by parameter, each of its shape
  std::vector<Segment> segments_;
  std::vector<at::Tensor> sources_, targets_;  // members, so that a step allocates nothing
  std::vector<std::size_t> elsewhere_;
};

}  // namespace accel::inline v0_1::gradient
