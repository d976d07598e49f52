// The models and their data. models.py holds the same ones: equal parameters and batches, bit for bit.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bench {

using Case = nlohmann::json;  // one of benchmarks/*.py, as the driver sends it

/// What a case asks of the loop around its model.
struct Loop {
  explicit Loop(const Case& c)
      : micro_steps(c.value("accumulation", 1)),
        keeps_gradients(c.value("keep_gradients", false)),
        max_norm(c.value("max_norm", 0.0)) {}

  int micro_steps;
  bool keeps_gradients;  // from step to step
  double max_norm;       // 0: no clipping
};

struct Batch {
  torch::Tensor data, target;
};

struct Net : torch::nn::Module {
  virtual torch::Tensor forward(const torch::Tensor& data) = 0;
  virtual torch::Tensor loss(const torch::Tensor& output, const torch::Tensor& target) {
    return torch::nn::functional::cross_entropy(output, target);
  }
  virtual Batch random_batch() = 0;  // from LibTorch's default generator
};

/// From width numbers to width others, by the mean of squares.
struct Regression : Net {
  explicit Regression(const Case& c) : batch(c.at("batch")), width(c.at("width")) {}
  torch::Tensor loss(const torch::Tensor& output, const torch::Tensor& target) override {
    return torch::nn::functional::mse_loss(output, target);
  }
  Batch random_batch() override {
    auto data = torch::randn({batch, width});
    return {data, torch::rand({batch, width})};
  }

  std::int64_t batch, width;
};

/// layers x (Linear(width, width), ReLU).
struct Mlp : Regression {
  explicit Mlp(const Case& c) : Regression(c) {
    for (int i = 0; i < c.at("layers"); ++i) {
      body->push_back(torch::nn::Linear(width, width));
      body->push_back(torch::nn::ReLU());
    }
    register_module("body", body);
  }
  torch::Tensor forward(const torch::Tensor& data) override { return body->forward(data); }
  torch::nn::Sequential body;
};

/// layers x (x + ReLU(Linear(width, width)) / layers): deep, and yet every layer learns.
struct Residual : Regression {
  explicit Residual(const Case& c) : Regression(c) {
    for (int i = 0; i < c.at("layers"); ++i)
      body.push_back(register_module("layer" + std::to_string(i), torch::nn::Linear(width, width)));
  }
  torch::Tensor forward(const torch::Tensor& data) override {
    auto x = data;
    for (auto& layer : body) x = x + torch::relu(layer(x)) / static_cast<double>(body.size());
    return x;
  }
  std::vector<torch::nn::Linear> body;
};

/// A decoder of 2 blocks, width 64, 4 heads, 32 tokens out of 128: 0.1 M parameters in 29 tensors.
struct Transformer : Net {
  static constexpr std::int64_t width = 64, heads = 4, length = 32, tokens = 128;

  struct Block : torch::nn::Module {
    Block() {
      register_module("norm1", norm1);
      register_module("qkv", qkv);
      register_module("out", out);
      register_module("norm2", norm2);
      register_module("up", up);
      register_module("down", down);
    }
    torch::Tensor forward(torch::Tensor x) {
      const auto parts = qkv(norm1(x)).view({-1, length, 3, heads, width / heads}).permute({2, 0, 3, 1, 4});
      const auto mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, true);
      x = x + out(mixed.transpose(1, 2).reshape({-1, length, width}));
      return x + down(torch::gelu(up(norm2(x))));
    }
    torch::nn::LayerNorm norm1{torch::nn::LayerNormOptions({width})}, norm2{torch::nn::LayerNormOptions({width})};
    torch::nn::Linear qkv{width, 3 * width}, out{width, width}, up{width, 4 * width}, down{4 * width, width};
  };

  explicit Transformer(const Case& c) : batch(c.at("batch")) {
    register_module("token", token);
    register_module("position", position);
    for (int i = 0; i < 2; ++i)
      blocks.push_back(register_module("block" + std::to_string(i), std::make_shared<Block>()));
    register_module("norm", norm);
    register_module("head", head);
  }
  torch::Tensor forward(const torch::Tensor& data) override {
    auto x = token(data) + position->weight;
    for (const auto& block : blocks) x = block->forward(x);
    return head(norm(x)).view({-1, tokens});
  }
  Batch random_batch() override {
    auto data = torch::randint(tokens, {batch, length});
    return {data, torch::randint(tokens, {batch * length})};
  }

  std::int64_t batch;
  torch::nn::Embedding token{tokens, width}, position{length, width};
  std::vector<std::shared_ptr<Block>> blocks;
  torch::nn::LayerNorm norm{torch::nn::LayerNormOptions({width})};
  torch::nn::Linear head{width, tokens};
};

