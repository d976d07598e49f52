// safetensors: read and write the file format, nothing else.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>
#include <accel/tensor/detail/file_io.hpp>
#include <accel/tensor/detail/safetensors_header.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::tensor::safetensors {

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and copied as it is");

/// The longest header that is written or read.
inline constexpr std::uint64_t max_header_size = 100'000'000;  // the reference implementation's limit

namespace detail {

[[nodiscard]] inline Entry describe(std::string_view path, const NamedTensor& named) {
  const auto& [name, tensor] = named;
  ACCEL_CHECK(tensor.defined(), InvalidArgument, path, ": tensor ", escaped(name), " is undefined");
  Entry entry;
  for (const Format& format : formats) {
    if (format.dtype == tensor.scalar_type()) entry.format = &format;
  }
  ACCEL_CHECK(entry.format != nullptr && tensor.layout() == c10::Layout::Strided && !tensor.is_meta(), InvalidArgument,
              path, ": tensor ", escaped(name), ": expected a dense tensor of a dtype that the ", "format has, found ",
              spec(tensor), " on ", tensor.device().str(), "; convert or leave it out");
  entry.shape = tensor.sizes().vec();
  const bool two_in_one = entry.format->bits == 4;
  ACCEL_CHECK(!two_in_one || !entry.shape.empty(), InvalidArgument, path, ": tensor ", escaped(name),
              ": expected a dimension to count its pairs in, found ", spec(tensor));
  if (two_in_one) entry.shape.back() *= 2;
  return entry;
}

}  // namespace detail

/// Writes all tensors into one file, which appears at `path` whole or not at all.
///
/// Shape    any, any device and strides: copied to the host and made contiguous, one at a time.
/// Order    the format's: dtype, then name. The same tensors make the same file, and the same as
///          Python's safetensors.torch.save_file, but for metadata of several keys (sorted here).
/// Memory   one tensor, if it has to be copied.
/// Throws   InvalidArgument for tensors or names the format cannot hold; CheckpointError with path
///          and the system's reason. What was at `path` before is then still there, unless only the
///          last step failed, flushing the folder.
/// Differs  tensors that share memory are written twice, where Python refuses them: which names are
///          aliases is for the caller to know.
inline void write(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                  const std::map<std::string, std::string>& metadata = {}) {
  struct Item {
    const NamedTensor* named;
    detail::Entry entry;
  };
  const std::string where = path.string();
  std::vector<Item> items;
  items.reserve(tensors.size());
  for (const auto& named : tensors) items.push_back({&named, detail::describe(where, named)});
  // Rows of one table: the later the row, the earlier in the file.
  std::ranges::sort(items, [](const Item& a, const Item& b) {
    return a.entry.format != b.entry.format ? a.entry.format > b.entry.format : a.named->name < b.named->name;
  });

  std::uint64_t offset = 0;
  std::vector<std::string_view> names;
  std::vector<std::pair<std::string_view, detail::Entry>> entries;
  for (const auto& item : items) {
    entries.emplace_back(item.named->name, item.entry);
    entries.back().second.begin = offset;
    entries.back().second.end = offset += item.named->tensor.nbytes();
    names.push_back(item.named->name);
  }
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  ACCEL_CHECK(twice == names.end(), InvalidArgument, where, ": expected each name once, found ",
              detail::escaped(*twice), " twice");
  ACCEL_CHECK(!std::ranges::binary_search(names, detail::metadata_key), InvalidArgument, where,
              ": \"__metadata__\" is the format's own; choose another name for the tensor");

  std::string header;
  try {
    header = detail::print_header(entries, metadata);
  } catch (const nlohmann::json::exception& error) {
    throw InvalidArgument(message(where, ": expected names and metadata in UTF-8, found ", error.what()));
  }
  ACCEL_CHECK(header.size() - 8 <= max_header_size, InvalidArgument, where, ": expected names and shapes of at most ",
              max_header_size, " bytes, found ", header.size() - 8, "; write several files");

  tensor::detail::DurableFile file(path);
  file.write(header.data(), header.size());
  for (const auto& item : items) {
    const at::Tensor host =
        item.named->tensor.detach().resolve_conj().resolve_neg().to(c10::DeviceType::CPU).contiguous();
    file.write(host.const_data_ptr(), host.nbytes());
  }
  file.commit();
}

