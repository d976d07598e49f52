// The same training on any number of ranks. Start it as it is, with torchrun, or from a shell loop.
// usage: train_accel digits.csv folder

#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <string>

#include "digits.hpp"
#include "report.hpp"

using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;
using accel::data::DataLoader;

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: train_accel digits.csv folder\n", 2;
  const std::string csv = argv[1], folder = argv[2];
  const int epochs = 15;
  torch::manual_seed(0);

  const std::int64_t batch_size = 32;  // of each rank
  Accelerator accelerator;
  auto net = std::make_shared<Net>();
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(3e-3));
  auto [model, optimizer, train, test] = accelerator.prepare(
      net, adamw,
      DataLoader{Digits(csv, Digits::train), {.batch_size = batch_size, .shuffle = true, .drop_last = true}},
      DataLoader{Digits(csv, Digits::test), {.batch_size = 100}});

  Report report(epochs, accelerator.is_main_process());
  auto mean_loss = accelerator.running_mean();
  for (int epoch = 0; epoch < epochs; ++epoch) {
    std::int64_t step = 0;
    for (auto& batch : train) {
      report.step(epoch, step++, train.size());
      optimizer.zero_grad();
      auto loss = torch::nn::functional::cross_entropy(model(batch.data), batch.target);
      accelerator.backward(loss);
      optimizer.step();
      mean_loss.update(loss);
    }
    const double loss = mean_loss.compute();
    mean_loss.reset();
    report.trained(train.size() * batch_size * accelerator.world_size());

    torch::NoGradGuard no_grad;
    double right = 0;
    for (auto& batch : test) {
      auto [guess, digit] = accelerator.gather_for_metrics(model(batch.data).argmax(1), batch.target);
      right += guess.eq(digit).sum().item<double>();
    }
    report.epoch(loss, right / static_cast<double>(test.rows()));
  }
  accelerator.save_model(model, folder);
  report.write(folder + "/accel.json");
}
