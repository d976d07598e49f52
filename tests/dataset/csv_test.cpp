// Csv: tables as people have them, and what is refused.
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/csv.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::Csv;
using accel::dataset::CsvOptions;
using accel::dataset::Missing;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

TEST_CASE("a table is read the same whatever ends its lines, surrounds its fields or stands before it", "[dataset]") {
  const Folder folder;
  const auto expected = torch::tensor({{1.F, 2.5F}, {-3.F, 4e2F}});
  for (const std::string text : {"a,b\n1,2.5\n-3,4e2\n", "a,b\n1,2.5\n-3,4e2", "a,b\r\n1,2.5\r\n-3,4e2\r\n",
                                 "\xEF\xBB\xBF"
                                 "a,b\n1,2.5\n-3,4e2\n",
                                 "\n\na,b\n \n1,2.5\n\t\r\n\n-3,4e2\n\n",
                                 "\"a\",\"b\"\n\"1\",\"2.5\"\n\"-3\",\"4e2\"\n", "a , b\n 1,\t2.5 \n -3 , +4e2\n",
                                 "\"a\" ,\"b\"\r\n \"1\" , \"2.5\"\r\n-3,\"4e2\"", "a,b\n1.0,25e-1\n-3.,400.000"}) {
    INFO(text);
    put(folder / "f", text);
    const Csv table(folder / "f");
    CHECK(table.data().equal(expected));
    CHECK(table.names() == std::vector<std::string>{"a", "b"});
    CHECK(!table.target().defined());
    CHECK(table.size() == 2);
    CHECK(table.get(1).data.equal(expected[1]));
    CHECK(table.get_batch({1, 0, 1}).data.equal(torch::stack({expected[1], expected[0], expected[1]})));
  }
}

TEST_CASE("reading a table shows how far it has come", "[dataset]") {
  const Folder folder;
  put(folder / "f", "a\n10\n20\n");
  std::vector<std::string> lines;
  std::chrono::steady_clock::time_point now{};
  const Csv table(folder / "f", {.progress = {.show = [&](const std::string& line) { lines.push_back(line); },
                                              .now = [&] { return now += std::chrono::seconds(2); }}});
  CHECK(table.size() == 2);
  REQUIRE(lines.size() >= 2);
  CHECK(lines.back() == "reading " + (folder / "f").string() + ": 8 of 8 B");
}

TEST_CASE("columns are chosen by name or by number, and what others hold does not matter", "[dataset]") {
  const Folder folder;
  put(folder / "f",
      "name,\"weight, kg\",year,\"say \"\"mpg\"\"\"\n"
      "\"a \"\"car\"\",\nof two lines\",1000.5,1970,18\n"
      "b,,1971,19\n"
      "c,1200,1972,20\n");
  const Csv named(folder / "f",
                  {.columns = {"year", "weight, kg"}, .target = {"say \"mpg\""}, .missing = Missing::drop_row});
  CHECK(named.data().equal(torch::tensor({{1970.F, 1000.5F}, {1972.F, 1200.F}})));
  CHECK(named.target().equal(torch::tensor({18, 20})));
  CHECK(named.names() == std::vector<std::string>{"year", "weight, kg"});
  CHECK(named.dropped() == 1);
  CHECK(named.get(1).target.equal(torch::tensor(20)));

  const Csv numbered(folder / "f", {.header = true,
                                    .columns = {2},
                                    .target = {-1, 2 - 1},
                                    .dtype = torch::kLong,
                                    .target_dtype = torch::kDouble,
                                    .missing = Missing::nan});
  CHECK(numbered.data().equal(torch::tensor({{1970}, {1971}, {1972}})));
  CHECK(numbered.target().sizes() == at::IntArrayRef({3, 2}));
  CHECK(
      numbered.target().nan_to_num(-1).equal(torch::tensor({{18., 1000.5}, {19., -1.}, {20., 1200.}}, torch::kDouble)));

  put(folder / "f", "5.1,3.5,setosa\n4.9,3,setosa\n");
  const Csv rest(folder / "f", {.header = false, .columns = {0, 1}});
  CHECK(rest.data().equal(torch::tensor({{5.1F, 3.5F}, {4.9F, 3.F}})));
  put(folder / "f", "3\t1.5\t2\n4\t2.5\t5\n");
  const Csv tabs(folder / "f", {.delimiter = '\t', .header = false, .target = {0}});
  CHECK(tabs.data().equal(torch::tensor({{1.5F, 2.F}, {2.5F, 5.F}})));
  CHECK(tabs.target().equal(torch::tensor({3, 4})));
}

