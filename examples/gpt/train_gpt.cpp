// GPT-2 on text files, byte by byte: a JSON file says what, how large and how long. It saves as it goes, and where it
// is started again it goes on from the newest checkpoint, at any number of ranks:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/train_gpt examples/gpt/tiny.json
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/concat.hpp>
#include <accel/metrics/perplexity.hpp>

#include "config.hpp"
#include "model.hpp"
#include "text.hpp"

namespace optim = accel::optim;
using accel::data::DataLoader;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

/// The part [begin, end) of each file.
accel::dataset::Concat<std::vector<gpt::Windows>> windows_of(const gpt::Config& config, double begin, double end) {
  std::vector<gpt::Windows> all;
  for (const auto& path : config.text)
    all.emplace_back(std::make_shared<accel::MappedFile>(path), begin, end, config.model.n_positions);
  return accel::dataset::Concat(std::move(all));
}

/// `count` bytes, one after the other, drawn as likely as the model finds them.
std::string sample(gpt::GptImpl& net, std::int64_t length, std::int64_t count) {
  const torch::NoGradGuard no_grad;
  auto tokens = torch::full({1, 1}, static_cast<std::int64_t>('\n'));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto seen = tokens.slice(1, std::max<std::int64_t>(tokens.size(1) - length, 0));
    const auto logits = net.forward(seen).select(1, seen.size(1) - 1).slice(1, 0, gpt::byte_tokens);
    tokens = torch::cat({tokens, torch::multinomial(logits.softmax(1), 1)}, 1);
  }
  std::string text;
  for (std::int64_t i = 1; i <= count; ++i) text += static_cast<char>(tokens[0][i].item<std::int64_t>());
  return text;
}

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: train_gpt settings.json\n", 2;
  const auto config = gpt::read_config(argv[1]);
  torch::manual_seed(config.seed);
  Accelerator accelerator({.accumulation_steps = config.accumulation_steps,
                           .checkpoint = {.folder = config.folder,
                                          .keep = {.total_limit = config.keep},
                                          .on_sigterm = true}});  // a scheduler's: save, and leave

  auto net = std::make_shared<gpt::GptImpl>(config.model);
  auto groups = optim::decay_groups(
      *net, optim::AdamWOptions{.lr = config.learning_rate, .betas = {0.9, 0.95}, .weight_decay = config.weight_decay});
  // The batch is that of all ranks together: the same batches come at any number of them.
  auto [model, optimizer, train, test] = accelerator.prepare(
      net, optim::AdamW(std::move(groups)),
      DataLoader{windows_of(config, 0, 0.9),
                 {.batch_size = config.batch_size, .shuffle = true, .seed = config.seed, .split_batches = true}},
      DataLoader{windows_of(config, 0.9, 1), {.batch_size = 8}});
  auto scheduler = accelerator.prepare(
      optim::Scheduler(optimizer.unwrap(),
                       optim::schedule::cosine_with_min_lr(
                           {.warmup_steps = config.warmup_steps, .total_steps = config.steps, .min_lr_ratio = 0.1})));

  if (accelerator.latest_checkpoint()) {
    const auto from = accelerator.load_state();
    accelerator.print("going on from ", from.string(), ", step ", accelerator.steps());
  } else if (!config.start_from.empty()) {
    accelerator.load_model(model, config.start_from);
  }

  const auto evaluate = [&, &model = model, &test = test] {
    const torch::NoGradGuard no_grad;
    net->eval();
    accel::metrics::Perplexity perplexity;
    for (auto& [tokens, target] : test) perplexity.update(model(tokens).movedim(-1, 1), target, test.position().rows);
    net->train();
    return perplexity.compute(accelerator);
  };

  auto mean_loss = accelerator.running_mean();
  while (accelerator.steps() < config.steps && !accelerator.is_preempted()) {
    for (auto& batch : train) {
      const auto micro_step = accelerator.accumulate(batch);
      const auto& [tokens, target] = batch;
      const auto loss = gpt::loss(model(tokens), target);
      accelerator.backward(loss);
      accelerator.clip_grad_norm_(model, config.max_grad_norm);
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
      mean_loss.update(loss);
      if (!accelerator.sync_gradients()) continue;

      const auto step = accelerator.steps();
      const bool is_last = step == config.steps;
      if (step % config.evaluate_every == 0 || is_last) {
        const double loss_now = mean_loss.compute();
        accelerator.print("step ", step, ": loss ", loss_now, ", perplexity of what is kept back ", evaluate());
        mean_loss.reset();
      }
      if (step % config.save_every == 0 || is_last || accelerator.is_preempted()) accelerator.save_state();
      if (is_last || accelerator.is_preempted()) break;
    }
  }
  accelerator.wait_for_save();
  if (accelerator.is_preempted()) return 0;
  accelerator.save_model(model, config.folder);  // as Hugging Face has it
  net->eval();
  if (config.sample > 0 && accelerator.is_main_process())
    std::cout << sample(*net, config.model.n_positions, config.sample) << "\n";
}
