// Files that tests of datasets write, and the Python that writes them as people do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <accel/core/error.hpp>

#include <catch2/catch_test_macros.hpp>

#include "support/folder.hpp"
#include "support/ranks.hpp"

namespace accel::testing {

inline void put(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

[[nodiscard]] inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Runs a Python program in `folder`; skips the test where there is none.
inline void run_python(const Folder& folder, const std::string& program) {
  if (std::string(ACCEL_TEST_PYTHON).empty()) skip_without("torchrun", "no Python with torch was found");
  const auto result =
      run_program({ACCEL_TEST_PYTHON, "-c", "import os\nos.chdir(r'''" + folder.path().string() + "''')\n" + program});
  INFO(result.output);
  REQUIRE(result.succeeded());
}

/// Cuts `whole` short at every byte and gives each to `read`, which must throw a DataError, then damages up to three
/// bytes below `reach`, where `read` may also return. Returns how many of the damaged ones were refused.
inline int damage(const std::filesystem::path& path, const std::string& whole, std::size_t reach, int files,
                  const std::function<void()>& read) {
  const auto refused = [&](const std::string& bytes) {
    put(path, bytes);
    try {
      read();
    } catch (const DataError&) {
      return true;
    }
    return false;
  };
  for (std::size_t size = 0; size < whole.size(); ++size)
    if (!refused(whole.substr(0, size))) FAIL_CHECK("cut to " << size << " bytes, and read");
  std::mt19937 random(1);  // NOLINT: the same damage every time
  int count = 0;
  for (int i = 0; i < files; ++i) {
    auto bytes = whole;
    for (auto changes = 1 + random() % 3; changes > 0; --changes)
      bytes[random() % reach] = static_cast<char>(random() % 256);
    count += refused(bytes) ? 1 : 0;
  }
  return count;
}

}  // namespace accel::testing
