// Text files as training data: a token is a byte, so any text in any language will do, and no tokenizer is needed.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>

namespace gpt {

constexpr std::int64_t byte_tokens = 256;

/// Windows of `length` bytes of the part [begin, end) of a file, side by side: (input i64[length], target i64[length]),
/// where target is input one byte further. Nothing is read before it is asked for.
class Windows {
 public:
  Windows(std::shared_ptr<const accel::MappedFile> file, double begin, double end, std::int64_t length)
      : file_(std::move(file)), length_(length) {
    const auto bytes = static_cast<double>(file_->size());
    begin_ = static_cast<std::int64_t>(bytes * begin);
    rows_ = (static_cast<std::int64_t>(bytes * end) - begin_ - 1) / length_;
    ACCEL_CHECK(rows_ > 0, accel::DataError, file_->path().string(), ": expected more than ", length_, " bytes from ",
                begin, " to ", end, " of the file, found ", file_->size(), " in all");
  }

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows_); }

  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> get(std::size_t row) const {
    const auto at = begin_ + static_cast<std::int64_t>(row) * length_;
    const auto bytes = file_->bytes(static_cast<std::uint64_t>(at), static_cast<std::uint64_t>(length_ + 1));
    auto tokens = torch::empty({length_ + 1}, torch::kLong);
    auto* const out = tokens.mutable_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i <= length_; ++i) out[i] = static_cast<std::int64_t>(bytes[static_cast<std::size_t>(i)]);
    return {tokens.slice(0, 0, length_), tokens.slice(0, 1)};
  }

 private:
  std::shared_ptr<const accel::MappedFile> file_;
  std::int64_t length_;
  std::int64_t begin_ = 0;
  std::int64_t rows_ = 0;
};

}  // namespace gpt
