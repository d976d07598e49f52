#include <sstream>

#include <ATen/ops/empty.h>
#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::tensor::Spec;
using accel::tensor::spec;

TEST_CASE("a tensor's spec prints dtype and shape", "[tensor]") {
  CHECK(spec(at::empty({8, 3})) == "f32[8, 3]");
  CHECK(spec(at::empty({})) == "f32[]");
  CHECK(spec(at::empty({0, 2}, c10::ScalarType::BFloat16)) == "bf16[0, 2]");
  CHECK(spec(at::Tensor()) == "undefined");
}

TEST_CASE("a spec value prints its device too", "[tensor]") {
  std::ostringstream out;
  out << Spec::of(at::empty({8, 128}));
  CHECK(out.str() == "f32[8, 128]@cpu");
  out.str("");
  out << Spec{.dtype = c10::ScalarType::Half, .shape = {2}, .device = c10::Device("cuda:1")};
  CHECK(out.str() == "f16[2]@cuda:1");
}

TEST_CASE("specs are equal if dtype, shape and device are", "[tensor]") {
  const auto tensor = at::empty({2, 3});
  CHECK(Spec::of(tensor) == Spec::of(at::empty({2, 3})));
  CHECK_FALSE(Spec::of(tensor) == Spec::of(at::empty({3, 2})));
  CHECK_FALSE(Spec::of(tensor) == Spec::of(at::empty({2, 3}, c10::ScalarType::Double)));
  CHECK_FALSE(Spec::of(tensor) == Spec::of(at::empty({2, 3}, at::TensorOptions().device(c10::DeviceType::Meta))));
  CHECK_THROWS_AS(Spec::of(at::Tensor()), accel::InvalidArgument);
}

TEST_CASE("dtypes have short names, rare ones LibTorch's", "[tensor]") {
  using accel::tensor::dtype_name;
  using enum c10::ScalarType;
  CHECK(dtype_name(Long) == "i64");
  CHECK(dtype_name(Byte) == "u8");
  CHECK(dtype_name(Bool) == "bool");
  CHECK(dtype_name(ComplexDouble) == "c128");
  CHECK(dtype_name(QInt8) == "QInt8");
}

TEST_CASE("a layout says how elements lie in memory where that is not usual", "[tensor]") {
  using accel::tensor::layout;
  const at::Tensor rows = at::empty({2, 3});
  CHECK(layout(rows) == "f32[2, 3]");
  CHECK(layout(rows.t()) == "f32[3, 2] with strides [1, 3]");
  CHECK(layout(rows.narrow(0, 0, 1).expand({4, 3})) == "f32[4, 3] with strides [0, 1]");
  CHECK(layout(at::empty({})) == "f32[]");
  CHECK(layout(rows.zero_().to_sparse()) == "f32[2, 3] of layout Sparse");
}
