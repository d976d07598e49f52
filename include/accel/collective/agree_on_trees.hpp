// Agree on trees: what the ranks bring to a collective is compared before anything is sent.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/tensor/outline.hpp>
#include <accel/tensor/packed.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::collective {

/// What need not be equal between ranks, and what everybody hears.
struct Said {
  std::vector<std::int64_t> sizes{};
  std::string bytes{};
};

/// What a rank brings, as far as it is said.
struct Brought {
  tensor::Outline outline{};  // must be equal on all ranks
  Said said{};
};

namespace detail {

/// ` at [0].image`, or nothing for a tree that is a tensor itself.
[[nodiscard]] inline std::string at_path(std::string_view path) {
  return path.empty() ? std::string() : message(" at ", path);
}

/// Throws   InvalidArgument unless ranks whose backend is on `device` can send `tensor`.
inline void check_leaf(std::string_view subject, std::string_view path, const at::Tensor& tensor, c10::Device device) {
  ACCEL_CHECK(tensor.defined(), InvalidArgument, subject, ": the tensor is undefined");
  ACCEL_CHECK(tensor.layout() == at::kStrided && tensor::is_plain(tensor.scalar_type()), InvalidArgument, subject,
              ": expected dense tensors of a usual dtype, found ", tensor::layout(tensor), at_path(path),
              "; convert it first");
  ACCEL_CHECK(tensor.device() == device, InvalidArgument, subject, ": expected tensors on ", device.str(), ", found ",
              tensor::Spec::of(tensor), at_path(path), "; move it with .to(accelerator.device())");
}

/// `18446744073709551615 2 8 16 `, with the hash of the outline and how many sizes there are, then the bytes.
[[nodiscard]] inline std::string in_words(const Brought& own) {
  std::string words = std::to_string(fnv1a(own.outline.text())) + " " + std::to_string(own.said.sizes.size()) + " ";
  for (const std::int64_t size : own.said.sizes) words += std::to_string(size) + " ";
  return words + own.said.bytes;
}

[[nodiscard]] inline std::pair<std::uint64_t, Said> heard(std::string_view words) {
  const auto take = [&]<class Number>(Number number) {
    const auto end = std::from_chars(words.data(), words.data() + words.size(), number).ptr;
    words.remove_prefix(static_cast<std::size_t>(end - words.data()) + 1);  // and the blank behind it
    return number;
  };
  const auto hash = take(std::uint64_t{});
  Said said;
  said.sizes.resize(take(std::size_t{}));
  for (auto& size : said.sizes) size = take(size);
  said.bytes = words;
  return {hash, std::move(said)};
}

[[noreturn]] inline void say_difference(std::string_view subject, std::string_view remedy,
                                        const std::vector<std::string>& outlines) {
  for (std::size_t rank = 1; rank < outlines.size(); ++rank) {
    if (outlines[rank] == outlines.front()) continue;
    const auto [path, ours, theirs] = tensor::first_difference(outlines.front(), outlines[rank]);
    throw InvalidArgument(message(subject, ": what the ranks bring differs", at_path(path), ": rank 0 has ", ours,
                                  ", rank ", rank, " has ", theirs, "; ", remedy));
  }
  throw InvalidArgument(message(subject, ": what the ranks bring differed, and then did not; ", remedy));
}

}  // namespace detail

/// Runs `look(brought)`, which checks what this rank brings and says what it is like, and compares that between all
/// ranks. Gives what need not be equal, by rank.
///
/// Cost     one round over the control plane, of some 20 bytes a rank and what is said. A second one, with the outlines
///          themselves, only if they differ.
/// Throws   on every rank, so that nobody waits for one that does not come: what `look` threw, where it threw;
///          InvalidArgument with that text, and whose it is, elsewhere; InvalidArgument that names both ranks, the path
///          and what each has there, where outlines differ. `remedy` says what to do then.
template <class Look>
std::vector<Said> agree_on_trees(launch::ControlPlane& control, std::string_view subject, std::string_view remedy,
                                 Deadline deadline, Look&& look) {
  Brought own;
  std::exception_ptr failure;
  std::string words = "!";  // then what is wrong here
  try {
    std::forward<Look>(look)(own);
    words = detail::in_words(own);
  } catch (const std::exception& error) {
    failure = std::current_exception();
    const std::string text = first_line(error);
    words += text.starts_with(message(subject, ": ")) ? text.substr(subject.size() + 2) : text;
  } catch (...) {
    failure = std::current_exception();
    words += "something that is no std::exception";
  }
  const auto answers = control.all_gather(subject, words, deadline);
  if (failure) std::rethrow_exception(failure);
  for (std::size_t rank = 0; rank < answers.size(); ++rank)
    ACCEL_CHECK(!answers[rank].starts_with('!'), InvalidArgument, subject, " failed on rank ", rank, ": ",
                answers[rank].substr(1));
  std::vector<Said> said;
  bool is_equal = true;
  for (const auto& answer : answers) {
    auto [hash, of_rank] = detail::heard(answer);
    is_equal = is_equal && hash == fnv1a(own.outline.text());
    said.push_back(std::move(of_rank));
  }
  if (!is_equal) detail::say_difference(subject, remedy, control.all_gather(subject, own.outline.text(), deadline));
  return said;
}

/// The same for a `tree`, of whose tensors `describe(path, tensor, sizes)` says what must be equal, and adds to `sizes`
/// what need not be. `call` is what else the ranks must say alike. Tensors in a tree may be undefined, if they are on
/// all ranks.
template <Backend B, class Tree, class Describe>
std::vector<Said> agree_on_trees(B& backend, std::string_view subject, std::string_view remedy, std::string_view call,
                                 const Tree& tree, Describe&& describe) {
  return agree_on_trees(backend.control(), subject, remedy, Deadline::in(backend.timeout()), [&](Brought& own) {
    own.outline.add("the call", call);
    tensor::visit_paths(tree, [&](const std::string& path, const at::Tensor& tensor) {
      if (!tensor.defined() && !path.empty()) return own.outline.add(path, "undefined");
      detail::check_leaf(subject, path, tensor, backend.device());
      own.outline.add(path, describe(path, tensor, own.said.sizes));
    });
  });
}

}  // namespace accel::inline v0_1::collective
