// expect: the model has no forward for these arguments
#include <torch/torch.h>

#include <accel/accelerator.hpp>

int main() {
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  auto model = accelerator.prepare(std::make_shared<torch::nn::LinearImpl>(2, 2));
  model("a text");
}
