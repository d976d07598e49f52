#include "support/folder.hpp"

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <sys/resource.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <accel/core/error.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

namespace {

namespace fs = std::filesystem;
namespace safetensors = accel::tensor::safetensors;
using accel::tensor::spec;
using accel::testing::Folder;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Named = std::vector<accel::tensor::NamedTensor>;

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// The bytes of a file with this header text in front of `data_size` zeros.
std::string file_with(std::string_view header, std::size_t data_size = 0) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  return bytes.append(header).append(data_size, '\0');
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  if (spec(a) != spec(b)) return false;
  const auto x = a.contiguous();
  const auto y = b.contiguous();
  return std::string_view(static_cast<const char*>(x.const_data_ptr()), x.nbytes()) ==
         std::string_view(static_cast<const char*>(y.const_data_ptr()), y.nbytes());
}

/// What tests/parity/recorded/record_safetensors.py saved.
Named recorded_tensors() {
  using enum c10::ScalarType;
  Named tensors;
  const std::map<std::string, c10::ScalarType> converted{{"bool", Bool},
                                                         {"uint8", Byte},
                                                         {"int8", Char},
                                                         {"int16", Short},
                                                         {"uint16", UInt16},
                                                         {"float16", Half},
                                                         {"bfloat16", BFloat16},
                                                         {"int32", Int},
                                                         {"uint32", UInt32},
                                                         {"float32", Float},
                                                         {"complex64", ComplexFloat},
                                                         {"float64", Double},
                                                         {"int64", Long},
                                                         {"uint64", UInt64},
                                                         {"float8_e4m3fn", Float8_e4m3fn},
                                                         {"float8_e5m2", Float8_e5m2}};
  for (const auto& [name, dtype] : converted) tensors.push_back({name, at::arange(6).to(dtype).reshape({2, 3})});
  const std::map<std::string, c10::ScalarType> viewed{{"float8_e8m0fnu", Float8_e8m0fnu},
                                                      {"float8_e4m3fnuz", Float8_e4m3fnuz},
                                                      {"float8_e5m2fnuz", Float8_e5m2fnuz},
                                                      {"float4_e2m1fn_x2", Float4_e2m1fn_x2}};
  for (const auto& [name, dtype] : viewed) tensors.push_back({name, at::arange(6, Byte).view(dtype).reshape({2, 3})});
  tensors.push_back({"scalar", at::scalar_tensor(1.5)});
  tensors.push_back({"empty", at::zeros({0, 3})});
  tensors.push_back({"quote\" tab\t bell\a \u00e9 \u6f22", at::arange(3).to(Float)});
  return tensors;
}

const fs::path recorded = ACCEL_TEST_DIR "/parity/recorded/python.safetensors";

}  // namespace

TEST_CASE("what is written is read back, every dtype, bit for bit", "[tensor]") {
  const Folder folder;
  const auto path = folder / "all.safetensors";
  const auto tensors = recorded_tensors();
  safetensors::write(path, tensors, {{"b", "2"}, {"a", "1"}});
  const safetensors::File file(path);
  CHECK(file.names().size() == tensors.size());
  CHECK(file.metadata() == std::map<std::string, std::string>{{"a", "1"}, {"b", "2"}});
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    REQUIRE(file.contains(name));
    CHECK(file.spec(name) == accel::tensor::Spec::of(tensor));
    CHECK(same(file.read(name), tensor));
  }
}

TEST_CASE("a file equals Python's for the same tensors, byte for byte", "[tensor][parity]") {
  const Folder folder;
  const auto path = folder / "ours.safetensors";
  safetensors::write(path, recorded_tensors(), {{"format", "pt"}});
  CHECK(bytes_of(path) == bytes_of(recorded));
}

TEST_CASE("a file of Python's is read", "[tensor][parity]") {
  const safetensors::File file(recorded);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  for (const auto& [name, tensor] : recorded_tensors()) CHECK(same(file.read(name), tensor));
}

