// The JSON header of a safetensors file: text to checked entries, and back.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::tensor::safetensors::detail {

/// A dtype of the format. The order of the table is the order of the format: files are written from
/// its last row to its first, so that wide elements come first and stay aligned.
struct Format {
  std::string_view name;
  std::uint64_t bits;
  std::optional<c10::ScalarType> dtype;  // none: LibTorch has no such type
};

inline constexpr std::array<Format, 22> formats{{
    {"BOOL", 8, c10::ScalarType::Bool},
    {"F4", 4, c10::ScalarType::Float4_e2m1fn_x2},  // two in one byte, and in one LibTorch element
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, c10::ScalarType::Byte},
    {"I8", 8, c10::ScalarType::Char},
    {"F8_E5M2", 8, c10::ScalarType::Float8_e5m2},
    {"F8_E4M3", 8, c10::ScalarType::Float8_e4m3fn},
    {"F8_E8M0", 8, c10::ScalarType::Float8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, c10::ScalarType::Float8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, c10::ScalarType::Float8_e5m2fnuz},
    {"I16", 16, c10::ScalarType::Short},
    {"U16", 16, c10::ScalarType::UInt16},
    {"F16", 16, c10::ScalarType::Half},
    {"BF16", 16, c10::ScalarType::BFloat16},
    {"I32", 32, c10::ScalarType::Int},
    {"U32", 32, c10::ScalarType::UInt32},
    {"F32", 32, c10::ScalarType::Float},
    {"C64", 64, c10::ScalarType::ComplexFloat},
    {"F64", 64, c10::ScalarType::Double},
    {"I64", 64, c10::ScalarType::Long},
    {"U64", 64, c10::ScalarType::UInt64},
}};

/// One tensor as the header describes it: bytes [begin, end) of the data behind the header.
struct Entry {
  const Format* format = nullptr;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct Header {
  std::map<std::string, Entry, std::less<>> entries;
  std::map<std::string, std::string> metadata;
};

inline constexpr std::string_view metadata_key = "__metadata__";

/// A name from a file, fit for a terminal: escaped, and cut if it is absurdly long.
[[nodiscard]] inline std::string escaped(std::string_view name) {
  constexpr std::size_t most = 120;
  const bool cut = name.size() > most;
  const nlohmann::json json = std::string(name.substr(0, most));
  return json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) + (cut ? "..." : "");
}

/// Bytes of a tensor of this shape, or nothing if they are not whole or not countable.
[[nodiscard]] inline std::optional<std::uint64_t> byte_count(const Format& format,
                                                             const std::vector<std::int64_t>& shape) {
  std::uint64_t bits = format.bits;
  bool empty = false;
  for (const auto extent : shape) {
    // A zero further on does not excuse an overflow: LibTorch multiplies in its own order.
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits)) {
      return std::nullopt;
    }
  }
  if (empty) return 0;
  return bits % 8 == 0 ? std::optional(bits / 8) : std::nullopt;
}

/// Listens to the JSON parser and accepts nothing but the three levels of the format, so that
/// neither nesting nor a document tree costs memory. Names where it stands when it refuses.
class HeaderReader {
 public:
  HeaderReader(std::string_view path, Header& header) : path_(path), header_(header) {}

