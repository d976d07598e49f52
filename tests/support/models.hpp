// Small models and data for tests, and bitwise comparison.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace accel::testing {

/// Two layers with a tanh between them; weights depend on the seed alone.
struct Mlp : torch::nn::Module {
  explicit Mlp(std::int64_t inputs = 5, std::int64_t hidden = 7, std::int64_t outputs = 3)
      : first(register_module("first", torch::nn::Linear(inputs, hidden))),
        second(register_module("second", torch::nn::Linear(hidden, outputs))) {}

  torch::Tensor forward(torch::Tensor x) { return second(torch::tanh(first(std::move(x)))); }

  torch::nn::Linear first, second;
};

/// y = w x with one weight, from 0: the model of the worked numbers.
struct Line : torch::nn::Module {
  Line() : weight(register_parameter("weight", torch::zeros({1}, torch::kDouble))) {}

  torch::Tensor forward(const torch::Tensor& x) { return weight * x; }

  torch::Tensor weight;
};

/// x = 1 .. n and y = 2 x, in double: sums of a few of these are exact.
struct Doubles {
  struct Batch {
    torch::Tensor x, y;  // f64[rows]
  };

  std::int64_t rows;

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] Batch get(std::size_t i) const {
    const auto x = torch::tensor(static_cast<double>(i + 1));
    return {x, 2 * x};
  }
};

/// Rows of noise with a class each, equal for equal seeds.
struct Noise {
  struct Batch {
    torch::Tensor data;    // f32[rows, 5]
    torch::Tensor target;  // i64[rows], 0 to 2
  };

  explicit Noise(std::int64_t rows, std::uint64_t seed = 7) {
    auto generator = at::detail::createCPUGenerator(seed);
    all.data = torch::randn({rows, 5}, generator);
    all.target = torch::randint(3, {rows}, generator, torch::kLong);
  }

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(all.data.size(0)); }
  [[nodiscard]] Batch get_batch(const torch::Tensor& rows) const {
    return {all.data.index_select(0, rows), all.target.index_select(0, rows)};
  }

  Batch all;
};

inline torch::Tensor squared_error(const torch::Tensor& guess, const torch::Tensor& truth) {
  return (guess - truth).square().mean();
}

inline torch::Tensor cross_entropy(const torch::Tensor& guess, const torch::Tensor& truth) {
  return torch::nn::functional::cross_entropy(guess, truth);
}

/// Every bit of every parameter, to compare with ==.
inline std::vector<std::string> bits(const std::vector<torch::Tensor>& tensors) {
  std::vector<std::string> result;
  for (const auto& tensor : tensors) {
    if (!tensor.defined()) {
      result.emplace_back("undefined");
      continue;
    }
    const auto host = tensor.detach().cpu().contiguous();
    result.emplace_back(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
  }
  return result;
}

inline std::vector<torch::Tensor> gradients(const std::vector<torch::Tensor>& parameters) {
  std::vector<torch::Tensor> result;
  for (const auto& parameter : parameters) result.push_back(parameter.grad());
  return result;
}

inline std::vector<torch::Tensor> copies(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> result;
  for (const auto& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

/// Of all memory behind `tensors`, each once.
inline double storage_bytes(const std::vector<torch::Tensor>& tensors) {
  std::set<const c10::StorageImpl*> seen;
  double bytes = 0;
  for (const auto& tensor : tensors)
    if (tensor.defined() && seen.insert(tensor.storage().unsafeGetStorageImpl()).second)
      bytes += static_cast<double>(tensor.storage().nbytes());
  return bytes;
}

/// The largest absolute difference between two lists of tensors.
inline double distance(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, (a[i].detach() - b[i].detach()).abs().max().item<double>());
  return most;
}

}  // namespace accel::testing
