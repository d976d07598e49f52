// JsonLines: lines of every kind of end, errors by line and column.
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/json_lines.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::CheckpointError;
using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::JsonLines;
using accel::dataset::JsonLinesStream;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

int x_of(const nlohmann::json& line) {
  return line.at("x").get<int>();
}

std::vector<int> xs_of(const std::vector<std::filesystem::path>& files) {
  const JsonLines lines(files, x_of);
  JsonLinesStream stream(files, x_of);
  std::vector<int> found;
  for (std::size_t row = 0; row < lines.size(); ++row) {
    found.push_back(lines.get(row));
    CHECK(stream.next() == found.back());
    CHECK(lines.json(row).at("x") == found.back());
  }
  CHECK(!stream.next());
  return found;
}

}  // namespace

TEST_CASE("indexing lines shows how far it has come", "[dataset]") {
  const Folder folder;
  put(folder / "f", "{\"x\":1}\n{\"x\":2}\n");
  std::vector<std::string> shown;
  std::chrono::steady_clock::time_point now{};
  const JsonLines lines({folder / "f"}, x_of,
                        {.show = [&](const std::string& line) { shown.push_back(line); },
                         .now = [&] { return now += std::chrono::seconds(2); }});
  CHECK(lines.size() == 2);
  REQUIRE(!shown.empty());
  CHECK(shown.back() == "indexing " + (folder / "f").string() + ": 16 of 16 B");
}

TEST_CASE("lines are found whatever ends them, and blank ones are none", "[dataset]") {
  const Folder folder;
  const std::vector<std::pair<std::string, std::vector<int>>> cases{
      {"", {}},
      {"\n \n\t\r\n", {}},
      {"{\"x\":1}", {1}},
      {"{\"x\":1}\n", {1}},
      {"{\"x\":1}\n{\"x\":2}", {1, 2}},
      {"{\"x\":1}\r\n{\"x\":2}\r\n", {1, 2}},
      {"\n\n{\"x\":1}\n  \n {\"x\": 2} \n\n", {1, 2}},
      {"\xEF\xBB\xBF{\"x\":1}\n{\"x\":2}\n", {1, 2}},
      {"\xEF\xBB\xBF\n{\"x\":1}\n", {1}},
      {"12\n", {}},
  };
  for (const auto& [text, expected] : cases) {
    INFO(text);
    put(folder / "f", text);
    if (text == "12\n") {
      CHECK(JsonLines({folder / "f"}, [](const nlohmann::json& line) { return line.get<int>(); }).get(0) == 12);
      continue;
    }
    CHECK(xs_of({folder / "f"}) == expected);
  }
  put(folder / "f", "12\n34\n5\n\n6");  // one begins at 3, without a byte-order mark before it
  const JsonLines short_lines({folder / "f"}, [](const nlohmann::json& line) { return line.get<int>(); });
  CHECK(short_lines.get(0) == 12);
  CHECK(short_lines.get(1) == 34);
  CHECK(short_lines.get(2) == 5);
  CHECK(short_lines.get(3) == 6);
  put(folder / "f", "{\"x\":1}\n{\"x\":2}");
  put(folder / "g", "");
  put(folder / "h", "\n{\"x\":3}\n");
  CHECK(xs_of({folder / "f", folder / "g", folder / "h"}) == std::vector{1, 2, 3});
}

