// A short training with any backend, to be compared.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>

#include "support/models.hpp"

namespace accel::testing {

/// The weights, as bits, after an epoch over odd batches, in several small buckets and with clipping.
template <Backend B>
std::vector<std::string> trained() {
  torch::manual_seed(3);
  typename Accelerator<B, precision::Fp32>::Options options;
  options.gradient.caps = {.bucket_cap = Bytes{64}, .last_bucket_cap = Bytes{32}};
  Accelerator<B, precision::Fp32> accelerator(options);
  auto net = std::make_shared<Mlp>();
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-2));
  auto [model, optimizer, loader] =
      accelerator.prepare(net, adamw, data::DataLoader{Noise(61), {.batch_size = 4, .shuffle = true}});
  for (auto& batch : loader) {
    optimizer.zero_grad();
    accelerator.backward(cross_entropy(model(batch.data), batch.target));
    accelerator.clip_grad_norm_(model, 1.0);
    optimizer.step();
  }
  accelerator.wait_for_everyone();
  return bits(net->parameters());
}

}  // namespace accel::testing
