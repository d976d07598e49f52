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
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/Storage.h>

#include <accel/tensor/flat.hpp>

namespace accel::inline v0_1::optim {

/// What is stepped in one call: pieces of flat memory, or parameters as they are, with equal counts of steps.
struct Batch {
  std::vector<at::Tensor> parameters, gradients;
  std::vector<std::vector<at::Tensor>> states;  // [state][piece]
  std::vector<at::Tensor> steps;                // f32 scalars, one for each piece: all the same tensor
  std::int64_t count = 0;                       // of steps taken

  std::vector<std::size_t> members;  // which parameters these are
};

/// The parameters of one group of an optimizer and the state of each.
///
/// Where gradients lie together in one storage, as a reducer puts them, their parameters and states are
/// moved into flat memory of the same shape, and every run of neighbours that fill their cache lines is one
/// piece. A parameter whose memory somebody shares stays where it is. Otherwise nothing is moved: where every
/// backward makes gradients of its own, as at one rank, each is a piece, wherever it is then.
///
/// Memory   of each parameter its states; what aligns is less than 64 bytes each.
/// Cost     in steady state a few comparisons per parameter, and nothing is allocated.
class FlatGroup {
 public:
  /// The state of one parameter; undefined before its first step.
  struct State {
    std::vector<at::Tensor> tensors;
    std::int64_t steps = 0;
  };

  explicit FlatGroup(std::size_t states) : states_(states) {}

  /// What a step of `parameters` consists of: those that have a gradient.
  [[nodiscard]] std::vector<Batch>& batches(const std::vector<at::Tensor>& parameters) {
    if (!follow(parameters)) {
      begin(parameters);
      std::vector<std::size_t> all(parameters.size());
      std::iota(all.begin(), all.end(), std::size_t{0});
      batches_ = look(parameters, all);
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
    for (const std::size_t i : batch.members) members_[i].steps = batch.count;
  }

  /// The state of parameter i.
  [[nodiscard]] State state(std::size_t i) const {
    if (i >= members_.size()) return {};
    State state{members_[i].states, members_[i].steps};
    for (const auto& batch : batches_)
      if (std::find(batch.members.begin(), batch.members.end(), i) != batch.members.end()) state.steps = batch.count;
    return state;
  }

 private:
  struct Member {
    const c10::TensorImpl* parameter = nullptr;
    const void* data = nullptr;           // of the parameter, as it was looked at last ...
    const void* gradient = nullptr;       // ... and of its gradient; null: it had none
    const void* last_gradient = nullptr;  // where the last one lay that it had
    bool is_copied = false;               // it is not laid out as the parameter is: a copy of it is stepped with
    bool is_at_home = false;              // it lies in one of our flat buffers: ...
    std::size_t home = 0;                 // ... in this one, ...
    std::int64_t offset = 0;              // ... from this element on
    std::vector<at::Tensor> states;       // views of those of its home, or its own
    std::int64_t steps = 0;
    std::size_t batch = 0, piece = 0;  // where it stands by itself, if it is not at home
  };

  /// Flat memory of parameters and their states.
  struct Home {
    at::Tensor parameters;
    std::vector<at::Tensor> states;
    std::size_t members = 0;
  };

  /// Where a tensor lies; null only if it is undefined.
  [[nodiscard]] static const void* address(const at::Tensor& tensor) {
    static constexpr char nowhere = 0;
    if (!tensor.defined()) return nullptr;
    return tensor.layout() == at::kStrided && tensor.numel() > 0 ? tensor.const_data_ptr() : &nowhere;
  }

  /// Whether the batches of the last step are those of this one, with gradients where these lie now.
  [[nodiscard]] bool follow(const std::vector<at::Tensor>& parameters) {
    if (members_.size() != parameters.size()) return false;
    bool moved = false;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Member& member = members_[i];
      const at::Tensor& gradient = parameters[i].grad();
      if (member.parameter != parameters[i].unsafeGetTensorImpl() || member.data != address(parameters[i]) ||
          member.is_copied)
        return false;
      if (member.gradient == address(gradient)) continue;
      if (member.gradient == nullptr || member.is_at_home || !is_alone(gradient, parameters[i])) return false;
      moved = true;
    }
    for (std::size_t i = 0; moved && i < parameters.size(); ++i) {
      Member& member = members_[i];
      const at::Tensor& gradient = parameters[i].grad();
      if (member.gradient == address(gradient)) continue;
      batches_[member.batch].gradients[member.piece].storage().set_data_ptr_noswap(pointer_to(gradient));
      member.gradient = member.last_gradient = address(gradient);
    }
    return true;
  }

