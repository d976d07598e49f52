// MappedFile: a file as read-only memory that the system reads when it is touched.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1 {

/// How the bytes of a MappedFile will be read, for the system to read ahead, or not to.
enum class Access { normal, sequential, random };

/// Maps a whole file. Where a file could be too large for memory, nothing but what is touched is read, and the system
/// may forget it again; ranks of one host share it.
///
/// Cost     no file stays open, so thousands may be mapped. 65530 maps are Linux' default limit for a process.
/// Throws   DataError with the path and the system's reason; where a part is asked for that is not there, with the
///          offset. A file that others cut short, or a disk that fails, while mapped ends the program with SIGBUS:
///          check_unchanged() notices the first before it is read.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path, Access access = Access::normal) : path_(std::move(path)) {
    const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("open it");
    // The map holds the file without its descriptor.
    const struct Closed {
      int file;
      ~Closed() { ::close(file); }
    } closed{file};
    struct stat status{};
    if (::fstat(file, &status) != 0) fail("ask for its size");
    ACCEL_CHECK(S_ISREG(status.st_mode), DataError, path_.string(), ": expected a file, found ",
                S_ISDIR(status.st_mode) ? "a folder" : "something that cannot be mapped");
    size_ = static_cast<std::size_t>(status.st_size);
    device_ = status.st_dev;
    inode_ = status.st_ino;
    if (size_ == 0) return;  // the system maps no empty file
    void* begin = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    if (begin == MAP_FAILED) fail("map it");
    begin_ = static_cast<const std::byte*>(begin);
    advise(access);
  }
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        begin_(std::exchange(other.begin_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        device_(other.device_),
        inode_(other.inode_) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(begin_, other.begin_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    std::swap(inode_, other.inode_);
    return *this;
  }
  ~MappedFile() {
    if (begin_ != nullptr) ::munmap(const_cast<std::byte*>(begin_), size_);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {begin_, size_}; }
  [[nodiscard]] std::string_view text() const { return {reinterpret_cast<const char*>(begin_), size_}; }

  /// The `count` bytes from `offset` on.
  [[nodiscard]] std::span<const std::byte> bytes(std::uint64_t offset, std::uint64_t count) const {
    ACCEL_CHECK(offset <= size_ && count <= size_ - offset, DataError, path_.string(), ": expected ", count,
                " bytes at offset ", offset, ", found ", offset < size_ ? size_ - offset : 0,
                "; the file is cut short, or not what it is taken for");
    return bytes().subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(count));
  }

  /// A file that took the place of this one changes nothing: the map is still of the first.
  ///
  /// Cost     one stat.
  /// Throws   DataError if the file has another size than when it was mapped.
  void check_unchanged() const {
    struct stat status{};
    if (::stat(path_.c_str(), &status) != 0 || status.st_dev != device_ || status.st_ino != inode_) return;
    ACCEL_CHECK(static_cast<std::uint64_t>(status.st_size) == size_, DataError, path_.string(), ": expected ", size_,
                " bytes, as when it was opened, found ", status.st_size, "; do not write to a file that is read from");
  }

  /// Tells the system how the bytes will be read.
  void advise(Access access) const noexcept {
    const int advice = access == Access::sequential ? MADV_SEQUENTIAL
                       : access == Access::random   ? MADV_RANDOM
                                                    : MADV_NORMAL;
    if (begin_ != nullptr) ::madvise(const_cast<std::byte*>(begin_), size_, advice);  // only advice
  }

 private:
  [[noreturn]] void fail(std::string_view tried, int error = errno) const {
    throw DataError(message(path_.string(), ": cannot ", tried, ": ", std::generic_category().message(error)));
  }

  std::filesystem::path path_;
  const std::byte* begin_ = nullptr;
  std::size_t size_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace accel::inline v0_1