  bool start_object(std::size_t) {
    if (level_ == Level::outside) {
      level_ = Level::names;
    } else if (level_ == Level::names) {
      level_ = name_ == metadata_key ? Level::metadata : Level::entry;
      entry_ = {};
      dtype_.reset();
      shape_.reset();
      offsets_.reset();
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(std::string& key) {
    if (level_ == Level::names) {
      const bool again = key == metadata_key ? std::exchange(has_metadata_, true) : header_.entries.contains(key);
      if (again) fail(escaped(key), " appears twice");
      name_ = std::move(key);
      return true;
    }
    field_ = std::move(key);
    const bool again = level_ == Level::metadata ? header_.metadata.contains(field_)
                                                 : (field_ == "dtype" && dtype_) || (field_ == "shape" && shape_) ||
                                                       (field_ == "data_offsets" && offsets_);
    if (again) fail(where(), " appears twice");
    return true;
  }

  bool string(std::string& value) {
    if (level_ == Level::metadata) {
      header_.metadata.emplace(field_, std::move(value));
    } else if (level_ == Level::entry && field_ == "dtype") {
      dtype_ = std::move(value);
    } else {
      refuse("a string");
    }
    return true;
  }

  bool start_array(std::size_t) {
    if (level_ == Level::entry && field_ == "shape") {
      numbers_ = &shape_.emplace();
    } else if (level_ == Level::entry && field_ == "data_offsets") {
      numbers_ = &offsets_.emplace();
    } else {
      refuse("an array");
    }
    level_ = Level::numbers;
    return true;
  }

  bool number_unsigned(std::uint64_t value) {
    // LibTorch's own operators stop at 64 dimensions; nobody means more.
    if (level_ != Level::numbers) refuse("a number");
    if (numbers_->size() == 64) fail(where(), ": expected at most 64 numbers, found more");
    numbers_->push_back(value);
    return true;
  }

  bool end_array() {
    level_ = Level::entry;
    return true;
  }

  bool end_object() {
    if (level_ == Level::entry) {
      header_.entries.emplace(std::move(name_), finished_entry());
      name_.clear();
    }
    level_ = level_ == Level::names ? Level::outside : Level::names;
    return true;
  }

  bool null() { refuse("null"); }
  bool boolean(bool) { refuse("a boolean"); }
  bool number_integer(std::int64_t value) { refuse(std::to_string(value)); }
  bool number_float(double, const std::string& text) { refuse(text.substr(0, 40)); }
  bool binary(nlohmann::json::binary_t&) { refuse("bytes"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    // The parser's text ends with what it read last, raw and of any length: not for a terminal.
    const std::string_view text = error.what();
    const auto reason = std::min(text.rfind(": syntax error"), text.size());
    fail("not JSON at byte ", 8 + position, " of the file", text.substr(reason, text.find("; last read") - reason));
  }

 private:
  enum class Level { outside, names, entry, metadata, numbers };

  [[nodiscard]] Entry finished_entry() {
    field_.clear();
    if (!dtype_ || !shape_ || !offsets_ || offsets_->size() != 2) {
      fail(where(), ": expected dtype, shape and two data_offsets, found ", dtype_ ? "dtype " : "no dtype ",
           shape_ ? "shape " : "no shape ", offsets_ ? offsets_->size() : 0, " data_offsets");
    }
    for (const Format& format : formats) {
      if (format.name == *dtype_) entry_.format = &format;
    }
    if (entry_.format == nullptr) {
      fail(where(), ": dtype ", escaped(*dtype_), " is not one of the format's, BOOL to U64");
    }
    for (const auto extent : *shape_) {
      if (extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        fail(where(), ": expected extents below 2^63, found ", extent);
      }
      entry_.shape.push_back(static_cast<std::int64_t>(extent));
    }
    entry_.begin = offsets_->front();
    entry_.end = offsets_->back();
    const auto expected = byte_count(*entry_.format, entry_.shape);
    if (!expected) fail(where(), ": its shape does not make a whole number of bytes below 2^61");
    if (entry_.end < entry_.begin || entry_.end - entry_.begin != *expected) {
      fail(where(), ": expected ", *expected, " bytes for its dtype and shape, found data_offsets [", entry_.begin,
           ", ", entry_.end, ")");
    }
    return std::move(entry_);
  }

  [[nodiscard]] std::string where() const {
    if (level_ == Level::outside) return "header";
    std::string text = name_ == metadata_key ? std::string(metadata_key) : "tensor " + escaped(name_);
    if (level_ != Level::names && !field_.empty()) text += ", " + escaped(field_);
    return text;
  }

  [[noreturn]] void refuse(std::string_view found) const {
    std::string_view expected = "an object";
    if (level_ == Level::entry) expected = "dtype as a string, shape and data_offsets as arrays";
    if (level_ == Level::metadata) expected = "a string";
    if (level_ == Level::numbers) expected = "a whole number of 0 or more";
    fail(where(), ": expected ", expected, ", found ", found);
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw CheckpointError(message(path_, ": ", parts...));
  }

  std::string_view path_;
  Header& header_;
  Level level_ = Level::outside;
  bool has_metadata_ = false;
  std::string name_;
  std::string field_;
  Entry entry_;
  std::optional<std::string> dtype_;
  std::optional<std::vector<std::uint64_t>> shape_;
  std::optional<std::vector<std::uint64_t>> offsets_;
  std::vector<std::uint64_t>* numbers_ = nullptr;
};

/// Refuses holes, overlaps, and anything but exactly `data_size` bytes behind the header.
inline void check_coverage(std::string_view path, const Header& header, std::uint64_t data_size) {
  std::vector<const std::pair<const std::string, Entry>*> by_offset;
  by_offset.reserve(header.entries.size());
  for (const auto& named : header.entries) by_offset.push_back(&named);
  std::ranges::sort(by_offset, {}, [](const auto* named) { return std::pair(named->second.begin, named->second.end); });
  std::uint64_t end = 0;
  for (const auto* named : by_offset) {
    ACCEL_CHECK(named->second.begin == end, CheckpointError, path, ": tensor ", escaped(named->first),
                ": expected to begin at byte ", end, " of the data, where the one before it ends, found ",
                named->second.begin);
    end = named->second.end;
  }
  ACCEL_CHECK(end == data_size, CheckpointError, path, ": expected ", end,
              " bytes of data from the header's offsets, found ", data_size,
              end > data_size ? "; the file is cut short" : "; something follows the last tensor");
}

/// Throws   CheckpointError that names the path, the tensor, what was expected and what was found.
/// Memory   a small multiple of the text, whatever it says.
[[nodiscard]] inline Header parse_header(std::string_view path, std::string_view text, std::uint64_t data_size) {
  // Two things that the JSON parser lets pass and the reference implementation refuses: it skips a
  // byte-order mark, and takes a zero byte for the end of the text.
  ACCEL_CHECK(!text.starts_with("\xEF\xBB\xBF"), CheckpointError, path,
              ": header: expected JSON, found a byte-order mark");
  const auto zero = text.find('\0');
  ACCEL_CHECK(zero == text.npos, CheckpointError, path, ": header: expected JSON, found a zero byte at offset ",
              8 + zero);
  Header header;
  HeaderReader reader(path, header);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  check_coverage(path, header, data_size);
  return header;
}

/// The header as Python's writer prints it, length and padding included. `entries` in file order.
[[nodiscard]] inline std::string print_header(const std::vector<std::pair<std::string_view, Entry>>& entries,
                                              const std::map<std::string, std::string>& metadata) {
  const auto string = [](std::string_view text) { return nlohmann::json(text).dump(); };
  std::string text = "{";
  const auto separate = [&text] { text += text.back() == '{' ? "" : ","; };
  if (!metadata.empty()) {
    text += string(metadata_key) + ":{";
    for (const auto& [key, value] : metadata) {
      separate();
      text += string(key) + ":" + string(value);
    }
    text += "}";
  }
  for (const auto& [name, entry] : entries) {
    separate();
    text += string(name) + ":{\"dtype\":" + string(entry.format->name) + ",\"shape\":";
    text += nlohmann::json(entry.shape).dump();
    text += message(",\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (std::size_t byte = 0; byte < 8; ++byte) length[byte] = static_cast<char>((text.size() >> (8 * byte)) & 0xFF);
  return length + text;
}

}  // namespace accel::inline v0_1::tensor::safetensors::detail
