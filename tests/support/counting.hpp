// Gloo that counts the calls it was asked for: also an example of a backend in a user's program.
#pragma once

#include <span>
#include <string_view>
#include <utility>

#include <ATen/core/Tensor.h>

#include <accel/backend/gloo.hpp>

namespace accel::testing {

struct CountingGloo : backend::Gloo {
  using Gloo::Gloo;
  explicit CountingGloo(Gloo&& part) : Gloo(std::move(part)) {}

  Work all_reduce(const at::Tensor& tensor, ReduceOp op) {
    ++all_reduces;
    return Gloo::all_reduce(tensor, op);
  }
  Work all_reduce(std::span<at::Tensor> tensors, ReduceOp op) { return Gloo::all_reduce(tensors, op); }
  Work broadcast(const at::Tensor& tensor, int root) {
    ++broadcasts;
    return Gloo::broadcast(tensor, root);
  }
  CountingGloo split(std::span<const int> ranks, std::string_view part_name) {
    return CountingGloo(Gloo::split(ranks, part_name));
  }

  static inline int all_reduces = 0;
  static inline int broadcasts = 0;
};

}  // namespace accel::testing
