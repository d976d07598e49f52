// Wire: what ranks say to each other over a connection, as bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace accel::inline v0_1::launch::detail {

/// What a message says; its body holds the rest.
enum class Word : std::uint8_t {
  hello,          // version, token, which accelerator, rank: who does not know the token is no rank of this job
  introduce,      // run id, and who this process is
  welcome,        // everybody, by rank: the ranks have met
  refuse,         // why not
  other_version,  // of accel has this door
  beat,           // how far this rank is
  report,         // how far is everybody? By a beat
  compare,        // which rank is furthest behind?
  behind,         // that one, as rank 0 knows it
  left,           // which ranks have left, and how far they had come
  failed,         // a sentence: some rank has failed
  bring,          // a value for an exchange
  give,           // what came of the exchange
  late,           // the exchange takes too long: who is missing?
  overdue,        // before the welcome: the meeting does
  ask,            // something of the shelf
  tell,           // the answer
  halted,         // a rank begins no collective before its next exchange, and why
};

struct Message {
  Word word{};
  std::string body;
};

/// A message for one rank, or for everybody that this one is connected to.
struct Letter {
  static constexpr int everybody = -1;
  int to = everybody;
  Message message;
};

/// Numbers and texts as bytes, little end first.
class Packer {
 public:
  Packer& number(std::int64_t value) {
    for (int shift = 0; shift < 64; shift += 8)
      bytes_.push_back(static_cast<char>(static_cast<std::uint64_t>(value) >> shift & 0xff));
    return *this;
  }
  /// In one byte if it is below 128.
  Packer& count(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
    return *this;
  }
  Packer& real(double value) { return number(std::bit_cast<std::int64_t>(value)); }
  Packer& text(std::string_view value) {
    number(static_cast<std::int64_t>(value.size()));
    bytes_.append(value);
    return *this;
  }

  [[nodiscard]] std::string take() { return std::exchange(bytes_, {}); }

 private:
  std::string bytes_;
};

/// The same backwards.
/// Throws   std::runtime_error if there is not what is asked for.
class Unpacker {
 public:
  explicit Unpacker(std::string_view bytes) : bytes_(bytes) {}

  [[nodiscard]] std::int64_t number() {
    const std::string_view digits = take(8);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8; ++i)
      value |= static_cast<std::uint64_t>(static_cast<unsigned char>(digits[i])) << (8 * i);
    return static_cast<std::int64_t>(value);
  }
  [[nodiscard]] std::uint64_t count() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw std::runtime_error("a number of too many bytes");
  }
  [[nodiscard]] double real() { return std::bit_cast<double>(number()); }
  [[nodiscard]] std::string_view text() {
    const std::int64_t size = number();
    if (size < 0) throw std::runtime_error("a text of negative size");
    return take(static_cast<std::size_t>(size));
  }
  [[nodiscard]] bool is_over() const { return bytes_.empty(); }

 private:
  std::string_view take(std::size_t size) {
    if (bytes_.size() < size) throw std::runtime_error("a message ends too early");
    const std::string_view part = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return part;
  }

  std::string_view bytes_;
};

}  // namespace accel::inline v0_1::launch::detail
