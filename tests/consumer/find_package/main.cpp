// Uses accel as a stranger would: one rank, one sum, and the version that CMake promised.
#include <cstring>
#include <iostream>

#include <accel/accelerator.hpp>

int main(int argc, char** argv) {
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  std::cout << "accel " << ACCEL_VERSION << ", " << accelerator.describe() << "\n";
  return argc == 2 && std::strcmp(argv[1], ACCEL_VERSION) == 0 ? 0 : 1;
}
