// Tensors: rows and batches of tensors in memory.
#include <torch/torch.h>

#include <array>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/tensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using accel::InvalidArgument;
using accel::dataset::Tensors;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

struct Digits {
  torch::Tensor image, label;
};

bool same_bytes(const torch::Tensor& a, const torch::Tensor& b) {
  return accel::tensor::spec(a) == accel::tensor::spec(b) &&
         (a.numel() == 0 || a.contiguous().view({-1}).view(at::kByte).equal(b.contiguous().view({-1}).view(at::kByte)));
}

}  // namespace

TEST_CASE("rows and batches of tensors look as the whole does", "[dataset]") {
  const auto data = torch::arange(12.F).reshape({4, 3});
  const auto target = torch::arange(4);
  const Tensors pairs{std::pair{data, target}};
  CHECK(pairs.size() == 4);
  const auto [row, label] = pairs.get(2);
  CHECK(row.equal(data[2]));
  CHECK(label.equal(target[2]));
  const auto [rows, labels] = pairs.get_batch({3, 0, 3});
  CHECK(rows.equal(torch::stack({data[3], data[0], data[3]})));
  CHECK(labels.equal(torch::tensor({3, 0, 3})));

  const Tensors structs{Digits{data, target}};
  CHECK(structs.get_batch({1}).image.equal(data.narrow(0, 1, 1)));
  const Tensors maps{std::map<std::string, torch::Tensor>{{"x", data}, {"y", target}}};
  CHECK(maps.get(1).at("y").item<std::int64_t>() == 1);
  const Tensors lists{std::vector{data, target}};
  CHECK(lists.get_batch({}).at(0).sizes() == at::IntArrayRef({0, 3}));
  const Tensors alone{data};
  CHECK(alone.get(0).equal(data[0]));
  const Tensors named{std::tuple{data, std::string("a name"), 7}};
  CHECK(std::get<1>(named.get(1)) == "a name");
}

TEST_CASE("rows are gathered alike from any dtype, layout and shape", "[dataset]") {
  const auto base = torch::arange(60).reshape({5, 4, 3});
  const std::vector<std::int64_t> rows{3, 3, 0, 2};
  const auto index = torch::tensor(rows);
  for (const auto& tensor :
       {base, base.transpose(1, 2), base.transpose(0, 1), base.slice(0, 0, 5, 2).repeat({2, 1, 1}), base.flip(0),
        base.slice(0, 0, 5).slice(2, 1, 3), base.select(2, 1), base.select(1, 0).select(1, 0), base.select(1, 0),
        torch::zeros({5, 0, 3}), torch::ones({1, 3}).expand({5, 3}),
        torch::complex(base.to(at::kFloat), -base.to(at::kFloat)).conj(), torch::arange(5.F).to_sparse()}) {
    const Tensors dataset{tensor};
    CHECK(dataset.get_batch(rows).to_dense().resolve_conj().equal(
        tensor.index_select(0, index).to_dense().resolve_conj()));
    CHECK(dataset.get(2).to_dense().resolve_conj().equal(tensor.select(0, 2).to_dense().resolve_conj()));
  }
  for (const auto dtype : {at::kBool, at::kByte, at::kShort, at::kHalf, at::kBFloat16, at::kDouble, at::kUInt16,
                           at::kUInt32, at::kUInt64, at::kFloat8_e4m3fn}) {
    const auto tensor = (base % 2).to(dtype);
    CHECK(same_bytes(Tensors{tensor}.get_batch({4, 1}), torch::stack({(base % 2)[4], (base % 2)[1]}).to(dtype)));
  }
}

TEST_CASE("a row changed in place leaves the dataset as it is, and a gradient finds its way", "[dataset]") {
  const auto data = torch::ones({3, 2}, torch::requires_grad());
  const Tensors learnt{data};
  (learnt.get(0).sum() + learnt.get_batch({0, 2}).sum()).backward();
  CHECK(data.grad().equal(torch::tensor({{2.F, 2.F}, {0.F, 0.F}, {1.F, 1.F}})));
  const Tensors plain{torch::zeros({3, 2})};
  plain.get(1).fill_(5);
  plain.get_batch({1, 2}).fill_(5);
  CHECK(plain.tensors().sum().item<float>() == 0);
}

TEST_CASE("tensors that are no rows, or not as many, are refused with their shapes", "[dataset]") {
  CHECK_THROWS_MATCHES((Tensors{std::pair{torch::zeros({3, 2}), torch::zeros({4}).to(torch::kLong)}}), InvalidArgument,
                       MessageMatches(ContainsSubstring("f32[3, 2] and i64[4]")));
  CHECK_THROWS_MATCHES((Tensors{torch::tensor(1)}), InvalidArgument,
                       MessageMatches(ContainsSubstring("expected rows along dimension 0, found i64[]")));
  CHECK_THROWS_MATCHES((Tensors{torch::Tensor()}), InvalidArgument, MessageMatches(ContainsSubstring("found none")));
  const Tensors three{torch::zeros({3})};
  CHECK_THROWS_MATCHES(three.get(3), InvalidArgument,
                       MessageMatches(ContainsSubstring("row: expected 0 to 2 (3 rows), found 3")));
  CHECK_THROWS_AS(three.get_batch({0, -1}), InvalidArgument);
  CHECK_THROWS_AS(three.get(~std::size_t{0}), InvalidArgument);
  CHECK(Tensors{torch::zeros({0, 2})}.size() == 0);
}
