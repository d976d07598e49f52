// FlatGroup: parameters in flat memory, in the order in which their gradients lie, so that one call steps many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>

#include <accel/optim/borrowed.hpp>
#include <accel/optim/homes.hpp>
#include <accel/optim/low_precision.hpp>
#include <accel/optim/update_rule.hpp>
#include <accel/tensor/copy_all.hpp>
#include <accel/tensor/packed_memory.hpp>

namespace accel::inline v0_1::optim {

/// How the parameters of a group are stepped.
struct GroupLayout {
  std::size_t states = 0;                                     // of each parameter
  Homes::Initial initial{};                                   // makes them
  bool is_elementwise = true;                                 // parameters may be merged; else each as a whole
  LowPrecision low_precision = LowPrecision::master_weights;  // of bf16 and fp16
};

namespace detail {

/// What has the layout of `tensor` and holds nothing, on the meta device: to ask what a state looks like.
[[nodiscard]] inline at::Tensor without_memory(const at::Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta).requires_grad(false));
}

}  // namespace detail

/// The parameters of one group of an optimizer and the state of each.
///
/// Where gradients lie together in one storage, as a reducer puts them, their parameters and states are
/// moved into flat memory of the same shape, and every run of neighbours that fill their cache lines is one
/// piece. A parameter whose memory somebody shares stays where it is. Otherwise nothing is moved: where every
/// backward makes gradients of its own, as at one rank, each is a piece, wherever it is then.
///
/// Memory   of each parameter its states, and 4 bytes per element of its master weights if it has them.
/// Cost     in steady state a few comparisons per parameter, and nothing is allocated.
class FlatGroup {
 public:
  /// The state of one parameter; undefined before its first step.
  struct State {
    std::vector<at::Tensor> tensors;
    at::Tensor master;  // f32, where it has one
    std::int64_t steps = 0;
  };

  explicit FlatGroup(GroupLayout layout) : layout_(std::move(layout)), homes_(layout_.states, layout_.initial) {}

  [[nodiscard]] const GroupLayout& layout() const { return layout_; }

  /// What a step of `parameters` consists of: those that have a gradient.
  [[nodiscard]] std::vector<Batch>& batches(const std::vector<at::Tensor>& parameters) {
    if (!follow(parameters)) {
      begin(parameters);
      std::vector<std::size_t> all(parameters.size());
      std::iota(all.begin(), all.end(), std::size_t{0});
      batches_ = look(parameters, all);
      is_planned_ = true;
    }
    return batches_;
  }

  /// What a step of some of them alone consists of. Call took() when it is taken.
  ///
  /// Cost     a few tensors are made for every piece.
  [[nodiscard]] std::vector<Batch> batches_of(const std::vector<at::Tensor>& parameters,
                                              const std::vector<std::size_t>& which) {
    begin(parameters);
    return look(parameters, which);
  }
  void took(const Batch& batch) {
    const std::int64_t steps = batch.taken();
    for (const std::size_t i : batch.members) members_[i].steps = steps;
  }

  /// Adds what a step of a parameter, number `i`, writes to; gives false if the step may move some of that first.
  [[nodiscard]] bool add_written(const at::Tensor& parameter, std::size_t i, std::vector<at::Tensor>& all) const {
    if (i >= members_.size() || !stays(members_[i], parameter)) return false;
    all.push_back(parameter);
    for (const at::Tensor& state : members_[i].states)
      if (state.defined()) all.push_back(state);
    if (members_[i].master.defined()) all.push_back(members_[i].master);
    return true;
  }

