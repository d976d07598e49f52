// The members of a tar archive, one after the other: ustar, GNU's long names, pax records.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/dataset/detail/quoted.hpp>

namespace accel::inline v0_1::dataset::detail {

/// A regular file in an archive.
struct TarMember {
  std::string name;
  std::uint64_t begin = 0;  // offset of its first header block
  std::uint64_t data = 0;   // offset
  std::uint64_t size = 0;   // bytes
};

/// Walks an archive from a member's first header block on. Folders are passed over; what would be a hole in a sample,
/// links, sparse files and devices, is refused, and so is an archive without its end.
///
/// Throws   DataError with path and offset.
/// Source   POSIX pax (ustar and extended headers); GNU tar manual, "Basic Tar Format".
class TarReader {
 public:
  explicit TarReader(const MappedFile& file, std::uint64_t offset = 0) : file_(file), at_(offset) {
    check_uncompressed();
  }

  /// The next regular file; empty at the end of the archive.
  [[nodiscard]] std::optional<TarMember> next() {
    Extended extended;
    std::uint64_t begin = at_;
    while (true) {
      const Header header = read_header();
      if (header.is_end) {
        if (at_ != begin) fail(at_, "the member that a long name announces", "the end of the archive");
        check_end();
        return std::nullopt;
      }
      const std::uint64_t data = at_ + block_size;
      switch (header.type) {
        case 'L':
          extended.name = long_name(data, header.size);
          break;
        case 'K':  // the target of a link, which the member after it is
          break;
        case 'x':
        case 'X':  // Solaris
          read_records(data, header.size, &extended);
          break;
        case 'g':
          read_records(data, header.size, nullptr);
          break;
        default:
          if (auto found = member(begin, header, std::move(extended))) return found;
          extended = {};
          begin = at_;
          continue;
      }
      pass(data, header.size);
    }
  }

  /// Where the next member begins.
  [[nodiscard]] std::uint64_t offset() const { return at_; }

 private:
  static constexpr std::uint64_t block_size = 512;
  static constexpr std::uint64_t longest_extension = 1 << 20;  // bytes: a name is at most 4096

  struct Header {
    bool is_end = false;
    char type = '0';
    std::uint64_t size = 0;
    std::string name;
  };

  /// What headers before a member say about it.
  struct Extended {
    std::optional<std::string> name;
    std::optional<std::uint64_t> size;
  };

  [[nodiscard]] std::string_view text(std::uint64_t offset, std::uint64_t count) const {
    const auto bytes = file_.bytes(offset, count);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  [[nodiscard]] Header read_header() const {
    if (at_ == file_.size())
      fail(at_, "a member or the two blocks of zeros that end an archive", "the end of the file; it is cut short");
    const auto block = text(at_, block_size);
    Header header;
    header.is_end = std::ranges::all_of(block, [](char c) { return c == '\0'; });
    if (header.is_end) return header;
    check_sum(block);
    header.type = block[156] == '\0' ? '0' : block[156];
    const auto size = number(block.substr(124, 12));
    if (!size) fail(at_ + 124, "a size, octal or in base 256, below 2^63", quoted(block.substr(124, 12)));
    header.size = *size;
    header.name = until_zero(block.substr(0, 100));
    const auto prefix = until_zero(block.substr(345, 155));
    if (block.substr(257, 6) == std::string_view("ustar\0", 6) && !prefix.empty())
      header.name = std::string(prefix) + "/" + header.name;
    return header;
  }

  /// The sum of all bytes, its own field taken for blanks. Some old programs summed signed ones.
  void check_sum(std::string_view block) const {
    std::int64_t as_unsigned = 0, as_signed = 0;
    for (std::size_t i = 0; i < block.size(); ++i) {
      const char c = i >= 148 && i < 156 ? ' ' : block[i];
      as_unsigned += static_cast<unsigned char>(c);
      as_signed += static_cast<signed char>(c);
    }
    const auto stated = number(block.substr(148, 8));
    if (!stated) fail(at_, "a header of a member", message(quoted(block), "; not a tar archive, or damaged"));
    const auto sum = static_cast<std::int64_t>(*stated);
    if (sum != as_unsigned && sum != as_signed)
      fail(at_, message("a header with the checksum ", as_unsigned), message(sum, "; not a tar archive, or damaged"));
  }

  void check_uncompressed() const {
    const auto text = file_.text();
    if (text.starts_with("\x1F\x8B") || text.starts_with("\x28\xB5\x2F\xFD") || text.starts_with("BZh"))
      fail(0, "an archive as it is", "a compressed one; unpack it with gunzip, unzstd or bunzip2");
  }

  /// Octal, or base 256 where the first bit says so. Nothing for what is neither, negative, or beyond 2^63.
  [[nodiscard]] static std::optional<std::uint64_t> number(std::string_view field) {
    std::uint64_t value = 0;
    if ((static_cast<unsigned char>(field.front()) & 0x80U) != 0) {
      if (field.front() != '\x80') return std::nullopt;  // the second bit is the sign
      for (const char c : field.substr(1)) {
        if (value >> 55 != 0) return std::nullopt;
        value = value << 8 | static_cast<unsigned char>(c);
      }
      return value;
    }
    const auto blanks = field.find_first_not_of(' ');
    field.remove_prefix(blanks == std::string_view::npos ? field.size() : blanks);
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 8);
    const auto rest = field.substr(static_cast<std::size_t>(end - field.data()));
    if (rest.find_first_not_of(std::string_view(" \0", 2)) != std::string_view::npos) return std::nullopt;
    // Nothing at all is zero, as in the size of some folders.
    return error == std::errc::result_out_of_range ? std::nullopt : std::optional(value);
  }

