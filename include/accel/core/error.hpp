// The exception family: who is to blame, what was expected, what was found, what to do.
#pragma once

#include <exception>
#include <initializer_list>
#include <ios>
#include <memory>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace accel::inline v0_1 {

/// Base of everything accel throws. The lower floors do not know the rank; the facade adds the
/// prefix `[rank 2/8] ` when an error crosses it.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string message)
      : std::runtime_error(message), message_(std::make_shared<const std::string>(std::move(message))) {}

  [[nodiscard]] const char* what() const noexcept override { return message_->c_str(); }

  /// What it says, for as long as the exception exists.
  [[nodiscard]] std::weak_ptr<const std::string> text() const noexcept { return message_; }

  /// Puts `label` in front of the message, once.
  void add_label(std::string_view label) {
    if (labelled_ || label.empty()) return;
    message_ = std::make_shared<const std::string>(std::string(label) + " " + *message_);
    labelled_ = true;
  }

 private:
  std::shared_ptr<const std::string> message_;  // copies of an exception share it
  bool labelled_ = false;
};

/// The caller broke a precondition. Carries what was expected and what was found.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A setting is unknown, ill-typed, inconsistent, or differs between ranks. Carries its origin.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A collective or the rendezvous failed or ran out of time. Carries operation, sequence number,
/// bytes, the peer if known, and the native text.
class CommError : public Error {
 public:
  using Error::Error;
};

/// Gradients are not finite at any loss scale: training has come to nothing. Carries the scale.
class OverflowError : public Error {
 public:
  using Error::Error;
};

/// A file is missing, truncated, or not what was expected. Carries path and tensor name.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A dataset's file is not what was expected, or a dataset could not give a row. Carries path and offset, or the
/// number of the row.
class DataError : public Error {
 public:
  using Error::Error;
};

namespace detail {

/// A piece of a message: something that can be streamed, by reference. What streams a type is compiled once for
/// it, and not for every message that it is in.
class Part {
 public:
  Part(const char* text)
      : value_(text), stream_([](std::ostream& out, const void* value) { out << static_cast<const char*>(value); }) {}
  Part(std::ios_base& (*manipulator)(std::ios_base&)) : manipulator_(manipulator) {}
  template <class T>
  Part(const T& value) : value_(&value), stream_(&stream<T>) {}

  friend std::ostream& operator<<(std::ostream& out, const Part& part) {
    if (part.manipulator_ != nullptr) return out << part.manipulator_;
    part.stream_(out, part.value_);
    return out;
  }

 private:
  template <class T>
  static void stream(std::ostream& out, const void* value) {
    out << *static_cast<const T*>(value);
  }

  const void* value_ = nullptr;
  void (*stream_)(std::ostream&, const void*) = nullptr;
  std::ios_base& (*manipulator_)(std::ios_base&) = nullptr;  // in place of them
};

[[nodiscard]] inline std::string joined(std::initializer_list<Part> parts) {
  std::ostringstream text;
  for (const Part& part : parts) text << part;
  return std::move(text).str();
}

}  // namespace detail

/// Streams its arguments into one string: the way messages are written here.
template <class... Parts>
[[nodiscard]] std::string message(const Parts&... parts) {
  return detail::joined({detail::Part(parts)...});
}

/// What an exception says, without the backtrace that LibTorch's carry below their first line.
[[nodiscard]] inline std::string first_line(const std::exception& error) {
  const std::string what = error.what();
  return what.substr(0, what.find('\n'));
}

/// What `body` throws, in words; nothing if it does not.
template <class Body>
[[nodiscard]] std::string error_of(Body&& body) {
  try {
    std::forward<Body>(body)();
    return {};
  } catch (const std::exception& error) {
    const std::string text = first_line(error);
    return text.empty() ? "an error without a text" : text;
  } catch (...) {
    return "something that is no std::exception";
  }
}

/// Runs `body`; an accel::Error that leaves it carries `label` from then on.
template <class Body>
decltype(auto) labelled(std::string_view label, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (Error& error) {
    error.add_label(label);
    throw;
  }
}

}  // namespace accel::inline v0_1

/// Throws `Type` with the streamed message unless `condition` holds. The message is built only then.
#define ACCEL_CHECK(condition, Type, ...)                        \
  do {                                                           \
    if (!(condition)) throw Type(::accel::message(__VA_ARGS__)); \
  } while (false)
