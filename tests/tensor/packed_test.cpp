// Packed: any tree as bytes, and back; and bytes that are none.
#include <torch/torch.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/tensor/packed.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using accel::InvalidArgument;
using accel::tensor::pack;
using accel::tensor::packed_size;
using accel::tensor::unpack;
using Catch::Matchers::ContainsSubstring;

namespace {

enum class Color : std::uint8_t { red, green = 200 };

struct Parcel {
  at::Tensor image;
  std::string name;
  std::int64_t number = 0;
  std::optional<double> weight;
  std::vector<std::int32_t> tokens;
  std::map<std::string, std::vector<at::Tensor>> named;
  std::tuple<bool, Color, float> flags;
};

struct Node {
  int number = 0;
  std::vector<Node> children;
};

bool same_tensor(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.equal(b);
}

void check_same(const Parcel& a, const Parcel& b) {
  CHECK(same_tensor(a.image, b.image));
  CHECK(a.name == b.name);
  CHECK(a.number == b.number);
  CHECK(a.weight == b.weight);
  CHECK(a.tokens == b.tokens);
  CHECK(a.flags == b.flags);
  REQUIRE(a.named.size() == b.named.size());
  for (const auto& [key, list] : a.named) {
    REQUIRE(b.named.contains(key));
    REQUIRE(b.named.at(key).size() == list.size());
    for (std::size_t i = 0; i < list.size(); ++i) CHECK(same_tensor(list[i], b.named.at(key)[i]));
  }
}

Parcel some_parcel(std::mt19937& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const auto tensor = [&] {
    const std::array dtypes = {at::kFloat, at::kLong, at::kBool, at::kHalf, at::kBFloat16, at::kByte, at::kShort};
    std::vector<std::int64_t> sizes;
    for (int dims = below(4); dims > 0; --dims) sizes.push_back(below(5));
    if (below(10) == 0) return at::Tensor();
    return at::randint(0, 50, sizes).to(dtypes[static_cast<std::size_t>(below(7))]);
  };
  Parcel parcel;
  parcel.image = tensor();
  parcel.name = std::string(static_cast<std::size_t>(below(40)), 'x');
  parcel.number = below(1000);
  if (below(2) == 0) parcel.weight = below(100) / 8.0;
  for (int i = below(6); i > 0; --i) parcel.tokens.push_back(below(1000));
  for (int i = below(4); i > 0; --i) {
    auto& list = parcel.named["key " + std::to_string(below(100))];
    for (int k = below(3); k > 0; --k) list.push_back(tensor());
  }
  parcel.flags = {below(2) == 0, Color::green, 0.5F};
  return parcel;
}

}  // namespace

TEST_CASE("trees of any kind come back as they were packed", "[tensor]") {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    std::vector<Parcel> parcels;
    for (int k = i % 4; k > 0; --k) parcels.push_back(some_parcel(random));
    const at::Tensor bytes = pack(parcels);
    REQUIRE(bytes.numel() == packed_size(parcels));
    const auto back = unpack<std::vector<Parcel>>(bytes);
    REQUIRE(back.size() == parcels.size());
    for (std::size_t k = 0; k < back.size(); ++k) check_same(parcels[k], back[k]);
    CHECK(pack(back).equal(bytes));  // equal trees, equal bytes
  }
}

