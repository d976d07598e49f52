// replay_recorded: what it passes, what it finds, and what PyTorch records on the spot.
#include "support/folder.hpp"
#include "support/ranks.hpp"

#include <nlohmann/json.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace accel::testing;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::EndsWith;

namespace {

const std::filesystem::path folder_of_recorded = ACCEL_TEST_DIR "/parity/recorded";
const std::filesystem::path recorded = folder_of_recorded / "schedules.json";

ProcessResult replay_files(const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> arguments{ACCEL_TEST_REPLAY_RECORDED};
  for (const auto& file : files) arguments.push_back(file.string());
  return run_program(arguments, {.deadline = Seconds(600), .variables = {{"OMP_NUM_THREADS", "1"}}});
}

nlohmann::json read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

std::filesystem::path write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path) << text;
  return path;
}

}  // namespace

TEST_CASE("the recorded schedules pass", "[parity]") {
  const auto result = replay_files({recorded});
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(result.output == "42 passed, 0 failed\n");
}

TEST_CASE("the recorded loss scales pass, and one that is off by a bit does not", "[parity]") {
  const std::filesystem::path scales = folder_of_recorded / "loss_scale.json";
  const auto result = replay_files({scales});
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(result.output == "24 passed, 0 failed\n");
  const Folder folder;
  auto altered = read(scales);
  altered["cases"][3]["scale"][5] = std::nextafter(altered["cases"][3]["scale"][5].get<float>(), 0.0F);
  altered["cases"][7]["growth_tracker"][1] = 77;
  altered["cases"][9]["found_inf"].push_back(1);
  const auto bad = replay_files({write(folder / "altered.json", altered.dump())});
  CAPTURE(bad.output);
  CHECK(bad.exit_code == 1);
  for (const std::string text : {"case 3: scale[5]: expected", "case 7: growth_tracker[1]: expected 77", "case 9: "})
    CHECK_THAT(bad.output, ContainsSubstring(text));
  CHECK_THAT(bad.output, EndsWith("\n21 passed, 3 failed\n"));
}

TEST_CASE("the recorded orders, batches and splits pass, and an index that is wrong is named", "[parity]") {
  std::vector<std::filesystem::path> files;
  for (const auto* name : {"shuffle", "batch_sampler_shard", "iterable_shard", "split_between_processes"})
    files.push_back(folder_of_recorded / (std::string(name) + ".json"));
  const auto result = replay_files(files);
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(result.output == "320 passed, 0 failed\n");
  const Folder folder;
  for (auto& file : files) {
    auto altered = read(file);
    auto& list = altered["cases"][2].contains("order") ? altered["cases"][2]["order"] : altered["cases"][2]["ranks"];
    list[0] = 77777;
    file = write(folder / file.filename().string(), altered.dump());
  }
  const auto bad = replay_files(files);
  CAPTURE(bad.output);
  CHECK(bad.exit_code == 1);
  CHECK_THAT(bad.output, ContainsSubstring("shuffle.json: case 2: order: expected [77777,") &&
                             ContainsSubstring("iterable_shard.json: case 2: ranks: expected [77777,"));
  CHECK_THAT(bad.output, EndsWith("\n316 passed, 4 failed\n"));
}

TEST_CASE("the recorded optimizers pass, and each number that is wrong is named", "[parity]") {
  const auto optimizers = folder_of_recorded / "optimizers.json";
  const auto result = replay_files({optimizers, folder_of_recorded / "loss_scale.json", recorded});
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(result.output == "84 passed, 0 failed\n");
  const Folder folder;
  auto altered = read(optimizers);
  altered["cases"][1]["after"][3][2] = 0.5;
  altered["cases"][1]["after"][4][0] = 0.25;
  altered["cases"][2]["options"]["momenta"] = 0.9;
  altered["cases"][3]["name"] = "sgdm";
  altered["cases"][4].erase("gradients");
  const auto bad = replay_files({write(folder / "altered.json", altered.dump())});
  CAPTURE(bad.output);
  CHECK(bad.exit_code == 1);
  for (const std::string text : {"case 1: step 4, element 2: expected 0.5, found ",
                                 "case 4: ", "case 1: step 5, element 0: expected 0.25, found ",
                                 "case 2: there is no option momenta", "case 3: there is no optimizer sgdm here"})
    CHECK_THAT(bad.output, ContainsSubstring(text));
  CHECK_THAT(bad.output, EndsWith("\n14 passed, 4 failed\n"));
}

