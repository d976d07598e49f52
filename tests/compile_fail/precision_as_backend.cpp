// expect: the first is no accel::Backend
#include <torch/torch.h>

#include <accel/accelerator.hpp>

int main() {
  accel::Accelerator<accel::precision::Fp32, accel::precision::Fp32> accelerator;
}