  /// A batch of these was stepped, and, if `with_gradients`, what its gradients were multiplied by taken out of them.
  void wrote(const std::vector<at::Tensor>& parameters, const Batch& batch, bool with_gradients) {
    for (const std::size_t i : batch.members) {
      const Member& member = members_[i];
      if (member.is_strided) parameters[i].detach().copy_(batch.parameters[member.piece]);
      // A piece is no view of its parameters, and fused kernels count nothing: autograd is told that what a graph may
      // have saved has changed, and a copy that is being made that its source has.
      parameters[i].unsafeGetTensorImpl()->bump_version();
      for (const at::Tensor& state : member.states)
        if (state.defined()) state.unsafeGetTensorImpl()->bump_version();
      if (member.master.defined()) member.master.unsafeGetTensorImpl()->bump_version();
      if (with_gradients && member.is_copied) parameters[i].grad().copy_(batch.gradients[member.piece]);
    }
  }

  /// The state of each of `parameters`.
  ///
  /// Cost     the host waits if steps are counted on a GPU, once for each count.
  [[nodiscard]] std::vector<State> states(const std::vector<at::Tensor>& parameters) const {
    std::vector<std::int64_t> steps;
    for (const auto& member : members_) steps.push_back(member.steps);
    for (const auto& batch : batches_) {
      const std::int64_t taken = batch.taken();
      for (const std::size_t i : batch.members) steps[i] = taken;
    }
    std::vector<State> all(parameters.size());
    for (std::size_t i = 0; i < parameters.size(); ++i)
      if (const std::size_t known = find(parameters[i], i); known < members_.size())
        all[i] = {members_[known].states, members_[known].master, steps[known]};
    return all;
  }

