// The samples of a tar archive: members side by side that have the same name up to its first dot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/dataset/detail/quoted.hpp>
#include <accel/dataset/detail/tar_reader.hpp>

namespace accel::inline v0_1::dataset {

/// One sample of a shard, as long as `decode` runs: the bytes are those of the mapped file.
///
///   images/0001.jpg, images/0001.cls  ->  key "images/0001", fields "jpg" and "cls"
struct TarSample {
  std::string key;
  std::map<std::string, std::span<const std::byte>, std::less<>> fields;  // by extension, in lower case
  std::filesystem::path shard;
  std::uint64_t offset = 0;  // in the shard

  /// Throws   DataError if there is no such field, naming those that there are.
  [[nodiscard]] std::span<const std::byte> bytes(std::string_view extension) const {
    const auto field = fields.find(extension);
    if (field != fields.end()) return field->second;
    std::string known;
    for (const auto& [name, bytes] : fields) known += (known.empty() ? "" : ", ") + detail::quoted(name);
    throw DataError(message("expected a file ", detail::quoted(extension), ", found ", known));
  }

  [[nodiscard]] std::string_view text(std::string_view extension) const {
    const auto found = bytes(extension);
    return {reinterpret_cast<const char*>(found.data()), found.size()};
  }

  /// A copy: u8[n].
  [[nodiscard]] at::Tensor tensor(std::string_view extension) const {
    const auto found = bytes(extension);
    at::Tensor tensor = at::empty({static_cast<std::int64_t>(found.size())}, at::kByte);
    if (!found.empty()) std::memcpy(tensor.mutable_data_ptr(), found.data(), found.size());
    return tensor;
  }
};

namespace detail {

/// `images/0001.seg.PNG` to `images/0001` and `seg.png`, as WebDataset does; nothing for a name without such a dot.
[[nodiscard]] inline std::optional<std::pair<std::string, std::string>> key_and_extension(std::string_view name) {
  const auto slash = name.rfind('/');
  const auto base = slash == std::string_view::npos ? 0 : slash + 1;
  const auto dot = name.find('.', base);
  if (dot == std::string_view::npos || dot == base) return std::nullopt;
  std::string extension(name.substr(dot + 1));
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return std::pair(std::string(name.substr(0, dot)), std::move(extension));
}

/// For messages, when they are needed.
[[nodiscard]] inline auto place_of(const TarSample& sample) {
  return [&sample] {
    return message(sample.shard.string(), ": sample ", quoted(sample.key), " at offset ", sample.offset);
  };
}

/// Walks the samples from one's first header block on.
class SampleReader {
 public:
  using Item = TarSample;

  explicit SampleReader(const MappedFile& file, std::uint64_t offset = 0)
      : file_(file), reader_(file, offset), next_begin_(offset) {}

  /// Where the next sample begins.
  [[nodiscard]] std::uint64_t offset() const { return next_begin_; }

  /// The next sample; empty at the end.
  [[nodiscard]] std::optional<TarSample> next() {
    std::optional<TarSample> sample;
    while (true) {
      if (!ahead_) ahead_ = next_named();
      if (!ahead_ || (sample && ahead_->key != sample->key)) break;
      if (!sample) {
        sample.emplace();
        sample->key = ahead_->key;
        sample->shard = file_.path();
        sample->offset = ahead_->member.begin;
        check_new(*sample);
      }
      const bool is_new =
          sample->fields.emplace(ahead_->extension, file_.bytes(ahead_->member.data, ahead_->member.size)).second;
      ACCEL_CHECK(is_new, DataError, file_.path().string(), ": expected a file of sample ", quoted(sample->key),
                  " once, found ", quoted(ahead_->extension), " again at offset ", ahead_->member.begin);
      ahead_.reset();
    }
    next_begin_ = ahead_ ? ahead_->member.begin : reader_.offset();
    return sample;
  }

 private:
  struct Named {
    TarMember member;
    std::string key, extension;
  };

  /// The next member that belongs to a sample: folders' READMEs and the like are passed over, as by WebDataset.
  [[nodiscard]] std::optional<Named> next_named() {
    while (auto member = reader_.next()) {
      if (auto names = key_and_extension(member->name))
        return Named{*std::move(member), std::move(names->first), std::move(names->second)};
    }
    return std::nullopt;
  }

  /// Files of a sample that do not lie side by side would make two halves of it.
  void check_new(const TarSample& sample) {
    const bool is_new = seen_.insert(std::hash<std::string>()(sample.key)).second;
    ACCEL_CHECK(is_new, DataError, file_.path().string(), ": expected the files of sample ", quoted(sample.key),
                " side by side, found more of them at offset ", sample.offset, "; archive with --sort=name");
  }

  const MappedFile& file_;
  TarReader reader_;
  std::optional<Named> ahead_;
  std::uint64_t next_begin_;
  std::unordered_set<std::size_t> seen_;  // hashes of keys
};

}  // namespace detail

}  // namespace accel::inline v0_1::dataset