TEST_CASE("no tensors make a file of an empty header", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "none", {});
  CHECK(bytes_of(folder / "none") == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  CHECK(safetensors::File(folder / "none").names().empty());
}

TEST_CASE("transposed, sliced, conjugated and grad-requiring tensors are written as they read", "[tensor]") {
  const Folder folder;
  const auto base = at::arange(12).to(c10::ScalarType::Float).reshape({3, 4});
  const auto conjugated = at::complex(base, base).conj();
  const auto leaf = at::ones({2, 2}).set_requires_grad(true);
  safetensors::write(folder / "f", Named{{"t", base.t()},
                                         {"s", base.slice(1, 1, 3)},
                                         {"c", conjugated},
                                         {"g", leaf},
                                         {"e", base.slice(0, 0, 1).expand({5, 4})}});
  const safetensors::File file(folder / "f");
  CHECK(same(file.read("t"), base.t()));
  CHECK(same(file.read("s"), base.slice(1, 1, 3)));
  CHECK(same(file.read("c"), conjugated.resolve_conj()));
  CHECK(same(file.read("g"), at::ones({2, 2})));
  CHECK(same(file.read("e"), base.slice(0, 0, 1).expand({5, 4})));
  CHECK_FALSE(file.read("g").requires_grad());
}

TEST_CASE("a tensor read belongs to its reader", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "f", Named{{"x", at::zeros({2})}});
  at::Tensor first;
  {
    const safetensors::File file(folder / "f");
    first = file.read("x");
    first.fill_(7);
    CHECK(same(file.read("x"), at::zeros({2})));
  }
  CHECK(first.sum().item<float>() == 14.0F);
}

TEST_CASE("an open file can be moved", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "f", Named{{"x", at::ones({2})}});
  safetensors::File file(folder / "f");
  const safetensors::File moved = std::move(file);
  CHECK(same(moved.read("x"), at::ones({2})));
}

TEST_CASE("tensors and names that the format cannot hold are refused before anything is written", "[tensor]") {
  const Folder folder;
  const auto x = at::zeros({2});
  const auto refused = [&](const Named& tensors, const std::string& text,
                           const std::map<std::string, std::string>& metadata = {}) {
    CHECK_THROWS_MATCHES(safetensors::write(folder / "f", tensors, metadata), accel::InvalidArgument,
                         MessageMatches(ContainsSubstring(text)));
    CHECK(folder.count() == 0);
  };
  refused({{"x", x}, {"y", x}, {"x", x}}, "f: expected each name once, found \"x\" twice");
  refused({{"x", at::Tensor()}}, "tensor \"x\" is undefined");
  refused({{"x", at::zeros({2}, c10::ScalarType::ComplexDouble)}}, "found c128[2]; convert");
  refused({{"x", at::empty({2}, at::TensorOptions().device(c10::DeviceType::Meta))}}, "found f32[2] on meta");
  refused({{"x", at::zeros({2, 2}).to_sparse()}}, "expected a dense tensor");
  refused({{"__metadata__", x}}, "\"__metadata__\" is the format's own");
  refused({{"\xFF\xFE", x}}, "expected names and metadata in UTF-8");
  refused({{"x", x}}, "expected names and metadata in UTF-8", {{"key", "\xC3"}});
}

TEST_CASE("a failed write leaves the old file and no temporary", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "f", Named{{"x", at::ones({2})}});
  const auto before = bytes_of(folder / "f");

  // A file-size limit is a full disk that a test can have.
  struct rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = limit;
  small.rlim_cur = 1 << 16;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string found = "(written)";
  try {
    safetensors::write(folder / "f", Named{{"x", at::ones({1 << 16})}});
  } catch (const accel::CheckpointError& error) {
    found = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);

  CHECK_THAT(found, ContainsSubstring("f: cannot write") && ContainsSubstring("File too large"));
  CHECK(bytes_of(folder / "f") == before);
  CHECK(folder.count() == 1);
}

