// Tokens: nanoGPT's and llm.c's files, windows side by side and at random.
#include <torch/torch.h>

#include <cstdint>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/tokens.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::RandomTokenWindows;
using accel::dataset::TokenFormat;
using accel::dataset::Tokens;
using accel::dataset::TokenWindows;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

template <class Number>
std::string raw(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

/// Tokens first, first + 1, ...
template <class Token>
std::string counted(Token first, std::int64_t count) {
  std::vector<Token> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<Token>(first + i));
  return raw(tokens);
}

std::string llm_c_header(std::int32_t magic, std::int32_t version, std::int32_t tokens) {
  std::vector<std::int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = tokens;
  return raw(header);
}

std::vector<std::int64_t> values(const torch::Tensor& tensor) {
  const auto flat = tensor.contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

at::Generator generator(std::uint64_t seed) {
  return at::detail::createCPUGenerator(seed);
}

}  // namespace

TEST_CASE("windows side by side cover each file and cross none", "[dataset]") {
  const Folder folder;
  put(folder / "a", counted<std::uint16_t>(0, 9));       // windows at 0, 3; 7 and 8 are left
  put(folder / "b", counted<std::uint16_t>(100, 3));     // too short
  put(folder / "c", counted<std::uint16_t>(200, 4));     // one
  put(folder / "d", counted<std::uint16_t>(60000, 10));  // three
  const Tokens tokens({folder / "a", folder / "b", folder / "c", folder / "d"}, {.format = TokenFormat::u16});
  CHECK(tokens.size() == 26);
  const TokenWindows windows(tokens, {.length = 3});
  REQUIRE(windows.size() == 6);
  const std::vector<std::int64_t> first{0, 3, 200, 60000, 60003, 60006};
  for (std::size_t i = 0; i < first.size(); ++i) {
    const auto [input, target] = windows.get(i);
    CHECK(values(input) == std::vector{first[i], first[i] + 1, first[i] + 2});
    CHECK(values(target) == std::vector{first[i] + 1, first[i] + 2, first[i] + 3});
  }
  const auto [input, target] = windows.get_batch({5, 2});
  CHECK(values(input) == std::vector<std::int64_t>{60006, 60007, 60008, 200, 201, 202});
  CHECK(values(target) == std::vector<std::int64_t>{60007, 60008, 60009, 201, 202, 203});
  CHECK(accel::tensor::spec(input) == "i64[2, 3]");
  CHECK_THROWS_AS(windows.get(6), InvalidArgument);

  const TokenWindows overlapping(tokens, {.length = 3, .stride = 1});
  CHECK(overlapping.size() == 6 + 1 + 7);
  CHECK(values(overlapping.get(5).input) == std::vector<std::int64_t>{5, 6, 7});
  CHECK(values(overlapping.get(6).target) == std::vector<std::int64_t>{201, 202, 203});
}

TEST_CASE("the number of windows is right for every length, stride and size of file", "[dataset]") {
  const Folder folder;
  for (std::int64_t size = 2; size < 12; ++size) {
    put(folder / "f", counted<std::uint16_t>(0, size));
    const Tokens tokens({folder / "f"}, {.format = TokenFormat::u16});
    for (std::int64_t length = 1; length < size; ++length) {
      for (std::int64_t stride = 1; stride < size; ++stride) {
        std::size_t expected = 0;
        for (std::int64_t begin = 0; begin + length + 1 <= size; begin += stride) ++expected;
        const TokenWindows windows(tokens, {.length = length, .stride = stride});
        REQUIRE(windows.size() == expected);
        REQUIRE(windows.get(expected - 1).target[-1].item<std::int64_t>() ==
                static_cast<std::int64_t>(expected - 1) * stride + length);
      }
    }
  }
}

TEST_CASE("llm.c's files say themselves how wide a token is", "[dataset]") {
  const Folder folder;
  put(folder / "gpt2", llm_c_header(20240520, 1, 5) + counted<std::uint16_t>(50000, 5));
  put(folder / "llama3", llm_c_header(20240801, 7, 4) + counted<std::uint32_t>(128000, 4));
  const TokenWindows windows(Tokens({folder / "gpt2", folder / "llama3"}), {.length = 3});
  REQUIRE(windows.size() == 2);
  CHECK(values(windows.get(0).target) == std::vector<std::int64_t>{50001, 50002, 50003});
  CHECK(values(windows.get(1).target) == std::vector<std::int64_t>{128001, 128002, 128003});
}

