// TreeUnpacker: bytes into a tree again.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/tensor/detail/packed_format.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree_path.hpp>

namespace accel::inline v0_1::tensor::detail {

/// Reads what a TreePacker has written. Nothing is believed.
class TreeUnpacker {
 public:
  explicit TreeUnpacker(const at::Tensor& bytes) : bytes_(bytes) {
    ACCEL_CHECK(bytes.defined() && bytes.scalar_type() == at::kByte && bytes.dim() == 1 && bytes.is_contiguous(),
                InvalidArgument, "unpack: expected the contiguous u8[bytes] that pack gave, found ",
                bytes.defined() ? layout(bytes) : "undefined");
    PackedHeader header;
    ACCEL_CHECK(bytes.numel() >= std::int64_t{sizeof(header)}, InvalidArgument, "unpack: expected at least ",
                sizeof(header), " bytes, found ", bytes.numel());
    const std::string head = on_host(0, sizeof(header));
    std::memcpy(&header, head.data(), sizeof(header));
    ACCEL_CHECK(header.magic == PackedHeader{}.magic, InvalidArgument, "unpack: these ", bytes.numel(),
                " bytes do not begin as what pack gives does");
    ACCEL_CHECK(header.total_bytes == static_cast<std::uint64_t>(bytes.numel()), InvalidArgument, "unpack: expected ",
                header.total_bytes, " bytes, found ", bytes.numel());
    ACCEL_CHECK(header.description_bytes <= header.total_bytes - sizeof(header), InvalidArgument,
                "unpack: the description is said to have ", header.description_bytes, " of ", header.total_bytes,
                " bytes");
    description_ = on_host(sizeof(header), header.description_bytes);
    ACCEL_CHECK(fnv1a(description_) == header.description_hash, InvalidArgument,
                "unpack: the description of the tree is not what was packed");
    tensors_at_ = aligned(sizeof(header) + header.description_bytes);
    // Of a tensor that lies elsewhere in its storage, parts could not be seen as wider numbers.
    if (bytes.storage_offset() % std::int64_t{packed_alignment} != 0 ||
        reinterpret_cast<std::uintptr_t>(bytes.const_data_ptr()) % packed_alignment != 0)
      bytes_ = bytes.clone();
  }

  template <class T>
  void take(T& tree) {
    if constexpr (std::derived_from<T, at::Tensor>) {
      static_cast<at::Tensor&>(tree) = take_tensor();
    } else if constexpr (PackedNumber<T>) {
      expect(tag_of<T>(), "a number");
      expect_size(sizeof(T));
      take_raw(tree);
    } else if constexpr (std::same_as<T, std::string>) {
      expect(PackedTag::text, "a text");
      tree = std::string(take_bytes(take_count(1)));
    } else if constexpr (is_number_list<T>) {
      using Number = typename T::value_type;
      expect(PackedTag::numbers, "a list of numbers");
      expect(tag_of<Number>(), "numbers of another kind");
      expect_size(sizeof(Number));
      const std::uint64_t count = take_count(sizeof(Number));
      tree.resize(static_cast<std::size_t>(count));
      const std::string_view raw = take_bytes(count * sizeof(Number));
      if (!raw.empty()) std::memcpy(tree.data(), raw.data(), raw.size());
    } else if constexpr (std::same_as<T, std::vector<bool>>) {
      std::vector<std::uint8_t> flags;
      take(flags);
      tree.assign(flags.begin(), flags.end());
    } else {
      take_parts(tree);
    }
  }

  void end() const {
    check(description_.size() == at_ && tensors_at_ == static_cast<std::uint64_t>(bytes_.numel()),
          "expected the end of the tree, found more");
  }

 private:
  void check(bool holds, std::string_view what) const {
    ACCEL_CHECK(holds, InvalidArgument, "unpack: ", what, path_.empty() ? "" : " at ", path_,
                "; pack and unpack the same type, by the same program");
  }

  [[nodiscard]] std::string on_host(std::uint64_t begin, std::uint64_t count) const {
    const at::Tensor part =
        bytes_.narrow(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(count)).to(c10::DeviceType::CPU);
    return {static_cast<const char*>(part.const_data_ptr()), static_cast<std::size_t>(count)};
  }

