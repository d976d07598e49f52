// Manifests, and the folders that checkpoints lie in: what is taken for a checkpoint, what goes, and what is refused.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <accel/checkpoint/folder.hpp>
#include <accel/checkpoint/manifest.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"

namespace {

namespace folders {

namespace fs = std::filesystem;
using namespace accel::checkpoint;
namespace inner = accel::checkpoint::detail;
using accel::CheckpointError;
using accel::testing::Folder;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;

Manifest some() {
  Manifest manifest;
  manifest.library = "accel \"0.1\"";
  manifest.id = "a save";
  manifest.world_size = 2;
  manifest.step = 12;
  manifest.metric = 0.1;
  manifest.files = {{"rank0.safetensors", {100, 0xdeadbeef, true}}, {"words.txt", {5, 1, false}}};
  manifest.parts = {{"model", std::nullopt, {}, {{"a.weight", "rank0.safetensors", "F32", {2, 0, 3}, 7}}},
                    {"loader", 1, {{"rows", std::int64_t{-3}}, {"share", 1.0}, {"tiny", 5e-324}}, {}}};
  return manifest;
}

/// The text of a manifest, with `from` as `to`, under a checksum that is right.
std::string with(const std::string& from, const std::string& to) {
  std::string body = some().text();
  body.erase(0, body.find('\n') + 1);
  const auto at = body.find(from);
  REQUIRE(at != std::string::npos);
  body.replace(at, from.size(), to);
  return accel::message(inner::before_checksum, inner::hex(accel::crc32c(std::as_bytes(std::span(body)))),
                        inner::behind_checksum, body);
}

/// The error that a manifest of that text gives.
std::string refused(const std::string& text) {
  return thrown_by<CheckpointError>([&] { (void)Manifest::parse("/c/manifest.json", text); });
}

void put(const fs::path& path, const std::string& text = "") {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

}  // namespace folders

TEST_CASE("a manifest is what it was when it is read again, numbers to the last bit", "[manifest]") {
  using namespace folders;
  const Manifest manifest = some();
  CHECK(Manifest::parse("m", manifest.text()) == manifest);
  CHECK(Manifest::parse("m", Manifest().text()) == Manifest());
  CHECK_THAT(manifest.text(), ContainsSubstring("\"share\": 1.0"));  // no integer
}

TEST_CASE("a manifest that is damaged or says what cannot be is refused by file and place", "[manifest]") {
  using namespace folders;
  std::string flipped = some().text();
  flipped[flipped.size() / 2] ^= 1;
  CHECK_THAT(refused(flipped), ContainsSubstring("/c/manifest.json") && ContainsSubstring("damaged"));
  CHECK_THAT(refused(""), ContainsSubstring("/c/manifest.json"));
  const std::vector<std::pair<std::pair<std::string, std::string>, std::string>> cases{
      {{"\"version\": 1", "\"version\": 2"}, "its version is 2, and this library knows 1 and older ones"},
      {{"accel checkpoint", "another format"}, "it is no checkpoint of this library"},
      {{"\"world_size\": 2", "\"world_size\": 0"}, "world_size must be at least 1"},
      {{"\"step\": 12", "\"step\": -1"}, "step: expected a number from 0 to"},
      {{"\"step\": 12", "\"steps\": 12"}, "expected the field step, found none"},
      {{"\"metric\": 0.1", "\"metric\": \"x\""}, "metric: expected a number, or null"},
      {{"words.txt", "../words.txt"}, "that is no name for a file in this folder"},
      {{"deadbeef", "deadbee"}, "crc32c: expected 8 digits of base 16"},
      {{"\"name\": \"loader\", \"rank\": 1", "\"name\": \"model\""}, "part model/ is there twice"},
      {{"\"file\": \"rank0.safetensors\"", "\"file\": \"words.txt\""}, "which is none of its files of tensors"},
      {{"\"rows\": -3", "\"rows\": true"}, "part rank1/loader/: rows: expected a number, found boolean"},
      {{"\"rows\": -3", "\"rows\": 9223372036854775808"}, "rows is beyond 2^63 - 1"},
  };
  for (const auto& [change, words] : cases) {
    INFO(change.first << " becomes " << change.second);
    CHECK_THAT(refused(with(change.first, change.second)),
               ContainsSubstring("/c/manifest.json") && ContainsSubstring(words));
  }
}

TEST_CASE("a manifest that is nested deeply costs an error, and no stack", "[manifest]") {
  using namespace folders;
  const std::string deep = std::string(500'000, '[') + std::string(500'000, ']');
  for (const auto& text : {with("\"step\": 12", "\"step\": " + deep), with("[2,0,3]", deep)})
    CHECK_THAT(refused(text), ContainsSubstring("/c/manifest.json: it is nested deeper than any manifest"));
}

TEST_CASE("checkpoints are counted by their names, and what is none is not taken for one", "[folder]") {
  using namespace folders;
  const Folder folder;
  CHECK(numbered_checkpoints(folder / "nowhere").empty());
  for (const char* name : {"checkpoint_2", "checkpoint_10", "checkpoint_07", "checkpoint_-1", "checkpoint_x", "best",
                           "checkpoint_11.unfinished-ab", "checkpoint_99999999999999999999"})
    put(folder / name / manifest_file);
  fs::create_directories(folder / "checkpoint_12");  // without a manifest
  put(folder / "checkpoint_13", "a file");
  const auto found = numbered_checkpoints(folder.path());
  REQUIRE(found.size() == 2);
  CHECK(found[0].number == 2);
  CHECK(found[1].number == 10);
  CHECK(latest_checkpoint(folder.path()) == folder / "checkpoint_10");
  CHECK(remove_orphans(folder.path()).empty());
  CHECK_FALSE(fs::exists(folder / "checkpoint_11.unfinished-ab"));
  CHECK(fs::exists(folder / "best"));
}

TEST_CASE("where an exchange was cut between its two steps the old checkpoint gets its name back", "[folder]") {
  using namespace folders;
  const Folder folder;
  put(folder / "best.unfinished-ab-old" / manifest_file, "old");
  put(folder / "best.unfinished-ab" / "rank0.safetensors");
  put(folder / "other.unfinished-cd" / "rank0.safetensors");
  CHECK(remove_orphans(folder.path(), "best").empty());
  CHECK_FALSE(fs::exists(folder / "best.unfinished-ab"));
  CHECK(fs::exists(folder / "best" / manifest_file));
  CHECK(fs::exists(folder / "other.unfinished-cd"));  // of another checkpoint
}

TEST_CASE("where it cannot be told whether there is a checkpoint, that is not taken for none", "[folder]") {
  using namespace folders;
  const Folder folder;
  put(folder / "checkpoint_2" / manifest_file);
  fs::create_directories(folder / "checkpoint_3");
  fs::create_symlink(manifest_file, folder / "checkpoint_3" / manifest_file);  // to itself
  CHECK_THAT(thrown_by<CheckpointError>([&] { (void)latest_checkpoint(folder.path()); }),
             ContainsSubstring("checkpoint_3/manifest.json: cannot look at it: Too many levels of symbolic links"));
  CHECK_FALSE(is_checkpoint(folder / "checkpoint_2" / manifest_file / "below a file"));
}

TEST_CASE("what somebody has put at the place of a checkpoint while that was written is not lost", "[folder]") {
  using namespace folders;
  const Folder folder;
  const auto finish = [&](const char* word) {
    UnfinishedFolder made(folder / "best", word);
    const Manifest manifest;
    put(made.path() / manifest_file, manifest.text());
    if (std::string(word) != "first") put(folder / "best" / "notes.txt", "mine");
    return made.finish();
  };
  CHECK(finish("first").empty());
  CHECK_THAT(thrown_by<CheckpointError>([&] { (void)finish("second"); }),
             ContainsSubstring("best/notes.txt: it does not belong to the checkpoint there"));
  fs::remove(folder / "best" / manifest_file);
  CHECK_THAT(thrown_by<CheckpointError>([&] { (void)finish("third"); }),
             ContainsSubstring("and that is none: it holds notes.txt"));
  CHECK(fs::exists(folder / "best" / "notes.txt"));
  CHECK(accel::names_in(folder.path()) == std::vector<std::string>{"best"});
}

TEST_CASE("the newest stay, and what is to be kept besides: every n-th, and the best", "[folder]") {
  using namespace folders;
  using Numbers = std::vector<std::int64_t>;
  const Numbers numbers{0, 1, 2, 3, 4, 5};
  const std::vector<std::optional<double>> metrics{0.5, 0.1, std::nullopt, 0.4, 0.1, 0.9};
  CHECK(inner::superfluous(numbers, metrics, {}).empty());
  CHECK(inner::superfluous(numbers, metrics, {.keep_every = 2}).empty());  // nothing goes without a limit
  CHECK((inner::superfluous(numbers, metrics, {.total_limit = 2}) == Numbers{0, 1, 2, 3}));
  CHECK(inner::superfluous(numbers, metrics, {.total_limit = 9}).empty());
  CHECK((inner::superfluous(numbers, metrics, {.total_limit = 1, .keep_every = 2}) == Numbers{1, 3}));
  // Of two that are as good the newer.
  CHECK((inner::superfluous(numbers, metrics, {.total_limit = 1, .keep_best = 1}) == Numbers{0, 1, 2, 3}));
  CHECK((inner::superfluous(numbers, metrics, {.total_limit = 1, .keep_best = 2}) == Numbers{0, 2, 3}));
  CHECK((inner::superfluous(numbers, metrics, {.total_limit = 1, .keep_best = 2, .greater_is_better = true}) ==
         Numbers{1, 2, 3, 4}));
}

}  // namespace
