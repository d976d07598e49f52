// Trains a digit classifier in plain LibTorch, in one process.
// usage: train_libtorch digits.csv folder

#include <torch/torch.h>

#include <string>

#include "digits.hpp"
#include "report.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: train_libtorch digits.csv folder\n", 2;
  const std::string csv = argv[1], folder = argv[2];
  const int epochs = 15;
  const std::int64_t batch_size = 64;
  torch::manual_seed(0);

  auto model = std::make_shared<Net>();
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(3e-3));
  const Digits train(csv, Digits::train), test(csv, Digits::test);
  const auto steps = static_cast<std::int64_t>(train.size()) / batch_size;  // the last, short batch is dropped

  Report report(epochs, true);
  for (int epoch = 0; epoch < epochs; ++epoch) {
    auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(epoch));
    const auto order = torch::randperm(static_cast<std::int64_t>(train.size()), generator);
    double loss_sum = 0;
    for (std::int64_t step = 0; step < steps; ++step) {
      report.step(epoch, step, steps);
      const auto batch = train.get_batch(order.slice(0, step * batch_size, (step + 1) * batch_size));
      optimizer.zero_grad();
      auto loss = torch::nn::functional::cross_entropy(model->forward(batch.data), batch.target);
      loss.backward();
      optimizer.step();
      loss_sum += loss.item<double>();
    }
    report.trained(steps * batch_size);

    torch::NoGradGuard no_grad;
    const auto all = test.get_batch(torch::arange(static_cast<std::int64_t>(test.size())));
    const auto right = model->forward(all.data).argmax(1).eq(all.target).sum().item<double>();
    report.epoch(loss_sum / static_cast<double>(steps), right / static_cast<double>(test.size()));
  }
  report.write(folder + "/libtorch.json");
}
