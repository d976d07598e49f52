// safetensors as a dataset: mapped, by name or as an array.
#include <torch/torch.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/safetensors.hpp>
#include <accel/dataset/tensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::open_safetensors;
using accel::dataset::Tensors;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

/// The bytes of a file with this header text in front of `data`.
std::string safetensors_with(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  return bytes + header + data;
}

}  // namespace

TEST_CASE("the tensors of a file are a dataset of maps, or of arrays to bind", "[dataset]") {
  const Folder folder;
  const auto image = torch::arange(24.F).reshape({4, 2, 3});
  const auto label = torch::arange(4);
  const auto mask = torch::tensor({true, false, true, true});
  const std::vector<accel::tensor::NamedTensor> named{{"image", image}, {"label", label}, {"mask", mask}};
  accel::tensor::safetensors::write(folder / "f", named);

  const Tensors maps{open_safetensors(folder / "f")};
  std::filesystem::remove(folder / "f");  // the map is still there
  CHECK(maps.size() == 4);
  CHECK(maps.get(2).at("image").equal(image[2]));
  CHECK(maps.get_batch({3, 1}).at("mask").equal(torch::tensor({true, false})));

  accel::tensor::safetensors::write(folder / "f", named);
  const Tensors pairs{open_safetensors(folder / "f", "label", "image")};
  const auto [labels, images] = pairs.get_batch({3, 0});
  CHECK(labels.equal(torch::tensor({3, 0})));
  CHECK(images.equal(torch::stack({image[3], image[0]})));
}

TEST_CASE("a safetensors file that is no good is a DataError, not a checkpoint's", "[dataset]") {
  const Folder folder;
  CHECK_THROWS_MATCHES(open_safetensors(folder / "none"), DataError,
                       MessageMatches(ContainsSubstring("none: cannot open it: No such file")));
  accel::tensor::safetensors::write(
      folder / "f", std::vector<accel::tensor::NamedTensor>{{"x", torch::zeros({3})}, {"y", torch::zeros({4})}});
  CHECK_THROWS_MATCHES(open_safetensors(folder / "f", "x", "z"), DataError,
                       MessageMatches(ContainsSubstring("tensor \"z\": expected among 2 tensors, not found")));
  CHECK_THROWS_MATCHES(Tensors{open_safetensors(folder / "f")}, InvalidArgument,
                       MessageMatches(ContainsSubstring("f32[3] and f32[4]")));
  put(folder / "f", safetensors_with("{\"b\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[0,2]}}", "\1\2"));
  CHECK_THROWS_MATCHES(open_safetensors(folder / "f"), DataError, MessageMatches(ContainsSubstring("found 2")));
}

TEST_CASE("a tensor that does not lie at a multiple of its size is copied to one", "[dataset]") {
  const Folder folder;
  put(folder / "f", safetensors_with("{\"x\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}   ",
                                     std::string("\0\0\0\0\0\0\xF8\x3F", 8)));
  const auto x = open_safetensors(folder / "f").at("x");
  CHECK(reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 8 == 0);
  CHECK(x.item<double>() == 1.5);
}

TEST_CASE("a safetensors file that is cut short is refused, a damaged one refused or read", "[dataset]") {
  const Folder folder;
  const auto whole = safetensors_with(
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
      "\"b\":{\"dtype\":\"I16\",\"shape\":[2],\"data_offsets\":[16,20]}}",
      std::string(20, '\1'));
  const auto read = [&] {
    for (const auto& [name, tensor] : open_safetensors(folder / "f")) (void)tensor.sum();
  };
  CHECK(accel::testing::damage(folder / "f", whole, whole.size() - 20, 1000, read) > 800);
}
