// OwnSegment and PeerSegment: memory that one process writes, and the others on its host read.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::backend::detail {

[[noreturn]] inline void throw_errno(std::string_view what) {
  throw std::runtime_error(message(what, ": ", std::generic_category().message(errno)));
}

/// A file that is open as long as this lives.
class OpenFile {
 public:
  explicit OpenFile(int number) : number_(number) {}
  OpenFile(OpenFile&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  OpenFile& operator=(OpenFile&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~OpenFile() {
    if (number_ >= 0) ::close(number_);
  }
  [[nodiscard]] int number() const { return number_; }

 private:
  int number_;
};

/// A file as memory, as long as this lives. Its pages come into being where they are touched.
class Mapping {
 public:
  Mapping(const OpenFile& file, std::size_t size, int protection) : size_(size) {
    void* const at = ::mmap(nullptr, size, protection, MAP_SHARED | MAP_NORESERVE, file.number(), 0);
    if (at == MAP_FAILED) throw_errno(message("mmap of ", size, " bytes"));
    base_ = static_cast<std::byte*>(at);
  }
  Mapping(Mapping&& other) noexcept : base_(std::exchange(other.base_, nullptr)), size_(other.size_) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (base_ != nullptr) ::munmap(base_, size_);
  }
  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

/// What a rank tells the others of its segment, so that they find it and nobody else's.
struct SegmentName {
  using Token = std::array<std::uint64_t, 2>;

  int file = -1;
  std::size_t size = 0;
  Token token{};  // drawn at random, and in the memory itself: a process id may lead to a stranger

  [[nodiscard]] std::string text() const { return message(file, ' ', size, ' ', token[0], ' ', token[1]); }

  [[nodiscard]] static SegmentName parse(const std::string& text) {
    SegmentName name;
    std::istringstream(text) >> name.file >> name.size >> name.token[0] >> name.token[1];
    return name;
  }
};

inline constexpr std::size_t page = 4096;  // or a part of it: the token's, then of what is allocated

/// Memory of this process that others may read: a file without a path, so that nothing of it is left
/// when its last process ends, however that comes.
///
/// It is as large as the host's memory and takes of that what is touched: nobody needs to hear that it
/// grows. Behind the `fixed` bytes lies what allocate() gives, and takes back.
class OwnSegment : public std::enable_shared_from_this<OwnSegment> {
 public:
  /// Throws   std::runtime_error with what the system says.
  OwnSegment(std::size_t fixed, int world_size)
      : file_(create(size_on_this_host(world_size))), memory_(file_, size_of(file_), PROT_READ | PROT_WRITE) {
    name_ = {file_.number(), memory_.size(), {}};
    if (::getrandom(name_.token.data(), sizeof name_.token, 0) != sizeof name_.token) throw_errno("getrandom");
    const std::size_t begin = whole_pages(page + fixed);
    if (memory_.size() <= begin) throw std::runtime_error(message("files may have ", memory_.size(), " bytes only"));
    take(0, begin);
    std::memcpy(memory_.base(), name_.token.data(), sizeof name_.token);
    free_[begin] = memory_.size() - begin;
  }

  [[nodiscard]] const SegmentName& name() const { return name_; }

  /// Where the `fixed` bytes are.
  [[nodiscard]] std::byte* fixed() const { return memory_.base() + page; }

  /// u8[bytes], zero, which keeps the segment; undefined if there is no memory left.
  [[nodiscard]] at::Tensor allocate(std::size_t bytes) {
    const std::size_t size = whole_pages(bytes);
    std::size_t offset = 0;
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& gap) { return gap.second >= size; });
      if (bytes == 0 || found == free_.end()) return {};
      offset = found->first;
      const std::size_t left = found->second - size;
      free_.erase(found);
      if (left > 0) free_[offset + size] = left;
    }
    try {
      take(offset, size);
      return at::from_blob(
          memory_.base() + offset, {static_cast<std::int64_t>(bytes)},
          [self = shared_from_this(), offset, size](void*) { self->give_back(offset, size); }, at::kByte);
    } catch (const std::exception&) {
      give_back(offset, size);
      return {};
    }
  }

  /// Where in the segment these bytes are, for who maps it; -1 if they are elsewhere.
  [[nodiscard]] std::int64_t place(const std::byte* data, std::size_t bytes) const {
    const auto at = reinterpret_cast<std::uintptr_t>(data);
    const auto base = reinterpret_cast<std::uintptr_t>(memory_.base());
    const bool inside = at >= base && at + bytes <= base + memory_.size();
    return inside ? static_cast<std::int64_t>(at - base) : -1;
  }

 private:
  /// The memory of the host, as far as that many windows fit in half of a process's 47 bits.
  static std::size_t size_on_this_host(int world_size) {
    const auto host = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(::getpagesize());
    std::size_t size = std::min(host, (std::size_t{1} << 46) / static_cast<std::size_t>(world_size));
    // Asked first: who exceeds it is sent a signal.
    rlimit limit{};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0) size = std::min<std::size_t>(size, limit.rlim_cur);
    return size / page * page;
  }

  static OpenFile create(std::size_t size) {
    OpenFile file(::memfd_create("accel", MFD_CLOEXEC));
    if (file.number() < 0) throw_errno("memfd_create");
    if (::ftruncate(file.number(), static_cast<off_t>(size)) != 0) throw_errno("ftruncate");
    return file;
  }

  static std::size_t size_of(const OpenFile& file) {
    struct stat facts{};
    if (::fstat(file.number(), &facts) != 0) throw_errno("fstat");
    return static_cast<std::size_t>(facts.st_size);
  }

  static std::size_t whole_pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }

  /// Has the pages there, or throws: a page that is missing when it is touched ends the process.
  void take(std::size_t offset, std::size_t size) const {
    while (::fallocate(file_.number(), 0, static_cast<off_t>(offset), static_cast<off_t>(size)) != 0)
      if (errno != EINTR) throw_errno("fallocate");
  }

  void give_back(std::size_t offset, std::size_t size) noexcept {
    (void)::fallocate(file_.number(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                      static_cast<off_t>(size));
    try {
      const std::lock_guard lock(mutex_);
      auto gap = free_.emplace(offset, size).first;
      if (const auto next = std::next(gap); next != free_.end() && offset + size == next->first) {
        gap->second += next->second;
        free_.erase(next);
      }
      if (gap == free_.begin()) return;
      if (const auto before = std::prev(gap); before->first + before->second == offset) {
        before->second += gap->second;
        free_.erase(gap);
      }
    } catch (const std::exception&) {
      // No memory to note it: its pages are returned, its addresses are not used again.
    }
  }

  OpenFile file_;
  Mapping memory_;
  SegmentName name_;
  std::mutex mutex_;
  std::map<std::size_t, std::size_t> free_;  // offset -> size; never two that touch
};

/// The segment of another process: to be read only.
class PeerSegment {
 public:
  /// Throws   std::runtime_error with what the system says, or if that process has no such segment.
  PeerSegment(std::int64_t process, const SegmentName& name) : memory_(open(process, name)) {
    SegmentName::Token token{};
    std::memcpy(token.data(), memory_.base(), sizeof token);
    if (token != name.token) throw std::runtime_error("another process answers to its process id");
  }

  [[nodiscard]] const std::byte* fixed() const { return memory_.base() + page; }

 private:
  static Mapping open(std::int64_t process, const SegmentName& name) {
    const std::string path = message("/proc/", process, "/fd/", name.file);
    const OpenFile file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.number() < 0) throw_errno(path);
    struct stat facts{};
    // Checked before it is read: beyond the end of a file there is no memory.
    if (::fstat(file.number(), &facts) != 0 || !S_ISREG(facts.st_mode) ||
        facts.st_size != static_cast<off_t>(name.size))
      throw std::runtime_error("another process answers to its process id");
    return {file, name.size, PROT_READ};
  }

  Mapping memory_;
};

}  // namespace accel::inline v0_1::backend::detail