  /// Gives each parameter what it had in another run, or under another layout; none: it begins anew. Copies; with
  /// `adopts` only what does not lie as it would here: the rest is nobody else's.
  void load(const std::vector<at::Tensor>& parameters, const std::vector<State>& states, GroupLayout layout,
            bool adopts = false) {
    begin(parameters);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      Member& member = members_[i];
      if (!member.place.is_at_home) continue;
      member.states.clear();
      homes_.leave(parameters[i], member.place, member.states, member.data == detail::address(parameters[i]));
    }
    layout_ = std::move(layout);
    homes_ = Homes(layout_.states, layout_.initial);
    // Of each parameter what is there for it, and its place.
    struct Loaded {
      std::size_t parameter;
      const at::Tensor* from;
      at::Tensor like;  // on the meta device
      at::Tensor* to;
    };
    std::vector<Loaded> loaded;
    tensor::PackedMemory memory;
    const auto take = [&](std::size_t i, const at::Tensor& from, const at::Tensor& like, at::Tensor& to) {
      if (adopts && from.device() == parameters[i].device() && from.scalar_type() == like.scalar_type() &&
          from.sizes() == like.sizes() && from.strides() == like.strides()) {
        to = from;
        return;
      }
      loaded.push_back({i, &from, like, &to});
      memory.plan(like, parameters[i].device());
    };
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto& [tensors, master, steps] = states[i];
      const at::Tensor own = parameters[i].detach();
      const at::Tensor like =
          is_in_float(own) ? detail::without_memory(own).to(at::kFloat) : detail::without_memory(own);
      Member& fresh = members_[i] = {};
      fresh.parameter = parameters[i].unsafeGetTensorImpl();
      fresh.steps = steps;
      fresh.states.resize(steps > 0 ? layout_.states : 0);
      for (std::size_t s = 0; s < fresh.states.size(); ++s) {
        const at::Tensor state = layout_.initial(s, like);
        if (s < tensors.size() && tensors[s].defined() && state.defined())
          take(i, tensors[s], state, fresh.states[s]);
        else
          fresh.states[s] = layout_.initial(s, is_in_float(own) ? own.to(at::kFloat) : own);
      }
      if (has_master(own) && master.defined()) take(i, master, like, fresh.master);
    }
    std::vector<tensor::Copy> copies;
    for (const Loaded& one : loaded) {
      *one.to = memory.give(one.like, parameters[one.parameter].device());
      copies.push_back({*one.to, *one.from});
    }
    tensor::copy_all(copies);
  }

 private:
  static constexpr int most_moves = 8;  // more than a reducer's plans; whose gradients wander is not to copy for ever

  struct Member {
    const c10::TensorImpl* parameter = nullptr;
    const void* data = nullptr;           // of the parameter, as it was looked at last ...
    const void* gradient = nullptr;       // ... and of its gradient; null: it had none
    const void* last_gradient = nullptr;  // where the last one lay that it had
    at::ScalarType gradient_dtype = at::ScalarType::Undefined;
    bool is_copied = false;          // it is not laid out as the parameter is: a copy of it is stepped with
    bool is_strided = false;         // nor is the parameter dense: a copy of it is stepped
    Place place;                     // among the homes
    std::vector<at::Tensor> states;  // views of those of its home, or its own
    at::Tensor master;               // f32
    std::int64_t steps = 0;
    int moves = 0;                     // out of a home
    std::size_t batch = 0, piece = 0;  // where it stands by itself, if it is not at home
  };

  /// The next step finds everything where the last one has left it.
  [[nodiscard]] bool stays(const Member& member, const at::Tensor& parameter) const {
    const bool may_move_in = !member.place.is_at_home && member.moves < most_moves && is_merged(parameter);
    return member.parameter == parameter.unsafeGetTensorImpl() && member.data == detail::address(parameter) &&
           member.last_gradient == detail::address(parameter.grad()) && !may_move_in &&
           member.states.size() == layout_.states;
  }

  /// Stepped in f32, by itself.
  [[nodiscard]] bool is_in_float(const at::Tensor& parameter) const {
    return optim::is_in_float(parameter, layout_.low_precision);
  }
  [[nodiscard]] bool has_master(const at::Tensor& parameter) const {
    return layout_.low_precision == LowPrecision::master_weights && is_low_precision(parameter);
  }
  /// May be stepped together with its neighbours.
  [[nodiscard]] bool is_merged(const at::Tensor& parameter) const {
    return layout_.is_elementwise && !is_in_float(parameter);
  }

  /// Whether the batches of the last step are those of this one, with gradients where these lie now.
  [[nodiscard]] bool follow(const std::vector<at::Tensor>& parameters) {
    if (!is_planned_ || members_.size() != parameters.size()) return false;
    bool moved = false;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Member& member = members_[i];
      const at::Tensor& gradient = parameters[i].grad();
      if (member.parameter != parameters[i].unsafeGetTensorImpl() || member.data != detail::address(parameters[i]) ||
          member.is_copied)
        return false;
      if (gradient.defined() &&
          (!are_laid_out_alike(parameters[i], gradient) || gradient.scalar_type() != member.gradient_dtype))
        return false;
      if (member.gradient == detail::address(gradient)) continue;
      if (member.gradient == nullptr || member.place.is_at_home || !detail::is_alone(gradient, parameters[i]))
        return false;
      moved = true;
    }
    for (std::size_t i = 0; moved && i < parameters.size(); ++i) {
      Member& member = members_[i];
      const at::Tensor& gradient = parameters[i].grad();
      if (member.gradient == detail::address(gradient)) continue;
      batches_[member.batch].gradients[member.piece].storage().set_data_ptr_noswap(detail::pointer_to(gradient));
      member.gradient = member.last_gradient = detail::address(gradient);
    }
    return true;
  }

  /// Lets go of what was made for an earlier step.
  void begin(const std::vector<at::Tensor>& parameters) {
    for (const auto& batch : batches_) took(batch);
    batches_.clear();
    is_planned_ = false;
    const auto is = [](const Member& member, const at::Tensor& parameter) {
      return member.parameter == parameter.unsafeGetTensorImpl();
    };
    if (!std::equal(members_.begin(), members_.end(), parameters.begin(), parameters.end(), is)) match(parameters);
  }

  [[nodiscard]] std::vector<Batch> look(const std::vector<at::Tensor>& parameters,
                                        const std::vector<std::size_t>& which) {
    std::vector<std::size_t> order;  // those with a gradient, as gradients lie in memory
    for (const std::size_t i : which) {
      at::Tensor& gradient = parameters[i].mutable_grad();
      if (gradient.defined() && gradient.layout() != at::kStrided) gradient = gradient.to_dense();
      Member& member = members_[i];
      const bool moved = gradient.defined() && member.last_gradient != detail::address(gradient);
      const bool lies_there = member.data == detail::address(parameters[i]);
      if (member.place.is_at_home && (moved || !lies_there)) {
        homes_.leave(parameters[i], member.place, member.states, lies_there);
        ++member.moves;
      }
      member.is_copied = member.is_strided = false;
      member.data = detail::address(parameters[i]);
      member.gradient = detail::address(gradient);
      if (!gradient.defined()) continue;
      member.last_gradient = member.gradient;
      member.gradient_dtype = gradient.scalar_type();
      order.push_back(i);
    }
    homes_.drop_empty();
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const bool a_is_empty = parameters[a].numel() == 0;  // they lie nowhere
      const bool b_is_empty = parameters[b].numel() == 0;
      return a_is_empty == b_is_empty && !a_is_empty ? std::less<>()(members_[a].gradient, members_[b].gradient)
                                                     : b_is_empty && !a_is_empty;
    });
    settle_down(parameters, order);
    for (const std::size_t i : order) make_states(parameters[i], members_[i]);
    std::vector<Batch> batches;
    for (std::size_t begin = 0; begin < order.size();) {
      std::size_t end = begin + 1;
      while (end < order.size() && are_neighbours(parameters, order[end - 1], order[end])) ++end;
      add_piece(parameters,
                {order.begin() + static_cast<std::ptrdiff_t>(begin), order.begin() + static_cast<std::ptrdiff_t>(end)},
                batches);
      begin = end;
    }
    return batches;
  }

  /// Which member it is, `here` most likely; as many as there are if it is none.
  [[nodiscard]] std::size_t find(const at::Tensor& parameter, std::size_t here) const {
    const auto* impl = parameter.unsafeGetTensorImpl();
    if (here < members_.size() && members_[here].parameter == impl) return here;
    const auto is = [&](const Member& one) { return one.parameter == impl; };
    return static_cast<std::size_t>(std::find_if(members_.begin(), members_.end(), is) - members_.begin());
  }

  /// Each parameter keeps what it had, though the list may have become another.
  void match(const std::vector<at::Tensor>& parameters) {
    std::vector<Member> found(parameters.size());
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (const std::size_t known = find(parameters[i], i); known < members_.size())
        found[i] = std::exchange(members_[known], {});
      found[i].parameter = parameters[i].unsafeGetTensorImpl();
    }
    for (const auto& gone : members_) homes_.forget(gone.place);
    members_ = std::move(found);
  }

  /// Gives those a home that have none and whose gradients lie together.
  void settle_down(const std::vector<at::Tensor>& parameters, const std::vector<std::size_t>& order) {
    const auto can_move = [&](std::size_t i) {
      return !members_[i].place.is_at_home && members_[i].moves < most_moves && is_merged(parameters[i]) &&
             parameters[i].storage().use_count() == 1;
    };
    for (std::size_t begin = 0; begin < order.size();) {
      std::vector<std::int64_t> offsets{0};
      std::size_t end = begin + 1;
      while (can_move(order[begin]) && end < order.size() && can_move(order[end])) {
        const std::int64_t span = Homes::distance(parameters[order[end - 1]], parameters[order[end]]);
        if (span == 0) break;
        offsets.push_back(offsets.back() + span);
        ++end;
      }
      if (end - begin > 1) {
        const auto places = homes_.move_in(parameters, &order[begin], offsets);
        for (std::size_t k = 0; k < places.size(); ++k) {
          members_[order[begin + k]].place = places[k];
          members_[order[begin + k]].data = detail::address(parameters[order[begin + k]]);
        }
      }
      begin = end;
    }
  }

  void make_states(const at::Tensor& parameter, Member& member) {
    if (member.place.is_at_home) return homes_.make_states(parameter, member.place, member.states);
    const at::Tensor own = parameter.detach();
    if (!is_in_float(parameter)) {
      while (member.states.size() < layout_.states) member.states.push_back(layout_.initial(member.states.size(), own));
      return;
    }
    if (member.states.size() < layout_.states) {
      const at::Tensor like = own.to(at::kFloat);
      while (member.states.size() < layout_.states)
        member.states.push_back(layout_.initial(member.states.size(), like));
    }
    if (has_master(parameter) && !member.master.defined()) member.master = own.to(at::kFloat);
  }

  [[nodiscard]] bool are_neighbours(const std::vector<at::Tensor>& parameters, std::size_t a, std::size_t b) const {
    const Member& first = members_[a];
    const Member& second = members_[b];
    // LibTorch's loops for the CPU round what is left over at the end of a tensor otherwise than what fills
    // a vector: a piece ends there, so that every element is what it is where each tensor is stepped alone.
    if (parameters[a].is_cpu() && parameters[a].nbytes() % 64 != 0) return false;
    if (!first.place.is_at_home || !second.place.is_at_home || first.place.home != second.place.home ||
        first.steps != second.steps)
      return false;
    const std::int64_t span = Homes::distance(parameters[a], parameters[b]);
    return span > 0 && second.place.offset - first.place.offset == span;
  }

  void add_piece(const std::vector<at::Tensor>& parameters, const std::vector<std::size_t>& run,
                 std::vector<Batch>& batches) {
    const Member& first = members_[run.front()];
    const at::Tensor& parameter = parameters[run.front()];
    auto batch = std::find_if(batches.begin(), batches.end(), [&](const Batch& one) {
      return one.count == first.steps && one.parameters.front().scalar_type() == parameter.scalar_type() &&
             one.parameters.front().device() == parameter.device();
    });
    if (batch == batches.end()) {
      batch = batches.insert(batch, Batch{});
      batch->states.resize(layout_.states);
      batch->count = first.steps;
      batch->steps.push_back(at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false)));
    } else {
      batch->steps.push_back(batch->steps.front());
    }
    batch->members.insert(batch->members.end(), run.begin(), run.end());
    if (run.size() == 1) {
      Member& member = members_[run.front()];
      member.batch = static_cast<std::size_t>(batch - batches.begin());
      member.piece = batch->parameters.size();
      const at::Tensor& gradient = parameter.grad();
      const at::Tensor own = parameter.detach();
      // In f32 it may be more exact than its parameter.
      const auto dtype = is_in_float(parameter) ? gradient.scalar_type() : parameter.scalar_type();
      member.is_strided = !parameter.is_non_overlapping_and_dense();
      member.is_copied =
          member.is_strided || !are_laid_out_alike(parameter, gradient) || gradient.scalar_type() != dtype;
      batch->parameters.push_back(member.is_strided ? at::empty_like(own).copy_(own) : own);
      batch->gradients.push_back(member.is_copied
                                     ? at::empty_like(own, own.options().dtype(dtype)).copy_(gradient)
                                     : detail::memory_of(gradient, parameter.sizes(), parameter.strides()));
      for (std::size_t s = 0; s < layout_.states; ++s) batch->states[s].push_back(member.states[s]);
      if (member.master.defined()) batch->masters.push_back(member.master);
      return;
    }
    const std::int64_t numel = members_[run.back()].place.offset + parameters[run.back()].numel() - first.place.offset;
    batch->parameters.push_back(homes_.parameters(first.place, numel));
    batch->gradients.push_back(detail::memory_of(parameter.grad(), {numel}, {1}));
    for (std::size_t s = 0; s < layout_.states; ++s) batch->states[s].push_back(homes_.state(s, first.place, numel));
  }

  GroupLayout layout_;
  std::vector<Member> members_;  // by parameter
  Homes homes_;
  std::vector<Batch> batches_;
  bool is_planned_ = false;  // the batches are those of a whole step
};

}  // namespace accel::inline v0_1::optim
