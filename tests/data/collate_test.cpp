// Collate: rows of every kind, on top of each other.
#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/collate.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"

namespace {

using accel::InvalidArgument;
using accel::data::Pad;
using accel::data::Stack;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

/// What collating `rows` throws.
template <class Collate, class Row>
std::string refusal(const Collate& collate, std::vector<Row> rows) {
  return thrown_by<InvalidArgument>([&] { (void)collate(std::move(rows)); });
}

}  // namespace

TEST_CASE("numbers become tensors, and texts lists of texts", "[data]") {
  const Stack stack;
  CHECK(stack(std::vector<std::int64_t>{1, -2}).equal(torch::tensor({1, -2}, torch::kLong)));
  CHECK(stack(std::vector<int>{1, -2}).equal(torch::tensor({1, -2}, torch::kLong)));
  CHECK(stack(std::vector<std::uint8_t>{1, 255}).equal(torch::tensor({1, 255}, torch::kLong)));
  enum class Kind { cat = 3, dog = 5 };
  CHECK(stack(std::vector<Kind>{Kind::dog, Kind::cat}).equal(torch::tensor({5, 3}, torch::kLong)));
  CHECK(stack(std::vector<float>{0.5F, 2}).equal(torch::tensor({0.5F, 2.0F})));
  CHECK(stack(std::vector<double>{0.1, 2}).equal(torch::tensor({0.1, 2.0}, torch::kDouble)));
  CHECK(stack(std::vector<bool>{true, false}).equal(torch::tensor({true, false})));
  CHECK(stack(std::vector<std::string>{"a", ""}) == std::vector<std::string>{"a", ""});
  CHECK(stack(std::vector<torch::Tensor>{torch::tensor(1), torch::tensor(2)}).equal(torch::tensor({1, 2})));
}

TEST_CASE("pairs, tuples, maps, lists, options and structs of these become the same of batches", "[data]") {
  const Stack stack;
  using Row = std::tuple<torch::Tensor, std::pair<int, std::string>, std::map<std::string, std::vector<float>>,
                         std::vector<torch::Tensor>, std::optional<bool>>;
  const auto row = [](int i) {
    return Row{torch::full({2}, i),
               {i, std::string(static_cast<std::size_t>(i), 't')},
               {{"a", {1.0F * static_cast<float>(i), 2.0F * static_cast<float>(i)}}},
               {torch::tensor(i), torch::ones({1, i + 1})},
               std::nullopt};
  };
  auto rows = std::vector<Row>{row(3), row(3)};
  std::get<1>(rows[1]).first = 4;
  const auto [tensor, pair, map, list, none] = stack(rows);
  CHECK(tensor.equal(torch::full({2, 2}, 3)));
  CHECK(pair.first.equal(torch::tensor({3, 4})));
  CHECK(pair.second == std::vector<std::string>{"ttt", "ttt"});
  CHECK(map.at("a").equal(torch::tensor({{3.0F, 6.0F}, {3.0F, 6.0F}})));
  REQUIRE(list.size() == 2);
  CHECK(list[1].sizes() == torch::IntArrayRef{2, 1, 4});
  CHECK_FALSE(none.has_value());
  struct Inner {
    torch::Tensor image;
    std::pair<torch::Tensor, torch::Tensor> boxes;
  };
  const Inner inner = stack(std::vector<Inner>{{torch::zeros({3}), {torch::tensor(1), torch::tensor(2)}},
                                               {torch::ones({3}), {torch::tensor(3), torch::tensor(4)}}});
  CHECK(inner.image.equal(torch::tensor({{0.0F, 0.0F, 0.0F}, {1.0F, 1.0F, 1.0F}})));
  CHECK(inner.boxes.second.equal(torch::tensor({2, 4})));
}

TEST_CASE("rows that differ are refused with both, and with what to do", "[data]") {
  const Stack stack;
  CHECK_THAT(refusal(stack, std::vector<torch::Tensor>{torch::ones({2}), torch::ones({2}), torch::ones({3})}),
             ContainsSubstring("row 0 of it has f32[2], row 2 has f32[3]; pad them"));
  CHECK_THAT(refusal(stack, std::vector<torch::Tensor>{torch::ones({2}), torch::ones({2}, torch::kLong)}),
             ContainsSubstring("row 1 has i64[2]"));
  CHECK_THAT(refusal(stack, std::vector<std::vector<int>>{{1, 2}, {1}}), ContainsSubstring("row 1 has i64[1]"));
  CHECK_THAT(refusal(stack, std::vector<std::vector<std::string>>{{"a"}, {}}),
             ContainsSubstring("row 0 of it has a list of 1, row 1 has one of 0"));
  CHECK_THAT(refusal(stack, std::vector<std::map<std::string, int>>{{{"a", 1}}, {{"b", 1}}}),
             ContainsSubstring("row 0 of it has the key a, row 1 has no such key"));
  CHECK_THAT(refusal(stack, std::vector<std::map<std::string, int>>{{{"a", 1}}, {{"a", 1}, {"b", 1}}}),
             ContainsSubstring("row 1 has 2 keys"));
  CHECK_THAT(refusal(stack, std::vector<std::optional<int>>{1, std::nullopt}),
             ContainsSubstring("row 0 of it has a value, row 1 has none"));
}

TEST_CASE("sequences are padded to the longest of their batch", "[data]") {
  const auto padded = Pad{.value = -1}(std::vector<torch::Tensor>{torch::tensor({1, 2, 3}), torch::tensor({4})});
  CHECK(padded.equal(torch::tensor({{1, 2, 3}, {4, -1, -1}})));
  CHECK(Pad{.multiple_of = 4}(std::vector<std::vector<int>>{{1, 2, 3}, {}})
            .equal(torch::tensor({{1, 2, 3, 0}, {0, 0, 0, 0}})));
  const auto wide = Pad{}(std::vector<torch::Tensor>{torch::ones({1, 2}), torch::ones({2, 2})});
  CHECK(wide.equal(torch::tensor({{{1.0F, 1.0F}, {0.0F, 0.0F}}, {{1.0F, 1.0F}, {1.0F, 1.0F}}})));
  // Numbers beside them are stacked: the length, where it is needed.
  const auto [tokens, lengths] = Pad{}(std::vector<std::pair<std::vector<std::int64_t>, int>>{{{7}, 1}, {{8, 9}, 2}});
  CHECK(tokens.equal(torch::tensor({{7, 0}, {8, 9}})));
  CHECK(lengths.equal(torch::tensor({1, 2})));
  CHECK_THAT(refusal(Pad{}, std::vector<torch::Tensor>{torch::ones({1, 2}), torch::ones({1, 3})}),
             ContainsSubstring("row 0 of it has f32[1, 2], row 1 has f32[1, 3]"));
  CHECK_THAT(refusal(Pad{.multiple_of = 0}, std::vector<torch::Tensor>{torch::ones({1})}),
             ContainsSubstring("expected multiple_of >= 1, found 0"));
}