TEST_CASE("tensors of every dtype, shape and strides are packed as what they show", "[tensor]") {
  using enum c10::ScalarType;
  for (const auto dtype : {Byte, Char, Short, Int, Long, Half, Float, Double, Bool, BFloat16, ComplexFloat,
                           ComplexDouble, UInt16, UInt32, UInt64, Float8_e4m3fn, Float8_e5m2}) {
    INFO(accel::tensor::dtype_name(dtype));
    const at::Tensor values = at::arange(7).remainder(2).to(dtype);
    const auto [a, b] = unpack<std::pair<at::Tensor, at::Tensor>>(pack(std::pair(values, values)));
    CHECK(a.scalar_type() == dtype);
    CHECK(a.view(Byte).equal(values.view(Byte)));
    CHECK(b.view(Byte).equal(values.view(Byte)));
  }
  const at::Tensor matrix = at::arange(12.0).view({3, 4});
  const auto comes_back = [](const at::Tensor& tensor) {
    return same_tensor(unpack<at::Tensor>(pack(tensor)), tensor);
  };
  CHECK(comes_back(matrix.t()));
  CHECK(comes_back(matrix.slice(1, 0, 4, 2)));
  CHECK(comes_back(at::full({1, 3}, 2.0).expand({5, 3})));
  CHECK(comes_back(at::full({}, 7)));
  CHECK(comes_back(at::zeros({0, 3})));
  CHECK(comes_back(at::zeros({2, 0, 3}, at::kLong)));
  CHECK(comes_back(at::Tensor()));
  const at::Tensor imaginary = at::complex(at::ones({2}), at::ones({2}));
  REQUIRE(imaginary.conj().is_conj());  // only marked as what it is
  CHECK(at::view_as_real(unpack<at::Tensor>(pack(imaginary.conj())))
            .equal(at::view_as_real(imaginary.conj().resolve_conj())));
}

TEST_CASE("numbers, texts and maps keep every bit", "[tensor]") {
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  const std::string text("\0 and \xff, and \xc3\xa4", 14);
  const std::tuple tree(std::vector{0.1, -0.0, 1e308}, std::vector<bool>{true, false}, std::array{1L, -1L}, text,
                        std::unordered_map<int, std::string>{{3, "c"}, {1, "a"}},
                        std::map<std::pair<int, std::string>, char>{{{1, "x"}, 'c'}},
                        std::numeric_limits<std::uint64_t>::max(), Color::green);
  const auto back = unpack<std::remove_const_t<decltype(tree)>>(pack(tree));
  CHECK(back == tree);
  CHECK(std::signbit(std::get<0>(back)[1]));
  CHECK(std::isnan(unpack<double>(pack(nan))));
  CHECK(unpack<std::vector<std::vector<int>>>(pack(std::vector<std::vector<int>>{{}, {1, 2}, {}})) ==
        std::vector<std::vector<int>>{{}, {1, 2}, {}});
}

TEST_CASE("what is unpacked lies in the bytes, aligned, without history", "[tensor]") {
  const at::Tensor odd = at::arange(3, at::kByte);
  const at::Tensor wide = at::ones({2}, at::kComplexDouble);
  const at::Tensor leaf = at::ones({2}).requires_grad_(true);
  at::Tensor bytes = pack(std::tuple(odd, wide, leaf * 2));
  const auto [a, b, c] = unpack<std::tuple<at::Tensor, at::Tensor, at::Tensor>>(bytes);
  for (const auto& tensor : {a, b, c}) {
    CHECK(tensor.storage().data_ptr().get() == bytes.storage().data_ptr().get());
    CHECK(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0);
    CHECK_FALSE(tensor.requires_grad());
  }
  // Bytes that do not begin where numbers of 16 bytes could are copied.
  const at::Tensor shifted = at::zeros({bytes.numel() + 3}, at::kByte);
  shifted.narrow(0, 3, bytes.numel()).copy_(bytes);
  CHECK(std::get<1>(unpack<std::tuple<at::Tensor, at::Tensor, at::Tensor>>(shifted.narrow(0, 3, bytes.numel())))
            .equal(wide));
}

TEST_CASE("what cannot be packed is named with its place", "[tensor]") {
  const std::map<std::string, std::vector<at::Tensor>> tree = {{"mask", {at::ones({2}), at::ones({2, 2}).to_sparse()}}};
  CHECK_THROWS_WITH(pack(tree), ContainsSubstring(R"(at ["mask"][1])") && ContainsSubstring("Sparse"));
  CHECK_THROWS_AS(pack(at::empty({2}, at::TensorOptions().device(at::kMeta))), InvalidArgument);
  CHECK_THROWS_AS(pack(at::quantize_per_tensor(at::ones({2}), 0.1, 0, at::kQInt8)), InvalidArgument);
}

