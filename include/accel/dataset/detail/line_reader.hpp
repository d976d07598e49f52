// The lines of a JSON Lines file, and their JSON.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>

namespace accel::inline v0_1::dataset::detail {

/// A line without its end, as long as the file is mapped.
struct Line {
  const MappedFile* file = nullptr;
  std::uint64_t offset = 0;
  std::string_view text;
};

/// `file:line`, counted from 1. Reads the file up to there: for messages.
[[nodiscard]] inline std::string place_of(const Line& line) {
  const auto before = line.file->text().substr(0, static_cast<std::size_t>(line.offset));
  return message(line.file->path().string(), ":", 1 + std::ranges::count(before, '\n'));
}

/// Walks the lines from the begin of one on. Blank ones are passed over.
class LineReader {
 public:
  using Item = Line;

  explicit LineReader(const MappedFile& file, std::uint64_t offset = 0) : file_(file) {
    const auto text = file.text();
    const std::uint64_t first = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;  // behind a byte-order mark, of Windows
    const bool begins = offset <= first || offset == text.size() ||
                        (offset < text.size() && text[static_cast<std::size_t>(offset) - 1] == '\n');
    ACCEL_CHECK(begins, DataError, file.path().string(), ": expected a line to begin at offset ", offset,
                ", found none; the file has changed");
    at_ = std::max(offset, first);
  }

  /// Where the next line begins.
  [[nodiscard]] std::uint64_t offset() const { return at_; }

  [[nodiscard]] std::optional<Line> next() {
    const auto text = file_.text();
    while (at_ < text.size()) {
      const auto begin = static_cast<std::size_t>(at_);
      const auto end = std::min(text.find('\n', begin), text.size());
      at_ = std::min(end + 1, text.size());
      auto line = text.substr(begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.find_first_not_of(" \t") != std::string_view::npos) return Line{&file_, begin, line};
    }
    return std::nullopt;
  }

 private:
  const MappedFile& file_;
  std::uint64_t at_ = 0;
};

/// Throws   DataError with file, line and column.
[[nodiscard]] inline nlohmann::json parsed(const Line& line) {
  // Two things that the parser would let pass: it takes a zero byte for the end, and skips a byte-order mark.
  const auto zero = line.text.find('\0');
  const auto refuse = [&](std::size_t column, std::string_view found) {
    throw DataError(message(place_of(line), ":", column, ": expected JSON, found ", found));
  };
  if (zero != std::string_view::npos) refuse(zero + 1, "a zero byte");
  if (line.text.starts_with("\xEF\xBB\xBF")) refuse(1, "a byte-order mark within the file");
  try {
    return nlohmann::json::parse(line.text.begin(), line.text.end());
  } catch (const nlohmann::json::parse_error& error) {
    // The parser's text holds what it read last, raw and of any length: not for a terminal.
    const std::string_view text = error.what();
    const auto reason = text.rfind("syntax error");
    const auto shown = reason == std::string_view::npos ? std::string_view("a syntax error")
                                                        : text.substr(reason, text.find("; last read") - reason);
    refuse(std::max<std::size_t>(error.byte, 1), shown);
  } catch (const nlohmann::json::exception& error) {
    refuse(1, error.what());  // a number beyond double
  }
  return {};
}

}  // namespace accel::inline v0_1::dataset::detail
