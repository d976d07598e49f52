// Reader: an open checkpoint: checked before it is believed, and read tensor by tensor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/checkpoint/manifest.hpp>
#include <accel/checkpoint/part.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>
#include <accel/core/file.hpp>
#include <accel/core/pages.hpp>
#include <accel/tensor/all_threads.hpp>
#include <accel/tensor/packed_memory.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::checkpoint {

/// A checkpoint's folder, whose manifest and headers have been read and checked.
///
/// Throws   CheckpointError, from all calls, with file, tensor and region, for what is missing or damaged.
class Reader {
 public:
  explicit Reader(std::filesystem::path folder) : folder_(std::move(folder)), manifest_(Manifest::read(folder_)) {
    for (const auto& [name, entry] : manifest_.files) {
      const InputFile file(folder_ / name);
      ACCEL_CHECK(file.size() == entry.bytes, CheckpointError, file.path().string(), ": expected ", entry.bytes,
                  " bytes, found ", file.size(), "; it is cut short, or another file");
      if (entry.has_tensors) open(name, entry, file);
    }
    for (const PartEntry& part : manifest_.parts)
      for (const TensorEntry& tensor : part.tensors) check(part, tensor);
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }

  /// Reads everything, or what rank `only` needs where there are as many ranks as when it was saved, and compares the
  /// checksums.
  ///
  /// Cost     a pass over the bytes, by all threads of LibTorch; nothing is kept of them but what the system keeps.
  void verify(std::optional<int> only = std::nullopt) const { (void)read(only, {}); }

  /// The same; the tensors of the parts `kept` come into memory on the way, and it is that memory whose checksums are
  /// compared. part() gives them then, to be kept and written to.
  void verify_and_keep(std::optional<int> only, const std::set<std::string>& kept) { kept_ = read(only, kept); }

  /// What it has of that part, for `rank`; nothing if there is none. Tensors that are not kept are views of the files,
  /// which hold as long as these do.
  [[nodiscard]] std::optional<SavedPart> part(std::string_view name, int rank) const {
    std::map<int, tensor::StateDict> by_rank;
    std::optional<tensor::StateDict> of_all;
    for (const PartEntry& entry : manifest_.parts) {
      if (entry.name != name) continue;
      if (entry.rank)
        by_rank.emplace(*entry.rank, state(entry));
      else
        of_all = state(entry);
    }
    if (by_rank.empty() && !of_all) return std::nullopt;
    return SavedPart(std::move(by_rank), std::move(of_all), rank, manifest_.world_size);
  }

 private:
  using Kept = std::unordered_map<const TensorEntry*, at::Tensor>;

  [[nodiscard]] Kept read(std::optional<int> only, const std::set<std::string>& keeps) const {
    struct Piece {
      const TensorEntry* tensor;
      const PartEntry* part;
      std::span<const std::byte> bytes;
      std::byte* to;  // null: nowhere
    };
    constexpr std::size_t most = 4 << 20;
    Kept kept = memory_for(only, keeps);
    std::vector<Piece> pieces;
    for_each_needed(only, [&](const PartEntry& part, const TensorEntry& tensor) {
      const auto bytes = files_.at(tensor.file).bytes(part.stored_name(tensor.name));
      const auto found = kept.find(&tensor);
      auto* const to = found == kept.end() ? nullptr : static_cast<std::byte*>(found->second.mutable_data_ptr());
      for (std::size_t at = 0; at < std::max<std::size_t>(bytes.size(), 1); at += most)
        pieces.push_back(
            {&tensor, &part, bytes.subspan(at, std::min(most, bytes.size() - at)), to == nullptr ? nullptr : to + at});
    });
    std::vector<std::optional<std::uint32_t>> sums(pieces.size());  // of those that could be read
    tensor::by_all_threads(pieces.size(), [&](std::size_t i) {
      if (!read_in(pieces[i].bytes)) return;
      sums[i] = pieces[i].to == nullptr ? crc32c(pieces[i].bytes) : copied(pieces[i].bytes, pieces[i].to);
    });
    for (std::size_t i = 0; i < pieces.size();) {
      const TensorEntry& tensor = *pieces[i].tensor;
      std::uint32_t sum = 0;
      for (; i < pieces.size() && pieces[i].tensor == &tensor; ++i) {
        if (!sums[i]) fail_unread(*pieces[i].part, tensor);
        sum = crc32c_joined(sum, *sums[i], pieces[i].bytes.size());
      }
      const PartEntry& part = *pieces[i - 1].part;
      if (sum != tensor.crc32c) fail_damaged(part, tensor, sum);
    }
    for (const auto& [name, entry] : manifest_.files)
      if (!entry.has_tensors) verify_other(name, entry);
    return kept;
  }

  /// Visits what rank `only` needs, or everything.
  template <class Visitor>
  void for_each_needed(std::optional<int> only, const Visitor& visit) const {
    for (const PartEntry& part : manifest_.parts) {
      if (only && part.rank && *part.rank != *only && *part.rank != 0) continue;
      for (const TensorEntry& tensor : part.tensors) visit(part, tensor);
    }
  }

