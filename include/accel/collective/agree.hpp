// Agree: do all ranks hold the same? If not, which rank holds what. And: one fails, all fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::collective {

namespace detail {

inline std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;  // every line ends with a newline
  }
  return lines;
}

}  // namespace detail

/// Compares `lines` between all ranks. The first line in which a rank differs from rank 0 is named
/// with both ranks, on every rank.
///
/// Cost     8 bytes a rank over the control plane; the lines themselves only if they differ.
/// Throws   InvalidArgument that begins with `subject`.
inline void require_equal(launch::ControlPlane& control, std::string_view subject, std::span<const std::string> lines,
                          Deadline deadline) {
  std::string text;
  for (const auto& line : lines) text += line + "\n";
  const auto hashes = control.all_gather(subject, std::to_string(fnv1a(text)), deadline);
  bool equal = true;
  for (const auto& hash : hashes) equal = equal && hash == hashes.front();
  if (equal) return;
  const auto texts = control.all_gather(subject, text, deadline);
  const auto reference = detail::split_lines(texts.front());
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    const auto found = detail::split_lines(texts[rank]);
    for (std::size_t i = 0; i < std::max(reference.size(), found.size()); ++i) {
      const std::string ours = i < reference.size() ? reference[i] : "nothing";
      const std::string theirs = i < found.size() ? found[i] : "nothing";
      ACCEL_CHECK(ours == theirs, InvalidArgument, subject, " differs between ranks: rank 0 has ", ours, ", rank ",
                  rank, " has ", theirs, "; build it the same way on every rank");
    }
  }
}

/// Runs `body` on this rank. If it throws on any rank, every rank throws: nobody is left waiting in
/// the next collective for a rank that has given up.
///
/// Throws   what `body` threw, where it threw; `Failure` with that text elsewhere.
template <class Failure, class Body>
void all_or_none(launch::ControlPlane& control, std::string_view purpose, Deadline deadline, Body&& body) {
  std::exception_ptr own;
  std::string text;
  try {
    std::forward<Body>(body)();
  } catch (const std::exception& error) {
    own = std::current_exception();
    text = first_line(error);
    if (text.empty()) text = "an error without a text";
  } catch (...) {
    own = std::current_exception();
    text = "something that is no std::exception";
  }
  const auto texts = control.all_gather(purpose, text, deadline);
  if (own) std::rethrow_exception(own);
  for (std::size_t rank = 0; rank < texts.size(); ++rank)
    ACCEL_CHECK(texts[rank].empty(), Failure, purpose, " failed on rank ", rank, ": ", texts[rank]);
}

}  // namespace accel::inline v0_1::collective
