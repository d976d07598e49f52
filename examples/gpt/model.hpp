// GPT-2, with the names and shapes of Hugging Face's GPT2LMHeadModel: its files of weights fit as they are.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

namespace gpt {

/// The words are those of Hugging Face's config.json, the numbers those of the 124M model.
struct ModelConfig {
  std::int64_t vocab_size = 50257;
  std::int64_t n_positions = 1024;
  std::int64_t n_embd = 768;
  std::int64_t n_layer = 12;
  std::int64_t n_head = 12;
  double dropout = 0.1;
  double layer_norm_epsilon = 1e-5;
};

/// A linear layer whose weight is f32[in, out], as OpenAI's GPT-2 has them.
struct Conv1DImpl : torch::nn::Module {
  Conv1DImpl(std::int64_t in, std::int64_t out, double deviation)
      : weight(register_parameter("weight", torch::randn({in, out}) * deviation)),
        bias(register_parameter("bias", torch::zeros({out}))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    auto shape = x.sizes().vec();
    shape.back() = bias.size(0);
    return torch::addmm(bias, x.reshape({-1, x.size(-1)}), weight).view(shape);
  }

  torch::Tensor weight, bias;
};
TORCH_MODULE(Conv1D);

constexpr double deviation = 0.02;  // of initial weights
/// Of those whose output is added to the stream, which has two of them per layer.
inline double residual_deviation(const ModelConfig& config) {
  return deviation / std::sqrt(2.0 * static_cast<double>(config.n_layer));
}

struct AttentionImpl : torch::nn::Module {
  explicit AttentionImpl(const ModelConfig& config)
      : heads(config.n_head),
        dropout(config.dropout),
        c_attn(register_module("c_attn", Conv1D(config.n_embd, 3 * config.n_embd, deviation))),
        c_proj(register_module("c_proj", Conv1D(config.n_embd, config.n_embd, residual_deviation(config)))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    const auto batch = x.size(0), length = x.size(1), width = x.size(2);
    const auto parts = c_attn(x).split(width, 2);
    const auto by_head = [&](const torch::Tensor& part) {
      return part.view({batch, length, heads, width / heads}).transpose(1, 2);
    };
    const auto mixed = at::scaled_dot_product_attention(by_head(parts[0]), by_head(parts[1]), by_head(parts[2]), {},
                                                        is_training() ? dropout : 0.0, /*is_causal=*/true);
    const auto projected = c_proj(mixed.transpose(1, 2).reshape({batch, length, width}));
    return torch::dropout(projected, dropout, is_training());
  }

  std::int64_t heads;
  double dropout;
  Conv1D c_attn, c_proj;
};
TORCH_MODULE(Attention);

struct MLPImpl : torch::nn::Module {
  explicit MLPImpl(const ModelConfig& config)
      : dropout(config.dropout),
        c_fc(register_module("c_fc", Conv1D(config.n_embd, 4 * config.n_embd, deviation))),
        c_proj(register_module("c_proj", Conv1D(4 * config.n_embd, config.n_embd, residual_deviation(config)))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    return torch::dropout(c_proj(torch::gelu(c_fc(x), "tanh")), dropout, is_training());
  }

  double dropout;
  Conv1D c_fc, c_proj;
};
TORCH_MODULE(MLP);

inline torch::nn::LayerNorm layer_norm(const ModelConfig& config) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.n_embd}).eps(config.layer_norm_epsilon));
}

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(const ModelConfig& config)
      : ln_1(register_module("ln_1", layer_norm(config))),
        ln_2(register_module("ln_2", layer_norm(config))),
        attn(register_module("attn", Attention(config))),
        mlp(register_module("mlp", MLP(config))) {}

  torch::Tensor forward(torch::Tensor x) {
    x = x + attn(ln_1(x));
    return x + mlp(ln_2(x));
  }

  torch::nn::LayerNorm ln_1, ln_2;
  Attention attn;
  MLP mlp;
};
TORCH_MODULE(Block);

struct TransformerImpl : torch::nn::Module {
  explicit TransformerImpl(const ModelConfig& config)
      : dropout(config.dropout),
        wte(register_module("wte", torch::nn::Embedding(config.vocab_size, config.n_embd))),
        wpe(register_module("wpe", torch::nn::Embedding(config.n_positions, config.n_embd))),
        h(register_module("h", torch::nn::ModuleList())),
        ln_f(register_module("ln_f", layer_norm(config))) {
    for (std::int64_t layer = 0; layer < config.n_layer; ++layer) h->push_back(Block(config));
    torch::nn::init::normal_(wte->weight, 0, deviation);
    torch::nn::init::normal_(wpe->weight, 0, deviation);
  }

  torch::Tensor forward(const torch::Tensor& tokens) {
    const auto places = torch::arange(tokens.size(1), tokens.options());
    auto x = torch::dropout(wte(tokens) + wpe(places), dropout, is_training());
    for (const auto& block : *h) x = block->as<Block>()->forward(x);
    return ln_f(x);
  }

  double dropout;
  torch::nn::Embedding wte, wpe;
  torch::nn::ModuleList h;
  torch::nn::LayerNorm ln_f;
};
TORCH_MODULE(Transformer);

/// The weight of the embedding once more, by its second name.
struct TiedHeadImpl : torch::nn::Module {
  explicit TiedHeadImpl(const torch::Tensor& of) : weight(register_parameter("weight", of)) {}
  torch::Tensor forward(const torch::Tensor& x) { return torch::nn::functional::linear(x, weight); }

  torch::Tensor weight;
};
TORCH_MODULE(TiedHead);

struct GptImpl : torch::nn::Module {
  explicit GptImpl(const ModelConfig& config)
      : transformer(register_module("transformer", Transformer(config))),
        lm_head(register_module("lm_head", TiedHead(transformer->wte->weight))) {}

  /// tokens: i64[batch, length], length <= n_positions. Gives logits f32[batch, length, vocab_size].
  torch::Tensor forward(const torch::Tensor& tokens) { return lm_head(transformer(tokens)); }

  Transformer transformer;
  TiedHead lm_head;
};
TORCH_MODULE(Gpt);

/// The mean over all tokens, in nats.
inline torch::Tensor loss(const torch::Tensor& logits, const torch::Tensor& target) {
  return torch::nn::functional::cross_entropy(logits.view({-1, logits.size(-1)}), target.reshape({-1}));
}

}  // namespace gpt
