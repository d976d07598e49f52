// Hooks: tells when autograd has finished a parameter's gradient.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace accel::inline v0_1::gradient {

/// What an optimizer asks of a model's reducer.
struct Watch {
  /// The name of one of `parameters` whose gradient comes from a backward that the accelerator did not
  /// run, or null.
  [[nodiscard]] virtual const std::string* stray(std::span<const at::Tensor> parameters) const = 0;

  /// The gradients of `parameters` were cleared.
  virtual void clear_stray(std::span<const at::Tensor> parameters) = 0;

  /// The name of a parameter that autograd no longer tells about, or null.
  [[nodiscard]] virtual const std::string* lost_hook() const = 0;

  Watch() = default;
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 protected:
  ~Watch() = default;
};

/// Calls `arrived(i)` whenever backward has put its contribution into parameter i's `.grad`, also
/// when that contribution is nothing. Hooks go with this object.
///
/// Order    on the thread of the parameter's device: the caller's for the CPU.
class Hooks {
 public:
  using Arrived = std::function<void(std::size_t)>;

  Hooks(std::vector<at::Tensor> parameters, Arrived arrived)
      : parameters_(std::move(parameters)), arrived_(std::make_unique<Arrived>(std::move(arrived))) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      auto node = torch::autograd::impl::grad_accumulator(parameters_[i]);
      const auto key = node->add_post_hook(std::make_unique<PostHook>(arrived_.get(), i));
      nodes_.push_back({std::move(node), key});
    }
  }

  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  ~Hooks() {
    for (auto& [node, key] : nodes_) node->del_post_hook(key);
  }

  /// True if autograd has made a new accumulator for the parameter, as `module->to(...)` does: its
  /// hook is gone and its gradient would stay on this rank.
  [[nodiscard]] bool lost(std::size_t i) const {
    return torch::autograd::impl::grad_accumulator(parameters_[i]).get() != nodes_[i].node.get();
  }

 private:
  struct PostHook final : torch::autograd::FunctionPostHook {
    PostHook(const Arrived* target, std::size_t parameter) : arrived(target), index(parameter) {}

    torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                              const torch::autograd::variable_list&) override {
      (*arrived)(index);
      return outputs;
    }

    const Arrived* arrived;  // owned by the Hooks that removes this hook
    std::size_t index;
  };

  struct Node {
    // shared_ptr or intrusive_ptr, by LibTorch's version. Kept: the parameter holds it weakly.
    decltype(torch::autograd::impl::grad_accumulator(std::declval<at::Tensor>())) node;
    std::uintptr_t key;
  };

  std::vector<at::Tensor> parameters_;
  std::unique_ptr<Arrived> arrived_;  // its address is in every hook
  std::vector<Node> nodes_;
};

}  // namespace accel::inline v0_1::gradient
