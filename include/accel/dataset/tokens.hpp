// Tokens: files of token ids, as nanoGPT and llm.c write them, and windows of them to learn from.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/dataset/detail/parts.hpp>
#include <accel/dataset/detail/rows.hpp>

namespace accel::inline v0_1::dataset {

/// What a file of tokens looks like.
enum class TokenFormat {
  llm_c,  // 256 x i32: magic 20240520, version 1 for u16 or 20240801, 7 for u32, and the number of tokens; then those
  u16,    // nothing but tokens: nanoGPT's .bin files
  u32,
};

struct TokenOptions {
  TokenFormat format = TokenFormat::llm_c;
  std::optional<std::int64_t> vocab_size{};  // a token that is not below it is an error when it is read
};

/// The tokens of one or more files, mapped: nothing is read before it is asked for. Copies share the maps.
///
/// Throws   DataError, with path and offset, for a file that is not of the format, is cut short or goes on behind its
///          last token; for a file of llm.c's that is to be read without its header.
/// Source   llm.c, dev/data/data_common.py: write_datafile. nanoGPT, data/openwebtext/prepare.py.
class Tokens {
 public:
  explicit Tokens(const std::vector<std::filesystem::path>& paths, TokenOptions options = {}) : options_(options) {
    ACCEL_CHECK(!paths.empty(), InvalidArgument, "Tokens: expected at least one file, found none");
    ACCEL_CHECK(!options.vocab_size || *options.vocab_size > 0, InvalidArgument,
                "vocab_size: expected at least 1, found ", *options.vocab_size);
    auto files = std::make_shared<std::vector<File>>();
    files->reserve(paths.size());
    for (const auto& path : paths) files->push_back(open(path));
    files_ = std::move(files);
  }

  [[nodiscard]] std::size_t files() const { return files_->size(); }

  /// Tokens of one file.
  [[nodiscard]] std::int64_t size(std::size_t file) const { return (*files_)[file].tokens; }

  /// Tokens of all files.
  [[nodiscard]] std::int64_t size() const {
    std::int64_t tokens = 0;
    for (const auto& file : *files_) tokens += file.tokens;
    return tokens;
  }

  /// Writes `length` tokens of a file, from its token `begin` on, to `input`, and to `target` those that follow each.
  ///
  /// Throws   DataError if there are not as many, one is not below vocab_size, or the file has changed its size.
  void read(std::size_t number, std::int64_t begin, std::int64_t length, std::int64_t* input,
            std::int64_t* target) const {
    const File& file = (*files_)[number];
    file.map.check_unchanged();
    const auto at = file.begin + static_cast<std::uint64_t>(begin) * file.width;
    const auto bytes = file.map.bytes(at, static_cast<std::uint64_t>(length + 1) * file.width);
    const auto largest = file.width == 2 ? widen<std::uint16_t>(bytes.data(), length, input, target)
                                         : widen<std::uint32_t>(bytes.data(), length, input, target);
    if (!options_.vocab_size || largest < *options_.vocab_size) return;
    const auto is_wrong = [&](std::int64_t token) { return token >= *options_.vocab_size; };
    const auto place = is_wrong(*input) ? 0 : 1 + (std::find_if(target, target + length, is_wrong) - target);
    throw DataError(message(file.map.path().string(), ": expected tokens below vocab_size = ", *options_.vocab_size,
                            ", found ", place == 0 ? *input : target[place - 1], " at offset ",
                            at + static_cast<std::uint64_t>(place) * file.width,
                            "; the file is of another tokenizer, or of another format"));
  }

 private:
  struct File {
    MappedFile map;
    std::uint64_t begin;  // of the tokens, in bytes
    std::uint64_t width;  // of a token, in bytes
    std::int64_t tokens;
  };

  static constexpr std::uint64_t header_size = 256 * sizeof(std::int32_t);

  /// The width that llm.c's header announces, or 0 if there is none.
  [[nodiscard]] static std::uint64_t announced_width(const MappedFile& map) {
    if (map.size() < header_size) return 0;
    const auto magic = word(map, 0), version = word(map, 1);
    if (magic == 20240520 && version == 1) return 2;
    return magic == 20240801 && version == 7 ? 4 : 0;
  }

