// What the two sides of a comparison with Python write to each other: tensors, flat and raw.
#pragma once

#include <torch/torch.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace accel::testing {

inline torch::Tensor flat(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> pieces;
  for (const auto& tensor : tensors) pieces.push_back(tensor.detach().flatten());
  return torch::cat(pieces);
}

inline void write_raw(const std::filesystem::path& path, const torch::Tensor& tensor) {
  const auto dense = tensor.detach().contiguous();
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(dense.const_data_ptr()), static_cast<std::streamsize>(dense.nbytes()));
}

/// f32[n]
inline torch::Tensor read_raw(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const auto tensor = torch::empty({static_cast<std::int64_t>(bytes.size() / sizeof(float))});
  std::memcpy(tensor.mutable_data_ptr(), bytes.data(), tensor.nbytes());
  return tensor;
}

}  // namespace accel::testing