TEST_CASE("bytes of another type, or that are cut off, are refused", "[tensor]") {
  const std::vector tree{std::pair(at::ones({3}), std::string("a"))};
  const at::Tensor bytes = pack(tree);
  using Tree = std::vector<std::pair<at::Tensor, std::string>>;
  CHECK(unpack<Tree>(bytes).size() == 1);
  CHECK_THROWS_WITH((unpack<std::vector<std::pair<at::Tensor, int>>>(bytes)),
                    ContainsSubstring("expected a number") && ContainsSubstring("[0].second"));
  CHECK_THROWS_WITH((unpack<std::vector<std::tuple<at::Tensor, std::string, int>>>(bytes)),
                    ContainsSubstring("number of fields at [0]"));
  CHECK_THROWS_AS(unpack<at::Tensor>(bytes), InvalidArgument);
  CHECK_THROWS_AS(unpack<int>(pack(1L)), InvalidArgument);
  CHECK_THROWS_AS(unpack<std::uint32_t>(pack(1)), InvalidArgument);
  CHECK_THROWS_AS(unpack<float>(pack(1)), InvalidArgument);
  CHECK_THROWS_AS(unpack<std::vector<float>>(pack(std::vector{1, 2})), InvalidArgument);
  for (std::int64_t size = 0; size < bytes.numel(); ++size)
    CHECK_THROWS_AS(unpack<Tree>(bytes.narrow(0, 0, size)), InvalidArgument);
  CHECK_THROWS_AS(unpack<Tree>(at::cat({bytes, at::zeros({16}, at::kByte)})), InvalidArgument);
  CHECK_THROWS_AS(unpack<Tree>(at::Tensor()), InvalidArgument);
  CHECK_THROWS_AS(unpack<Tree>(at::ones({64})), InvalidArgument);
  CHECK_THROWS_AS(unpack<Tree>(at::zeros({64}, at::kByte)), InvalidArgument);
}

TEST_CASE("bytes with any errors in them never do more than throw", "[tensor]") {
  std::mt19937 random(2);
  const auto position = [&](std::int64_t size) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(size));
  };
  const auto make_valid = [](const at::Tensor& bytes) {  // the hash fits: only what it says is wrong
    auto* const raw = bytes.mutable_data_ptr<std::uint8_t>();
    std::uint64_t size = 0;
    std::memcpy(&size, raw + 16, 8);
    if (size > static_cast<std::uint64_t>(bytes.numel()) - 32) return;
    const std::uint64_t hash = accel::fnv1a({reinterpret_cast<const char*>(raw) + 32, size});
    std::memcpy(raw + 24, &hash, 8);
  };
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<Parcel> parcels;
    for (int k = i % 3; k >= 0; --k) parcels.push_back(some_parcel(random));
    const at::Tensor bytes = pack(parcels);
    const bool everywhere = i % 2 == 0;
    for (int flips = 1 + i % 5; flips > 0; --flips) {
      const auto at = everywhere ? position(bytes.numel()) : 32 + position(bytes.numel() - 32);
      bytes.mutable_data_ptr<std::uint8_t>()[at] ^= static_cast<std::uint8_t>(1U << (random() % 8));
    }
    if (i % 3 > 0) make_valid(bytes);
    try {
      (void)unpack<std::vector<Parcel>>(bytes);
    } catch (const InvalidArgument&) {
      ++refused;
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("a struct that holds itself is packed, and no depth that is claimed ends the program", "[tensor]") {
  const Node tree{1, {{2, {{3, {}}}}, {4, {}}}};
  const Node back = unpack<Node>(pack(tree));
  CHECK(back.children[0].children[0].number == 3);
  CHECK(back.children[1].number == 4);
  Node deep;
  for (int i = 0; i < 400; ++i) {
    Node outer{i, {}};
    outer.children.push_back(std::move(deep));
    deep = std::move(outer);
  }
  CHECK_THROWS_WITH(unpack<Node>(pack(deep)), ContainsSubstring("without an end"));
}
