// Tree: every tensor of whatever a batch or a model's result is made of.
#include <torch/torch.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/tensor/tree.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::InvalidArgument;
using accel::tensor::leaves;
using accel::tensor::map;
using accel::tensor::rows;
using accel::tensor::visit;

namespace {

at::Tensor number(int value) {
  return at::full({}, value);
}

/// The numbers in the tensors of `tree`, in the order of the visit.
template <class Tree>
std::vector<int> numbers(const Tree& tree) {
  std::vector<int> found;
  for (const auto& tensor : leaves(tree)) found.push_back(tensor.template item<int>());
  return found;
}

using Found = std::vector<int>;

enum class Split { train, test };

struct Pair {
  at::Tensor data, target;
};

struct Everything {
  at::Tensor tensor;
  int number = 0;
  std::string text;
  std::pair<at::Tensor, double> pair;
  std::vector<Pair> list;
  std::optional<at::Tensor> maybe;
  std::map<std::string, at::Tensor> named;
  Split split = Split::train;
};

struct WithArray {
  std::array<at::Tensor, 2> both;
  bool flag = false;
  std::tuple<at::Tensor, std::string> tuple;
};

struct Empty {};

struct One {
  at::Tensor tensor;
};

class Listed {
 public:
  Listed(at::Tensor image, std::vector<at::Tensor> boxes) : image_(std::move(image)), boxes_(std::move(boxes)) {}
  static constexpr auto fields() {
    return std::tuple(accel::Field{"image", &Listed::image_}, accel::Field{"boxes", &Listed::boxes_});
  }

 private:
  at::Tensor image_;
  std::vector<at::Tensor> boxes_;
};

}  // namespace

TEST_CASE("a tensor is a tree of one, an undefined one of none", "[tensor]") {
  CHECK(numbers(number(1)) == Found{1});
  CHECK(leaves(at::Tensor()).empty());
}

TEST_CASE("standard containers are visited in their order", "[tensor]") {
  CHECK(numbers(std::pair(number(1), number(2))) == Found{1, 2});
  CHECK(numbers(std::tuple(number(1), 7, number(2), std::string("x"), number(3))) == Found{1, 2, 3});
  CHECK(numbers(std::vector{number(1), number(2)}) == Found{1, 2});
  CHECK(numbers(std::array{number(1), number(2)}) == Found{1, 2});
  CHECK(numbers(std::optional(number(1))) == Found{1});
  CHECK(numbers(std::optional<at::Tensor>()).empty());
  CHECK(numbers(std::map<std::string, at::Tensor>{{"b", number(2)}, {"a", number(1)}}) == Found{1, 2});
  CHECK(numbers(std::unordered_map<int, at::Tensor>{{5, number(1)}}) == Found{1});
  CHECK(numbers(std::vector<at::Tensor>{}).empty());
  CHECK(numbers(std::pair(std::vector<bool>{true}, number(1))) == Found{1});
}