TEST_CASE("a file of tokens that is not of its format is refused with what to say instead", "[dataset]") {
  const Folder folder;
  const auto refused = [&](const std::string& bytes, TokenFormat format, const std::string& text) {
    put(folder / "f", bytes);
    CHECK_THROWS_MATCHES(Tokens({folder / "f"}, {.format = format}), DataError,
                         MessageMatches(ContainsSubstring("f: expected ") && ContainsSubstring(text)));
  };
  const auto gpt2 = llm_c_header(20240520, 1, 5) + counted<std::uint16_t>(0, 5);
  refused("", TokenFormat::llm_c, "found 0 bytes in all; for a file without header, as nanoGPT's, say .format");
  refused(counted<std::uint16_t>(1, 600), TokenFormat::llm_c, "found magic 131073, version 262147");
  refused(llm_c_header(20240520, 2, 0), TokenFormat::llm_c, "found magic 20240520, version 2");
  refused(llm_c_header(20240522, 1, 0), TokenFormat::llm_c, "found magic 20240522");  // multiple choice
  refused(gpt2.substr(0, 1023), TokenFormat::llm_c, "llm.c's header of 1024 bytes");
  refused(gpt2.substr(0, 1032), TokenFormat::llm_c, "5 tokens of 2 bytes at offset 1024, found 8 bytes");
  refused(gpt2 + "xy", TokenFormat::llm_c, "found 12 bytes");
  refused(llm_c_header(20240520, 1, -1), TokenFormat::llm_c, "-1 tokens");
  refused(gpt2, TokenFormat::u16, "found llm.c's header; say .format = TokenFormat::llm_c");
  refused("abc", TokenFormat::u16, "tokens of 2 bytes, found 3 bytes");
  refused("abcdef", TokenFormat::u32, "tokens of 4 bytes, found 6 bytes");
  CHECK_THROWS_AS(Tokens(std::vector<std::filesystem::path>{}), InvalidArgument);
}

TEST_CASE("files of u32 tokens need no header, and are read at random, too", "[dataset]") {
  const Folder folder;
  constexpr std::uint32_t first = 70'000;  // beyond u16
  put(folder / "f", counted<std::uint32_t>(first, 30));
  const Tokens tokens({folder / "f"}, {.format = TokenFormat::u32});
  CHECK(tokens.size() == 30);
  const TokenWindows windows(tokens, {.length = 9});
  CHECK(windows.size() == 3);
  CHECK(values(windows.get(1).input) == values(torch::arange(70'009, 70'018)));
  CHECK(values(windows.get(1).target) == values(torch::arange(70'010, 70'019)));
  const RandomTokenWindows at_random(tokens, {.length = 4, .windows = 20});
  auto random = generator(5), same = generator(5);
  for (std::size_t row = 0; row < 20; ++row) {
    const auto begin = first + torch::randint(30 - 4, {1}, same).item<std::int64_t>();
    CHECK(values(at_random.get(row, random).input) == values(torch::arange(begin, begin + 4)));
  }
}

TEST_CASE("a token beyond the vocabulary is refused with file, offset and value", "[dataset]") {
  const Folder folder;
  put(folder / "f", llm_c_header(20240801, 7, 6) + counted<std::uint32_t>(10, 6));
  const TokenWindows windows(Tokens({folder / "f"}, {.vocab_size = 14}), {.length = 2});
  CHECK(values(windows.get(0).target) == std::vector<std::int64_t>{11, 12});
  CHECK_THROWS_MATCHES(windows.get(1), DataError,
                       MessageMatches(ContainsSubstring(
                           "f: expected tokens below vocab_size = 14, found 14 at offset 1040; the file is of")));
  const TokenWindows first(Tokens({folder / "f"}, {.vocab_size = 10}), {.length = 2});
  CHECK_THROWS_MATCHES(first.get(0), DataError, MessageMatches(ContainsSubstring("found 10 at offset 1024;")));
  const TokenWindows second(Tokens({folder / "f"}, {.vocab_size = 11}), {.length = 2});
  CHECK_THROWS_MATCHES(second.get(0), DataError, MessageMatches(ContainsSubstring("found 11 at offset 1028;")));
  CHECK_THROWS_AS(Tokens({folder / "f"}, {.vocab_size = 0}), InvalidArgument);
}

TEST_CASE("a file of tokens that shrank is an error, not a crash", "[dataset]") {
  const Folder folder;
  put(folder / "f", counted<std::uint16_t>(0, 10000));
  const TokenWindows windows(Tokens({folder / "f"}, {.format = TokenFormat::u16}), {.length = 3});
  std::filesystem::resize_file(folder / "f", 2);
  CHECK_THROWS_MATCHES(windows.get(windows.size() - 1), DataError,
                       MessageMatches(ContainsSubstring("found 2; do not")));
}

