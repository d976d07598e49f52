// npy: what NumPy writes, and what nobody should.
#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/npy.hpp>
#include <accel/dataset/tensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::DataError;
using accel::dataset::open_npy;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

/// A file of version 1.0 with this literal in front of `data_size` zeros.
std::string npy_with(const std::string& literal, std::size_t data_size = 0) {
  std::string bytes = "\x93NUMPY";
  bytes.append({1, 0, static_cast<char>(literal.size() & 0xFF), static_cast<char>(literal.size() >> 8)});
  return bytes.append(literal).append(data_size, '\0');
}

}  // namespace

TEST_CASE("arrays of every dtype, order and version are what NumPy wrote", "[dataset]") {
  const Folder folder;
  accel::testing::run_python(folder, R"(
import numpy as np
types = ['?', 'u1', 'i1', 'u2', 'i2', 'f2', 'u4', 'i4', 'f4', 'u8', 'i8', 'f8', 'c8', 'c16']
for t in types:
    values = (np.arange(24).reshape(2, 3, 4) * 3 + 1) % 2 if t == '?' else np.arange(24).reshape(2, 3, 4) * 3 + 1
    if t.startswith('c'): values = values + 2j
    for order in '<>':
        a = values.astype(np.dtype(t).newbyteorder(order))
        np.save(f'{np.dtype(t).name}{order}C.npy', a)
        np.save(f'{np.dtype(t).name}{order}F.npy', np.asfortranarray(a))
a = np.arange(6, dtype='f4').reshape(3, 2)
for version in [(1, 0), (2, 0), (3, 0)]:
    with open(f'version{version[0]}.npy', 'wb') as f: np.lib.format.write_array(f, a, version)
np.save('scalar.npy', np.float32(7))
np.save('one.npy', np.arange(5))
np.save('empty.npy', np.zeros((0, 3), 'i2'))
np.save('no_columns.npy', np.zeros((4, 0, 2), 'f8'))
)");
  const std::vector<std::pair<std::string, at::ScalarType>> types{{"bool", at::kBool},
                                                                  {"uint8", at::kByte},
                                                                  {"int8", at::kChar},
                                                                  {"uint16", at::kUInt16},
                                                                  {"int16", at::kShort},
                                                                  {"float16", at::kHalf},
                                                                  {"uint32", at::kUInt32},
                                                                  {"int32", at::kInt},
                                                                  {"float32", at::kFloat},
                                                                  {"uint64", at::kUInt64},
                                                                  {"int64", at::kLong},
                                                                  {"float64", at::kDouble},
                                                                  {"complex64", at::kComplexFloat},
                                                                  {"complex128", at::kComplexDouble}};
  const auto numbers = torch::arange(24).reshape({2, 3, 4}) * 3 + 1;
  for (const auto& [name, dtype] : types) {
    for (const std::string kind : {"<C", "<F", ">C", ">F"}) {
      INFO(name << kind);
      const auto array = open_npy(folder / (name + kind + ".npy"));
      const auto values = dtype == at::kBool ? numbers % 2 : numbers;
      const auto expected =
          c10::isComplexType(dtype) ? (values.to(dtype) + c10::complex<double>(0, 2)).to(dtype) : values.to(dtype);
      CHECK(array.scalar_type() == dtype);
      CHECK(array.sizes() == expected.sizes());
      CHECK(array.clone(at::MemoryFormat::Contiguous).view(at::kByte).equal(expected.view(at::kByte)));
      if (kind[1] == 'F') CHECK(array.strides() == at::IntArrayRef({1, 2, 6}));
      const accel::dataset::Tensors rows{array};
      CHECK(rows.get(1).contiguous().view(at::kByte).equal(expected[1].clone().view(at::kByte)));
    }
  }
  for (const std::string version : {"1", "2", "3"})
    CHECK(open_npy(folder / ("version" + version + ".npy")).equal(torch::arange(6.F).reshape({3, 2})));
  CHECK(open_npy(folder / "scalar.npy").equal(torch::tensor(7.F)));
  CHECK(open_npy(folder / "one.npy").equal(torch::arange(5)));
  CHECK(accel::tensor::spec(open_npy(folder / "empty.npy")) == "i16[0, 3]");
  CHECK(accel::tensor::spec(open_npy(folder / "no_columns.npy")) == "f64[4, 0, 2]");
}

TEST_CASE("a mapped array outlives what opened it, and its rows are read where they lie", "[dataset]") {
  const Folder folder;
  put(folder / "a.npy", npy_with("{'descr': '<i4', 'fortran_order': False, 'shape': (3, 2), }     \n", 0) +
                            std::string("\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0\6\0\0\0", 24));
  const accel::dataset::Tensors rows{open_npy(folder / "a.npy")};
  std::filesystem::remove(folder / "a.npy");  // the map is still there
  CHECK(rows.size() == 3);
  CHECK(rows.get_batch({2, 0}).equal(torch::tensor({{5, 6}, {1, 2}}, torch::kInt)));
}

TEST_CASE("numbers that do not lie at a multiple of their size are copied to one", "[dataset]") {
  const Folder folder;
  for (std::size_t shift = 0; shift < 8; ++shift) {
    put(folder / "a.npy",
        npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}" + std::string(shift, ' ') + "\n") +
            std::string("\0\0\0\0\0\0\xF8\x3F", 8));
    const auto array = open_npy(folder / "a.npy");
    CHECK(reinterpret_cast<std::uintptr_t>(array.const_data_ptr()) % 8 == 0);
    CHECK(array.item<double>() == 1.5);
  }
}

