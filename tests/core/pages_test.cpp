// Pages: bytes that are read in are there or known to be missing, and advice changes no byte.
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <accel/core/mapped_file.hpp>
#include <accel/core/pages.hpp>

#include <catch2/catch_test_macros.hpp>

#include <sys/mman.h>

#include "support/folder.hpp"

TEST_CASE("what is mapped of a file is read in wherever it begins, and where the file was cut that is said", "[core]") {
  const accel::testing::Folder folder;
  const std::size_t page = accel::detail::page_size();
  std::ofstream(folder / "f") << std::string(3 * page + 7, 'x');
  const accel::MappedFile file(folder / "f");
  CHECK(accel::read_in(file.bytes()));
  CHECK(accel::read_in(file.bytes(page - 1, 2)));
  CHECK(accel::read_in(file.bytes(3 * page, 7)));
  CHECK(accel::read_in({}));
  auto* const own = const_cast<std::byte*>(file.bytes().data());
  if (::madvise(own, page, MADV_POPULATE_READ) != 0) SKIP("this system is older than Linux 5.14");
  std::filesystem::resize_file(folder / "f", page);
  CHECK(accel::read_in(file.bytes(0, page)));
  CHECK_FALSE(accel::read_in(file.bytes(0, page + 1)));
  CHECK_FALSE(accel::read_in(file.bytes(3 * page + 1, 2)));
}

TEST_CASE("memory for which large pages are asked can be written from its first byte to its last", "[core]") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, accel::own_pages - 1, accel::own_pages + 4097}) {
    std::vector<std::byte> memory(size);
    accel::prefer_huge_pages(memory);
    if (size > 0) memory.front() = memory.back() = std::byte{7};
    CHECK(std::span(memory).size() == size);
    if (size > 0) CHECK(memory.back() == std::byte{7});
  }
}
