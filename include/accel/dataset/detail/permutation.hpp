// A random order, PyTorch's.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

namespace accel::inline v0_1::dataset::detail {

/// 0 to n - 1 in an order that depends on the seed alone: torch.randperm's. LibTorch's default generator stays as it
/// is.
[[nodiscard]] inline std::vector<std::int64_t> permutation(std::int64_t n, std::uint64_t seed) {
  const auto generator = at::detail::createCPUGenerator(seed);
  const at::Tensor order = at::randperm(n, generator, at::TensorOptions(at::kLong).device(at::kCPU));
  const auto* first = order.const_data_ptr<std::int64_t>();
  return {first, first + n};
}

}  // namespace accel::inline v0_1::dataset::detail