  /// Nothing else lies where `gradient` does, and it is laid out as its parameter is.
  [[nodiscard]] static bool is_alone(const at::Tensor& gradient, const at::Tensor& parameter) {
    return gradient.defined() && gradient.layout() == at::kStrided && gradient.numel() > 0 &&
           gradient.storage().nbytes() == gradient.nbytes() && gradient.strides() == parameter.strides() &&
           gradient.scalar_type() == parameter.scalar_type() && gradient.device() == parameter.device();
  }

  /// Lets go of what was made for an earlier step.
  void begin(const std::vector<at::Tensor>& parameters) {
    for (const auto& batch : batches_) took(batch);
    batches_.clear();
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
      const bool moved = gradient.defined() && member.last_gradient != address(gradient);
      if (member.is_at_home && (moved || member.data != address(parameters[i]))) leave_home(parameters[i], member);
      member.data = address(parameters[i]);
      member.gradient = address(gradient);
      if (!gradient.defined()) continue;
      member.last_gradient = member.gradient;
      order.push_back(i);
    }
    drop_empty_homes();
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const bool a_is_empty = parameters[a].numel() == 0;  // they lie nowhere
      const bool b_is_empty = parameters[b].numel() == 0;
      return a_is_empty == b_is_empty && !a_is_empty ? std::less<>()(members_[a].gradient, members_[b].gradient)
                                                     : b_is_empty && !a_is_empty;
    });
    settle_down(parameters, order);
    for (const std::size_t i : order) make_state(parameters[i], members_[i]);
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

  /// Each parameter keeps what it had, though the list may have become another.
  void match(const std::vector<at::Tensor>& parameters) {
    std::vector<Member> found(parameters.size());
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto* impl = parameters[i].unsafeGetTensorImpl();
      const auto known =
          i < members_.size() && members_[i].parameter == impl
              ? members_.begin() + static_cast<std::ptrdiff_t>(i)
              : std::find_if(
                    members_.begin(), members_.end(), [&](const Member& one) { return one.parameter == impl; });
      if (known != members_.end()) found[i] = std::exchange(*known, {});
      found[i].parameter = impl;
    }
    for (const auto& gone : members_)
      if (gone.is_at_home) --homes_[gone.home].members;
    members_ = std::move(found);
  }

  /// Its gradient is elsewhere now, or somebody gave it other memory.
  void leave_home(const at::Tensor& parameter, Member& member) {
    Home& home = homes_[member.home];
    for (auto& state : member.states) state = state.clone();
    member.is_at_home = false;
    const bool lies_there = member.data == address(parameter);
    const bool is_shared = home.parameters.storage().use_count() != 1 + home.members;
    if (lies_there && is_shared) return;  // it stays there, and so does who looks at it
    if (lies_there) parameter.set_data(parameter.detach().clone());
    --home.members;
  }

  void drop_empty_homes() {
    for (auto& home : homes_)
      if (home.members == 0) home = {};
  }

  /// Elements between the gradients of two parameters, from begin to begin, if they lie one behind the other
  /// in one storage with nothing between them but what aligns; else 0.
  [[nodiscard]] static std::int64_t distance(const at::Tensor& first, const at::Tensor& second) {
    const at::Tensor& a = first.grad();
    const at::Tensor& b = second.grad();
    if (a.storage().unsafeGetStorageImpl() != b.storage().unsafeGetStorageImpl()) return 0;
    if (a.scalar_type() != b.scalar_type() || first.scalar_type() != second.scalar_type()) return 0;
    if (a.strides() != first.strides() || b.strides() != second.strides()) return 0;
    if (!first.is_non_overlapping_and_dense() || !second.is_non_overlapping_and_dense()) return 0;
    const std::int64_t span = b.storage_offset() - a.storage_offset();
    const std::int64_t line = 64 / static_cast<std::int64_t>(a.element_size());
    return span > 0 && span >= a.numel() && span - a.numel() < line ? span : 0;
  }

  /// Gives those a home that have none and whose gradients lie together.
  void settle_down(const std::vector<at::Tensor>& parameters, const std::vector<std::size_t>& order) {
    const auto can_move = [&](std::size_t i) {
      return !members_[i].is_at_home && parameters[i].storage().use_count() == 1;
    };
    for (std::size_t begin = 0; begin < order.size();) {
      std::vector<std::int64_t> offsets{0};
      std::size_t end = begin + 1;
      while (can_move(order[begin]) && end < order.size() && can_move(order[end])) {
        const std::int64_t span = distance(parameters[order[end - 1]], parameters[order[end]]);
        if (span == 0) break;
        offsets.push_back(offsets.back() + span);
        ++end;
      }
      if (end - begin > 1) move(parameters, &order[begin], offsets);
      begin = end;
    }
  }

  void move(const std::vector<at::Tensor>& parameters, const std::size_t* which,
            const std::vector<std::int64_t>& offsets) {
    const at::Tensor& last = parameters[which[offsets.size() - 1]];
    Home home{at::zeros({offsets.back() + last.numel()}, last.options().requires_grad(false)), {}, offsets.size()};
    for (std::size_t k = 0; k < offsets.size(); ++k) {
      const at::Tensor& parameter = parameters[which[k]];
      Member& member = members_[which[k]];
      const at::Tensor view = tensor::view_like(home.parameters, offsets[k], parameter).variable_data();
      view.copy_(parameter.detach());
      parameter.set_data(view);
      member.data = address(parameter);
      member.is_at_home = true;
      member.home = homes_.size();
      member.offset = offsets[k];
    }
    homes_.push_back(std::move(home));
  }

  /// Views of its home's, filled with what it had.
  void make_state(const at::Tensor& parameter, Member& member) {
    if (!member.is_at_home) {
      while (member.states.size() < states_) member.states.push_back(at::zeros_like(parameter.detach()));
      return;
    }
    Home& home = homes_[member.home];
    while (home.states.size() < states_) home.states.push_back(at::zeros_like(home.parameters));
    std::vector<at::Tensor> views;
    for (std::size_t s = 0; s < states_; ++s) {
      views.push_back(tensor::view_like(home.states[s], member.offset, parameter));
      if (s < member.states.size() && member.states[s].const_data_ptr() != views[s].const_data_ptr())
        views[s].copy_(member.states[s]);
    }
    member.states = std::move(views);
  }

  [[nodiscard]] bool are_neighbours(const std::vector<at::Tensor>& parameters, std::size_t a, std::size_t b) const {
    const Member& first = members_[a];
    const Member& second = members_[b];
    // LibTorch's loops for the CPU round what is left over at the end of a tensor otherwise than what fills
    // a vector: a piece ends there, so that every element is what it is where each tensor is stepped alone.
    if (parameters[a].is_cpu() && parameters[a].nbytes() % 64 != 0) return false;
    if (!first.is_at_home || !second.is_at_home || first.home != second.home || first.steps != second.steps)
      return false;
    const std::int64_t span = distance(parameters[a], parameters[b]);
    return span > 0 && second.offset - first.offset == span;
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
      batch->states.resize(states_);
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
      member.is_copied = gradient.strides() != parameter.strides() || !parameter.is_non_overlapping_and_dense();
      batch->parameters.push_back(parameter.detach());
      batch->gradients.push_back(member.is_copied ? at::empty_like(parameter.detach()).copy_(gradient)
                                                  : memory_of(gradient, gradient.sizes(), gradient.strides()));
      for (std::size_t s = 0; s < states_; ++s) batch->states[s].push_back(member.states[s]);
      return;
    }
    const Member& last = members_[run.back()];
    const std::int64_t numel = last.offset + parameters[run.back()].numel() - first.offset;
    const auto piece = [&](const at::Tensor& home) { return home.narrow(0, first.offset, numel); };
    batch->parameters.push_back(piece(homes_[first.home].parameters));
    batch->gradients.push_back(memory_of(parameter.grad(), {numel}, {1}));
    for (std::size_t s = 0; s < states_; ++s) batch->states[s].push_back(piece(homes_[first.home].states[s]));
  }

  /// From where `gradient` begins. It does not count as holding the gradient: it is used only as long as
  /// the gradient is found at this very place.
  [[nodiscard]] static at::Tensor memory_of(const at::Tensor& gradient, at::IntArrayRef sizes,
                                            at::IntArrayRef strides) {
    auto bytes = static_cast<std::size_t>(gradient.element_size());
    for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
    const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, pointer_to(gradient));
    return at::empty({0}, gradient.options().requires_grad(false)).set_(storage, 0, sizes, strides);
  }

  [[nodiscard]] static c10::DataPtr pointer_to(const at::Tensor& gradient) {
    return {gradient.mutable_data_ptr(), gradient.device()};
  }

  std::size_t states_;           // tensors that a parameter has
  std::vector<Member> members_;  // by parameter
  std::vector<Home> homes_;
  std::vector<Batch> batches_;
};

}  // namespace accel::inline v0_1::optim