  [[nodiscard]] std::string_view take_bytes(std::uint64_t count) {
    check(count <= description_.size() - at_, "expected more than there is");
    const auto begin = std::exchange(at_, at_ + static_cast<std::size_t>(count));
    return std::string_view(description_).substr(begin, static_cast<std::size_t>(count));
  }
  template <class T>
  void take_raw(T& value) {
    const std::string_view raw = take_bytes(sizeof(T));
    if constexpr (std::same_as<T, bool>) check(raw.front() == 0 || raw.front() == 1, "found a flag that is none");
    std::memcpy(&value, raw.data(), sizeof(T));
  }
  template <class T>
  [[nodiscard]] T take_value() {
    T value{};
    take_raw(value);
    return value;
  }
  /// Of things that take at least `least` bytes each.
  [[nodiscard]] std::uint64_t take_count(std::uint64_t least) {
    const auto count = take_value<std::uint64_t>();
    check(count <= (description_.size() - at_) / least, "found a count of more than there is");
    return count;
  }

  void expect(PackedTag tag, std::string_view what) {
    const auto found = take_value<PackedTag>();
    if (found != tag) check(false, message("expected ", what, ", found something else"));
  }
  void expect_size(std::size_t bytes) { check(take_value<std::uint8_t>() == bytes, "found a number of another size"); }

  template <class T>
  void take_parts(T& tree) {
    static_assert(std::is_default_constructible_v<T>, "accel unpacks into structs that can be made without arguments");
    // A struct may hold a vector of itself: what is not believed must not go deeper than the stack does.
    constexpr int deepest = 500;
    check(++depth_ < deepest, "found parts within parts without an end");
    expect(PackedTag::parts, "parts");
    const std::uint64_t count = take_count(1);
    if constexpr (is_a<T, std::vector>) {
      tree.clear();
      for (std::uint64_t k = 0; k < count; ++k)
        within_step(path_, Place{static_cast<std::size_t>(k)}, [&] { take(tree.emplace_back()); });
    } else if constexpr (is_a<T, std::optional>) {
      check(count <= 1, "expected one value or none, found more");
      tree.reset();
      if (count == 1) take(tree.emplace());
    } else if constexpr (MapLike<T>) {
      tree.clear();
      for (std::uint64_t k = 0; k < count; ++k) {
        typename T::key_type key{};
        take(key);
        const auto [entry, is_new] = tree.try_emplace(std::move(key));
        check(is_new, "found a key twice");
        within_step(path_, Key<typename T::key_type>{entry->first}, [&] { take(entry->second); });
      }
    } else {
      std::uint64_t own = 0;
      for_each_part(tree, [&](const auto&, const auto&) { ++own; });
      check(count == own, "found another number of fields");
      for_each_part(tree, [&](const auto& step, auto& part) { within_step(path_, step, [&] { take(part); }); });
    }
    --depth_;
  }

  [[nodiscard]] at::Tensor take_tensor() {
    const auto tag = take_value<PackedTag>();
    if (tag == PackedTag::undefined) return {};
    check(tag == PackedTag::tensor, "expected a tensor, found something else");
    const auto dtype = static_cast<c10::ScalarType>(take_value<std::int8_t>());
    check(is_plain(dtype), "found an unknown dtype");
    const auto dims = take_value<std::uint32_t>();
    check(dims <= (description_.size() - at_) / sizeof(std::int64_t), "found more dimensions than there are");
    // With zeros taken for ones: strides, too, must be numbers.
    constexpr auto most = std::numeric_limits<std::int64_t>::max() / 16;
    std::int64_t span = 1;
    bool is_empty = false;
    std::vector<std::int64_t> sizes(dims);
    for (auto& size : sizes) {
      take_raw(size);
      check(size >= 0 && (size <= 1 || span <= most / size), "found a size that cannot be");
      span *= std::max<std::int64_t>(size, 1);
      is_empty = is_empty || size == 0;
    }
    if (is_empty) return at::empty(sizes, bytes_.options().dtype(dtype));
    const auto count = static_cast<std::uint64_t>(span) * c10::elementSize(dtype);
    const auto left = static_cast<std::uint64_t>(bytes_.numel()) - tensors_at_;
    check(tensors_at_ <= static_cast<std::uint64_t>(bytes_.numel()) && aligned(count) <= left,
          "found a tensor of more bytes than there are");
    const auto begin = static_cast<std::int64_t>(std::exchange(tensors_at_, tensors_at_ + aligned(count)));
    return bytes_.narrow(0, begin, static_cast<std::int64_t>(count)).view(dtype).view(sizes);
  }

  at::Tensor bytes_;
  std::string description_;
  std::string path_;
  std::size_t at_ = 0;            // in the description
  std::uint64_t tensors_at_ = 0;  // in the bytes
  int depth_ = 0;
};

}  // namespace accel::inline v0_1::tensor::detail