  [[nodiscard]] static std::int32_t word(const MappedFile& map, std::uint64_t number) {
    std::int32_t value = 0;
    std::memcpy(&value, map.bytes(number * sizeof value, sizeof value).data(), sizeof value);
    return value;
  }

  [[nodiscard]] File open(const std::filesystem::path& path) const {
    MappedFile map(path, Access::random);
    const auto where = path.string();
    const auto announced = announced_width(map);
    if (options_.format == TokenFormat::llm_c) {
      ACCEL_CHECK(announced != 0, DataError, where, ": expected llm.c's header of ", header_size,
                  " bytes at offset 0 (magic 20240520, version 1, or magic 20240801, version 7), found ",
                  map.size() < 8 ? message(map.size(), " bytes in all")
                                 : message("magic ", word(map, 0), ", version ", word(map, 1)),
                  "; for a file without header, as nanoGPT's, say .format = TokenFormat::u16 or u32");
      const std::int64_t tokens = word(map, 2);
      const auto found = map.size() - header_size;
      ACCEL_CHECK(tokens >= 0 && found == static_cast<std::uint64_t>(tokens) * announced, DataError, where,
                  ": expected ", tokens, " tokens of ", announced, " bytes at offset ", header_size, ", found ", found,
                  " bytes; the file is cut short, or something follows");
      return {std::move(map), header_size, announced, tokens};
    }
    const std::uint64_t width = options_.format == TokenFormat::u16 ? 2 : 4;
    ACCEL_CHECK(map.size() % width == 0, DataError, where, ": expected tokens of ", width, " bytes, found ", map.size(),
                " bytes, which is no multiple");
    ACCEL_CHECK(announced == 0 || map.size() - header_size != static_cast<std::uint64_t>(word(map, 2)) * announced,
                DataError, where, ": expected tokens at offset 0, found llm.c's header; ",
                "say .format = TokenFormat::llm_c");
    const auto tokens = static_cast<std::int64_t>(map.size() / width);
    return {std::move(map), 0, width, tokens};
  }

  /// Returns the largest.
  template <class Token>
  [[nodiscard]] static std::int64_t widen(const std::byte* from, std::int64_t length, std::int64_t* input,
                                          std::int64_t* target) {
    const auto* tokens = reinterpret_cast<const Token*>(from);  // a map begins at a page, a header is 1024 bytes
    Token largest = tokens[length];
    for (std::int64_t i = 0; i < length; ++i) {
      input[i] = tokens[i];
      target[i] = tokens[i + 1];
      largest = std::max(largest, tokens[i]);
    }
    return largest;
  }

  TokenOptions options_;
  std::shared_ptr<const std::vector<File>> files_;
};

/// A window of tokens and, at each place, the token that follows.
struct TokenWindow {
  at::Tensor input;   // i64[length], of a batch i64[rows, length]
  at::Tensor target;  // the same, one token on
};

namespace detail {

/// Takes one row after the other, `length` + 1 tokens each.
class WindowWriter {
 public:
  WindowWriter(const std::vector<std::int64_t>& shape, std::int64_t length)
      : window_{at::empty(shape, at::kLong), at::empty(shape, at::kLong)},
        input_(window_.input.mutable_data_ptr<std::int64_t>()),
        target_(window_.target.mutable_data_ptr<std::int64_t>()),
        length_(length) {}

  void read(const Tokens& tokens, std::size_t file, std::int64_t begin) {
    tokens.read(file, begin, length_, input_, target_);
    input_ += length_;
    target_ += length_;
  }

  [[nodiscard]] TokenWindow result() && { return std::move(window_); }

