// Tar, TarStream: shards as WebDataset writes them, by row or one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>
#include <accel/dataset/detail/decoded.hpp>
#include <accel/dataset/detail/file_stream.hpp>
#include <accel/dataset/detail/parts.hpp>
#include <accel/dataset/detail/rows.hpp>
#include <accel/dataset/detail/sample_reader.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::dataset {

/// Where each sample of some shards begins.
///
/// A sample is the files side by side whose names agree up to the first dot behind the last slash. Files without such a
/// dot belong to none and are passed over.
///
/// Memory   8 bytes a sample. The shards are mapped, not read.
/// Cost     making it reads every header once, and shows progress.
/// Throws   DataError, with shard and offset, for what is no archive, is cut short, holds links, devices or sparse
///          files, goes on behind its end, or has the files of one sample apart.
/// Source   WebDataset, "The WebDataset Format"; webdataset.tariterators: group_by_keys.
/// Differs  from WebDataset, which passes over links and makes two samples of files that lie apart.
class TarIndex {
 public:
  explicit TarIndex(const std::vector<std::filesystem::path>& shards, const ProgressOptions& progress = {}) {
    std::uint64_t bytes = 0;
    for (const auto& path : shards) bytes += files_.emplace_back(path, Access::random).size();
    Progress shown("indexing", static_cast<std::int64_t>(bytes), Counted::bytes, progress);
    std::uint64_t before = 0;
    for (const auto& file : files_) {
      shown.rename("indexing " + file.path().string());
      detail::SampleReader reader(file);
      const auto first = offsets_.size();
      while (const auto sample = reader.next()) {
        offsets_.push_back(sample->offset);
        shown.reached(static_cast<std::int64_t>(before + reader.offset()));
      }
      samples_.add(static_cast<std::int64_t>(offsets_.size() - first));
      before += file.size();
    }
  }

  [[nodiscard]] std::int64_t size() const { return samples_.size(); }

  /// The sample of that number over all shards. Its bytes are there as long as the index is.
  [[nodiscard]] TarSample sample(std::int64_t row) const {
    const auto shard = samples_.find(row).part;
    files_[shard].check_unchanged();
    detail::SampleReader reader(files_[shard], offsets_[static_cast<std::size_t>(row)]);
    auto sample = reader.next();
    ACCEL_CHECK(sample.has_value(), DataError, files_[shard].path().string(), ": expected a sample at offset ",
                offsets_[static_cast<std::size_t>(row)], ", found none; the file has changed");
    return *std::move(sample);
  }

 private:
  std::vector<MappedFile> files_;
  std::vector<std::uint64_t> offsets_;  // of the samples, in their shards
  detail::Parts samples_;
};

/// Shards by row: what a loader can shuffle and deal to ranks sample by sample.
///
///   dataset::Tar train{shards, [](const dataset::TarSample& sample) {
///     return Row{decode_jpeg(sample.bytes("jpg")), label_of(sample.text("cls"))};
///   }};
///
/// `decode` is the user's: (const TarSample&) or (const TarSample&, at::Generator& random) to a row. It is called by
/// several threads at once.
///
/// Cost     see TarIndex; a row costs its headers and decode.
/// Throws   as TarIndex does. What `decode` throws is a DataError that names shard, sample and offset.
template <class Decode>
class Tar {
 public:
  static_assert(detail::Decodes<const Decode, const TarSample&>,
                "decode takes (const TarSample&) or (const TarSample&, at::Generator&) and is const");

  Tar(const std::vector<std::filesystem::path>& shards, Decode decode, const ProgressOptions& progress = {})
      : index_(std::make_shared<const TarIndex>(shards, progress)), decode_(std::move(decode)) {}

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(index_->size()); }

  [[nodiscard]] auto get(std::size_t row) const
    requires std::is_invocable_v<const Decode&, const TarSample&>
  {
    const auto sample = index_->sample(static_cast<std::int64_t>(row));
    return detail::located(detail::place_of(sample), [&] { return decode_(sample); });
  }

  [[nodiscard]] auto get(std::size_t row, at::Generator& random) const
    requires detail::TakesRandom<const Decode, const TarSample&>
  {
    const auto sample = index_->sample(static_cast<std::int64_t>(row));
    return detail::located(detail::place_of(sample), [&] { return decode_(sample, random); });
  }

 private:
  std::shared_ptr<const TarIndex> index_;
  Decode decode_;
};

/// Shards one after the other, each read from its begin to its end: no index, and the disk is read in order. Ranks have
/// shards of their own, so that there must be as many at least, better many more.
///
/// `decode` is the user's: (const TarSample&) to a row.
///
/// State    the number of the shard, the offset in it and the row: going on is O(1).
/// Throws   InvalidArgument for fewer files than shards (ranks); otherwise as Tar does, when next() comes there.
template <class Decode>
class TarStream {
 public:
  static_assert(std::is_invocable_v<Decode&, const TarSample&>, "decode takes (const TarSample&)");

  TarStream(std::vector<std::filesystem::path> files, Decode decode, StreamOptions options = {})
      : samples_(std::move(files), options), decode_(std::move(decode)) {}

  [[nodiscard]] auto next() -> std::optional<std::decay_t<std::invoke_result_t<Decode&, const TarSample&>>> {
    const auto sample = samples_.next();
    if (!sample) return std::nullopt;
    return detail::located(detail::place_of(*sample), [&] { return decode_(*sample); });
  }

  void start(std::int64_t epoch) { samples_.start(epoch); }

  /// Cost     reads the headers of what it passes, and decodes nothing.
  void skip(std::int64_t rows) { samples_.skip(rows); }

  [[nodiscard]] tensor::StateDict state_dict() const { return samples_.state_dict(); }
  void load_state_dict(const tensor::StateDict& state) { samples_.load_state_dict(state); }

 private:
  detail::FileStream<detail::SampleReader> samples_;
  Decode decode_;
};

}  // namespace accel::inline v0_1::dataset