  /// Of those of the parts `keeps`, not yet filled: a block for each part, so that none outlives it in another's.
  [[nodiscard]] Kept memory_for(std::optional<int> only, const std::set<std::string>& keeps) const {
    std::map<std::string_view, tensor::PackedMemory> memory;
    const auto for_each_kept = [&](const auto& visit) {
      for_each_needed(only, [&](const PartEntry& part, const TensorEntry& tensor) {
        // A bool is looked at as it is read, into memory of its own.
        if (tensor.dtype == "BOOL" || !keeps.contains(part.name)) return;
        const at::Tensor like = files_.at(tensor.file).view(part.stored_name(tensor.name));
        if (like.numel() > 0) visit(memory[part.name], tensor, like);
      });
    };
    for_each_kept([](auto& block, const TensorEntry&, const at::Tensor& like) { block.plan(like, at::kCPU); });
    Kept kept;
    for_each_kept([&](auto& block, const TensorEntry& tensor, const at::Tensor& like) {
      kept.emplace(&tensor, block.give(like, at::kCPU));
    });
    return kept;
  }

  /// Copies, and gives the checksum of the copy.
  [[nodiscard]] static std::uint32_t copied(std::span<const std::byte> bytes, std::byte* to) {
    constexpr std::size_t in_cache = 256 << 10;
    std::uint32_t sum = 0;
    for (std::size_t at = 0; at < bytes.size(); at += in_cache) {
      const std::size_t count = std::min(in_cache, bytes.size() - at);
      std::memcpy(to + at, bytes.data() + at, count);
      sum = crc32c({to + at, count}, sum);
    }
    return sum;
  }

  void open(const std::string& name, const FileEntry& entry, const InputFile& file) {
    std::string header(8, '\0');
    ACCEL_CHECK(file.size() >= 8, CheckpointError, file.path().string(), ": it has no header");
    file.read(header.data(), 8, 0);
    const auto length = tensor::safetensors::header_length(header);
    ACCEL_CHECK(length <= file.size() - 8 && length <= tensor::safetensors::max_header_size, CheckpointError,
                file.path().string(), ": bytes 0 to 8, the length of the header, are damaged");
    header.resize(8 + static_cast<std::size_t>(length));
    file.read(header.data() + 8, length, 8);
    const std::uint32_t sum = crc32c(std::as_bytes(std::span(header)));
    ACCEL_CHECK(sum == entry.crc32c, CheckpointError, file.path().string(), ": bytes 0 to ", header.size(),
                ", its header, are damaged: their checksum is ", detail::hex(sum), ", expected ",
                detail::hex(entry.crc32c));
    files_.emplace(name, tensor::safetensors::File(file.path()));
  }

  void check(const PartEntry& part, const TensorEntry& tensor) const {
    const auto& file = files_.at(tensor.file);
    const std::string name = part.stored_name(tensor.name);
    ACCEL_CHECK(file.contains(name), CheckpointError, (folder_ / tensor.file).string(), ": tensor ", name,
                " is missing, which ", manifest_file, " says is there");
    const auto found = file.format(name);
    ACCEL_CHECK(found.dtype == tensor.dtype && found.shape == tensor.shape, CheckpointError,
                (folder_ / tensor.file).string(), ": tensor ", name, " has another dtype or shape than in ",
                manifest_file);
  }

  [[noreturn]] void fail_unread(const PartEntry& part, const TensorEntry& tensor) const {
    throw CheckpointError(message((folder_ / tensor.file).string(), ": the disk fails, or the file was cut short, at ",
                                  "tensor ", part.stored_name(tensor.name)));
  }

  [[noreturn]] void fail_damaged(const PartEntry& part, const TensorEntry& tensor, std::uint32_t found) const {
    const auto& file = files_.at(tensor.file);
    const std::string name = part.stored_name(tensor.name);
    const std::uint64_t begin = file.offset(name);
    throw CheckpointError(message((folder_ / tensor.file).string(), ": tensor ", name, ", bytes ", begin, " to ",
                                  begin + file.bytes(name).size(), " of the file, is damaged: its checksum is ",
                                  detail::hex(found), ", expected ", detail::hex(tensor.crc32c)));
  }

  void verify_other(const std::string& name, const FileEntry& entry) const {
    const InputFile file(folder_ / name);
    const std::uint32_t sum = detail::crc32c_of(file);
    ACCEL_CHECK(sum == entry.crc32c, CheckpointError, file.path().string(), ": it is damaged: bytes 0 to ", file.size(),
                " have the checksum ", detail::hex(sum), ", expected ", detail::hex(entry.crc32c));
  }

  [[nodiscard]] tensor::StateDict state(const PartEntry& part) const {
    tensor::StateDict result;
    for (const auto& [name, value] : part.values) std::visit([&](auto number) { result.add(name, number); }, value);
    for (const TensorEntry& tensor : part.tensors) {
      const auto& file = files_.at(tensor.file);
      const std::string name = part.stored_name(tensor.name);
      if (const auto kept = kept_.find(&tensor); kept != kept_.end()) {
        result.add(tensor.name, kept->second);
        continue;
      }
      // read() looks at bools, of which others than 0 and 1 are undefined behaviour.
      result.add(tensor.name, tensor.dtype == "BOOL" ? file.read(name) : file.view(name));
    }
    return result;
  }

  std::filesystem::path folder_;
  Manifest manifest_;
  std::map<std::string, tensor::safetensors::File> files_;
  Kept kept_;
};

}  // namespace accel::inline v0_1::checkpoint