TEST_CASE("what the system says stands in the error, with the path", "[tensor]") {
  const Folder folder;
  const Named one{{"x", at::ones({2})}};
  const auto refused = [](const auto& call, const std::string& text) {
    CHECK_THROWS_MATCHES(call(), accel::CheckpointError, MessageMatches(ContainsSubstring(text)));
  };
  refused([&] { safetensors::write(folder / "no" / "f", one); }, "No such file or directory");
  refused([&] { safetensors::File(folder / "f"); }, "f: cannot open it: No such file or directory");
  fs::create_directory(folder / "d");
  refused([&] { safetensors::write(folder / "d", one); }, "Is a directory");
  refused([&] { safetensors::File(folder / "d"); }, "expected a file");
  CHECK(folder.count() == 1);
}

TEST_CASE("a second write replaces the first", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "f", Named{{"x", at::ones({200})}});
  safetensors::write(folder / "f", Named{{"y", at::ones({2})}});
  CHECK(safetensors::File(folder / "f").names() == std::vector<std::string>{"y"});
  CHECK(folder.count() == 1);
}

TEST_CASE("a name that is not there is named with the path", "[tensor]") {
  const Folder folder;
  safetensors::write(folder / "f", Named{{"x", at::ones({2})}});
  CHECK_THROWS_MATCHES(safetensors::File(folder / "f").read("w"), accel::CheckpointError,
                       MessageMatches(ContainsSubstring("f: tensor \"w\": expected among 1 tensors, not found")));
}

