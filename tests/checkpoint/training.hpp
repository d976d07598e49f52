// Training: a small one as a saver sees it, and the check that a checkpoint holds it.
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include <accel/checkpoint/part.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/tensor/state_dict.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

#include "support/folder.hpp"
#include "support/ranks.hpp"

namespace accel::testing::checkpoints {

namespace fs = std::filesystem;
using accel::checkpoint::Part;
using accel::checkpoint::Reader;
using accel::checkpoint::Sharing;
using accel::tensor::StateDict;

/// Runs `body` on ranks that have a folder in common.
inline void on_ranks_in_folder(std::initializer_list<int> world_sizes,
                               const std::function<void(Rank, const fs::path&)>& body) {
  const SharedFolder folder;
  on_ranks(world_sizes, [&](Rank rank) {
    const fs::path base = folder / std::to_string(rank.world_size);
    fs::create_directories(base);
    body(rank, base);
  });
}

/// What a training would have: weights that all have alike, a cursor, random numbers of each rank.
struct Training {
  explicit Training(int rank)
      : weight(torch::arange(1000, torch::kFloat).view({25, 40})),
        half(torch::arange(33).to(torch::kBFloat16)),
        empty(torch::empty({0, 3})),
        random(torch::full({7}, 10 + rank, torch::kLong)) {}

  [[nodiscard]] std::vector<Part> parts() {
    return {{.name = "model",
             .sharing = Sharing::replicated,
             .state =
                 [this] {
                   StateDict state;
                   state.add("weight", weight);
                   state.add("half", half);
                   state.add("empty", empty);
                   state.add("steps", 3);
                   state.add("rate", 0.1);
                   return state;
                 }},
            {.name = "loader",
             .state =
                 [this] {
                   StateDict state;
                   state.add("rows", rows);
                   return state;
                 }},
            {.name = "random", .sharing = Sharing::own, .state = [this] {
               StateDict state;
               state.add("cpu", random);
               return state;
             }}};
  }

  torch::Tensor weight, half, empty, random;
  std::int64_t rows = 12;
};

[[nodiscard]] inline bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && torch::equal(a, b);
}

inline void check(const fs::path& folder, int rank, int world_size) {
  const Reader reader(folder);
  reader.verify(rank);
  CHECK(reader.manifest().world_size == world_size);
  CHECK(reader.manifest().step == 5);
  const Training saved(rank);
  const StateDict model = reader.part("model", rank)->own();
  CHECK(same_bits(model.tensor("weight"), saved.weight));
  CHECK(same_bits(model.tensor("half"), saved.half));
  CHECK(same_bits(model.tensor("empty"), saved.empty));
  CHECK(model.integer("steps") == 3);
  CHECK(model.number("rate") == 0.1);
  CHECK(reader.part("loader", rank)->own().integer("rows") == 12);
  CHECK(same_bits(reader.part("random", rank)->own().tensor("cpu"), saved.random));
  CHECK_FALSE(reader.part("scheduler", rank).has_value());
}

}  // namespace accel::testing::checkpoints