TEST_CASE("windows that cannot be are refused", "[dataset]") {
  const Folder folder;
  put(folder / "f", counted<std::uint16_t>(0, 5));
  const Tokens tokens({folder / "f"}, {.format = TokenFormat::u16});
  CHECK_THROWS_AS(TokenWindows(tokens, {.length = 0}), InvalidArgument);
  CHECK_THROWS_AS(TokenWindows(tokens, {.length = 2, .stride = -1}), InvalidArgument);
  CHECK_THROWS_MATCHES(TokenWindows(tokens, {.length = 5}), DataError,
                       MessageMatches(ContainsSubstring("more than length = 5 tokens, found 5 tokens in 1 files")));
  CHECK_THROWS_AS(RandomTokenWindows(tokens, {.length = 2}), InvalidArgument);
  CHECK_THROWS_AS(RandomTokenWindows(tokens, {.length = 5, .windows = 1}), DataError);
  put(folder / "empty", "");
  CHECK_THROWS_AS(TokenWindows(Tokens({folder / "empty"}, {.format = TokenFormat::u16})), DataError);
}

TEST_CASE("random windows are nanoGPT's draws, each place alike, none across files", "[dataset]") {
  const Folder folder;
  put(folder / "a", counted<std::uint16_t>(0, 8));
  put(folder / "b", counted<std::uint16_t>(1000, 2));
  put(folder / "c", counted<std::uint16_t>(2000, 6));
  const Tokens tokens({folder / "a", folder / "b", folder / "c"}, {.format = TokenFormat::u16});
  const RandomTokenWindows windows(tokens, {.length = 3, .windows = 400});
  CHECK(windows.size() == 400);
  std::set<std::int64_t> begins;
  for (std::size_t row = 0; row < windows.size(); ++row) {
    auto random = generator(row), same = generator(row);
    const auto [input, target] = windows.get(row, random);
    CHECK(input.diff().eq(1).all().item<bool>());
    CHECK(target.equal(input + 1));
    const auto place = torch::randint(5 + 3, {1}, same).item<std::int64_t>();
    CHECK(input[0].item<std::int64_t>() == (place < 5 ? place : 2000 + place - 5));
    begins.insert(input[0].item<std::int64_t>());
  }
  CHECK(begins == std::set<std::int64_t>{0, 1, 2, 3, 4, 2000, 2001, 2002});
  auto random = generator(0);
  CHECK_THROWS_AS(windows.get(400, random), InvalidArgument);
}

TEST_CASE("windows are what NumPy's memmap of the same file gives nanoGPT", "[dataset]") {
  const Folder folder;
  accel::testing::run_python(folder, R"(
import numpy as np, torch
data = np.random.default_rng(3).integers(0, 50257, 5000).astype(np.uint16)
data.tofile('train.bin')
data = np.memmap('train.bin', dtype=np.uint16, mode='r')
block_size, x, y = 64, [], []
for row in range(50):
    i = torch.randint(len(data) - block_size, (1,), generator=torch.Generator().manual_seed(row)).item()
    x.append(torch.from_numpy((data[i:i+block_size]).astype(np.int64)))
    y.append(torch.from_numpy((data[i+1:i+1+block_size]).astype(np.int64)))
np.stack(x + y).tofile('windows')
)");
  const RandomTokenWindows windows(Tokens({folder / "train.bin"}, {.format = TokenFormat::u16, .vocab_size = 50257}),
                                   {.length = 64, .windows = 50});
  std::vector<torch::Tensor> inputs, targets;
  for (std::size_t row = 0; row < 50; ++row) {
    auto random = generator(row);
    auto [input, target] = windows.get(row, random);
    inputs.push_back(input);
    targets.push_back(target);
  }
  inputs.insert(inputs.end(), targets.begin(), targets.end());
  CHECK(raw(values(torch::stack(inputs))) == accel::testing::bytes_of(folder / "windows"));
}

TEST_CASE("threads that read the same tokens read the same windows", "[dataset]") {
  const Folder folder;
  put(folder / "f", counted<std::uint16_t>(0, 20000));
  const TokenWindows windows(Tokens({folder / "f"}, {.format = TokenFormat::u16}), {.length = 7});
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < static_cast<std::int64_t>(windows.size()); ++row) rows.push_back(row);
  const auto expected = windows.get_batch(rows).target;
  std::vector<torch::Tensor> found(4);
  std::vector<std::thread> threads;
  for (auto& target : found) threads.emplace_back([&] { target = windows.get_batch(rows).target; });
  for (auto& thread : threads) thread.join();
  for (const auto& target : found) CHECK(target.equal(expected));
}
