// The records of a CSV file and the numbers in their fields.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/dataset/detail/quoted.hpp>

namespace accel::inline v0_1::dataset::detail {

struct CsvField {
  std::string_view text;     // without quotes around it, or blanks
  std::uint64_t offset = 0;  // of the text, in the file
};

/// Walks the records of a file. Blank lines are none.
///
/// Source   RFC 4180; and a line may end in LF alone, a file begin with a byte-order mark.
class CsvReader {
 public:
  CsvReader(const MappedFile& file, char delimiter) : file_(file), text_(file.text()), delimiter_(delimiter) {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
  }

  /// Where the next record begins.
  [[nodiscard]] std::uint64_t offset() const { return at_; }

  /// Replaces `fields` by those of the next record; false at the end.
  [[nodiscard]] bool next(std::vector<CsvField>& fields) {
    fields.clear();
    skip_blank_lines();
    if (at_ == text_.size()) return false;
    while (true) {
      fields.push_back(text_[skip_blanks(at_)] == '"' ? quoted_field() : plain_field());
      if (at_ == text_.size()) return true;
      if (text_[at_++] == '\n') return true;  // else it was a delimiter, behind which there is a field, if an empty one
      if (at_ == text_.size()) {
        fields.push_back({text_.substr(at_), at_});
        return true;
      }
    }
  }

  /// Throws   DataError at file:line:column of `offset`, both counted from 1, the column in bytes.
  template <class Expected, class Found>
  [[noreturn]] void fail(std::uint64_t offset, const Expected& expected, const Found& found) const {
    const auto before = text_.substr(0, static_cast<std::size_t>(offset));
    const auto line_begin = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
    throw DataError(message(file_.path().string(), ":", 1 + std::ranges::count(before, '\n'), ":",
                            1 + offset - line_begin, ": expected ", expected, ", found ", found));
  }

 private:
  [[nodiscard]] bool is_blank(std::size_t at) const {
    return (text_[at] == ' ' || text_[at] == '\t') && text_[at] != delimiter_;
  }

  /// A zero behind the end of the file, for the caller to read.
  [[nodiscard]] std::size_t skip_blanks(std::size_t at) const {
    while (at + 1 < text_.size() && is_blank(at)) ++at;
    return at;
  }

  [[nodiscard]] bool at_line_end(std::size_t at) const {
    return at == text_.size() || text_[at] == '\n' ||
           (text_[at] == '\r' && (at + 1 == text_.size() || text_[at + 1] == '\n'));
  }

  void skip_blank_lines() {
    while (at_ < text_.size()) {
      std::size_t at = at_;
      while (at < text_.size() && is_blank(at)) ++at;
      if (!at_line_end(at)) return;
      at_ = std::min(text_.find('\n', at), text_.size() - 1) + 1;
    }
  }

  /// Up to the delimiter or the end of the line, where at_ stays.
  [[nodiscard]] CsvField plain_field() {
    std::size_t end = at_;
    while (end < text_.size() && text_[end] != delimiter_ && text_[end] != '\n') {
      if (text_[end] == '"') fail(end, "quotes around a whole field or none", "one within it");
      ++end;
    }
    std::size_t begin = at_, last = end;
    at_ = end;
    if (last > begin && text_[last - 1] == '\r' && at_line_end(last - 1)) --last;
    while (begin < last && is_blank(begin)) ++begin;
    while (last > begin && is_blank(last - 1)) --last;
    return {text_.substr(begin, last - begin), begin};
  }

  [[nodiscard]] CsvField quoted_field() {
    const auto begin = skip_blanks(at_) + 1;
    std::size_t end = begin;
    while (true) {
      end = text_.find('"', end);
      if (end == std::string_view::npos) fail(begin - 1, "a quote at the end of this field", "none");
      if (end + 1 == text_.size() || text_[end + 1] != '"') break;
      end += 2;  // two are one
    }
    at_ = end + 1;
    while (at_ < text_.size() && is_blank(at_)) ++at_;
    if (at_line_end(at_)) {
      at_ = std::min(text_.find('\n', at_), text_.size());
    } else if (text_[at_] != delimiter_) {
      fail(at_, "a delimiter or the end of the line behind a quoted field", quoted(text_.substr(at_, 1)));
    }
    return {text_.substr(begin, end - begin), begin};
  }

  const MappedFile& file_;
  std::string_view text_;
  char delimiter_;
  std::size_t at_ = 0;
};

/// Empty, or what pandas and R write for it.
[[nodiscard]] inline bool is_missing(std::string_view text) {
  if (text.size() > 4) return false;
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  constexpr std::array<std::string_view, 6> names{"", "na", "n/a", "nan", "-nan", "null"};
  return std::ranges::find(names, lower) != names.end();
}

/// Nothing for what is no number, or beyond the largest. What is below the smallest is rounded, as everything is.
template <class Number>
[[nodiscard]] std::optional<Number> floating(std::string_view text) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  Number number = 0;
  const auto* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (stop != end || error == std::errc::invalid_argument) return std::nullopt;
  if (error == std::errc()) return std::isnan(number) ? std::nullopt : std::optional(number);
  // "Out of range" is said of both ends.
  long double wide = 0;
  if (std::from_chars(text.data(), end, wide).ec == std::errc())
    return std::abs(wide) < 1 ? std::optional(static_cast<Number>(wide)) : std::nullopt;
  const auto exponent = text.find_first_of("eE");
  const bool is_small = exponent != std::string_view::npos && text.substr(exponent + 1).starts_with('-');
  return is_small ? std::optional(Number{0}) : std::nullopt;
}

/// Nothing for what is no whole number, or has no i64. `3.0` is one, as pandas writes a column that had a gap.
[[nodiscard]] inline std::optional<std::int64_t> whole(std::string_view text) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  std::int64_t number = 0;
  const auto* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (stop == end && !text.empty()) return error == std::errc() ? std::optional(number) : std::nullopt;
  const auto real = floating<double>(text);
  constexpr double exact = 0x1p53;  // doubles beyond are not all whole numbers there are
  if (!real || std::abs(*real) > exact || std::trunc(*real) != *real) return std::nullopt;
  return static_cast<std::int64_t>(*real);
}

}  // namespace accel::inline v0_1::dataset::detail
