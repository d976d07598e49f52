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

[[nodiscard]] inline std::uintptr_t page_size() {
  static const auto size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace detail

/// Has the system read what is mapped of a file, where it can (Linux 5.14): its pages come together, and a disk that
/// fails, or a file that is shorter by now, shows here. Gives false then: to touch it would end the process.
[[nodiscard]] inline bool read_in(std::span<const std::byte> bytes) {
#if defined(MADV_POPULATE_READ)
  if (bytes.empty()) return true;
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data()), end = begin + bytes.size();
  const auto page = begin / detail::page_size() * detail::page_size();
  const int saved = errno;
  const bool failed = ::madvise(reinterpret_cast<void*>(page), end - page, MADV_POPULATE_READ) != 0 &&
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
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data()), end = begin + bytes.size();
  const auto page = (begin + detail::page_size() - 1) / detail::page_size() * detail::page_size();
  const int saved = errno;
  (void)::madvise(reinterpret_cast<void*>(page), (end - page) / detail::page_size() * detail::page_size(),
                  MADV_HUGEPAGE);  // only advice
  errno = saved;
#else
  (void)bytes;
#endif
}

}  // namespace accel::inline v0_1
