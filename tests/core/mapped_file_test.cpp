// MappedFile: what is there, what is refused, what is noticed.
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include <accel/core/mapped_file.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/folder.hpp"

using accel::DataError;
using accel::MappedFile;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

TEST_CASE("a mapped file shows its bytes, also the copy that was moved", "[core]") {
  const accel::testing::Folder folder;
  std::ofstream(folder / "f") << "twelve bytes";
  MappedFile file(folder / "f", accel::Access::random);
  CHECK(file.text() == "twelve bytes");
  CHECK(file.bytes(7, 5).size() == 5);
  CHECK(file.bytes(7, 5)[0] == std::byte{'b'});
  CHECK(file.bytes(12, 0).empty());
  MappedFile moved(std::move(file));
  CHECK(moved.text() == "twelve bytes");
  std::ofstream(folder / "g") << "other";
  moved = MappedFile(folder / "g");
  CHECK(moved.text() == "other");
  CHECK(moved.path() == folder / "g");
}

TEST_CASE("an empty file is mapped as no bytes", "[core]") {
  const accel::testing::Folder folder;
  std::ofstream(folder / "f") << "";
  const MappedFile file(folder / "f");
  CHECK(file.size() == 0);
  CHECK(file.text().empty());
  CHECK(file.bytes(0, 0).empty());
  CHECK_THROWS_AS(file.bytes(0, 1), DataError);
}

TEST_CASE("what cannot be mapped is refused with its path and the reason", "[core]") {
  const accel::testing::Folder folder;
  CHECK_THROWS_MATCHES(MappedFile(folder / "none"), DataError,
                       MessageMatches(ContainsSubstring("none: cannot open it: No such file or directory")));
  CHECK_THROWS_MATCHES(MappedFile(folder.path()), DataError,
                       MessageMatches(ContainsSubstring("expected a file, found a folder")));
  CHECK_THROWS_MATCHES(MappedFile("/dev/null"), DataError, MessageMatches(ContainsSubstring("expected a file")));
}

TEST_CASE("a part that is not there is refused with offset and size, also where the sum overflows", "[core]") {
  const accel::testing::Folder folder;
  std::ofstream(folder / "f") << "twelve bytes";
  const MappedFile file(folder / "f");
  CHECK_THROWS_MATCHES(file.bytes(8, 5), DataError,
                       MessageMatches(ContainsSubstring("f: expected 5 bytes at offset 8, found 4;")));
  CHECK_THROWS_MATCHES(file.bytes(13, 0), DataError, MessageMatches(ContainsSubstring("offset 13, found 0;")));
  CHECK_THROWS_AS(file.bytes(8, ~0ULL), DataError);
  CHECK_THROWS_AS(file.bytes(~0ULL, 8), DataError);
}

TEST_CASE("a file that changed its size is noticed, one that took its place does no harm", "[core]") {
  const accel::testing::Folder folder;
  std::ofstream(folder / "f") << "twelve bytes";
  const MappedFile file(folder / "f");
  file.check_unchanged();
  std::ofstream(folder / "new") << "longer than twelve bytes";
  std::filesystem::rename(folder / "new", folder / "f");
  file.check_unchanged();
  CHECK(file.text() == "twelve bytes");

  const MappedFile replaced(folder / "f");
  std::filesystem::resize_file(folder / "f", 3);
  CHECK_THROWS_MATCHES(
      replaced.check_unchanged(), DataError,
      MessageMatches(ContainsSubstring("expected 24 bytes, as when it was opened, found 3; do not write")));
  std::filesystem::remove(folder / "f");
  replaced.check_unchanged();
}
