// expect: prepare takes modules \(shared_ptr, module holder or the module itself\), optimizers
#include <torch/torch.h>

#include <accel/accelerator.hpp>

int main() {
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  auto prepared = accelerator.prepare(0.1);
}
