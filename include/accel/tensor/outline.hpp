// Outline: what a tree is like without what it holds, a line per tensor, to be compared between ranks.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree_path.hpp>

namespace accel::inline v0_1::tensor {

/// Lines of a path and what is there. Two trees of one type have equal outlines if and only if their tensors are at the
/// same places and alike.
class Outline {
 public:
  /// What is at `path`, in words on one line.
  void add(std::string_view path, std::string_view what) {
    text_ += path;
    text_ += '\t';
    text_ += what;
    text_ += '\n';
  }

  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

/// Of every tensor dtype and shape, as far as `describe(tensor)` says them; `undefined` for one that is.
template <class Tree, class Describe>
[[nodiscard]] Outline outline(const Tree& tree, Describe&& describe) {
  Outline result;
  visit_paths(tree, [&](const std::string& path, const at::Tensor& tensor) {
    result.add(path, tensor.defined() ? describe(tensor) : "undefined");
  });
  return result;
}
template <class Tree>
[[nodiscard]] Outline outline(const Tree& tree) {
  return outline(tree, [](const at::Tensor& tensor) { return spec(tensor); });
}

/// Where two outlines differ first, and what each has there: `nothing` where it has no such path.
struct Difference {
  std::string path;
  std::string ours;
  std::string theirs;
};

/// Of texts of outlines that are not equal.
[[nodiscard]] inline Difference first_difference(std::string_view ours, std::string_view theirs) {
  struct Line {
    std::string_view path, what;
  };
  const auto lines_of = [](std::string_view text) {
    std::vector<Line> lines;
    while (!text.empty()) {
      const std::string_view line = text.substr(0, text.find('\n'));
      const std::size_t tab = line.find('\t');
      lines.push_back({line.substr(0, tab), line.substr(tab + 1)});
      text.remove_prefix(line.size() + 1);
    }
    return lines;
  };
  const auto found_in = [](const std::vector<Line>& lines) {
    std::unordered_map<std::string_view, std::string_view> found;
    for (const auto& [path, what] : lines) found.emplace(path, what);
    return found;
  };
  const auto our_lines = lines_of(ours);
  const auto their_lines = lines_of(theirs);
  const auto they_have = found_in(their_lines);
  for (const auto& [path, what] : our_lines) {
    const auto found = they_have.find(path);
    const std::string_view other = found == they_have.end() ? "nothing" : found->second;
    if (other != what) return {std::string(path), std::string(what), std::string(other)};
  }
  const auto we_have = found_in(our_lines);
  for (const auto& [path, what] : their_lines)
    if (!we_have.contains(path)) return {std::string(path), "nothing", std::string(what)};
  return {{}, "another order", "another order"};  // of maps whose comparison is not the same
}

}  // namespace accel::inline v0_1::tensor
