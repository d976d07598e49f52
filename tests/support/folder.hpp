// Folder: a place on disk that a test has to itself.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include <stdlib.h>

namespace accel::testing {

/// An empty folder, gone with this object. The ranks of a test each have their own unless rank 0's
/// path is sent to the others.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "accel_test_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

  /// How many entries there are: a temporary file that was left shows.
  [[nodiscard]] std::ptrdiff_t count() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::filesystem::path path_;
};

/// An empty folder that a test case and its ranks have in common, though these are started from the top of the case:
/// made where no rank runs, and gone with this object there.
class SharedFolder {
 public:
  SharedFolder() {
    if (std::getenv("RANK") == nullptr) ::setenv(variable, own_.emplace().path().c_str(), 1);
    path_ = std::getenv(variable);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  static constexpr const char* variable = "ACCEL_TEST_SHARED_FOLDER";

  std::optional<Folder> own_;
  std::filesystem::path path_;
};

}  // namespace accel::testing
