// JsonLines, JsonLinesStream: one JSON value a line, by row or one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <nlohmann/json.hpp>

#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>
#include <accel/dataset/detail/decoded.hpp>
#include <accel/dataset/detail/file_stream.hpp>
#include <accel/dataset/detail/line_reader.hpp>
#include <accel/dataset/detail/parts.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::dataset {

/// Where each line of some files begins. Blank lines are none, but are counted in messages.
///
/// Memory   8 bytes a line. The files are mapped.
/// Cost     making it reads the files once, and shows progress; a line is parsed when it is asked for.
/// Throws   DataError with the file; for a line that is no JSON, file:line:column.
class JsonLinesIndex {
 public:
  explicit JsonLinesIndex(const std::vector<std::filesystem::path>& paths, const ProgressOptions& progress = {}) {
    std::uint64_t bytes = 0;
    for (const auto& path : paths) bytes += files_.emplace_back(path, Access::sequential).size();
    Progress shown("indexing", static_cast<std::int64_t>(bytes), Counted::bytes, progress);
    std::uint64_t before = 0;
    for (const auto& file : files_) {
      shown.rename("indexing " + file.path().string());
      detail::LineReader reader(file);
      const auto first = offsets_.size();
      while (const auto line = reader.next()) {
        offsets_.push_back(line->offset);
        shown.reached(static_cast<std::int64_t>(before + reader.offset()));
      }
      lines_.add(static_cast<std::int64_t>(offsets_.size() - first));
      before += file.size();
      file.advise(Access::random);
    }
  }

  [[nodiscard]] std::int64_t size() const { return lines_.size(); }

  /// The line of that number over all files.
  [[nodiscard]] detail::Line line(std::int64_t row) const {
    const auto& file = files_[lines_.find(row).part];
    file.check_unchanged();
    const auto offset = offsets_[static_cast<std::size_t>(row)];
    const auto line = detail::LineReader(file, offset).next();
    ACCEL_CHECK(line.has_value(), DataError, file.path().string(), ": expected a line at offset ", offset,
                ", found none; the file has changed");
    return *line;
  }

 private:
  std::vector<MappedFile> files_;
  std::vector<std::uint64_t> offsets_;  // of the lines, in their files
  detail::Parts lines_;
};

/// Lines by row.
///
///   dataset::JsonLines train{{"train.jsonl"}, [](const nlohmann::json& line) {
///     return Row{tokens_of(line.at("text")), line.at("label").get<std::int64_t>()};
///   }};
///
/// `decode` is the user's: (const nlohmann::json&) or (const nlohmann::json&, at::Generator& random) to a row. It is
/// called by several threads at once.
///
/// Cost     see JsonLinesIndex.
/// Throws   as JsonLinesIndex does. What `decode` throws, such as json's type and missing keys, is a DataError that
///          names file and line.
/// Source   jsonlines.org. CRLF, a byte-order mark at the begin, a last line without an end and blank lines are taken.
template <class Decode>
class JsonLines {
 public:
  static_assert(detail::Decodes<const Decode, const nlohmann::json&>,
                "decode takes (const nlohmann::json&) or (const nlohmann::json&, at::Generator&) and is const");

  JsonLines(const std::vector<std::filesystem::path>& files, Decode decode, const ProgressOptions& progress = {})
      : index_(std::make_shared<const JsonLinesIndex>(files, progress)), decode_(std::move(decode)) {}

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(index_->size()); }

  /// The line as JSON.
  [[nodiscard]] nlohmann::json json(std::size_t row) const {
    return detail::parsed(index_->line(static_cast<std::int64_t>(row)));
  }

  [[nodiscard]] auto get(std::size_t row) const
    requires std::is_invocable_v<const Decode&, const nlohmann::json&>
  {
    const auto line = index_->line(static_cast<std::int64_t>(row));
    const auto json = detail::parsed(line);
    return detail::located([&] { return detail::place_of(line); }, [&] { return decode_(json); });
  }

  [[nodiscard]] auto get(std::size_t row, at::Generator& random) const
    requires detail::TakesRandom<const Decode, const nlohmann::json&>
  {
    const auto line = index_->line(static_cast<std::int64_t>(row));
    const auto json = detail::parsed(line);
    return detail::located([&] { return detail::place_of(line); }, [&] { return decode_(json, random); });
  }

 private:
  std::shared_ptr<const JsonLinesIndex> index_;
  Decode decode_;
};

/// Lines one after the other, file by file: no index. Ranks have files of their own.
///
/// `decode` is the user's: (const nlohmann::json&) to a row.
///
/// State    the number of the file, the offset in it and the row: going on is O(1).
/// Throws   InvalidArgument for fewer files than shards (ranks); otherwise as JsonLines does, when next() comes there.
template <class Decode>
class JsonLinesStream {
 public:
  static_assert(std::is_invocable_v<Decode&, const nlohmann::json&>, "decode takes (const nlohmann::json&)");

  JsonLinesStream(std::vector<std::filesystem::path> files, Decode decode, StreamOptions options = {})
      : lines_(std::move(files), options), decode_(std::move(decode)) {}

  [[nodiscard]] auto next() -> std::optional<std::decay_t<std::invoke_result_t<Decode&, const nlohmann::json&>>> {
    const auto line = lines_.next();
    if (!line) return std::nullopt;
    const auto json = detail::parsed(*line);
    return detail::located([&] { return detail::place_of(*line); }, [&] { return decode_(json); });
  }

  void start(std::int64_t epoch) { lines_.start(epoch); }

  /// Cost     looks for the ends of the lines, and parses none.
  void skip(std::int64_t rows) { lines_.skip(rows); }

  [[nodiscard]] tensor::StateDict state_dict() const { return lines_.state_dict(); }
  void load_state_dict(const tensor::StateDict& state) { lines_.load_state_dict(state); }

 private:
  detail::FileStream<detail::LineReader> lines_;
  Decode decode_;
};

}  // namespace accel::inline v0_1::dataset
