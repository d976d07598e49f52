// File: files and folders as a checkpoint needs them: whole and on the disk, or not there at all.
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
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1 {

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

namespace detail {

inline constexpr std::uint64_t most_bytes_at_once = 1 << 30;  // Linux transfers at most 2^31 - 4096

}  // namespace detail

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
      const ssize_t got =
          ::pread(file_.get(), place, std::min(count, detail::most_bytes_at_once), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_io(path_, message("read ", count, " bytes at offset ", offset));
      ACCEL_CHECK(got > 0, CheckpointError, path_.string(), ": expected ", count, " more bytes at offset ", offset,
                  ", found the end; the file was cut while it was read");
      place += got;
      offset += static_cast<std::uint64_t>(got);
      count -= static_cast<std::uint64_t>(got);
    }
  }

  /// What others have written to it is on the disk afterwards.
  void flush() const {
    if (::fsync(file_.get()) != 0) fail_io(path_, "flush it");
  }

 private:
  std::filesystem::path path_;
  Descriptor file_;
  std::uint64_t size_ = 0;
};

/// A new file, from its first byte to its last. What is written is on the disk when flush() has returned.
class OutputFile {
 public:
  /// Throws   CheckpointError, also if something of that name is there already.
  explicit OutputFile(const std::filesystem::path& path) : OutputFile(path, path) {
    if (file_.get() < 0) fail_io(path_, "create it");
  }

  /// The same, but is_open() says whether it was created, and if not errno why. Errors call it `name`.
  OutputFile(std::filesystem::path path, std::filesystem::path name)
      : path_(std::move(path)),
        name_(std::move(name)),
        file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) {}
  [[nodiscard]] bool is_open() const { return file_.get() >= 0; }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Bytes so far.
  [[nodiscard]] std::uint64_t size() const { return size_; }

  void write(const void* from, std::uint64_t count) {
    const auto* place = static_cast<const char*>(from);
    while (count > 0) {
      const ssize_t put = ::write(file_.get(), place, std::min(count, detail::most_bytes_at_once));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) fail_io(name_, message("write ", count, " bytes at offset ", size_));
      place += put;
      size_ += static_cast<std::uint64_t>(put);
      count -= static_cast<std::uint64_t>(put);
    }
    begin_flush();
  }

  void flush() {
    if (::fsync(file_.get()) != 0) fail_io(name_, "flush it");
  }
  void close() {
    if (file_.close() != 0) fail_io(name_, "close it");
  }

 private:
  /// The disk has something to do while the next bytes come, and flush() finds little that is left.
  void begin_flush() noexcept {
    constexpr std::uint64_t step = 8 << 20;
    if (size_ - begun_ < step) return;
    // Only a hint: file systems that do not have it write when they are asked to.
    (void)::sync_file_range(file_.get(), static_cast<off_t>(begun_), static_cast<off_t>(size_ - begun_),
                            SYNC_FILE_RANGE_WRITE);
    begun_ = size_;
  }

  std::filesystem::path path_;
  std::filesystem::path name_;
  Descriptor file_;
  std::uint64_t size_ = 0;
  std::uint64_t begun_ = 0;
};

/// The names in it are on the disk, as they are now.
inline void flush_folder(const std::filesystem::path& path) {
  const Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) fail_io(path, "open the folder");
  // EINVAL: this file system has no flush for folders.
  if (::fsync(folder.get()) != 0 && errno != EINVAL) fail_io(path, "flush the folder");
}

/// The names in a folder, sorted; none if there is no such folder.
[[nodiscard]] inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  std::filesystem::directory_iterator entry(folder, failed);
  if (failed == std::errc::no_such_file_or_directory) return names;
  for (const std::filesystem::directory_iterator end; !failed && entry != end; entry.increment(failed))
    names.push_back(entry->path().filename().string());
  if (failed) fail_io(folder, "list it", failed.value());
  std::sort(names.begin(), names.end());
  return names;
}

/// The folder that a path lies in.
[[nodiscard]] inline std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

/// A new file that takes its name only by commit(): who looks finds the old one, or the whole new one.
class DurableFile {
 public:
  explicit DurableFile(std::filesystem::path path) : path_(std::move(path)), file_(temporary(path_)) {}
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  ~DurableFile() {
    if (!committed_) ::unlink(file_.path().c_str());
  }

  void write(const void* from, std::uint64_t count) { file_.write(from, count); }

  void commit() {
    file_.flush();
    file_.close();
    if (::rename(file_.path().c_str(), path_.c_str()) != 0) fail_io(path_, message("rename ", file_.path().string()));
    committed_ = true;
    flush_folder(parent_of(path_));  // the new name is durable once its folder is
  }

 private:
  static OutputFile temporary(const std::filesystem::path& path) {
    // The process id is not unique on a disk shared by hosts; O_EXCL is.
    for (int attempt = 0;; ++attempt) {
      std::filesystem::path name = path;
      name += message(".tmp-", ::getpid(), "-", attempt);
      OutputFile file(name, path);
      if (file.is_open()) return file;
      const int error = errno;
      if (error != EEXIST || attempt == 100) fail_io(path, message("create ", name.string()), error);
    }
  }

  std::filesystem::path path_;
  OutputFile file_;
  bool committed_ = false;
};

}  // namespace accel::inline v0_1
