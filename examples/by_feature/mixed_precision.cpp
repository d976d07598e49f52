// One training in three precisions: only the type changes. Each says how many digits it reads that it has not seen,
// and what its loss scale has done. Run it from the root of the repository, as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/mixed_precision
#include <torch/torch.h>

#include <cstdint>
#include <memory>

#include <accel/accelerator.hpp>

#include "../quickstart/digits.hpp"

namespace precision = accel::precision;
namespace schedule = accel::optim::schedule;
using accel::data::DataLoader;

template <class Precision>
void train(const typename Precision::Options& options = {}) {
  const int epochs = 12;
  torch::manual_seed(0);  // equal weights at the start
  accel::Accelerator<accel::backend::Gloo, Precision> accelerator({.precision = options});

  const Digits seen("examples/data/digits.csv", Digits::train), held_out("examples/data/digits.csv", Digits::test);
  // An optimizer that was made without parameters takes those of the model beside it.
  auto [model, optimizer, batches, test] = accelerator.prepare(
      std::make_shared<Net>(), accel::optim::AdamW{{.lr = 1e-2}}, DataLoader{seen, {.batch_size = 32, .shuffle = true}},
      DataLoader{held_out, {.batch_size = 100}});
  auto scheduler = accelerator.prepare(accel::optim::Scheduler(
      optimizer, schedule::cosine({.warmup_steps = 20, .total_steps = epochs * batches.size()})));

  int skipped = 0;
  for (int epoch = 0; epoch < epochs; ++epoch)
    for (auto& batch : batches) {
      optimizer.zero_grad();
      auto loss = torch::nn::functional::cross_entropy(model(batch.data), batch.target);
      accelerator.backward(loss);
      accelerator.clip_grad_norm_(model, 1.0);  // by the norm without the scale
      optimizer.step();
      scheduler.step();  // stays where it is when the step was skipped
      if (optimizer.step_was_skipped()) ++skipped;
    }

  const torch::NoGradGuard no_grad;
  double right = 0;
  for (auto& batch : test) {
    auto [guess, digit] = accelerator.gather_for_metrics(model(batch.data).argmax(1), batch.target);
    right += guess.eq(digit).sum().template item<double>();
  }
  accelerator.print(Precision::name, ": accuracy ", right / static_cast<double>(test.rows()), ", loss scale ",
                    static_cast<std::int64_t>(accelerator.loss_scale()), ", ", skipped, " steps skipped");
}

int main() {
  train<precision::Fp32>();
  train<precision::Bf16>();
  // 2^30 is too much for what fp16 can hold, 65504: the first steps overflow, are skipped, and halve it until it fits.
  // GradScaler's 2^16, which is the default, would do so for a larger loss.
  train<precision::Fp16>({.init_scale = 0x1p30});
}
