// The data and the network of both programs. Plain LibTorch, nothing of accel.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Batch {
  torch::Tensor data;    // f32[rows, 64], pixels from 0 to 1
  torch::Tensor target;  // i64[rows], digits
};

/// Handwritten digits of 8 x 8 pixels. Every fifth row is held out for the test.
class Digits {
 public:
  enum Part { train, test };

  explicit Digits(const std::string& csv, Part part = train) {
    std::ifstream file(csv);
    if (!file) throw std::runtime_error("cannot open " + csv);
    std::vector<float> pixels;
    std::vector<std::int64_t> digits;
    std::string line;
    for (int row = 0; std::getline(file, line); ++row) {
      if ((row % 5 == 4) != (part == test)) continue;
      std::istringstream cells(line);
      std::string cell;
      for (int column = 0; column < 64 && std::getline(cells, cell, ','); ++column)
        pixels.push_back(std::stof(cell) / 16);
      std::getline(cells, cell, ',');
      digits.push_back(std::stoll(cell));
    }
    data_ = torch::tensor(pixels).view({-1, 64});
    target_ = torch::tensor(digits);
  }

  std::size_t size() const { return static_cast<std::size_t>(data_.size(0)); }

  Batch get_batch(const torch::Tensor& rows) const {
    return {data_.index_select(0, rows), target_.index_select(0, rows)};
  }

 private:
  torch::Tensor data_, target_;
};

struct Net : torch::nn::Module {
  torch::Tensor forward(torch::Tensor x) { return output(torch::relu(hidden(std::move(x)))); }

  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(64, 128))};
  torch::nn::Linear output{register_module("output", torch::nn::Linear(128, 10))};
};