TEST_CASE("an unordered_map is visited in the order of its keys, whatever its history", "[tensor]") {
  std::unordered_map<std::string, at::Tensor> grown;
  for (int i = 0; i < 20; ++i) grown.emplace("k" + std::to_string(i), number(i));
  std::unordered_map<std::string, at::Tensor> roomy;
  roomy.reserve(10'000);
  for (int i = 19; i >= 0; --i) roomy.emplace("k" + std::to_string(i), number(i));
  std::vector<std::string> first, second;
  for (const auto& [key, tensor] : grown) first.push_back(key);
  for (const auto& [key, tensor] : roomy) second.push_back(key);
  REQUIRE(first != second);  // what two ranks may have
  CHECK(numbers(grown) == numbers(roomy));
  CHECK(numbers(grown) == Found{0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2, 3, 4, 5, 6, 7, 8, 9});
  visit(roomy, [](at::Tensor& tensor) { tensor = tensor + 1; });
  CHECK(roomy.at("k7").item<int>() == 8);
}

TEST_CASE("a struct that lists its fields is visited by that list", "[tensor]") {
  CHECK(numbers(Listed(number(1), {number(2), number(3)})) == Found{1, 2, 3});
}

TEST_CASE("containers may be nested", "[tensor]") {
  const std::vector<std::pair<at::Tensor, std::map<int, std::vector<at::Tensor>>>> tree = {
      {number(1), {{1, {number(2), number(3)}}, {2, {}}}}, {number(4), {{0, {number(5)}}}}};
  CHECK(numbers(tree) == Found{1, 2, 3, 4, 5});
}

TEST_CASE("structs are visited in order of declaration, numbers, texts and flags passed over", "[tensor]") {
  CHECK(numbers(Pair{number(1), number(2)}) == Found{1, 2});
  CHECK(numbers(One{number(1)}) == Found{1});
  CHECK(numbers(Empty{}).empty());
  Everything all;
  all.tensor = number(1);
  all.pair = {number(2), 0.5};
  all.list = {{number(3), number(4)}, {number(5), at::Tensor()}};
  all.named = {{"x", number(7)}};
  CHECK(numbers(all) == Found{1, 2, 3, 4, 5, 7});
  all.maybe = number(6);
  CHECK(numbers(all) == Found{1, 2, 3, 4, 5, 6, 7});
  CHECK(numbers(WithArray{{number(1), number(2)}, true, {number(3), "x"}}) == Found{1, 2, 3});
}

TEST_CASE("structs of up to eight fields are taken", "[tensor]") {
  struct Eight {
    at::Tensor a, b, c, d, e, f, g, h;
  };
  struct Seven {
    at::Tensor a, b, c, d, e, f, g;
  };
  struct Six {
    at::Tensor a, b, c, d, e, f;
  };
  struct Five {
    at::Tensor a, b, c, d, e;
  };
  struct Four {
    at::Tensor a, b, c, d;
  };
  struct Three {
    at::Tensor a, b, c;
  };
  const auto n = number;
  CHECK(numbers(Eight{n(1), n(2), n(3), n(4), n(5), n(6), n(7), n(8)}) == Found{1, 2, 3, 4, 5, 6, 7, 8});
  CHECK(numbers(Seven{n(1), n(2), n(3), n(4), n(5), n(6), n(7)}) == Found{1, 2, 3, 4, 5, 6, 7});
  CHECK(numbers(Six{n(1), n(2), n(3), n(4), n(5), n(6)}) == Found{1, 2, 3, 4, 5, 6});
  CHECK(numbers(Five{n(1), n(2), n(3), n(4), n(5)}) == Found{1, 2, 3, 4, 5});
  CHECK(numbers(Four{n(1), n(2), n(3), n(4)}) == Found{1, 2, 3, 4});
  CHECK(numbers(Three{n(1), n(2), n(3)}) == Found{1, 2, 3});
}

TEST_CASE("torch::data::Example is a tree of data and target", "[tensor]") {
  CHECK(numbers(torch::data::Example<>(number(1), number(2))) == Found{1, 2});
  CHECK(numbers(torch::data::TensorExample(number(1))) == Found{1});
}

TEST_CASE("a visit can change the tensors of a tree", "[tensor]") {
  Pair pair{number(1), number(2)};
  visit(pair, [](at::Tensor& tensor) { tensor = tensor + 10; });
  CHECK(numbers(pair) == Found{11, 12});
  std::map<std::string, std::vector<at::Tensor>> tree = {{"a", {number(1), number(2)}}};
  visit(tree, [](at::Tensor& tensor) { tensor = tensor * 2; });
  CHECK(numbers(tree) == Found{2, 4});
}

TEST_CASE("map gives the same tree with other tensors, and leaves the first as it was", "[tensor]") {
  Everything all;
  all.tensor = number(1);
  all.number = 42;
  all.text = "kept";
  all.maybe = number(2);
  all.split = Split::test;
  const Everything mapped = map(all, [](const at::Tensor& tensor) { return tensor + 10; });
  CHECK(numbers(mapped) == Found{11, 12});
  CHECK(numbers(all) == Found{1, 2});
  CHECK(mapped.number == 42);
  CHECK(mapped.text == "kept");
  CHECK(mapped.split == Split::test);
  CHECK_FALSE(mapped.pair.first.defined());
  static_assert(
      std::is_same_v<decltype(map(std::declval<const Pair&>(), std::declval<at::Tensor (*)(const at::Tensor&)>())),
                     Pair>);
}

TEST_CASE("the rows of a tree are those of its first tensor", "[tensor]") {
  CHECK(rows(at::ones({3, 2})) == 3);
  CHECK(rows(std::pair(at::ones({0, 2}), at::ones({5}))) == 0);
  CHECK(rows(std::tuple(7, at::ones({4}))) == 4);
  CHECK_THROWS_AS(rows(number(1)), InvalidArgument);
  CHECK_THROWS_AS(rows(std::vector<at::Tensor>()), InvalidArgument);
  CHECK_THROWS_AS(rows(at::Tensor()), InvalidArgument);
}
