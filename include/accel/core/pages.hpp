// Pages: what the system would do for memory page by page as it is touched, asked for at once.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include <sys/mman.h>
#include <unistd.h>

namespace accel::inline v0_1 {

namespace detail {

[[nodiscard]] inline std::size_t page_size() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

/// Bytes from the begin of its page.
[[nodiscard]] inline std::size_t behind_page(const void* place) {
  return reinterpret_cast<std::uintptr_t>(place) % page_size();
}

}  // namespace detail

/// Has the system read what is mapped of a file, where it can (Linux 5.14): its pages come together, and a disk that
/// fails, or a file that is shorter by now, shows here. Gives false then: to touch it would end the process.
[[nodiscard]] inline bool read_in(std::span<const std::byte> bytes) {
#if defined(MADV_POPULATE_READ)
  if (bytes.empty()) return true;
  auto* const begin = const_cast<std::byte*>(bytes.data());  // nothing is written
  const std::size_t before = detail::behind_page(begin);     // of its first page
  const int saved = errno;
  const bool failed = ::madvise(begin - before, before + bytes.size(), MADV_POPULATE_READ) != 0 &&
                      (errno == EFAULT || errno == EHWPOISON);
  errno = saved;
  return !failed;
#else
  (void)bytes;
  return true;
#endif
}

/// From here on a block of the C library's is no part of another: glibc's largest threshold.
inline constexpr std::size_t own_pages = 32 << 20;

/// Asks for pages of 2 MB behind memory that nobody has touched yet and that will be filled: one fault in place of 512.
/// Only of what has pages of its own.
inline void prefer_huge_pages(std::span<std::byte> bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes.size() < own_pages) return;
  const std::size_t page = detail::page_size(), skipped = (page - detail::behind_page(bytes.data())) % page;
  const int saved = errno;
  (void)::madvise(bytes.data() + skipped, (bytes.size() - skipped) / page * page, MADV_HUGEPAGE);  // only advice
  errno = saved;
#else
  (void)bytes;
#endif
}

}  // namespace accel::inline v0_1
