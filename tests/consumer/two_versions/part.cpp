// A library that trains with its own copy of accel. PART is the library's name.
#include <functional>
#include <iostream>

#include <torch/torch.h>

#include <accel/accelerator.hpp>

namespace PART {

// One step with an accelerator that still lives while `meanwhile` runs.
void train(const std::function<void()>& meanwhile) {
  accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32> accelerator({.log = accel::Log::Level::off});
  auto net = std::make_shared<torch::nn::LinearImpl>(3, 1);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  meanwhile();
  // The inputs of a rank are its number plus one, so the mean gradient of 2 ranks is 1.5.
  accelerator.backward(model(torch::ones({1, 3}) * (accelerator.rank() + 1)).sum());
  optimizer.step();
  std::cout << "accel " ACCEL_VERSION " on rank " << accelerator.rank() << " of " << accelerator.world_size()
            << ", gradient " << net->weight.grad().mean().item<double>() << std::endl;
}

}  // namespace PART
