// Tower: layers one on the other, and a look at them while backward is on its way down.
#pragma once

#include <torch/torch.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace accel::testing {

struct Tower : torch::nn::Module {
  explicit Tower(std::int64_t width = 6) {
    for (int i = 0; i < 4; ++i)
      layers.push_back(register_module("layer" + std::to_string(i), torch::nn::Linear(width, width)));
  }

  torch::Tensor forward(torch::Tensor x, int without = -1) {
    for (int i = 0; i < 4; ++i)
      if (i != without) x = torch::tanh(layers[static_cast<std::size_t>(i)](x));
    return x;
  }

  /// A loss whose backward calls `reached` when it comes to the first layer: behind time for the other ranks, and then
  /// one bucket more, whose start looks at what has arrived.
  torch::Tensor watched_loss(const torch::Tensor& x, std::function<void()> reached) {
    const auto hidden = torch::tanh(layers[0](x));
    const auto later = torch::tanh(layers[1](hidden));
    later.register_hook([](const torch::Tensor&) { std::this_thread::sleep_for(std::chrono::milliseconds(100)); });
    hidden.register_hook([reached = std::move(reached)](const torch::Tensor&) { reached(); });
    return layers[3](torch::tanh(layers[2](later))).square().mean();
  }

  std::vector<torch::nn::Linear> layers;
};

}  // namespace accel::testing