TEST_CASE("a loss scale that GradScaler brings down to 0 is followed there", "[parity]") {
  const Folder folder;
  nlohmann::json one{
      {"init_scale", 0x1p-148}, {"growth_factor", 2.0}, {"backoff_factor", 0.25}, {"growth_interval", 1}};
  one["found_inf"] = {0, 1, 1, 0};
  one["scale"] = {0x1p-147, 0x1p-149, 0.0, 0.0};
  one["growth_tracker"] = {0, 0, 0, 0};
  const nlohmann::json file{{"kind", "loss_scale"}, {"cases", {one}}};
  const auto result = replay_files({write(folder / "tiny.json", file.dump())});
  CHECK(result.output == "1 passed, 0 failed\n");
}

TEST_CASE("a wrong number is found, and named with its file and case", "[parity]") {
  const Folder folder;
  auto altered = read(recorded);
  altered["cases"][4]["lr"][2] = altered["cases"][4]["lr"][2].get<double>() * (1 + 1e-11);
  altered["cases"][9]["lr"][24] = 1e-9;  // for 0
  altered["cases"][36]["momentum"][3] = 0.5;
  altered["cases"][38]["options"]["pct_begin"] = 0.5;
  altered["cases"][40].erase("total_steps");
  const auto path = write(folder / "altered.json", altered.dump());
  const auto result = replay_files({path});
  CAPTURE(result.output);
  CHECK(result.exit_code == 1);
  for (const std::string text : {"case 4: lr[2]: expected ", "case 9: lr[24]: expected 1e-09, found 0\n",
                                 "case 36: momentum[3]: expected 0.5, found 0.867",
                                 "case 38: the option pct_begin is not known here", "case 40: "})
    CHECK_THAT(result.output, ContainsSubstring(path.string() + ": " + text));
  CHECK_THAT(result.output, EndsWith("\n37 passed, 5 failed\n"));
}

TEST_CASE("files that are none count as failed, kinds that nobody replays are named and left out", "[parity]") {
  const Folder folder;
  const auto missing = folder / "missing.json";
  const auto torn = write(folder / "torn.json", R"({"kind": "schedules", "cases": [)");
  const auto no_cases = write(folder / "no_cases.json", R"({"kind": "schedules"})");
  const auto odd_cases = write(folder / "odd_cases.json", R"({"kind": "schedules", "cases": 7})");
  const auto odd_case = write(folder / "odd_case.json", R"({"kind": "schedules", "cases": [7, {"name": "warp"}]})");
  const auto other = write(folder / "other.json", R"({"kind": "tea", "cases": [1, 2, 3]})");
  const auto result = replay_files({missing, torn, no_cases, odd_cases, odd_case, other, recorded});
  CAPTURE(result.output);
  CHECK(result.exit_code == 1);
  for (const auto& path : {missing, torn, no_cases, odd_cases})
    CHECK_THAT(result.output, ContainsSubstring(path.string() + ": not replayed: "));
  CHECK_THAT(result.output, ContainsSubstring(odd_case.string() + ": case 1: "));
  CHECK_THAT(result.output, ContainsSubstring(other.string() + ": skipped, no replay of kind \"tea\" is known"));
  CHECK_THAT(result.output, EndsWith("\n42 passed, 6 failed\n"));
  CHECK(replay_files({}).exit_code == 2);
}

TEST_CASE("schedules that PyTorch runs now are ours, with plateaus and the momentum of one cycle", "[parity]") {
  if (std::string(ACCEL_TEST_PYTHON).empty())
    skip_without("torchrun", "no Python with torch was found, so it cannot record schedules");
  const Folder folder;
  const auto path = folder / "live.json";
  const auto python = run_program({ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/parity/record_schedules.py", path.string()},
                                  {.deadline = Seconds(600), .variables = {{"OMP_NUM_THREADS", "1"}}});
  CAPTURE(python.output);
  REQUIRE(python.succeeded());
  const auto result = replay_files({path});
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(result.output == std::to_string(read(path).at("cases").size()) + " passed, 0 failed\n");
}
