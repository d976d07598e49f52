// safetensors: read and write the file format, nothing else.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>
#include <accel/core/file.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/tensor/detail/safetensors_header.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::tensor::safetensors {

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and copied as it is");

/// The longest header that is written or read.
inline constexpr std::uint64_t max_header_size = 100'000'000;  // the reference implementation's limit

/// What a tensor will be in a file, before its bytes are there.
struct Declared {
  std::string name;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<std::int64_t> shape;
};

namespace detail {

[[nodiscard]] inline Entry describe(std::string_view path, const Declared& declared) {
  const auto& [name, dtype, shape] = declared;
  Entry entry;
  for (const Format& format : formats) {
    if (format.dtype == dtype) entry.format = &format;
  }
  const auto found = [&] { return Spec{.dtype = dtype, .shape = shape}.text(); };
  ACCEL_CHECK(entry.format != nullptr, InvalidArgument, path, ": tensor ", escaped(name),
              ": expected a dtype that the format has, found ", found(), "; convert or leave it out");
  entry.shape = shape;
  const bool two_in_one = entry.format->bits == 4;
  ACCEL_CHECK(!two_in_one || !entry.shape.empty(), InvalidArgument, path, ": tensor ", escaped(name),
              ": expected a dimension to count its pairs in, found ", found());
  if (two_in_one) entry.shape.back() *= 2;
  return entry;
}

}  // namespace detail

/// Where in a file everything will lie.
struct Plan {
  std::string header;                // the first bytes of the file, their own length among them
  std::vector<std::size_t> order;    // of the tensors, by their place in what was declared
  std::vector<std::uint64_t> bytes;  // of each, in that order; they follow each other behind the header
};

/// The order is the format's: dtype, then name. The same tensors make the same file, and the same as Python's
/// safetensors.torch.save_file, but for metadata of several keys (sorted here).
///
/// Throws   InvalidArgument for tensors or names that the format cannot hold; `path` is for its message.
[[nodiscard]] inline Plan plan(const std::filesystem::path& path, std::span<const Declared> tensors,
                               const std::map<std::string, std::string>& metadata = {}) {
  const std::string where = path.string();
  std::vector<detail::Entry> described;
  described.reserve(tensors.size());
  Plan result;
  for (const auto& declared : tensors) {
    result.order.push_back(described.size());
    described.push_back(detail::describe(where, declared));
  }
  // Rows of one table: the later the row, the earlier in the file.
  std::ranges::sort(result.order, [&](std::size_t a, std::size_t b) {
    return described[a].format != described[b].format ? described[a].format > described[b].format
                                                      : tensors[a].name < tensors[b].name;
  });

  std::uint64_t offset = 0;
  std::vector<std::string_view> names;
  std::vector<std::pair<std::string_view, detail::Entry>> entries;
  for (const std::size_t i : result.order) {
    const auto bytes = detail::byte_count(*described[i].format, described[i].shape);
    ACCEL_CHECK(bytes, InvalidArgument, where, ": tensor ", detail::escaped(tensors[i].name),
                ": its shape does not make a whole number of bytes below 2^61");
    entries.emplace_back(tensors[i].name, described[i]);
    entries.back().second.begin = offset;
    entries.back().second.end = offset += *bytes;
    result.bytes.push_back(*bytes);
    names.push_back(tensors[i].name);
  }
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  ACCEL_CHECK(twice == names.end(), InvalidArgument, where, ": expected each name once, found ",
              detail::escaped(*twice), " twice");
  ACCEL_CHECK(!std::ranges::binary_search(names, detail::metadata_key), InvalidArgument, where,
              ": \"__metadata__\" is the format's own; choose another name for the tensor");
  try {
    result.header = detail::print_header(entries, metadata);
  } catch (const nlohmann::json::exception& error) {
    throw InvalidArgument(message(where, ": expected names and metadata in UTF-8, found ", error.what()));
  }
  ACCEL_CHECK(result.header.size() - 8 <= max_header_size, InvalidArgument, where,
              ": expected names and shapes of at most ", max_header_size, " bytes, found ", result.header.size() - 8,
              "; write several files");
  return result;
}

/// What `named` will be in the file at `path`.
///
/// Throws   InvalidArgument if it is undefined, or no dense tensor.
[[nodiscard]] inline Declared declared(const std::filesystem::path& path, const NamedTensor& named) {
  const auto& [name, tensor] = named;
  ACCEL_CHECK(tensor.defined(), InvalidArgument, path.string(), ": tensor ", detail::escaped(name), " is undefined");
  ACCEL_CHECK(tensor.layout() == c10::Layout::Strided && !tensor.is_meta(), InvalidArgument, path.string(), ": tensor ",
              detail::escaped(name), ": expected a dense tensor, found ", layout(tensor), " on ", tensor.device().str(),
              "; convert or leave it out");
  return {name, tensor.scalar_type(), tensor.sizes().vec()};
}

