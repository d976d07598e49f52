// Captured: what a program says on standard error.
#pragma once

#include <iostream>
#include <sstream>
#include <streambuf>
#include <string>

namespace accel::testing {

/// Standard error into a string, until the end of the scope.
class Captured {
 public:
  Captured() : before_(std::cerr.rdbuf(text_.rdbuf())) {}
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  ~Captured() { std::cerr.rdbuf(before_); }
  [[nodiscard]] std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* before_;
};

}  // namespace accel::testing
