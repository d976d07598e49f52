// copy_all: what copy_() would make, whatever the tensors look like; and each piece of work is done once.
#include <torch/torch.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <accel/tensor/all_threads.hpp>
#include <accel/tensor/copy_all.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::tensor::Copy;
using accel::tensor::copy_all;

TEST_CASE("many copies at once are those that copy_() makes one by one", "[tensor]") {
  const auto random = [](at::IntArrayRef sizes) { return torch::randn(sizes); };
  std::vector<Copy> copies{
      {torch::zeros({3, 5}), random({3, 5})},                              // bytes behind bytes
      {torch::zeros({1 << 21}).slice(0, 1), random({(1 << 21) - 1})},      // several pieces, and an odd rest
      {torch::zeros({5, 3}).t(), random({3, 5})},                          // strided
      {torch::zeros({3, 5}), random({5, 3}).t()},                          //
      {torch::zeros({4}, torch::kBFloat16), random({4})},                  // of another dtype
      {torch::zeros({2}, torch::kComplexFloat),                            // conjugated
       torch::view_as_complex(random({2, 2})).conj()},                     //
      {torch::zeros({0, 4}), random({0, 4})},                              // nothing
      {torch::zeros({}, torch::kLong), torch::full({}, 7, torch::kLong)},  // a number
      {torch::zeros({6}, torch::kBool), torch::arange(6).remainder(2).to(torch::kBool)},
      {torch::zeros({2, 3}), random({3})},  // spread over the rows
  };
  std::vector<torch::Tensor> expected;
  std::vector<std::int64_t> versions;
  for (const auto& [to, from] : copies) {
    expected.push_back(to.clone().copy_(from));
    versions.push_back(to._version());
  }
  copy_all(copies);
  for (std::size_t i = 0; i < copies.size(); ++i) {
    INFO("copy " << i);
    CHECK(torch::equal(copies[i].to, expected[i]));
    CHECK(copies[i].to._version() > versions[i]);
  }
  copy_all({});
}

TEST_CASE("work in pieces is done once each, however many threads there are", "[tensor]") {
  const int before = torch::get_num_threads();
  for (const int threads : {1, 2, 3}) {
    torch::set_num_threads(threads);
    for (const std::size_t pieces : {0U, 1U, 2U, 1000U}) {
      std::vector<std::atomic<int>> done(pieces);
      accel::tensor::by_all_threads(pieces, [&](std::size_t i) { ++done[i]; });
      for (const auto& times : done) REQUIRE(times == 1);
    }
  }
  torch::set_num_threads(before);
}