TEST_CASE("a header that does not describe its file is refused", "[tensor]") {
  struct Case {
    std::string header;
    std::size_t data_size;
    std::string message;
  };
  const auto f32 = [](std::string_view name, std::string_view shape, std::string_view offsets) {
    return accel::message('"', name, "\":{\"dtype\":\"F32\",\"shape\":[", shape, "],\"data_offsets\":[", offsets, "]}");
  };
  const std::string huge = std::to_string(std::numeric_limits<std::uint64_t>::max());
  const std::vector<Case> cases{
      // the JSON itself
      {"", 0, "not JSON at byte"},
      {"nonsense", 0, "not JSON at byte"},
      {"{\"a\":", 0, "not JSON at byte"},
      {"{} {}", 0, "not JSON at byte"},
      {"\xEF\xBB\xBF{}", 0, "byte-order mark"},
      {std::string("{}\0 anything", 12), 0, "header: expected JSON, found a zero byte at offset 10"},
      {"{\"a\xFF\":{}}", 0, "not JSON at byte"},
      {"{\"\\ud800\":{}}", 0, "not JSON at byte"},
      {"{/**/}", 0, "not JSON at byte"},
      {"[]", 0, "header: expected an object, found an array"},
      {"3", 0, "header: expected an object, found a number"},
      {"{\"a\":[]}", 0, "tensor \"a\": expected an object, found an array"},
      {"{\"a\":null}", 0, "tensor \"a\": expected an object, found null"},
      {"{\"a\":{\"dtype\":{}}}", 0, "tensor \"a\", \"dtype\": expected"},
      {"{\"a\":{\"dtype\":1}}", 0, "found a number"},
      {"{\"a\":{\"shape\":\"F32\"}}", 0, "found a string"},
      {"{\"a\":{\"other\":true}}", 0, "found a boolean"},
      {"{\"a\":{\"other\":\"text\"}}", 0, "found a string"},
      {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__, \"k\": expected a string, found a number"},
      {"{\"__metadata__\":{\"k\":{}}}", 0, "expected a string, found an object"},
      {"{\"__metadata__\":\"k\"}", 0, "found a string"},
      // missing, doubled and unknown
      {"{\"a\":{}}", 0, "tensor \"a\": expected dtype, shape and two data_offsets, found no dtype"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "0 data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "1 data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "3 data_offsets"},
      {"{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype \"F99\" is not one of"},
      {"{" + f32("a", "1", "0,4") + "," + f32("a", "1", "0,4") + "}", 4, "\"a\" appears twice"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0, "\"dtype\" appears twice"},
      {"{\"a\":{\"shape\":[],\"shape\":[]}}", 0, "\"shape\" appears twice"},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "\"__metadata__\" appears twice"},
      {"{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0, "\"k\" appears twice"},
      // numbers
      {"{" + f32("a", "-1", "0,4") + "}", 4, "\"shape\": expected a whole number of 0 or more, found -1"},
      {"{" + f32("a", "1.0", "0,4") + "}", 4, "found 1.0"},
      {"{" + f32("a", "1e0", "0,4") + "}", 4, "found 1e0"},
      {"{" + f32("a", "\"1\"", "0,4") + "}", 4, "expected a whole number of 0 or more, found a string"},
      {"{" + f32("a", "[1]", "0,4") + "}", 4, "found an array"},
      {"{" + f32("a", "99999999999999999999", "0,4") + "}", 4, "found 99999999999999999999"},
      {"{" + f32("a", huge, "0,4") + "}", 4, "expected extents below 2^63"},
      {"{" + f32("a", "4611686018427387904,4", "0,0") + "}", 0, "does not make a whole number of bytes"},
      {"{" + f32("a", "0,4611686018427387904,4", "0,0") + "}", 0, "does not make a whole number of bytes"},
      {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, "whole number of bytes"},
      // offsets
      {"{" + f32("a", "1", "0,8") + "}", 8, "expected 4 bytes for its dtype and shape, found data_offsets [0, 8)"},
      {"{" + f32("a", "1", "4,0") + "}", 4, "found data_offsets [4, 0)"},
      {"{" + f32("a", "1", "4,8") + "}", 8, "expected to begin at byte 0 of the data"},
      {"{" + f32("a", "1", "0,4") + "," + f32("b", "1", "8,12") + "}", 12, "tensor \"b\": expected to begin at byte 4"},
      {"{" + f32("a", "2", "0,8") + "," + f32("b", "1", "4,8") + "}", 8, "tensor \"b\": expected to begin at byte 8"},
      {"{" + f32("a", "1", "0,4") + "," + f32("b", "1", "0,4") + "}", 4, "expected to begin at byte 4"},
      {"{" + f32("a", "2", "0,8") + "}", 4,
       "expected 8 bytes of data from the header's offsets, found 4; the file is cut"},
      {"{" + f32("a", "1", "0,4") + "}", 5,
       "expected 4 bytes of data from the header's offsets, found 5; something follows"},
      {"{}", 1, "found 1; something follows"},
  };
  const Folder folder;
  for (const auto& [header, data_size, text] : cases) {
    INFO(header);
    put(folder / "f", file_with(header, data_size));
    CHECK_THROWS_MATCHES(safetensors::File(folder / "f"), accel::CheckpointError,
                         MessageMatches(ContainsSubstring("f: ") && ContainsSubstring(text)));
  }
}

TEST_CASE("header lengths that cannot be are refused", "[tensor]") {
  const Folder folder;
  const auto refused = [&](std::string_view bytes, const std::string& text) {
    put(folder / "f", bytes);
    CHECK_THROWS_MATCHES(safetensors::File(folder / "f"), accel::CheckpointError,
                         MessageMatches(ContainsSubstring(text)));
  };
  refused("", "expected the 8 bytes of the header's length, found 0");
  refused("1234567", "found 7 bytes in all");
  refused(std::string_view("\x03\0\0\0\0\0\0\0{}", 10), "expected 3 bytes of header at offset 8, found 2");
  refused("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", "expected a header of at most 100000000 bytes");
  refused(std::string_view("\x01\xE1\xF5\x05\0\0\0\0", 8), "found the length 100000001");
}

