// What the others get wrong, done right. It must compile, or they would fail for another reason.
#include <torch/torch.h>

#include <accel/accelerator.hpp>

int main() {
  accel::Accelerator<accel::backend::Single, accel::precision::Fp32> accelerator;
  auto net = std::make_shared<torch::nn::LinearImpl>(2, 2);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  accelerator.backward(model(torch::ones({1, 2})).sum());
}
