// Metrics of any number of ranks without gathering predictions: each rank counts its own rows, and one message adds the
// counts up. Each metric is an include of its own. Run it from the root of the repository, as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/metrics
#include <torch/torch.h>

#include <memory>

#include <accel/accelerator.hpp>
#include <accel/metrics/accuracy.hpp>
#include <accel/metrics/auroc.hpp>
#include <accel/metrics/precision_recall_f1.hpp>
#include <accel/metrics/throughput.hpp>

#include "../quickstart/digits.hpp"

namespace metrics = accel::metrics;
using accel::data::DataLoader;

int main() {
  const int epochs = 4;
  torch::manual_seed(0);
  accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32> accelerator;
  const Digits seen("examples/data/digits.csv", Digits::train), held_out("examples/data/digits.csv", Digits::test);
  auto [model, optimizer, train, test] = accelerator.prepare(std::make_shared<Net>(), accel::optim::AdamW{{.lr = 1e-2}},
                                                             DataLoader{seen, {.batch_size = 32, .shuffle = true}},
                                                             DataLoader{held_out, {.batch_size = 50}});

  metrics::Throughput throughput;
  for (int epoch = 0; epoch < epochs; ++epoch)
    for (auto& batch : train) {
      optimizer.zero_grad();
      accelerator.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
      optimizer.step();
      throughput.update(train.position().rows);
    }

  metrics::Accuracy accuracy, among_three{{.top_k = 3}};
  metrics::PrecisionRecallF1 f1{{.classes = 10, .average = metrics::Average::macro}};
  metrics::Auroc auroc{{.classes = 10}};  // of each digit against the others
  const torch::NoGradGuard no_grad;
  for (auto& batch : test) {
    const auto logits = model(batch.data);
    const auto rows = test.position().rows;  // where the last rows do not suffice for all ranks, some get fillers
    accuracy.update(logits, batch.target, rows);
    among_three.update(logits, batch.target, rows);
    f1.update(logits, batch.target, rows);
    auroc.update(logits.softmax(1), batch.target, rows);
  }
  // Every rank takes part, and has the same values afterwards.
  const auto [right, near, scores, area, speed] =
      metrics::compute(accelerator, accuracy, among_three, f1, auroc, throughput);
  accelerator.print(scores.support, " digits: accuracy ", right, ", among the first three ", near, ", F1 ",
                    scores.f_beta, ", AUROC ", area.auroc, " (to ", area.error_bound, ")");
  accelerator.print(speed.samples, " samples at ", speed.samples_per_s, " per s");
}