/// What the format calls a dtype; InvalidArgument if it does not have it.
[[nodiscard]] inline std::string_view format_name(c10::ScalarType dtype) {
  return detail::describe("", {"", dtype, {2}}).format->name;
}

/// From the first 8 bytes of a file: how many follow them that are its header.
[[nodiscard]] inline std::uint64_t header_length(std::string_view first) {
  std::uint64_t length = 0;
  for (std::size_t byte = 0; byte < 8; ++byte)
    length |= static_cast<std::uint64_t>(static_cast<unsigned char>(first[byte])) << (8 * byte);
  return length;
}

/// Its bytes as a file has them: on the host, one row behind the other.
[[nodiscard]] inline at::Tensor in_file_order(const at::Tensor& tensor) {
  return tensor.detach().resolve_conj().resolve_neg().to(c10::DeviceType::CPU).contiguous();
}

/// Writes all tensors into one file, which appears at `path` whole or not at all.
///
/// Shape    any, any device and strides: copied to the host and made contiguous, one at a time.
/// Order    as plan() has it.
/// Memory   one tensor, if it has to be copied.
/// Throws   InvalidArgument for tensors or names the format cannot hold; CheckpointError with path
///          and the system's reason. What was at `path` before is then still there, unless only the
///          last step failed, flushing the folder.
/// Differs  tensors that share memory are written twice, where Python refuses them: which names are
///          aliases is for the caller to know.
inline void write(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                  const std::map<std::string, std::string>& metadata = {}) {
  std::vector<Declared> all;
  for (const auto& named : tensors) all.push_back(declared(path, named));
  const Plan plan = safetensors::plan(path, all, metadata);
  DurableFile file(path);
  file.write(plan.header.data(), plan.header.size());
  for (const std::size_t i : plan.order) {
    const at::Tensor host = in_file_order(tensors[i].tensor);
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

  /// As the file says it: dtypes that LibTorch has not among them.
  struct Format {
    std::string_view dtype;  // F32
    std::vector<std::int64_t> shape;
  };
  [[nodiscard]] Format format(std::string_view name) const {
    const detail::Entry& entry = find(name);
    return {entry.format->name, entry.shape};
  }

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

  /// The tensor without a copy: memory that the system reads from the file when it is touched, and that must not be
  /// written to. It stays when this object goes. Where it does not lie at a multiple of its element, as in files of
  /// other writers, it is a copy.
  ///
  /// Cost     of the first a map of the file.
  /// Throws   as read(), but for bools, which nobody has looked at; see MappedFile of what a failing disk does.
  [[nodiscard]] at::Tensor view(std::string_view name) const {
    const Spec spec = this->spec(name);
    const detail::Entry& entry = find(name);
    const std::uint64_t offset = data_begin_ + entry.begin;
    if (entry.begin == entry.end || offset % c10::elementSize(spec.dtype) != 0) return read(name);
    const auto bytes = map()->bytes(offset, entry.end - entry.begin);
    void* const begin = const_cast<std::byte*>(bytes.data());
    return at::from_blob(begin, spec.shape, [held = map_](void*) {}, at::TensorOptions(spec.dtype));
  }

  /// The bytes of the tensor in that memory.
  [[nodiscard]] std::span<const std::byte> bytes(std::string_view name) const {
    const detail::Entry& entry = find(name);
    if (entry.begin == entry.end) return {};
    return map()->bytes(data_begin_ + entry.begin, entry.end - entry.begin);
  }

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

  [[nodiscard]] const std::shared_ptr<const MappedFile>& map() const {
    try {
      if (map_ == nullptr) map_ = std::make_shared<const MappedFile>(file_.path(), Access::sequential);
    } catch (const DataError& error) {
      throw CheckpointError(error.what());
    }
    ACCEL_CHECK(map_->size() == file_.size(), CheckpointError, file_.path().string(), ": expected ", file_.size(),
                " bytes, as when it was opened, found ", map_->size());
    return map_;
  }

  InputFile file_;
  mutable std::shared_ptr<const MappedFile> map_;  // once somebody has asked for a view
  std::uint64_t data_begin_ = 0;
  detail::Header header_;
};

}  // namespace accel::inline v0_1::tensor::safetensors
