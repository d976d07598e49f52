// Damage: a bit that is another, or an end that is missing, is found wherever it is, and said to be where it is. More of
// them, and the same ones again, with
//
//   ACCEL_DAMAGES=10000 ACCEL_DAMAGE_SEED=1 build/tests/tests/checkpoint_tests "[damage]"
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/tensor/safetensors.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "checkpoint/training.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"

namespace {

namespace damage {

namespace fs = std::filesystem;
using accel::CheckpointError;
using accel::checkpoint::Reader;
using accel::checkpoint::SaveHook;
using accel::checkpoint::Saver;
using accel::testing::Folder;
using accel::testing::thrown_by;
using accel::testing::checkpoints::Training;
using Catch::Matchers::ContainsSubstring;

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// Where the bytes of each tensor begin and end in its file.
struct Region {
  std::uint64_t begin, end;
  std::string name;
};

}  // namespace damage

TEST_CASE("of thousands of bits that flip and ends that are cut off each is found, by file and tensor",
          "[saver][damage]") {
  using namespace damage;
  const char* const wish = std::getenv("ACCEL_DAMAGES");
  const int count = wish == nullptr ? 2000 : std::stoi(wish);
  const char* const given = std::getenv("ACCEL_DAMAGE_SEED");
  const std::string seed = given == nullptr ? std::to_string(std::random_device{}()) : given;
  std::mt19937_64 random(std::stoul(seed));
  const Folder folder;
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  const std::vector<SaveHook> before{
      [](const accel::checkpoint::SaveEvent& event) { std::ofstream(event.folder / "notes.txt") << "learnt a lot"; }};
  const fs::path place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, before, {});
  std::map<std::string, std::string> files;
  for (const auto& name : accel::names_in(place)) files[name] = bytes_of(place / name);
  REQUIRE(files.size() == 3);
  std::vector<Region> regions;
  {
    const accel::tensor::safetensors::File file(place / "rank0.safetensors");
    for (const auto& name : file.names())
      if (const auto size = file.bytes(name).size(); size > 0)
        regions.push_back({file.offset(name), file.offset(name) + size, name});
  }
  REQUIRE(regions.size() == 3);
  std::map<std::string, int> found;
  for (int i = 0; i < count; ++i) {
    const auto& [name, bytes] = *std::next(files.begin(), static_cast<std::ptrdiff_t>(random() % files.size()));
    std::string damaged = bytes;
    const std::size_t at = random() % bytes.size();
    const bool is_cut = i % 10 == 0;
    if (is_cut)
      damaged.resize(at);
    else
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    write(place / name, damaged);
    std::string error;
    try {
      Reader reader(place);
      i % 2 == 0 ? reader.verify() : reader.verify_and_keep(std::nullopt, {"model", "loader", "random"});
    } catch (const CheckpointError& what) {
      error = what.what();
    }
    write(place / name, bytes);
    INFO("seed " << seed << ", number " << i << ": " << name << (is_cut ? " cut at " : ", a bit of byte ") << at);
    REQUIRE_THAT(error, ContainsSubstring((place / name).string()));
    if (is_cut || name != "rank0.safetensors") continue;
    const auto region =
        std::find_if(regions.begin(), regions.end(), [&](const auto& one) { return one.begin <= at && at < one.end; });
    if (region == regions.end()) {
      REQUIRE_THAT(error, ContainsSubstring("header"));
      continue;
    }
    REQUIRE_THAT(error, ContainsSubstring(accel::message("tensor ", region->name, ", bytes ", region->begin, " to ",
                                                         region->end, " of the file, is damaged")));
    ++found[region->name];
  }
  CHECK(found.size() == regions.size());
  CHECK_NOTHROW(Reader(place).verify());
  std::cout << count << " damages found, seed " << seed << "\n";
}

TEST_CASE("a file that is missing, too long, or another checkpoint's is refused by name", "[saver][damage]") {
  using namespace damage;
  const Folder folder;
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  const auto save = [&] { return saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {}); };
  const auto place = save();
  training.weight.add_(1);
  const auto other = save();
  const auto refused = [&] { return thrown_by<CheckpointError>([&] { Reader(place).verify(); }); };
  const auto file = place / "rank0.safetensors";
  const std::string bytes = bytes_of(file);
  write(file, bytes + "x");
  CHECK_THAT(refused(), ContainsSubstring(file.string()));
  fs::remove(file);
  CHECK_THAT(refused(), ContainsSubstring(file.string()));
  fs::copy_file(other / "rank0.safetensors", file);
  CHECK_THAT(refused(), ContainsSubstring("tensor model/weight") && ContainsSubstring("damaged"));
  write(file, bytes);
  fs::remove(place / "manifest.json");
  CHECK_THAT(refused(), ContainsSubstring("manifest.json"));
}

}  // namespace