TEST_CASE("deep nesting and absurd shapes are refused at once", "[tensor]") {
  const Folder folder;
  put(folder / "f", file_with(std::string(5'000'000, '[')));
  CHECK_THROWS_AS(safetensors::File(folder / "f"), accel::CheckpointError);
  std::string objects;
  for (int i = 0; i < 500'000; ++i) objects += "{\"a\":";
  put(folder / "f", file_with(objects));
  CHECK_THROWS_AS(safetensors::File(folder / "f"), accel::CheckpointError);
  std::string shape = "1";
  for (int i = 0; i < 1'000'000; ++i) shape += ",1";
  put(folder / "f", file_with("{\"a\":{\"dtype\":\"U8\",\"shape\":[" + shape + "],\"data_offsets\":[0,1]}}", 1));
  CHECK_THROWS_MATCHES(safetensors::File(folder / "f"), accel::CheckpointError,
                       MessageMatches(ContainsSubstring("expected at most 64 numbers")));
}

TEST_CASE("a hostile name does not reach the terminal as it is, nor at its length", "[tensor]") {
  const Folder folder;
  const std::string name = "\\u001b[31m\u00e9" + std::string(100'000, 'x');
  for (const std::string& header : {"{\"" + name + "\":3}", "{\"" + name + "\xFF\":3}", "{\"" + name}) {
    put(folder / "f", file_with(header));
    std::string text = "(accepted)";
    try {
      const safetensors::File file(folder / "f");
    } catch (const accel::CheckpointError& error) {
      text = error.what();
    }
    CHECK_THAT(text, ContainsSubstring("f: "));
    CHECK(text.size() < 500);
    CHECK(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }));
  }
}

TEST_CASE("white space around the header and zero-sized tensors anywhere are fine", "[tensor]") {
  const Folder folder;
  const std::string header =
      " {\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\n"
      "  \"e\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[4,4]},\n"
      "  \"a\":{\"data_offsets\":[4,8],\"shape\":[],\"dtype\":\"F32\"}} ";
  put(folder / "f", file_with(header, 8));
  const safetensors::File file(folder / "f");
  CHECK(file.names() == std::vector<std::string>{"a", "b", "e"});
  CHECK(spec(file.read("e")) == "i64[0, 7]");
  CHECK(spec(file.read("a")) == "f32[]");
}

TEST_CASE("dtypes that LibTorch lacks may stand in a file, but cannot be read", "[tensor]") {
  const Folder folder;
  put(folder / "f", file_with("{\"six\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]},"
                              "\"odd\":{\"dtype\":\"F4\",\"shape\":[2,1],\"data_offsets\":[3,4]}}",
                              4));
  const safetensors::File file(folder / "f");
  CHECK_THROWS_MATCHES(file.read("six"), accel::CheckpointError,
                       MessageMatches(ContainsSubstring("LibTorch has no dtype F6_E2M3")));
  CHECK_THROWS_MATCHES(file.read("odd"), accel::CheckpointError,
                       MessageMatches(ContainsSubstring("expected an even last dimension")));
}

TEST_CASE("a bool that is neither 0 nor 1 is refused with its offset", "[tensor]") {
  const Folder folder;
  auto bytes = file_with("{\"b\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
  bytes.back() = 2;
  put(folder / "f", bytes);
  const auto text = accel::message("expected 0 or 1 at offset ", bytes.size() - 1, ", found 2");
  CHECK_THROWS_MATCHES(safetensors::File(folder / "f").read("b"), accel::CheckpointError,
                       MessageMatches(ContainsSubstring(text)));
}

TEST_CASE("a damaged file is refused or read, never worse", "[tensor]") {
  const Folder folder;
  const auto whole = bytes_of(recorded);
  std::mt19937 random(1);  // NOLINT: the same damage every time
  int refused = 0;
  constexpr int files = 3000;
  for (int i = 0; i < files; ++i) {
    auto bytes = whole;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      bytes[random() % 1600] = static_cast<char>(random() % 256);
    }
    if (i % 10 == 0) bytes.resize(random() % bytes.size());
    put(folder / "f", bytes);
    try {
      const safetensors::File file(folder / "f");
      for (const auto& name : file.names()) (void)file.read(name);
    } catch (const accel::CheckpointError&) {
      ++refused;
    }
  }
  CHECK(refused > files / 2);
}