  [[nodiscard]] static std::string_view until_zero(std::string_view field) { return field.substr(0, field.find('\0')); }

  [[nodiscard]] std::string long_name(std::uint64_t offset, std::uint64_t size) const {
    return std::string(until_zero(extension(offset, size)));
  }

  [[nodiscard]] std::string_view extension(std::uint64_t offset, std::uint64_t size) const {
    if (size > longest_extension)
      fail(offset, message("an extended header of at most ", longest_extension, " bytes"), size);
    return text(offset, size);
  }

  /// `28 path=a/long/name.jpg\n`, the length of the whole in front. Global ones, without `extended`, speak of no
  /// member.
  void read_records(std::uint64_t offset, std::uint64_t size, Extended* extended) const {
    auto rest = extension(offset, size);
    while (!rest.empty() && rest.front() != '\0') {
      const auto here = offset + size - rest.size();
      std::size_t length = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), length);
      const auto digits = static_cast<std::size_t>(end - rest.data());
      if (error != std::errc() || length > rest.size() || length < digits + 3 || rest[digits] != ' ' ||
          rest[length - 1] != '\n')
        fail(here, "a record `length key=value`", quoted(rest));
      const auto record = rest.substr(digits + 1, length - digits - 2);
      rest.remove_prefix(length);
      const auto equals = record.find('=');
      if (equals == std::string_view::npos) fail(here, "a record `length key=value`", quoted(record));
      const auto key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key.starts_with("GNU.sparse"))
        fail(here, "a file without holes", "a sparse one; archive it without --sparse");
      if (key != "path" && key != "size") continue;
      if (extended == nullptr) fail(here, "path and size of one member only", quoted(record));
      if (key == "path") {
        if (value.find('\0') != std::string_view::npos) fail(here, "a path without zeros", quoted(value));
        extended->name = value;
      } else {
        std::uint64_t bytes = 0;
        const auto [last, wrong] = std::from_chars(value.data(), value.data() + value.size(), bytes);
        if (wrong != std::errc() || last != value.data() + value.size()) fail(here, "a size", quoted(value));
        extended->size = bytes;
      }
    }
  }

  /// Nothing for a folder. Goes on behind it.
  [[nodiscard]] std::optional<TarMember> member(std::uint64_t begin, const Header& header, Extended extended) {
    TarMember member{extended.name ? *std::move(extended.name) : header.name, begin, at_ + block_size,
                     extended.size.value_or(header.size)};
    const auto refuse = [&](std::string_view what) {
      fail(at_, "a regular file", message(what, " ", quoted(member.name)));
    };
    switch (header.type) {
      case '0':
      case '7':  // contiguous
        break;
      case '5':
        at_ += block_size;  // a size, if it has one, is that of nothing
        return std::nullopt;
      case '1':
        refuse("the hard link; archive with --hard-dereference:");
        break;
      case '2':
        refuse("the symbolic link; archive with --dereference:");
        break;
      case 'S':
        refuse("the sparse file; archive without --sparse:");
        break;
      default:
        refuse(message("type ", quoted({&header.type, 1}), ":"));
    }
    pass(member.data, member.size);
    if (member.name.ends_with('/')) return std::nullopt;  // a folder, before POSIX
    return member;
  }

  /// Goes on behind `size` bytes and what fills their last block.
  void pass(std::uint64_t data, std::uint64_t size) {
    (void)file_.bytes(data, size);
    at_ = data + (size + block_size - 1) / block_size * block_size;
  }

  /// Archives put together with cat would lose all but their first, without a word.
  void check_end() const {
    const auto rest = file_.text().substr(static_cast<std::size_t>(at_));
    const auto more = std::ranges::find_if(rest, [](char c) { return c != '\0'; });
    if (more != rest.end())
      fail(at_ + static_cast<std::uint64_t>(more - rest.begin()), "zeros behind the end of the archive",
           "more; archives are put together with tar --concatenate, not with cat");
  }

  template <class Expected, class Found>
  [[noreturn]] void fail(std::uint64_t offset, const Expected& expected, const Found& found) const {
    throw DataError(message(file_.path().string(), ": expected ", expected, " at offset ", offset, ", found ", found));
  }

  const MappedFile& file_;
  std::uint64_t at_;
};

}  // namespace accel::inline v0_1::dataset::detail
