// The header of a NumPy file: a Python literal to dtype, order and shape.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/dataset/detail/quoted.hpp>

namespace accel::inline v0_1::dataset::detail {

struct NpyHeader {
  c10::ScalarType dtype = c10::ScalarType::Float;
  bool big_endian = false;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
  std::int64_t count = 1;        // elements
  std::uint64_t data_begin = 0;  // offset in the file
};

struct NpyType {
  std::string_view name;  // behind the mark of the byte order
  c10::ScalarType dtype;
};

inline constexpr std::array<NpyType, 14> npy_types{{
    {"b1", c10::ScalarType::Bool},
    {"u1", c10::ScalarType::Byte},
    {"i1", c10::ScalarType::Char},
    {"u2", c10::ScalarType::UInt16},
    {"i2", c10::ScalarType::Short},
    {"f2", c10::ScalarType::Half},
    {"u4", c10::ScalarType::UInt32},
    {"i4", c10::ScalarType::Int},
    {"f4", c10::ScalarType::Float},
    {"u8", c10::ScalarType::UInt64},
    {"i8", c10::ScalarType::Long},
    {"f8", c10::ScalarType::Double},
    {"c8", c10::ScalarType::ComplexFloat},
    {"c16", c10::ScalarType::ComplexDouble},
}};

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }` and nothing else that Python would take: the
/// three keys, each once, in any order.
class NpyHeaderReader {
 public:
  explicit NpyHeaderReader(const MappedFile& file) : file_(file), text_(file.text()) {}

  [[nodiscard]] NpyHeader read() {
    find_literal();
    expect('{', "a dictionary");
    while (!accept('}')) {
      read_entry();
      if (!accept(',')) {
        expect('}', "a comma or the end of the dictionary");
        break;
      }
    }
    skip_space();
    if (at_ != header_.data_begin) fail("nothing behind the dictionary");
    if (!descr_ || !order_ || !shape_) fail("the keys 'descr', 'fortran_order' and 'shape'");
    check_size();
    return header_;
  }

 private:
  /// Magic, version and length. Leaves the literal between at_ and header_.data_begin.
  void find_literal() {
    constexpr std::string_view magic = "\x93NUMPY";
    ACCEL_CHECK(text_.starts_with(magic), DataError, file_.path().string(),
                ": expected \"\\x93NUMPY\" at offset 0, found ", quoted(text_.substr(0, magic.size())),
                "; not a .npy file");
    at_ = magic.size();
    const auto version = static_cast<unsigned>(file_.bytes(at_, 2)[0]);
    const auto minor = static_cast<unsigned>(file_.bytes(at_, 2)[1]);
    ACCEL_CHECK(version >= 1 && version <= 3 && minor == 0, DataError, file_.path().string(),
                ": expected version 1.0, 2.0 or 3.0 at offset 6, found ", version, ".", minor);
    at_ += 2;
    const std::size_t width = version == 1 ? 2 : 4;
    const auto bytes = file_.bytes(at_, width);
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < width; ++i) length |= std::uint64_t{std::to_integer<unsigned>(bytes[i])} << (8 * i);
    at_ += width;
    (void)file_.bytes(at_, length);
    header_.data_begin = at_ + length;
  }

  void read_entry() {
    const auto key = string();
    expect(':', "a colon");
    if (key == "descr" && !std::exchange(descr_, true)) {
      read_dtype();
    } else if (key == "fortran_order" && !std::exchange(order_, true)) {
      header_.fortran_order = boolean();
    } else if (key == "shape" && !std::exchange(shape_, true)) {
      read_shape();
    } else {
      fail("the keys 'descr', 'fortran_order' and 'shape', each once");
    }
  }

  void read_dtype() {
    skip_space();
    const auto from = at_;
    if (peek() != '\'' && peek() != '"') fail("the name of a dtype; arrays of records are not read");
    const auto name = string();
    const auto* known = std::ranges::find(npy_types, name.empty() ? name : name.substr(1), &NpyType::name);
    at_ = from;  // where an error is
    if (known == npy_types.end() || std::string_view("<>|=").find(name.front()) == std::string_view::npos)
      fail("a dtype of bool, integers, floats or complex numbers that LibTorch has; convert it with astype()");
    if (name.front() == '|' && known->name.back() != '1') fail("'<' or '>' for the byte order of the dtype");
    header_.dtype = known->dtype;
    header_.big_endian = name.front() == '>';
    (void)string();
  }

  void read_shape() {
    expect('(', "a tuple");
    while (!accept(')')) {
      skip_space();
      std::int64_t extent = -1;
      const auto* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + header_.data_begin, extent);
      if (error != std::errc() || extent < 0) fail("an extent from 0 to 2^63 - 1");
      at_ += static_cast<std::size_t>(end - begin);
      if (peek() == 'L') ++at_;  // as Python 2 wrote it
      header_.shape.push_back(extent);
      if (header_.shape.size() > 64) fail("at most 64 dimensions, which LibTorch's operators stop at");
      const bool comma = accept(',');
      if (!comma && header_.shape.size() == 1) fail("a comma behind a single extent");
      if (!comma) {
        expect(')', "a comma or the end of the tuple");
        break;
      }
    }
  }

  void check_size() {
    auto bytes = static_cast<std::int64_t>(c10::elementSize(header_.dtype));
    bool empty = false;
    for (const auto extent : header_.shape) {
      empty |= extent == 0;
      // A zero further on does not excuse an overflow: LibTorch multiplies in its own order.
      ACCEL_CHECK(!__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes), DataError,
                  file_.path().string(), ": expected a shape of fewer than 2^63 bytes, found a larger one");
      header_.count *= extent;
    }
    const std::uint64_t expected = empty ? 0 : static_cast<std::uint64_t>(bytes);
    const std::uint64_t found = file_.size() - header_.data_begin;
    ACCEL_CHECK(found == expected, DataError, file_.path().string(), ": expected ", expected,
                " bytes of data at offset ", header_.data_begin, " for dtype and shape, found ", found,
                found < expected ? "; the file is cut short"
                                 : "; something follows the array, such as a second one, which is not read");
  }

  [[nodiscard]] std::string_view string() {
    skip_space();
    const char mark = peek();
    if (mark != '\'' && mark != '"') fail("a string");
    const auto begin = ++at_;
    while (peek() != mark) {
      if (peek() == '\\' || static_cast<unsigned char>(peek()) < ' ') fail("a string of plain characters");
      ++at_;
    }
    return text_.substr(begin, at_++ - begin);
  }

  [[nodiscard]] bool boolean() {
    skip_space();
    const auto rest = text_.substr(at_, header_.data_begin - at_);
    if (!rest.starts_with("True") && !rest.starts_with("False")) fail("True or False");
    at_ += rest.starts_with("True") ? 4U : 5U;
    return rest.starts_with("True");
  }

  /// A zero behind the end.
  [[nodiscard]] char peek() const { return at_ < header_.data_begin ? text_[at_] : '\0'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t') ++at_;
  }
  [[nodiscard]] bool accept(char wanted) {
    skip_space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted, std::string_view what) {
    if (!accept(wanted)) fail(what);
  }

  [[noreturn]] void fail(std::string_view expected) const {
    throw DataError(message(file_.path().string(), ": header: expected ", expected, " at offset ", at_, ", found ",
                            quoted(text_.substr(at_, header_.data_begin - at_))));
  }

  const MappedFile& file_;
  std::string_view text_;
  std::uint64_t at_ = 0;
  NpyHeader header_;
  bool descr_ = false, order_ = false, shape_ = false;
};

}  // namespace accel::inline v0_1::dataset::detail
