// Batch size: the largest one that all ranks have memory for, found by trying.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::collective {

struct BatchSizeSearch {
  double factor = 0.9;        // of the size after one that was too large; Accelerate's
  std::int64_t smallest = 1;  // that is tried
  std::int64_t align = 1;     // sizes after the first are multiples of it
};

/// The size after `size`, or 0 if there is none.
///
///     factor 0.9 from 16:   14 12 10 9 8 7 6 5 4 3 2 1
[[nodiscard]] inline std::int64_t next_batch_size(std::int64_t size, const BatchSizeSearch& search) {
  const auto less = static_cast<std::int64_t>(std::floor(static_cast<double>(size) * search.factor));
  const std::int64_t next = std::min(less, size - 1) / search.align * search.align;
  return next < search.smallest ? 0 : next;
}

/// Whether `error` says that there is no memory: LibTorch's own type, that of C++, and what its CPU allocator and the
/// libraries of a GPU say by words only.
[[nodiscard]] inline bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const Error*>(&error) != nullptr) return false;  // ours, whatever it quotes
  constexpr std::array<std::string_view, 4> words = {"DefaultCPUAllocator: can't allocate memory",
                                                     "DefaultCPUAllocator: not enough memory",
                                                     "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"};
  const std::string text = first_line(error);
  return std::any_of(words.begin(), words.end(), [&](std::string_view one) { return text.find(one) != text.npos; });
}

/// Gives the memory that LibTorch keeps for later back to the device.
inline void empty_cache(c10::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

namespace detail {

/// How a batch size went on a rank.
struct Attempt {
  enum class Ending : char { done = '+', no_memory = '-', failed = '!' };
  Ending ending = Ending::done;
  std::int64_t begun = 0;  // collectives, since the rank began its first one
  std::string text{};      // of the exception

  [[nodiscard]] std::string packed() const { return static_cast<char>(ending) + std::to_string(begun) + " " + text; }
  [[nodiscard]] static Attempt unpacked(const std::string& words) {
    const std::size_t blank = words.find(' ');
    return {static_cast<Ending>(words.front()), std::stoll(words.substr(1, blank)), words.substr(blank + 1)};
  }
};

}  // namespace detail

/// Calls `body(batch_size)` with `first`, and with smaller sizes for as long as any rank runs out of memory: all ranks
/// try the same. Gives what `body` gave; of a body that gives nothing the size. Before every further try calls
/// `retry(text)`, with what happened, and empties the device's cache.
///
/// The body must begin anew each time. It may use collectives, as long as a rank does not run out of memory between
/// them: what another has begun, it cannot take back. Then, and where ranks have begun different numbers of
/// collectives, the group ends, with an error on every rank that says so.
///
/// Cost     one round over the control plane, and one per try: ranks wait for each other, until the backend's timeout.
/// Throws   what `body` throws beside, where it does, and CommError with that text on the other ranks; InvalidArgument
///          on every rank if the smallest size is too large, or if sizes or options differ.
/// Differs  Accelerate's ranks decide alone, and hang or go on with different sizes.
template <Backend B, class Body, class Retry>
auto find_executable_batch_size(B& backend, std::int64_t first, const BatchSizeSearch& search, Body&& body,
                                Retry&& retry) {
  using enum detail::Attempt::Ending;
  using Result = std::invoke_result_t<Body&, std::int64_t>;
  constexpr std::string_view subject = "find_executable_batch_size";
  auto& control = backend.control();
  agree_on_trees(control, subject, "begin alike on every rank", Deadline::in(backend.timeout()), [&](Brought& own) {
    ACCEL_CHECK(search.factor > 0 && search.factor < 1 && search.align >= 1 && search.smallest >= 1, InvalidArgument,
                subject, ": expected a factor between 0 and 1, and smallest and align of at least 1, found ",
                search.factor, ", ", search.smallest, " and ", search.align);
    ACCEL_CHECK(first >= search.smallest, InvalidArgument, subject, ": expected to begin with ", search.smallest,
                " at least, found ", first);
    own.outline.add("the call", message("from ", first, ", factor ", shortest(search.factor), ", smallest ",
                                        search.smallest, ", align ", search.align));
  });
  for (std::int64_t size = first;;) {
    empty_cache(backend.device());
    detail::Attempt own;
    std::exception_ptr failure;
    std::optional<std::conditional_t<std::is_void_v<Result>, std::int64_t, std::decay_t<Result>>> result;
    try {
      if constexpr (std::is_void_v<Result>) {
        body(size);
        result = size;
      } else {
        result.emplace(body(size));
      }
    } catch (const std::exception& error) {
      failure = std::current_exception();
      own.ending = is_out_of_memory(error) ? no_memory : failed;
      own.text = first_line(error);
    } catch (...) {
      failure = std::current_exception();
      own = {failed, 0, "something that is no std::exception"};
    }
    if (control.failed() && failure) std::rethrow_exception(failure);
    // Who waits in the body for a collective that this rank has not begun waits in vain, and hears so.
    if (own.ending == no_memory)
      control.halt(message("ran out of memory in find_executable_batch_size, with a batch size of ", size,
                           ", and what others have begun in it cannot be taken back (begin with a smaller one, or let "
                           "the body use no collectives, as under no_sync)"));
    if (own.ending == failed) control.halt(message("threw in find_executable_batch_size: ", own.text));
    own.begun = control.begun();
    std::vector<detail::Attempt> all;
    for (const auto& words : control.all_gather(message(subject, ": a batch size of ", size), own.packed(),
                                                Deadline::in(backend.timeout())))
      all.push_back(detail::Attempt::unpacked(words));
    const auto first_with = [&](detail::Attempt::Ending ending) {
      return std::find_if(all.begin(), all.end(), [&](const auto& one) { return one.ending == ending; });
    };
    if (own.ending == failed) std::rethrow_exception(failure);
    if (const auto bad = first_with(failed); bad != all.end())
      throw CommError(message(subject, " failed on rank ", bad - all.begin(), ": ", bad->text));
    const auto out = first_with(no_memory);
    if (out == all.end()) return *std::move(result);
    const std::string happened =
        message("rank ", out - all.begin(), " has no memory for a batch size of ", size, ": ", out->text);
    failure = nullptr;
    result.reset();
    const auto other = std::find_if(all.begin(), all.end(), [&](const auto& one) { return one.begun != out->begun; });
    if (other != all.end()) {
      backend.abort(message(subject, ": ", happened, ". It has begun ", out->begun, " collectives and rank ",
                            other - all.begin(), " ", other->begun,
                            ", which cannot be taken back; begin with a smaller ",
                            "batch size, or let the body use no collectives, as under no_sync"));
      control.check_failure(subject);
    }
    const std::int64_t next = next_batch_size(size, search);
    ACCEL_CHECK(next > 0, InvalidArgument, subject, ": expected memory for a batch size of ", search.smallest,
                " at least, but ", happened);
    retry(message(happened, "; the next try is ", next));
    size = next;
  }
}

}  // namespace accel::inline v0_1::collective
