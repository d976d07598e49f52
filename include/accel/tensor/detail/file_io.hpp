// Files as a checkpoint needs them: whole and on the disk, or not there at all.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::tensor::detail {

/// Throws   CheckpointError with the path, what was tried, and the system's reason.
[[noreturn]] inline void fail_io(const std::filesystem::path& path, std::string_view tried, int error = errno) {
  throw CheckpointError(message(path.string(), ": cannot ", tried, ": ", std::generic_category().message(error)));
}

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) noexcept : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { close(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  int close() noexcept { return fd_ < 0 ? 0 : ::close(std::exchange(fd_, -1)); }

 private:
  int fd_ = -1;
};

/// Reads a regular file at offsets. Not mapped: a failing disk is then an error, not a SIGBUS.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path)
      : path_(std::move(path)), file_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_.get() < 0) fail_io(path_, "open it");
    struct stat status{};
    if (::fstat(file_.get(), &status) != 0) fail_io(path_, "ask for its size");
    ACCEL_CHECK(S_ISREG(status.st_mode), CheckpointError, path_.string(), ": expected a file, found something else");
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }

  /// Fills `to` with `count` bytes from `offset` on.
  void read(void* to, std::uint64_t count, std::uint64_t offset) const {
    auto* place = static_cast<char*>(to);
    while (count > 0) {
      const ssize_t got = ::pread(file_.get(), place, std::min(count, most_at_once), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_io(path_, message("read ", count, " bytes at offset ", offset));
      ACCEL_CHECK(got > 0, CheckpointError, path_.string(), ": expected ", count, " more bytes at offset ", offset,
                  ", found the end; the file was cut while it was read");
      place += got;
      offset += static_cast<std::uint64_t>(got);
      count -= static_cast<std::uint64_t>(got);
    }
  }

 private:
  static constexpr std::uint64_t most_at_once = 1 << 30;  // Linux transfers at most 2^31 - 4096

  std::filesystem::path path_;
  Descriptor file_;
  std::uint64_t size_ = 0;
};

/// Writes beside `path` under another name and takes its place in commit(): a reader sees the old
/// file or the whole new one, also after a power cut. Without commit() nothing is left.
class DurableFile {
 public:
  explicit DurableFile(std::filesystem::path path) : path_(std::move(path)) {
    // The process id is not unique on a disk shared by hosts; O_EXCL is.
    for (int attempt = 0; attempt < 100 && file_.get() < 0; ++attempt) {
      temporary_ = path_;
      temporary_ += message(".tmp-", ::getpid(), "-", attempt);
      file_ = Descriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (file_.get() < 0 && errno != EEXIST) break;
    }
    if (file_.get() >= 0) return;
    const int error = errno;
    fail_io(path_, message("create ", temporary_.string()), error);
  }
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  ~DurableFile() {
    if (!committed_) ::unlink(temporary_.c_str());
  }

  void write(const void* from, std::uint64_t count) {
    constexpr std::uint64_t most_at_once = 1 << 30;
    const auto* place = static_cast<const char*>(from);
    while (count > 0) {
      const ssize_t put = ::write(file_.get(), place, std::min(count, most_at_once));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) fail_io(path_, message("write ", count, " bytes to ", temporary_.string()));
      place += put;
      count -= static_cast<std::uint64_t>(put);
    }
  }

  void commit() {
    if (::fsync(file_.get()) != 0) fail_io(path_, message("flush ", temporary_.string()));
    if (file_.close() != 0) fail_io(path_, message("close ", temporary_.string()));
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_io(path_, message("rename ", temporary_.string()));
    committed_ = true;
    // The new name is durable once its folder is.
    const auto parent = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    const Descriptor folder(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.get() < 0) fail_io(path_, "open its folder");
    // EINVAL: this file system has no flush for folders.
    if (::fsync(folder.get()) != 0 && errno != EINVAL) fail_io(path_, "flush its folder");
  }

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  Descriptor file_;
  bool committed_ = false;
};

}  // namespace accel::inline v0_1::tensor::detail
