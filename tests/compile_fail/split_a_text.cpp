// expect: accel splits tensors, vectors, and what holds these
#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <string>

int main() {
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  auto part = accelerator.split_between_processes(std::string("a prompt, not a list of them"));
}