TEST_CASE("a line that is no JSON, or not what decode wants, is refused with file, line and column", "[dataset]") {
  const Folder folder;
  const auto refused = [&](const std::string& line, const std::string& text) {
    put(folder / "f", "{\"x\":1}\r\n\n" + line + "\n{\"x\":4}\n");
    const JsonLines lines({folder / "f"}, x_of);
    CHECK(lines.get(0) == 1);
    CHECK(lines.get(2) == 4);
    CHECK_THROWS_MATCHES(lines.get(1), DataError, MessageMatches(ContainsSubstring("f:3" + text)));
    JsonLinesStream stream({folder / "f"}, x_of);
    CHECK(stream.next() == 1);
    CHECK_THROWS_MATCHES(stream.next(), DataError, MessageMatches(ContainsSubstring("f:3" + text)));
    CHECK(stream.next() == 4);
  };
  refused("{\"x\" 1}", ":6: expected JSON, found syntax error while parsing object separator - unexpected number");
  refused("{\"x\":1", ":7: expected JSON, found syntax error");
  refused("{\"x\":1} {\"x\":2}", ":9: expected JSON, found syntax error");
  refused(std::string("{\"x\":1\0}", 8), ":7: expected JSON, found a zero byte");
  refused("\xEF\xBB\xBF{\"x\":1}", ":1: expected JSON, found a byte-order mark");
  refused("{\"x\":\"\xFF\"}", ":7: expected JSON, found syntax error while parsing value - invalid string");
  refused("{\"x\":1e999}", ":1: expected JSON");
  refused("{\"y\":1}", ": [json.exception.out_of_range.403] key 'x' not found");
  refused("{\"x\":\"one\"}", ": [json.exception.type_error.302] type must be number, but is string");
  refused(std::string(100'000, '['), ":100001: expected JSON");
}

TEST_CASE("lines are what Python's json reads from the same file", "[dataset]") {
  const Folder folder;
  accel::testing::run_python(folder, R"(
import json
with open('f', 'w') as f:
    for i in range(100):
        f.write(json.dumps({'x': i, 'text': 'ü\n"' * (i % 7), 'list': [0.1 * i, None, True]}, ensure_ascii=i % 2 == 0) + '\n')
)");
  CHECK(xs_of({folder / "f"}).size() == 100);
  const JsonLines lines({folder / "f"}, x_of);
  for (std::size_t i = 0; i < 100; ++i) {
    std::string text;
    for (std::size_t k = 0; k < i % 7; ++k) text += "ü\n\"";
    CHECK(lines.json(i) ==
          nlohmann::json{{"x", i}, {"text", text}, {"list", {0.1 * static_cast<double>(i), nullptr, true}}});
  }
}

TEST_CASE("a stream of lines goes on where it was saved, at every row", "[dataset]") {
  const Folder folder;
  put(folder / "a", "\xEF\xBB\xBF{\"x\":0}\n\n{\"x\":1}\r\n");
  put(folder / "b", "\n");
  put(folder / "c", "{\"x\":2}\n{\"x\":3}");
  const std::vector<std::filesystem::path> files{folder / "a", folder / "b", folder / "c"};
  for (int done = 0; done <= 4; ++done) {
    JsonLinesStream before(files, x_of), after(files, x_of);
    for (int i = 0; i < done; ++i) CHECK(before.next() == i);
    after.load_state_dict(before.state_dict());
    for (int i = done; i < 4; ++i) CHECK(after.next() == i);
    CHECK(!after.next());
    JsonLinesStream skipped(files, x_of);
    skipped.skip(done);
    CHECK(skipped.next() == (done < 4 ? std::optional(done) : std::nullopt));
  }
  JsonLinesStream rank({files}, x_of, {.shard = 1, .shards = 3});
  CHECK(!rank.next());
  CHECK_THROWS_AS(rank.load_state_dict(JsonLinesStream(files, x_of).state_dict()), CheckpointError);
  JsonLinesStream moved(files, x_of);
  moved.skip(1);
  const auto state = moved.state_dict();
  put(folder / "a", "{\"x\": 10000000}\n");
  JsonLinesStream other(files, x_of);
  other.load_state_dict(state);
  CHECK_THROWS_MATCHES(other.next(), DataError,
                       MessageMatches(ContainsSubstring("expected a line to begin at offset")));
}

TEST_CASE("a file of lines that shrank is an error, not a crash", "[dataset]") {
  const Folder folder;
  put(folder / "f", "{\"x\":1}\n" + std::string(10000, ' ') + "\n{\"x\":2}\n");
  const JsonLines lines({folder / "f"}, x_of);
  CHECK(lines.size() == 2);
  std::filesystem::resize_file(folder / "f", 3);
  CHECK_THROWS_AS(lines.get(1), DataError);
  CHECK_THROWS_AS(lines.get(2), InvalidArgument);
}
