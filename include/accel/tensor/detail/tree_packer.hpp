// TreePacker: a tree into bytes.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/tensor/detail/packed_format.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree_path.hpp>

namespace accel::inline v0_1::tensor::detail {

/// Writes the description of a tree, and lists its tensors.
class TreePacker {
 public:
  template <class T>
  void put(const T& tree) {
    if constexpr (std::derived_from<T, at::Tensor>) {
      put_tensor(tree);
    } else if constexpr (PackedNumber<T>) {
      put_tag(tag_of<T>());
      put_raw(static_cast<std::uint8_t>(sizeof(T)));
      put_raw(tree);
    } else if constexpr (std::same_as<T, std::string>) {
      put_tag(PackedTag::text);
      put_raw(static_cast<std::uint64_t>(tree.size()));
      description_ += tree;
    } else if constexpr (is_number_list<T>) {
      using Number = typename T::value_type;
      put_tag(PackedTag::numbers);
      put_tag(tag_of<Number>());
      put_raw(static_cast<std::uint8_t>(sizeof(Number)));
      put_raw(static_cast<std::uint64_t>(tree.size()));
      description_.append(reinterpret_cast<const char*>(tree.data()), tree.size() * sizeof(Number));
    } else if constexpr (std::same_as<T, std::vector<bool>>) {
      put(std::vector<std::uint8_t>(tree.begin(), tree.end()));
    } else {
      static_assert(!Leaf<T>, "accel packs texts that are a std::string: others do not own their characters");
      std::uint64_t count = 0;
      const std::size_t begin = description_.size();
      put_tag(PackedTag::parts);
      put_raw(count);
      for_each_part(tree, [&](const auto& step, const auto& part) {
        if constexpr (MapLike<T>) put(step.value);
        within_step(path_, step, [&] { put(part); });
        ++count;
      });
      std::memcpy(description_.data() + begin + 1, &count, sizeof(count));
    }
  }

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(begin_of_tensors() + tensor_bytes_); }

  /// bytes: u8[size()] on the CPU.
  void write(const at::Tensor& bytes) const {
    const c10::AutoGradMode no_grad(false);
    PackedHeader header{.total_bytes = static_cast<std::uint64_t>(size()),
                        .description_bytes = description_.size(),
                        .description_hash = fnv1a(description_)};
    auto* const out = static_cast<std::byte*>(bytes.mutable_data_ptr());
    std::memset(out, 0, static_cast<std::size_t>(begin_of_tensors()));  // what lies between the parts, too, is the same
    std::memcpy(out, &header, sizeof(header));
    std::memcpy(out + sizeof(header), description_.data(), description_.size());
    std::uint64_t begin = begin_of_tensors();
    for (const auto& tensor : tensors_) {
      const std::uint64_t end = begin + tensor.nbytes();
      if (tensor.numel() > 0)
        bytes.narrow(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(tensor.nbytes()))
            .view(tensor.scalar_type())
            .view(tensor.sizes())
            .copy_(tensor);
      std::memset(out + end, 0, static_cast<std::size_t>(aligned(end) - end));
      begin = aligned(end);
    }
  }

 private:
  template <class T>
  void put_raw(const T& value) {
    description_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void put_tag(PackedTag tag) { put_raw(tag); }

  void put_tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return put_tag(PackedTag::undefined);
    ACCEL_CHECK(tensor.layout() == at::kStrided && is_plain(tensor.scalar_type()) && !tensor.is_meta(), InvalidArgument,
                "pack: expected dense tensors of a usual dtype, found ", layout(tensor), " on ", tensor.device().str(),
                path_.empty() ? "" : " at ", path_, "; convert it first");
    put_tag(PackedTag::tensor);
    put_raw(tensor.scalar_type());
    put_raw(static_cast<std::uint32_t>(tensor.dim()));
    for (const std::int64_t size : tensor.sizes()) put_raw(size);
    tensors_.push_back(tensor.detach());
    tensor_bytes_ += aligned(tensor.nbytes());
  }

  [[nodiscard]] std::uint64_t begin_of_tensors() const { return aligned(sizeof(PackedHeader) + description_.size()); }

  std::string description_;
  std::string path_;
  std::vector<at::Tensor> tensors_;
  std::uint64_t tensor_bytes_ = 0;
};

}  // namespace accel::inline v0_1::tensor::detail
