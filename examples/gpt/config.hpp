// The settings of a training, from a JSON file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>

#include "model.hpp"
#include "text.hpp"

namespace gpt {

struct Config {
  std::vector<std::string> text{"README.md"};  // files to train on, of which the last tenth is kept for evaluation
  std::string folder = "gpt";                  // of checkpoints, and of the weights at the end
  std::string start_from{};  // a folder with config.json and model.safetensors, as Hugging Face has it
  ModelConfig model{.vocab_size = byte_tokens, .n_positions = 64, .n_embd = 64, .n_layer = 2, .n_head = 4};

  std::int64_t steps = 200;
  std::int64_t batch_size = 16;  // of all ranks together, for each micro-step
  int accumulation_steps = 1;    // micro-steps per step
  double learning_rate = 3e-3;
  std::int64_t warmup_steps = 10;
  double weight_decay = 0.1;  // of matrices, not of biases and norms
  double max_grad_norm = 1.0;
  std::uint64_t seed = 0;
  std::int64_t evaluate_every = 50;
  std::int64_t save_every = 50;
  std::int64_t keep = 2;    // checkpoints
  std::int64_t sample = 0;  // bytes to write at the end
};

/// Takes settings from a JSON object. What it does not have stays as it is; what nobody knows is an error.
class Settings {
 public:
  Settings(const nlohmann::json& json, std::string name) : json_(json), name_(std::move(name)) {
    ACCEL_CHECK(json_.is_object(), accel::ConfigError, name_, ": expected an object, found ", json_.type_name());
  }

  template <class Value>
  Settings& take(const char* key, Value& value) {
    known_.insert(key);
    if (!json_.contains(key)) return *this;
    try {
      json_.at(key).get_to(value);
    } catch (const nlohmann::json::exception&) {
      throw accel::ConfigError(accel::message(name_, ": ", key, " = ", json_.at(key).dump(), " is of the wrong kind"));
    }
    return *this;
  }

  void nothing_else() const {
    for (const auto& [key, value] : json_.items())
      ACCEL_CHECK(known_.contains(key), accel::ConfigError, name_, ": there is no setting ", key);
  }

 private:
  const nlohmann::json& json_;
  std::string name_;
  std::set<std::string> known_;
};

[[nodiscard]] inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  ACCEL_CHECK(file, accel::ConfigError, path.string(), ": cannot open it");
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw accel::ConfigError(accel::message(path.string(), ": ", error.what()));
  }
}

/// A model as Hugging Face's config.json describes it.
[[nodiscard]] inline ModelConfig read_model_config(const std::filesystem::path& path) {
  const auto json = read_json(path);
  ModelConfig model;
  std::string activation = "gelu_new", type = "gpt2";
  double residual = model.dropout, embedding = model.dropout, attention = model.dropout;
  Settings(json, path.string())
      .take("model_type", type)
      .take("activation_function", activation)
      .take("vocab_size", model.vocab_size)
      .take("n_positions", model.n_positions)
      .take("n_embd", model.n_embd)
      .take("n_layer", model.n_layer)
      .take("n_head", model.n_head)
      .take("layer_norm_epsilon", model.layer_norm_epsilon)
      .take("resid_pdrop", residual)
      .take("embd_pdrop", embedding)
      .take("attn_pdrop", attention);
  ACCEL_CHECK(type == "gpt2" && activation == "gelu_new", accel::ConfigError, path.string(),
              ": expected a gpt2 with gelu_new, found a ", type, " with ", activation);
  ACCEL_CHECK(residual == embedding && residual == attention, accel::ConfigError, path.string(),
              ": expected one dropout for all, found ", residual, ", ", embedding, " and ", attention);
  model.dropout = residual;
  return model;
}

[[nodiscard]] inline Config read_config(const std::filesystem::path& path) {
  const auto json = read_json(path);
  Config config;
  nlohmann::json model = nlohmann::json::object();
  Settings(json, path.string())
      .take("text", config.text)
      .take("folder", config.folder)
      .take("start_from", config.start_from)
      .take("model", model)
      .take("steps", config.steps)
      .take("batch_size", config.batch_size)
      .take("accumulation_steps", config.accumulation_steps)
      .take("learning_rate", config.learning_rate)
      .take("warmup_steps", config.warmup_steps)
      .take("weight_decay", config.weight_decay)
      .take("max_grad_norm", config.max_grad_norm)
      .take("seed", config.seed)
      .take("evaluate_every", config.evaluate_every)
      .take("save_every", config.save_every)
      .take("keep", config.keep)
      .take("sample", config.sample)
      .nothing_else();
  Settings(model, path.string() + ", model")
      .take("vocab_size", config.model.vocab_size)
      .take("n_positions", config.model.n_positions)
      .take("n_embd", config.model.n_embd)
      .take("n_layer", config.model.n_layer)
      .take("n_head", config.model.n_head)
      .take("dropout", config.model.dropout)
      .take("layer_norm_epsilon", config.model.layer_norm_epsilon)
      .nothing_else();
  if (!config.start_from.empty())
    config.model = read_model_config(std::filesystem::path(config.start_from) / "config.json");
  ACCEL_CHECK(config.model.vocab_size >= byte_tokens, accel::ConfigError, path.string(), ": expected a vocabulary of ",
              byte_tokens, " bytes at least, found ", config.model.vocab_size);
  ACCEL_CHECK(config.model.n_head > 0 && config.model.n_embd % config.model.n_head == 0, accel::ConfigError,
              path.string(), ": n_embd = ", config.model.n_embd, " is no multiple of n_head = ", config.model.n_head);
  ACCEL_CHECK(!config.text.empty() && config.steps > 0 && config.save_every > 0 && config.evaluate_every > 0,
              accel::ConfigError, path.string(), ": expected text, and steps, save_every and evaluate_every above 0");
  return config;
}

}  // namespace gpt
