// The README does what it says: its program, compiled by its line, runs in every way it shows.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/folder.hpp"
#include "support/ranks.hpp"

using accel::testing::Folder;
using accel::testing::ProcessResult;
using accel::testing::ProgramOptions;
using accel::testing::ReservedPort;
using accel::testing::run_program;
using accel::testing::Seconds;
using accel::testing::Variables;
namespace fs = std::filesystem;

namespace {

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The README's first block in `language` that contains `word`.
std::string block(const std::string& language, const std::string& word) {
  const std::string readme = text_of(ACCEL_TEST_DIR "/../README.md");
  const std::string fence = "```" + language + "\n";
  for (std::size_t at = readme.find(fence); at != std::string::npos; at = readme.find(fence, at + 1)) {
    const std::size_t begin = at + fence.size();
    const std::string found = readme.substr(begin, readme.find("```", begin) - begin);
    if (found.find(word) != std::string::npos) return found;
  }
  FAIL("README.md has no " << language << " block with \"" << word << "\"");
  return {};
}

/// A diff's new side.
std::string new_side(const std::string& diff) {
  std::istringstream lines(diff);
  std::string text;
  for (std::string line; std::getline(lines, line);)
    if (!line.starts_with("-")) text += (line.empty() ? "" : line.substr(1)) + "\n";
  return text;
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const std::size_t at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), by);
}

/// The lines of `text` that begin with `begin`.
std::vector<std::string> lines_with(const std::string& text, const std::string& begin) {
  std::istringstream lines(text);
  std::vector<std::string> result;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(begin)) result.push_back(line);
  return result;
}

/// A user's folder: the headers, copied, and the program.
struct Project {
  Project() {
    fs::create_directories(folder / "include");
    fs::copy(ACCEL_TEST_DIR "/../include/accel", folder / "include/accel", fs::copy_options::recursive);
    fs::copy(ACCEL_TEST_DATA_DIR "/digits.csv", folder / "digits.csv");
    fs::copy(ACCEL_TEST_DIR "/../examples/quickstart/digits.hpp", folder / "digits.hpp");
    fs::copy(ACCEL_TEST_DIR "/readme/prelude.hpp", folder / "prelude.hpp");
    std::ofstream(folder / "trainer.cpp") << "#include \"prelude.hpp\"\n" << new_side(block("diff", "int main()"));
  }

  /// Runs a command line in the folder, as a user's shell would.
  [[nodiscard]] ProcessResult shell(const std::string& command, const Variables& variables, double deadline_s) const {
    return run_program({"bash", "-c", "cd '" + folder.path().string() + "' && " + command},
                       {.deadline = Seconds(deadline_s), .variables = variables});
  }

  Folder folder;
};

/// Every rank must have come to the same end, and have learnt something. From run to run the end
/// differs: LibTorch's generator starts from a random seed.
void check_results(const ProcessResult& run, std::size_t ranks) {
  INFO(run.output);
  CHECK(run.succeeded());
  const auto lines = lines_with(run.output, "rank ");
  REQUIRE(lines.size() == ranks);
  const auto result = [](const std::string& line) { return line.substr(line.find(": ")); };
  for (const auto& line : lines) CHECK(result(line) == result(lines.front()));
  CHECK(std::stod(lines.front().substr(lines.front().find("accuracy ") + 9)) > 0.9);
  std::cout << run.output;
}

}  // namespace

TEST_CASE("README's program, compiled by its line, runs alone, by torchrun and from a shell loop", "[readme]") {
  const Project project;
  const std::string compile = replaced(block("sh", "g++ "), "g++ ", ACCEL_TEST_COMPILER " ");
  const ProcessResult compiled =
      project.shell(compile, {{"LIBTORCH", ACCEL_TEST_LIBTORCH}, {"CPATH", ACCEL_TEST_JSON_INCLUDES}}, 400);
  INFO(compiled.output);
  REQUIRE(compiled.succeeded());
  CHECK(compiled.output.empty());  // no warnings either

  const std::string starts = block("sh", "torchrun --nproc-per-node");
  const ReservedPort port;
  const Variables threads = {{"OMP_NUM_THREADS", "1"}};
  const std::string alone = lines_with(starts, "./trainer").front();
  const std::string loop = starts.substr(starts.find("for rank"));
  const std::string with_port = replaced(loop, "29500", std::to_string(port.number()));

  check_results(project.shell(alone, threads, 60), 1);
  check_results(project.shell(with_port, threads, 60), 2);

  const fs::path tools = fs::path(ACCEL_TEST_PYTHON).parent_path();
  if (!fs::exists(tools / "torchrun"))
    accel::testing::skip_without("torchrun", "no torchrun beside the Python of the tests: that way was not started");
  const std::string torchrun = lines_with(starts, "torchrun").front();
  const Variables path = {{"OMP_NUM_THREADS", "1"},
                          {"PATH", tools.string() + ":" + std::getenv("PATH")},
                          {"PET_MASTER_PORT", std::to_string(port.number())}};
  check_results(project.shell(torchrun, path, 90), 2);
}
