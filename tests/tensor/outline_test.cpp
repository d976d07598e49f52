// Paths and outlines: where in a tree a tensor is, and how two trees differ.
#include <torch/torch.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <accel/tensor/outline.hpp>
#include <accel/tensor/tree_path.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::tensor::first_difference;
using accel::tensor::outline;
using accel::tensor::visit_paths;

namespace {

using Paths = std::vector<std::string>;

template <class Tree>
Paths paths(const Tree& tree) {
  Paths found;
  visit_paths(tree, [&](const std::string& path, const at::Tensor&) { found.push_back(path); });
  return found;
}

/// Also of numbers and texts.
template <class Tree>
Paths paths_of_all(const Tree& tree) {
  Paths found;
  visit_paths(tree, [&](const std::string& path, const auto&) { found.push_back(path); });
  return found;
}

struct Sample {
  at::Tensor image;
  int label = 0;
  std::vector<at::Tensor> boxes;

  static constexpr auto fields() {
    return std::tuple(accel::Field{"image", &Sample::image}, accel::Field{"label", &Sample::label},
                      accel::Field{"boxes", &Sample::boxes});
  }
};

struct Unnamed {
  at::Tensor a;
  std::string b;
  std::optional<std::vector<at::Tensor>> c;
};

enum class Kind : short { first = 3 };

std::string differ(const auto& ours, const auto& theirs) {
  const auto [path, mine, other] = first_difference(outline(ours).text(), outline(theirs).text());
  return path + ": " + mine + " | " + other;
}

}  // namespace

TEST_CASE("a path says where in a tree a tensor is", "[tensor]") {
  const at::Tensor x = at::ones({2});
  CHECK(paths(x) == Paths{""});
  CHECK(paths(at::Tensor()) == Paths{""});
  CHECK(paths(std::pair(x, std::vector{x, x})) == Paths{".first", ".second[0]", ".second[1]"});
  CHECK(paths(std::tuple(x, 7, x)) == Paths{".0", ".2"});
  CHECK(paths(std::vector{Sample{x, 1, {x}}}) == Paths{"[0].image", "[0].boxes[0]"});
  CHECK(paths(Unnamed{x, "text", std::vector{x}}) == Paths{".0", ".2[0]"});
  CHECK(paths(Unnamed{x, "text", {}}) == Paths{".0"});
  CHECK(paths(torch::data::Example<>(x, x)) == Paths{".data", ".target"});
  CHECK(paths(std::map<std::string, at::Tensor>{{"mask", x}, {"a\n\"b\"\\", x}}) ==
        Paths{R"(["a\x0a\"b\"\\"])", R"(["mask"])"});
  CHECK(paths(std::unordered_map<int, at::Tensor>{{10, x}, {-3, x}}) == Paths{"[-3]", "[10]"});
  CHECK(paths(std::map<std::pair<std::string, int>, at::Tensor>{{{"a", 1}, x}}) == Paths{R"([("a", 1)])"});
  CHECK(paths(std::map<Kind, at::Tensor>{{Kind::first, x}}) == Paths{"[3]"});
  CHECK(paths(std::map<double, at::Tensor>{{0.5, x}}) == Paths{"[0.5]"});
}

TEST_CASE("who takes numbers and texts is shown them, too", "[tensor]") {
  const at::Tensor x = at::ones({2});
  CHECK(paths_of_all(Sample{x, 1, {x}}) == Paths{".image", ".label", ".boxes[0]"});
  CHECK(paths_of_all(std::tuple(std::string("a"), 2.5, std::vector<bool>{true}, std::vector<int>{1, 2})) ==
        Paths{".0", ".1", ".2", ".3[0]", ".3[1]"});
}

TEST_CASE("outlines are equal where tensors are alike, and say where they are not", "[tensor]") {
  const at::Tensor x = at::ones({2, 3});
  const at::Tensor y = at::ones({2, 4});
  CHECK(outline(std::pair(x, y)).text() == ".first\tf32[2, 3]\n.second\tf32[2, 4]\n");
  CHECK(outline(std::pair(x, at::Tensor())).text() == ".first\tf32[2, 3]\n.second\tundefined\n");
  CHECK(outline(std::vector<at::Tensor>{}).text().empty());
  CHECK(differ(x, y) == ": f32[2, 3] | f32[2, 4]");
  CHECK(differ(std::vector{x, y}, std::vector{x, x}) == "[1]: f32[2, 4] | f32[2, 3]");
  CHECK(differ(std::vector{x, y}, std::vector{x}) == "[1]: f32[2, 4] | nothing");
  CHECK(differ(std::vector{x}, std::vector{x, y}) == "[1]: nothing | f32[2, 4]");
  CHECK(differ(std::pair(x, x), std::pair(x, at::Tensor())) == ".second: f32[2, 3] | undefined");
  using Named = std::map<std::string, at::Tensor>;
  CHECK(differ(Named{{"a", x}, {"c", y}}, Named{{"b", x}, {"c", y}}) == R"(["a"]: f32[2, 3] | nothing)");
  CHECK(differ(std::vector<std::vector<at::Tensor>>{{}, {x}}, std::vector<std::vector<at::Tensor>>{{x}, {}}) ==
        "[1][0]: f32[2, 3] | nothing");
  CHECK(differ(x, x.to(at::kDouble)) == ": f32[2, 3] | f64[2, 3]");
}