/// Three residual blocks of 16, 32 and 64 channels over images of 3 x 16 x 16, with BatchNorm.
struct ResNet : Net {
  struct Block : torch::nn::Module {
    Block(std::int64_t in, std::int64_t out, std::int64_t stride)
        : conv1(options(in, out, 3).stride(stride).padding(1)),
          norm1(out),
          conv2(options(out, out, 3).padding(1)),
          norm2(out) {
      register_module("conv1", conv1);
      register_module("norm1", norm1);
      register_module("conv2", conv2);
      register_module("norm2", norm2);
      if (in == out) return;
      shortcut = register_module("shortcut", torch::nn::Conv2d(options(in, out, 1).stride(stride)));
    }
    torch::Tensor forward(const torch::Tensor& x) {
      const auto y = norm2(conv2(torch::relu(norm1(conv1(x)))));
      return torch::relu(y + (shortcut.is_empty() ? x : shortcut(x)));
    }
    static torch::nn::Conv2dOptions options(std::int64_t in, std::int64_t out, std::int64_t kernel) {
      return torch::nn::Conv2dOptions(in, out, kernel).bias(false);
    }
    torch::nn::Conv2d conv1;
    torch::nn::BatchNorm2d norm1;
    torch::nn::Conv2d conv2;
    torch::nn::BatchNorm2d norm2;
    torch::nn::Conv2d shortcut{nullptr};
  };

  explicit ResNet(const Case& c) : batch(c.at("batch")) {
    register_module("stem", stem);
    register_module("norm", norm);
    blocks.push_back(register_module("block0", std::make_shared<Block>(16, 16, 1)));
    blocks.push_back(register_module("block1", std::make_shared<Block>(16, 32, 2)));
    blocks.push_back(register_module("block2", std::make_shared<Block>(32, 64, 2)));
    register_module("head", head);
  }
  torch::Tensor forward(const torch::Tensor& data) override {
    auto x = torch::relu(norm(stem(data)));
    for (const auto& block : blocks) x = block->forward(x);
    return head(x.mean({2, 3}));
  }
  Batch random_batch() override {
    auto data = torch::randn({batch, 3, 16, 16});
    return {data, torch::randint(10, {batch})};
  }

  std::int64_t batch;
  torch::nn::Conv2d stem{Block::options(3, 16, 3).padding(1)};
  torch::nn::BatchNorm2d norm{16};
  std::vector<std::shared_ptr<Block>> blocks;
  torch::nn::Linear head{64, 10};
};

/// A model with the same parameters on every rank and in every system.
inline std::shared_ptr<Net> make_net(const Case& c, c10::Device device) {
  const std::string model = c.at("model");
  std::shared_ptr<Net> net;
  if (model == "mlp") net = std::make_shared<Mlp>(c);
  if (model == "residual") net = std::make_shared<Residual>(c);
  if (model == "transformer") net = std::make_shared<Transformer>(c);
  if (model == "resnet") net = std::make_shared<ResNet>(c);
  if (!net) throw std::invalid_argument("there is no model \"" + model + "\"");
  const torch::NoGradGuard no_grad;
  torch::manual_seed(1);
  for (auto& parameter : net->named_parameters()) {
    auto& value = parameter.value();
    if (value.dim() > 1) {
      const double bound = std::sqrt(6.0 / (static_cast<double>(value.numel()) / static_cast<double>(value.size(0))));
      value.uniform_(-bound, bound);
    } else {
      value.fill_(parameter.key().ends_with("weight") ? 1 : 0);  // of a norm; else a bias
    }
  }
  net->to(device);
  return net;
}

/// Four batches of this rank's own, which it takes in turns.
class Batches {
 public:
  Batches(Net& net, int rank, c10::Device device) {
    torch::manual_seed(static_cast<std::uint64_t>(1000 + rank));
    for (int i = 0; i < 4; ++i) {
      const Batch batch = net.random_batch();
      batches_.push_back({batch.data.to(device), batch.target.to(device)});
    }
  }
  const Batch& next() { return batches_[turn_++ % batches_.size()]; }

 private:
  std::vector<Batch> batches_;
  std::size_t turn_ = 0;
};

}  // namespace bench
