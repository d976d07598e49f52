// NamedTensor: a tensor and the name it has in its model or file.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::tensor {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

}  // namespace accel::inline v0_1::tensor
