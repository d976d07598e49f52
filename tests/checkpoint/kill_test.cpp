// A job that is killed at any moment of its saves: the newest checkpoint is whole, and no save that was told is lost. Many
// more of them, and the same ones again, with
//
//   ACCEL_KILLS=1000 ACCEL_KILL_SEED=1 build/tests/tests/checkpoint_tests "*killed at a random moment*"
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/core/file.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

#include <signal.h>
#include <unistd.h>

#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

namespace kills {

namespace fs = std::filesystem;
using accel::checkpoint::Part;
using accel::checkpoint::Saver;
using accel::checkpoint::Sharing;
using accel::tensor::StateDict;
using accel::testing::Folder;
using accel::testing::Rank;
using accel::testing::run_ranks;
using accel::testing::Seconds;
using accel::testing::SharedFolder;

/// What the checkpoint of that number holds: 1 MB that differs in every byte from that of others.
torch::Tensor weights(std::int64_t number) {
  return torch::arange(1 << 18, torch::kInt).add_(static_cast<int>(number) * 7919);
}

std::vector<Part> parts(const std::int64_t& number) {
  return {{.name = "model",
           .sharing = Sharing::replicated,
           .state =
               [&number] {
                 StateDict state;
                 state.add("first", weights(number));
                 state.add("second", weights(number + 1));
                 return state;
               }},
          {.name = "step", .state = [&number] {
             StateDict state;
             state.add("number", number);
             return state;
           }}};
}

constexpr Seconds patience(60);

/// How long one rank takes for it now: it differs by the hour.
Seconds seconds_of_a_save() {
  const Folder folder;
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, patience);
  Seconds fastest = patience;
  for (std::int64_t number = 0; number < 3; ++number) {
    const auto begin = std::chrono::steady_clock::now();
    (void)saver.save(std::nullopt, parts(number), number, {}, {}, {});
    saver.wait();
    fastest = std::min<Seconds>(fastest, std::chrono::steady_clock::now() - begin);
  }
  return fastest;
}

/// Saves until it is killed, `moment` behind the beginning of the first save, and writes down what was saved.
void save_until_killed(Rank rank, const fs::path& base, Seconds moment) {
  accel::testing::Group<accel::backend::Gloo> group;
  Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base, .keep = {.total_limit = 2}}, patience);
  const auto newest = accel::checkpoint::latest_checkpoint(base);
  std::int64_t number = newest ? *accel::checkpoint::detail::number_of(newest->filename().string()) + 1 : 0;
  (void)group->control().all_gather("all have looked", "", accel::Deadline::in(patience));
  std::thread([moment] {
    std::this_thread::sleep_for(moment);
    ::kill(::getpid(), SIGKILL);
  }).detach();
  for (;; ++number) {
    (void)saver.save(std::nullopt, parts(number), number, {}, {}, {});
    saver.wait();
    if (rank.rank != 0) continue;
    accel::DurableFile told(base / "told");
    const std::string text = std::to_string(number);
    told.write(text.data(), text.size());
    told.commit();
  }
}

void check(const fs::path& base, int world_size) {
  std::ifstream file(base / "told");
  std::int64_t told = -1;
  file >> told;
  const auto newest = accel::checkpoint::latest_checkpoint(base);
  if (!newest) {
    CHECK(told == -1);
    return;
  }
  const auto number = *accel::checkpoint::detail::number_of(newest->filename().string());
  CHECK(number >= told);
  const accel::checkpoint::Reader reader(*newest);
  for (int rank = 0; rank < world_size; ++rank) reader.verify(rank);
  CHECK(reader.part("step", 0)->own().integer("number") == number);
  CHECK(torch::equal(reader.part("model", 0)->own().tensor("first"), weights(number)));
  CHECK(torch::equal(reader.part("model", 0)->own().tensor("second"), weights(number + 1)));
}

int orphans_in(const fs::path& base) {
  int count = 0;
  for (const auto& name : accel::names_in(base))
    if (name.find(accel::checkpoint::detail::unfinished) != std::string::npos) ++count;
  return count;
}

}  // namespace kills

TEST_CASE("a job that is killed at a random moment of its saves leaves a whole checkpoint, and all that was told",
          "[saver]") {
  using namespace kills;
  const char* const wish = std::getenv("ACCEL_KILLS");
  const int count = wish == nullptr ? 20 : std::stoi(wish);
  const char* const given = std::getenv("ACCEL_KILL_SEED");
  const std::string seed = given == nullptr ? std::to_string(std::random_device{}()) : given;
  std::mt19937 random(static_cast<std::mt19937::result_type>(std::stoul(seed)));
  const SharedFolder folder;
  const auto usual = seconds_of_a_save();
  int saved = 0;
  for (int i = 0; i < count; ++i) {
    const int world_size = 1 + i % 2;
    std::uniform_real_distribution<double> some_saves(0, 16 * world_size);  // more ranks take longer
    const std::vector<double> saves{some_saves(random), some_saves(random)};
    const bool together = random() % 2 == 0;  // as a scheduler kills; else one after the other
    const fs::path base = folder / std::to_string(world_size);
    const auto results =
        run_ranks(world_size,
                  [&](Rank rank) {
                    save_until_killed(rank, base, usual * saves[together ? 0 : static_cast<std::size_t>(rank.rank)]);
                  },
                  {.deadline = patience, .variables = {{"ACCEL_KILL_SEED", seed}}});
    if (accel::testing::in_another_launch(results)) continue;
    INFO("seed " << seed << ", kill " << i << " of " << world_size << " ranks");
    check(base, world_size);
    ++saved;
  }
  if (std::getenv("RANK") != nullptr) return;
  std::cout << saved << " kills, seed " << seed;
  int orphans = 0;
  std::int64_t most = 0;
  for (const char* ranks : {"1", "2"}) {
    const fs::path base = folder / ranks;
    orphans += orphans_in(base);
    // The next job goes on behind the newest, and cleans up.
    const auto newest = accel::checkpoint::latest_checkpoint(base);
    const std::int64_t number = newest ? *accel::checkpoint::detail::number_of(newest->filename().string()) + 1 : 0;
    Saver saver({}, 0, accel::Log(), {.folder = base, .keep = {.total_limit = 2}}, patience);
    CHECK(saver.save(std::nullopt, parts(number), number, {}, {}, {}).filename() ==
          accel::message("checkpoint_", number));
    saver.wait();
    CHECK(orphans_in(base) == 0);
    CHECK(accel::checkpoint::numbered_checkpoints(base).size() == (newest ? 2 : 1));
    most = std::max(most, number);
    std::cout << ", " << ranks << " ranks came to " << number - 1;
  }
  std::cout << ", " << orphans << " unfinished folders removed\n";
  if (count >= 20) CHECK(most > 0);  // else all were killed in the first save, which does not tell much
}

}  // namespace