 private:
  TokenWindow window_;
  std::int64_t* input_;
  std::int64_t* target_;
  std::int64_t length_;
};

/// The files' windows, counted through. `windows_of` says how many there are in a file of so many tokens.
template <class WindowsOf>
[[nodiscard]] Parts windows_of_files(const Tokens& tokens, std::int64_t length, WindowsOf windows_of) {
  ACCEL_CHECK(length >= 1, InvalidArgument, "length: expected a window of at least 1 token, found ", length);
  Parts parts;
  for (std::size_t file = 0; file < tokens.files(); ++file)
    parts.add(tokens.size(file) > length ? windows_of(tokens.size(file)) : 0);
  ACCEL_CHECK(parts.size() > 0, DataError, "tokens: expected a file with more than length = ", length,
              " tokens, found ", tokens.size(), " tokens in ", tokens.files(), " files");
  return parts;
}

}  // namespace detail

struct TokenWindowsOptions {
  std::int64_t length = 1024;  // tokens of an input
  std::int64_t stride = 0;     // from one window's begin to the next, in tokens; 0: as long as a window
};

/// Windows side by side, every token learnt once: a dataset for one pass, shuffled by the loader or not.
///
/// Shape    rows: TokenWindow of i64[length].
/// Cost     finding a window O(log files).
/// Differs  from llm.c: a window does not depend on batch and world size. Windows do not cross files; what is left at
///          the end of a file and fills none is not used.
class TokenWindows {
 public:
  explicit TokenWindows(Tokens tokens, TokenWindowsOptions options = {})
      : tokens_(std::move(tokens)),
        options_(options),
        stride_(options.stride == 0 ? options.length : options.stride),
        windows_(detail::windows_of_files(tokens_, options.length, [&](std::int64_t size) {
          ACCEL_CHECK(stride_ >= 1, InvalidArgument, "stride: expected at least 1 token, found ", stride_);
          return (size - options_.length - 1) / stride_ + 1;
        })) {}

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(windows_.size()); }

  [[nodiscard]] TokenWindow get(std::size_t row) const {
    detail::WindowWriter writer({options_.length}, options_.length);
    read(static_cast<std::int64_t>(row), writer);
    return std::move(writer).result();
  }

  [[nodiscard]] TokenWindow get_batch(const std::vector<std::int64_t>& rows) const {
    detail::WindowWriter writer({static_cast<std::int64_t>(rows.size()), options_.length}, options_.length);
    for (const auto row : rows) read(row, writer);
    return std::move(writer).result();
  }

 private:
  void read(std::int64_t row, detail::WindowWriter& writer) const {
    const auto [file, window] = windows_.find(row);
    writer.read(tokens_, file, window * stride_);
  }

  Tokens tokens_;
  TokenWindowsOptions options_;
  std::int64_t stride_;
  detail::Parts windows_;
};

struct RandomTokenWindowsOptions {
  std::int64_t length = 1024;  // tokens of an input
  std::int64_t windows = 0;    // of an epoch, which is as long as you say
};

/// Windows that begin anywhere: nanoGPT's way. Each place of the files where a window fits is as likely.
///
/// Shape    rows: TokenWindow of i64[length].
/// State    none: which window a row is follows from the random stream, and that from seed, epoch and row. Any number
///          of ranks and workers sees the same windows.
/// Source   nanoGPT, train.py: get_batch draws torch.randint(len(data) - block_size), as this does.
class RandomTokenWindows {
 public:
  explicit RandomTokenWindows(Tokens tokens, RandomTokenWindowsOptions options)
      : tokens_(std::move(tokens)),
        options_(options),
        places_(detail::windows_of_files(tokens_, options.length,
                                         [&](std::int64_t size) { return size - options_.length; })) {
    ACCEL_CHECK(options.windows >= 1, InvalidArgument, "windows: expected at least 1 in an epoch, found ",
                options.windows);
  }

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(options_.windows); }

  [[nodiscard]] TokenWindow get(std::size_t row, at::Generator& random) const {
    detail::check_row(static_cast<std::int64_t>(row), options_.windows);
    const auto place = at::randint(places_.size(), {1}, random, at::kLong).item<std::int64_t>();
    const auto [file, begin] = places_.find(place);
    detail::WindowWriter writer({options_.length}, options_.length);
    writer.read(tokens_, file, begin);
    return std::move(writer).result();
  }

 private:
  Tokens tokens_;
  RandomTokenWindowsOptions options_;
  detail::Parts places_;
};

}  // namespace accel::inline v0_1::dataset
