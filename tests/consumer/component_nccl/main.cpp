// Trains a line on a GPU over NCCL. Where there is none the accelerator has to say so, and what to use instead.
#include <iostream>
#include <memory>
#include <string>

#include <torch/torch.h>

#include <accel/accelerator.hpp>

namespace {

using Accelerator = accel::Accelerator<accel::backend::Nccl, accel::precision::Fp32>;

bool trains() {
  Accelerator accelerator;
  auto line = std::make_shared<torch::nn::LinearImpl>(1, 1);
  torch::optim::SGD sgd(line->parameters(), torch::optim::SGDOptions(0.1));
  auto [model, optimizer] = accelerator.prepare(line, sgd);
  const auto x = torch::linspace(-1, 1, 64, torch::TensorOptions(accelerator.device())).unsqueeze(1);
  double loss = 0;
  for (int step = 0; step < 200; ++step) {
    optimizer.zero_grad();
    const auto mean = torch::mse_loss(model(x), 3 * x + 2);
    accelerator.backward(mean);
    optimizer.step();
    loss = mean.item<double>();
  }
  std::cout << accelerator.describe() << "\nthe loss is " << loss << " after 200 steps\n";
  return loss < 1e-3;
}

}  // namespace

int main() {
  try {
    return trains() ? 0 : 1;
  } catch (const accel::ConfigError& error) {
    std::cout << error.what() << "\n";
    const bool says_so =
        std::string(error.what()).find("there is no CUDA device; use backend::Gloo") != std::string::npos;
    return says_so && !torch::cuda::is_available() ? 0 : 1;
  }
}