TEST_CASE("a first line that could be names or numbers is asked about, never lost", "[dataset]") {
  const Folder folder;
  const auto refused = [&](const std::string& text) {
    put(folder / "f", text);
    CHECK_THROWS_MATCHES(Csv(folder / "f"), DataError, MessageMatches(ContainsSubstring("say what it holds, found ")));
    CHECK(Csv(folder / "f", {.header = false, .columns = {0}}).size() == 2);
    CHECK(Csv(folder / "f", {.header = true, .columns = {0}}).size() == 1);
  };
  refused("1,2\n3,4\n");
  refused("1,x\n3,y\n");
  refused("1,\n3,4\n");
  put(folder / "f", "x,1\n3,4\n");
  CHECK_THROWS_AS(Csv(folder / "f", {.columns = {1}}), DataError);
  CHECK(Csv(folder / "f", {.columns = {"x"}}).data().equal(torch::tensor({{3.F}})));
  CHECK_THROWS_MATCHES(Csv(folder / "f", {.header = false, .columns = {"x"}}), InvalidArgument,
                       MessageMatches(ContainsSubstring("found one by name")));
}

TEST_CASE("what is no table of numbers is refused with file, line and column", "[dataset]") {
  const Folder folder;
  const auto refused = [&](const std::string& text, const std::string& message, CsvOptions options = {}) {
    put(folder / "f", text);
    INFO(text);
    CHECK_THROWS_MATCHES(Csv(folder / "f", std::move(options)), DataError,
                         MessageMatches(ContainsSubstring("f:" + message)));
  };
  refused("", " expected a line, found none");
  refused("\n \n", " expected a line, found none");
  refused("a,b\n1,2\n3\n", "3:2: expected 2 fields, as in the first line, found 1");
  refused("a,b\n\n1,2,3\n", "3:5: expected 2 fields, as in the first line, found 3");
  refused("a,b\n1,2,\n", "2:5: expected 2 fields, as in the first line, found 3");
  refused("a,b\n1,x2\n", "2:3: expected a number that f32 holds, found \"x2\"");
  refused("a,b\n1, 2 3 \n", "2:4: expected a number that f32 holds, found \"2 3\"");
  refused("a,b\n1,0x10\n", "2:3: expected a number that f32 holds, found \"0x10\"");
  refused("a,b\n1,1e39\n", "2:3: expected a number that f32 holds, found \"1e39\"");
  refused("a,b\n1,+-2\n", "2:3: expected a number");
  refused("a,b\n1,2,5\n3,4\n", "2:5: expected 2 fields");  // a decimal comma
  refused("a,b\r\n1,\r\n", "2:3: expected a number, found nothing; .missing says what becomes of a value");
  refused("a,b\n1,NaN\n", "2:3: expected a number, found \"NaN\"");
  refused("a,b\n1,\"2\n", "2:3: expected a quote at the end of this field, found none");
  refused("a,b\n1,\"2\"3\n", "2:6: expected a delimiter or the end of the line behind a quoted field, found \"3\"");
  refused("a,b\n1,2\"\n", "2:4: expected quotes around a whole field or none, found one within it");
  refused("a,b\n\"x\ny\",1\n2,z\n", "2:2: expected a number that f32 holds, found \"x\\x0Ay\"");
  refused("a,b\n\"1\",\"1\n\"\n2,z\n", "2:6: expected a number that f32 holds, found \"1\\x0A\"");
  refused("a,b\n1,2.5\n", "2:3: expected a whole number that i64 holds, found \"2.5\"; .dtype", {.target = {"b"}});
  refused("a,b\n1,99999999999999999999\n", "2:3: expected a whole number", {.target = {"b"}});
  refused("a,b\n1,NA\n", "2:3: expected a number, found \"NA\"", {.target = {"b"}, .missing = Missing::nan});
  refused("a,b\n1,2\n", "1:1: expected a column \"c\" once, found 0 of it among \"a\", \"b\"", {.target = {"c"}});
  refused("a,a\n1,2\n", "1:1: expected a column \"a\" once, found 2 of it", {.target = {"a"}});
  refused("a,b\n1,2\n", "1:3: expected a column 2, found 2 columns", {.target = {2}});
  refused("a,b\n1,2\n", "1:3: expected a column -3, found 2 columns", {.target = {-3}});
  put(folder / "f", "a,b\n1,2\n");
  CHECK_THROWS_AS(Csv(folder / "f", {.columns = {"a"}, .target = {"a"}}), InvalidArgument);
  CHECK_THROWS_AS(Csv(folder / "f", {.target = {0, 1}}), InvalidArgument);
  CHECK_THROWS_AS(Csv(folder / "f", {.dtype = torch::kHalf}), InvalidArgument);
  CHECK_THROWS_AS(Csv(folder / "f", {.delimiter = '"'}), InvalidArgument);
}

