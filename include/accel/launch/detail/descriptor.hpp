// Descriptor: owns a file descriptor; and the errors of the calls that give one.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::launch::detail {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }

  [[nodiscard]] int number() const { return number_; }
  [[nodiscard]] bool is_open() const { return number_ >= 0; }
  /// From now on somebody else's.
  [[nodiscard]] int release() { return std::exchange(number_, -1); }

 private:
  int number_ = -1;
};

[[noreturn]] inline void throw_errno(std::string_view what) {
  throw CommError(message(what, ": ", std::generic_category().message(errno)));
}

}  // namespace accel::inline v0_1::launch::detail