TEST_CASE("a header that NumPy would not write is refused with offset, expectation and what is there", "[dataset]") {
  struct Case {
    std::string literal;
    std::size_t data_size;
    std::string text;
  };
  const auto with_shape = [](const std::string& shape) {
    return "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}";
  };
  const auto with_dtype = [](const std::string& descr) {
    return "{'descr': " + descr + ", 'fortran_order': False, 'shape': (1,)}";
  };
  const std::vector<Case> cases{
      {"", 0, "expected a dictionary at offset 10, found nothing"},
      {"[]", 0, "expected a dictionary at offset 10, found \"[]\""},
      {"{}", 0, "expected the keys 'descr', 'fortran_order' and 'shape'"},
      {"{'descr': '<f4', 'shape': (1,)}", 4, "expected the keys"},
      {"{'descr': '<f4', 'descr': '<f4'}", 4, "each once"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", 4, "each once"},
      {"{descr: '<f4'}", 4, "expected a string at offset 11"},
      {"{'des\\x63r': '<f4'}", 4, "expected a string of plain characters"},
      {"{'descr' '<f4'}", 4, "expected a colon"},
      {"{'descr': '<f4' 'shape': (1,)}", 4, "expected a comma or the end of the dictionary"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", 4, "expected a comma or the end of the dictionary"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", 4, "expected True or False at offset 44, found \"0,"},
      {with_shape("(1)"), 4, "expected a comma behind a single extent"},
      {with_shape("1"), 4, "expected a tuple"},
      {with_shape("(-1,)"), 4, "expected an extent from 0 to 2^63 - 1 at offset 61, found \"-1,"},
      {with_shape("(9223372036854775808,)"), 4, "expected an extent"},
      {with_shape("(1.5,)"), 4, "expected a comma behind a single extent at offset 62, found \".5,"},
      {with_shape("(,)"), 4, "expected an extent"},
      {with_shape("(1,) x"), 4, "expected a comma or the end of the dictionary"},
      {with_shape("(1,)") + " x", 4, "expected nothing behind the dictionary"},
      {with_shape("(4611686018427387904, 4)"), 0, "expected a shape of fewer than 2^63 bytes"},
      {with_shape("(0, 4611686018427387904, 4)"), 0, "expected a shape of fewer than 2^63 bytes"},
      {with_shape("(" +
                  std::string(65 * 2, ' ')
                      .replace(0, 130,
                               [] {
                                 std::string ones;
                                 for (int i = 0; i < 65; ++i) ones += "1,";
                                 return ones;
                               }()) +
                  ")"),
       4, "expected at most 64 dimensions"},
      {with_shape("(3,)"), 8, "expected 12 bytes of data at offset"},
      {with_shape("(3,)"), 8, "found 8; the file is cut short"},
      {with_shape("(3,)"), 13, "found 13; something follows the array"},
      {with_dtype("'<U5'"), 20, "expected a dtype of bool, integers, floats or complex numbers"},
      {with_dtype("'|O'"), 8, "expected a dtype"},
      {with_dtype("'f4'"), 4, "expected a dtype"},
      {with_dtype("''"), 4, "expected a dtype"},
      {with_dtype("'|f4'"), 4, "expected '<' or '>'"},
      {with_dtype("'<f16'"), 16, "expected a dtype"},
      {with_dtype("[('a', '<f4')]"), 4, "arrays of records are not read"},
  };
  const Folder folder;
  for (const auto& [literal, data_size, text] : cases) {
    INFO(literal);
    put(folder / "a.npy", npy_with(literal, data_size));
    CHECK_THROWS_MATCHES(open_npy(folder / "a.npy"), DataError,
                         MessageMatches(ContainsSubstring("a.npy: ") && ContainsSubstring(text)));
  }
}

TEST_CASE("what is no array file, or of an unknown version, says so", "[dataset]") {
  const Folder folder;
  const auto refused = [&](const std::string& bytes, const std::string& text) {
    put(folder / "a.npy", bytes);
    CHECK_THROWS_MATCHES(open_npy(folder / "a.npy"), DataError, MessageMatches(ContainsSubstring(text)));
  };
  refused("", "expected \"\\x93NUMPY\" at offset 0, found nothing; not a .npy file");
  refused("PK\x03\x04 a zip", "found \"PK\\x03\\x04 a\"; not a .npy file");
  refused("\x93NUMPY", "expected 2 bytes at offset 6, found 0");
  refused("\x93NUMPY\x04", "expected 2 bytes at offset 6, found 1");
  refused(std::string("\x93NUMPY\x04\x00", 8), "expected version 1.0, 2.0 or 3.0 at offset 6, found 4.0");
  refused("\x93NUMPY\x01\x01", "found 1.1");
  refused(std::string("\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF{", 13), "expected 4294967295 bytes at offset 12, found 1");
}

TEST_CASE("a bool that is neither 0 nor 1 is refused with its offset before any kernel sees it", "[dataset]") {
  const Folder folder;
  const std::string literal = "{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}";
  put(folder / "a.npy", npy_with(literal) + std::string("\1\0\2", 3));
  CHECK_THROWS_MATCHES(
      open_npy(folder / "a.npy"), DataError,
      MessageMatches(ContainsSubstring(accel::message("at offset ", 10 + literal.size() + 2, ", found 2"))));
}

TEST_CASE("an array file that is cut short is refused, a damaged one refused or read", "[dataset]") {
  const Folder folder;
  const auto whole = npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}    \n", 48);
  const auto read = [&] { (void)open_npy(folder / "a.npy").sum().item<double>(); };
  CHECK(accel::testing::damage(folder / "a.npy", whole, whole.size() - 48, 1000, read) > 800);
}
