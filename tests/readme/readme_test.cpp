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

/// The README's blocks in `language` that contain `word`.
std::vector<std::string> blocks(const std::string& language, const std::string& word) {
  const std::string readme = text_of(ACCEL_TEST_DIR "/../README.md");
  const std::string fence = "```" + language + "\n";
  std::vector<std::string> result;
  for (std::size_t at = readme.find(fence); at != std::string::npos; at = readme.find(fence, at + 1)) {
    const std::size_t begin = at + fence.size();
    std::string found = readme.substr(begin, readme.find("```", begin) - begin);
    if (found.find(word) != std::string::npos) result.push_back(std::move(found));
  }
  return result;
}

/// The first of them.
std::string block(const std::string& language, const std::string& word) {
  auto all = blocks(language, word);
  if (all.empty()) FAIL("README.md has no " << language << " block with \"" << word << "\"");
  return std::move(all.front());
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

std::string program() {
  return new_side(block("diff", "int main()"));
}

/// The program after README's diff that makes it fp16.
std::string program_in_fp16() {
  const std::string change = block("diff", "precision::Fp16");
  const auto line = [&](const std::string& sign) {
    const auto found = lines_with(change, sign);
    REQUIRE(found.size() == 1);
    return found.front().substr(1) + "\n";
  };
  return replaced(program(), line("-"), line("+"));
}

/// The pieces of C++ that are no programs, each as a function over what it takes for granted.
std::string pieces() {
  std::string text;
  for (const auto& piece : blocks("cpp", ""))
    text += "void piece" + std::to_string(text.size()) +
            "(Accelerator& accelerator, const std::shared_ptr<Net>& net, accel::data::DataLoader<Digits>& data, "
            "std::int64_t updates) {{\n" +
            piece + "}}\n";
  return text;
}

// Of a compiler that has a busy machine to itself for a minute and a half, and had 400 s on one that did not.
constexpr double compile_deadline_s = 900;

/// A user's folder: the headers, copied, and a program.
struct Project {
  explicit Project(const std::string& trainer) {
    fs::create_directories(folder / "include");
    fs::copy(ACCEL_TEST_DIR "/../include/accel", folder / "include/accel", fs::copy_options::recursive);
    fs::copy(ACCEL_TEST_DATA_DIR "/digits.csv", folder / "digits.csv");
    fs::copy(ACCEL_TEST_DIR "/../examples/quickstart/digits.hpp", folder / "digits.hpp");
    fs::copy(ACCEL_TEST_DIR "/readme/prelude.hpp", folder / "prelude.hpp");
    std::ofstream(folder / "trainer.cpp") << "#include \"prelude.hpp\"\n" << trainer;
  }

  /// Runs a command line in the folder, as a user's shell would.
  [[nodiscard]] ProcessResult shell(const std::string& command, const Variables& variables, double deadline_s) const {
    return run_program({"bash", "-c", "cd '" + folder.path().string() + "' && " + command},
                       {.deadline = Seconds(deadline_s), .variables = variables});
  }

  /// By README's line, and without a warning.
  void compile(const std::string& optimization = "-O2") const {
    const std::string line =
        replaced(replaced(block("sh", "g++ "), "g++ ", ACCEL_TEST_COMPILER " "), " -O2 ", " " + optimization + " ");
    const ProcessResult compiled =
        shell(line, {{"LIBTORCH", ACCEL_TEST_LIBTORCH}, {"CPATH", ACCEL_TEST_JSON_INCLUDES}}, compile_deadline_s);
    INFO(compiled.output);
    REQUIRE(compiled.succeeded());
    CHECK(compiled.output.empty());
  }

  Folder folder;
};

const std::string& starts() {
  static const std::string text = block("sh", "torchrun --nproc-per-node");
  return text;
}

const Variables one_thread = {{"OMP_NUM_THREADS", "1"}};

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

void run_alone(const Project& project) {
  check_results(project.shell(lines_with(starts(), "./trainer").front(), one_thread, 60), 1);
}

void run_from_a_loop(const Project& project, const ReservedPort& port) {
  const std::string loop = starts().substr(starts().find("for rank"));
  check_results(project.shell(replaced(loop, "29500", std::to_string(port.number())), one_thread, 60), 2);
}

}  // namespace

TEST_CASE("README's program, compiled by its line, runs alone, by torchrun and from a shell loop", "[readme]") {
  const Project project(program());
  project.compile();
  const ReservedPort port;
  run_alone(project);
  run_from_a_loop(project, port);

  const fs::path tools = fs::path(ACCEL_TEST_PYTHON).parent_path();
  if (!fs::exists(tools / "torchrun"))
    accel::testing::skip_without("torchrun", "no torchrun beside the Python of the tests: that way was not started");
  const std::string torchrun = lines_with(starts(), "torchrun").front();
  const Variables path = {{"OMP_NUM_THREADS", "1"},
                          {"PATH", tools.string() + ":" + std::getenv("PATH")},
                          {"PET_MASTER_PORT", std::to_string(port.number())}};
  check_results(project.shell(torchrun, path, 90), 2);
}

TEST_CASE("README's program in fp16 runs alone and on two ranks, and its other pieces of C++ compile", "[readme]") {
  const Project project(program_in_fp16() + pieces());
  project.compile("-O0");  // half a minute sooner
  run_alone(project);
  run_from_a_loop(project, ReservedPort());
}
