// Uses accel as a stranger would: one rank over Gloo, one sum, and the version that CMake promised.
#include <cstring>
#include <iostream>

#include <torch/torch.h>

#include <accel/accelerator.hpp>

int main(int argc, char** argv) {
  accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32> accelerator;
  std::cout << accelerator.describe() << "\n";
  if (accelerator.reduce(torch::ones({3})).sum().item<double>() != 3) return 2;
  return argc == 2 && std::strcmp(argv[1], ACCEL_VERSION) == 0 ? 0 : 1;
}