/// An open file: its header is read and checked, its tensors are read when asked for.
///
/// Cost     opening reads the header; read() one pass over the tensor's bytes, nothing cached.
/// Throws   CheckpointError with path, tensor, offset, expected and found. No header, however
///          made, costs more memory than a small multiple of its own size.
class File {
 public:
  explicit File(const std::filesystem::path& path) : file_(path) {
    const std::string where = file_.path().string();
    ACCEL_CHECK(file_.size() >= 8, CheckpointError, where, ": expected the 8 bytes of the header's length, found ",
                file_.size(), " bytes in all; not a safetensors file");
    std::uint64_t length = 0;
    file_.read(&length, 8, 0);
    ACCEL_CHECK(length <= max_header_size, CheckpointError, where, ": expected a header of at most ", max_header_size,
                " bytes, found the length ", length, " at offset 0; not a safetensors file");
    ACCEL_CHECK(length <= file_.size() - 8, CheckpointError, where, ": expected ", length,
                " bytes of header at offset 8, found ", file_.size() - 8, "; the file is cut short");
    std::string text(static_cast<std::size_t>(length), '\0');
    file_.read(text.data(), length, 8);
    data_begin_ = 8 + length;
    header_ = detail::parse_header(where, text, file_.size() - data_begin_);
  }

  /// Sorted.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : header_.entries) names.push_back(name);
    return names;
  }

  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  [[nodiscard]] bool contains(std::string_view name) const { return header_.entries.contains(name); }

  /// What read() would return, without reading it.
  [[nodiscard]] Spec spec(std::string_view name) const {
    const detail::Entry& entry = find(name);
    ACCEL_CHECK(entry.format->dtype.has_value(), CheckpointError, label(name), ": LibTorch has no dtype ",
                entry.format->name);
    Spec spec{.dtype = *entry.format->dtype, .shape = entry.shape};
    if (entry.format->bits != 4) return spec;
    ACCEL_CHECK(!spec.shape.empty() && spec.shape.back() % 2 == 0, CheckpointError, label(name),
                ": expected an even last dimension, since LibTorch holds F4 in pairs");
    spec.shape.back() /= 2;
    return spec;
  }

  /// Where its bytes begin in the file, for who maps it. Bools there may be neither 0 nor 1.
  [[nodiscard]] std::uint64_t offset(std::string_view name) const { return data_begin_ + find(name).begin; }

  /// A copy on the CPU that owns its memory.
  [[nodiscard]] at::Tensor read(std::string_view name) const {
    const Spec spec = this->spec(name);
    const detail::Entry& entry = find(name);
    at::Tensor tensor = at::empty(spec.shape, at::TensorOptions(spec.dtype).device(spec.device));
    auto* bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr());
    const std::uint64_t count = entry.end - entry.begin;
    file_.read(bytes, count, data_begin_ + entry.begin);
    if (spec.dtype == c10::ScalarType::Bool) {
      // A bool that is neither 0 nor 1 is undefined behaviour in whatever kernel meets it.
      const auto* wrong = std::find_if(bytes, bytes + count, [](unsigned char byte) { return byte > 1; });
      ACCEL_CHECK(wrong == bytes + count, CheckpointError, label(name), ": expected 0 or 1 at offset ",
                  data_begin_ + entry.begin + static_cast<std::uint64_t>(wrong - bytes), ", found ",
                  static_cast<int>(*wrong));
    }
    return tensor;
  }

 private:
  [[nodiscard]] std::string label(std::string_view name) const {
    return file_.path().string() + ": tensor " + detail::escaped(name);
  }

  [[nodiscard]] const detail::Entry& find(std::string_view name) const {
    const auto entry = header_.entries.find(name);
    ACCEL_CHECK(entry != header_.entries.end(), CheckpointError, label(name), ": expected among ",
                header_.entries.size(), " tensors, not found");
    return entry->second;
  }

  tensor::detail::InputFile file_;
  std::uint64_t data_begin_ = 0;
  detail::Header header_;
};

}  // namespace accel::inline v0_1::tensor::safetensors
