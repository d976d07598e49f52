// LastWords: what an exception says that nobody catches, for those who should hear it.
#pragma once

#include <cstdlib>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <utility>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::launch::detail {

/// While one lives, `tell` hears the text of an exception that ends the program.
///
/// The one piece of process-wide state here: an exception that leaves main runs no destructor, only
/// the terminate handler. Ours asks everybody who listens, and then the handler that was there before.
class LastWords {
 public:
  using Tell = std::function<void(const std::string&)>;

  explicit LastWords(Tell tell) {
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    if (!std::exchange(all.installed, true)) all.before = std::set_terminate(handle);
    place_ = all.listeners.insert(all.listeners.end(), std::move(tell));
  }
  LastWords(const LastWords&) = delete;
  LastWords& operator=(const LastWords&) = delete;
  ~LastWords() {
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    all.listeners.erase(place_);
  }

 private:
  struct Registry {
    std::mutex mutex;
    std::list<Tell> listeners;
    std::terminate_handler before = nullptr;
    bool installed = false;
  };

  static Registry& registry() {
    static auto& instance = *new Registry;  // outlives static destruction
    return instance;
  }

  [[noreturn]] static void handle() {
    auto& all = registry();
    // Not if this very thread is inside: then there is nobody left to tell.
    if (const std::unique_lock lock(all.mutex, std::try_to_lock); lock.owns_lock()) {
      const std::string text = current_text();
      for (const auto& tell : all.listeners) tell(text);
    }
    if (all.before != nullptr) all.before();
    std::abort();
  }

  static std::string current_text() {
    try {
      if (const auto current = std::current_exception()) std::rethrow_exception(current);
      return "std::terminate was called";
    } catch (const std::exception& error) {
      return first_line(error);
    } catch (...) {
      return "an exception that is no std::exception";
    }
  }

  std::list<Tell>::iterator place_;
};

}  // namespace accel::inline v0_1::launch::detail