TEST_CASE("missing values are what the policy says", "[dataset]") {
  const Folder folder;
  put(folder / "f", "a,b,c\n1,,3\nNA,n/a,\"\"\n4,5,null\n7,8,9\n");
  const auto with = [&](Missing missing) {
    return Csv(folder / "f", {.columns = {"a", "b"}, .target = {"c"}, .target_dtype = at::kDouble, .missing = missing});
  };
  CHECK(with(Missing::zero).data().equal(torch::tensor({{1.F, 0.F}, {0.F, 0.F}, {4.F, 5.F}, {7.F, 8.F}})));
  CHECK(with(Missing::zero).target().equal(torch::tensor({3., 0., 0., 9.}, torch::kDouble)));
  CHECK(with(Missing::nan)
            .data()
            .isnan()
            .equal(torch::tensor({{false, true}, {true, true}, {false, false}, {false, false}})));
  CHECK(with(Missing::drop_row).data().equal(torch::tensor({{7.F, 8.F}})));
  CHECK(with(Missing::drop_row).target().equal(torch::tensor({9.}, torch::kDouble)));
  CHECK(with(Missing::drop_row).dropped() == 3);
}

TEST_CASE("numbers are read to the nearest of their dtype, at both ends of its range", "[dataset]") {
  using accel::dataset::detail::floating;
  using accel::dataset::detail::whole;
  CHECK(floating<float>("0.1") == 0.1F);
  CHECK(floating<float>("3.4028235e38") == std::numeric_limits<float>::max());
  CHECK(floating<float>("-3.4028235e38") == std::numeric_limits<float>::lowest());
  CHECK(!floating<float>("3.5e38"));
  CHECK(floating<float>("1e-45") == std::numeric_limits<float>::denorm_min());
  CHECK(floating<float>("1e-46") == 0.F);
  CHECK(floating<float>("1e-400") == 0.F);
  CHECK(floating<double>("1e-400") == 0.);
  CHECK(floating<double>("-1e-5000") == 0.);
  CHECK(floating<double>("5e-324") == std::numeric_limits<double>::denorm_min());
  CHECK(!floating<double>("1e309"));
  CHECK(!floating<double>("1e5000"));
  CHECK(floating<double>("inf") == std::numeric_limits<double>::infinity());
  CHECK(!floating<double>("nan"));
  CHECK(!floating<double>(""));
  CHECK(!floating<double>("+"));
  CHECK(!floating<double>("1,5"));
  CHECK(whole("-9223372036854775808") == std::numeric_limits<std::int64_t>::min());
  CHECK(!whole("9223372036854775808"));
  CHECK(whole("3.0") == 3);
  CHECK(whole("1e3") == 1000);
  CHECK(!whole("1e17"));
  CHECK(!whole("inf"));
  CHECK(!whole(""));
  CHECK(!whole("3.5"));
}

TEST_CASE("a table of digits is what NumPy reads from it, bit for bit", "[dataset]") {
  const Folder folder;
  accel::testing::run_python(folder, R"(
import csv, numpy as np
rng = np.random.default_rng(1)
values = (rng.standard_normal((500, 7)) * 10.0 ** rng.integers(-30, 30, (500, 7)))
labels = rng.integers(-2**62, 2**62, 500)
with open('f', 'w', newline='') as f:
    out = csv.writer(f, quoting=csv.QUOTE_NONNUMERIC)
    out.writerow([f'column {i}, "{i}"' for i in range(7)] + ['label', 'note'])
    for row, label in zip(values.tolist(), labels.tolist()): out.writerow(row + [label, 'a "note",\nlonger\r\n'])
np.save('values', values); np.save('labels', labels)
)");
  const auto raw = [](const torch::Tensor& tensor) {
    return std::string(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  };
  const Csv table(folder / "f",
                  {.columns = {0, 1, 2, 3, 4, 5, "column 6, \"6\""}, .target = {"label"}, .dtype = torch::kDouble});
  const auto values = accel::testing::bytes_of(folder / "values.npy");
  const auto labels = accel::testing::bytes_of(folder / "labels.npy");
  CHECK(raw(table.data()) == values.substr(values.size() - table.data().nbytes()));
  CHECK(raw(table.target()) == labels.substr(labels.size() - table.target().nbytes()));
  CHECK(table.size() == 500);
}

TEST_CASE("a damaged table is refused or read, and never costs more than its size", "[dataset]") {
  const Folder folder;
  const std::string whole = "a,b,\"c\"\r\n1,2.5,\"3\"\r\n-4e2,,6\r\n\"7\",8,9\r\n";
  const auto read = [&](std::string bytes) {
    put(folder / "f", bytes);
    try {
      const Csv table(folder / "f", {.missing = Missing::nan});
      return table.data().nbytes() <= 4 * (bytes.size() + 1);
    } catch (const DataError&) {
      return true;
    }
  };
  for (std::size_t size = 0; size < whole.size(); ++size) CHECK(read(whole.substr(0, size)));
  std::mt19937 random(1);  // NOLINT: the same damage every time
  for (int i = 0; i < 3000; ++i) {
    auto bytes = whole;
    for (auto changes = 1 + random() % 3; changes > 0; --changes)
      bytes[random() % bytes.size()] =
          (random() % 2 == 0 ? static_cast<char>(random() % 256) : "\n\r\",1 "[random() % 6]);
    if (!read(bytes)) FAIL_CHECK(bytes);
  }
}
