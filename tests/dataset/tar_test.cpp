// Tar, TarStream: archives as people write them, and as nobody should.
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/dataset/tar.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "files.hpp"

using accel::CheckpointError;
using accel::DataError;
using accel::InvalidArgument;
using accel::dataset::Tar;
using accel::dataset::TarSample;
using accel::dataset::TarStream;
using accel::testing::Folder;
using accel::testing::put;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Paths = std::vector<std::filesystem::path>;

namespace {

std::string octal(std::uint64_t number, std::size_t width) {
  std::ostringstream text;
  text << std::oct << number;
  return std::string(width - 1 - text.str().size(), '0') + text.str() + '\0';
}

/// Replaces the field at `offset` and sums up again.
std::string with_field(std::string block, std::size_t offset, std::string_view field) {
  block.replace(offset, field.size(), field);
  block.replace(148, 8, "        ");
  std::uint64_t sum = 0;
  for (const char c : block.substr(0, 512)) sum += static_cast<unsigned char>(c);
  return block.replace(148, 8, octal(sum, 7) + " ");
}

/// A member as POSIX has it, its data behind it.
std::string tar_member(std::string_view name, std::string_view data, char type = '0') {
  std::string block(512, '\0');
  block.replace(0, name.size(), name);
  block.replace(100, 8, octal(0644, 8));
  block.replace(124, 12, octal(data.size(), 12));
  block.replace(136, 12, octal(0, 12));
  block[156] = type;
  block = with_field(std::move(block), 257, std::string_view("ustar\00000", 8));
  block.append(data);
  return block.append((512 - data.size() % 512) % 512, '\0');
}

const std::string tar_end(1024, '\0');

/// `length key=value\n`
std::string tar_record(const std::string& key, const std::string& value) {
  std::size_t length = key.size() + value.size() + 3;
  while (std::to_string(length).size() + key.size() + value.size() + 3 != length) ++length;
  return std::to_string(length) + " " + key + "=" + value + "\n";
}

/// `key: extension=content ...` of a sample.
std::string described(const TarSample& sample) {
  std::string text = sample.key + ":";
  for (const auto& [extension, bytes] : sample.fields)
    text += " " + extension + "=" + std::string(sample.text(extension));
  return text;
}

std::vector<std::string> all_of(const Paths& shards) {
  const Tar tar(shards, described);
  std::vector<std::string> samples;
  for (std::size_t row = 0; row < tar.size(); ++row) samples.push_back(tar.get(row));
  // In order is the same, one way as the other.
  TarStream stream(shards, described);
  for (const auto& sample : samples) CHECK(stream.next() == sample);
  CHECK(!stream.next());
  return samples;
}

template <class Stream>
std::vector<std::string> rest_of(Stream& stream) {
  std::vector<std::string> rows;
  while (auto row = stream.next()) rows.push_back(*row);
  return rows;
}

}  // namespace

TEST_CASE("archives of every kind that Python writes give the samples that were put in", "[dataset]") {
  const Folder folder;
  accel::testing::run_python(folder, R"(
import io, tarfile
long = 'deep/' * 30 + 'n' * 120
files = [('a/1.txt', b'one'), ('a/1.CLS', b'7'), ('a/2.seg.txt', b''), ('a/2.txt', b'x' * 512),
         (long + '.txt', b'long'), (long + '.cls', b'y' * 513), ('bär/ß.txt', 'ü'.encode())]
for name, format in [('ustar', tarfile.USTAR_FORMAT), ('gnu', tarfile.GNU_FORMAT), ('pax', tarfile.PAX_FORMAT)]:
    with tarfile.open(f'{name}.tar', 'w', format=format, encoding='utf-8',
                      pax_headers={'comment': 'of all'} if name == 'pax' else None) as tar:
        folder = tarfile.TarInfo('a'); folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for path, data in files:
            if name == 'ustar' and len(path) > 200: path = path.replace('n' * 120, 'n' * 90)
            info = tarfile.TarInfo(path); info.size = len(data); info.mtime = 1.5 if name == 'pax' else 1
            tar.addfile(info, io.BytesIO(data))
        for path in ['README', 'a/.hidden.txt']: tar.addfile(tarfile.TarInfo(path))
with tarfile.open('empty.tar', 'w'): pass
)");
  const auto samples = [](const std::string& name) {
    std::string deep;
    for (int i = 0; i < 30; ++i) deep += "deep/";
    return std::vector<std::string>{"a/1: cls=7 txt=one", "a/2: seg.txt= txt=" + std::string(512, 'x'),
                                    deep + name + ": cls=" + std::string(513, 'y') + " txt=long", "bär/ß: txt=ü"};
  };
  CHECK(all_of({folder / "gnu.tar"}) == samples(std::string(120, 'n')));
  CHECK(all_of({folder / "pax.tar"}) == samples(std::string(120, 'n')));
  CHECK(all_of({folder / "ustar.tar"}) == samples(std::string(90, 'n')));
  CHECK(all_of({folder / "empty.tar"}).empty());
  CHECK(all_of({folder / "empty.tar", folder / "gnu.tar", folder / "empty.tar", folder / "pax.tar"}).size() == 8);
}

TEST_CASE("sizes in octal, in base 256 and in pax records are read alike", "[dataset]") {
  const Folder folder;
  const auto plain = tar_member("a.txt", "12345");
  const auto base256 = with_field(plain, 124, std::string_view("\x80\0\0\0\0\0\0\0\0\0\0\5", 12));
  const auto blanks = with_field(plain, 124, "      5     ");
  const auto in_record =
      tar_member("x", tar_record("size", "5") + tar_record("mtime", "1.5"), 'x') + with_field(plain, 124, octal(0, 12));
  for (const auto& member : {plain, base256, blanks, in_record}) {
    put(folder / "f", member + tar_end);
    CHECK(all_of({folder / "f"}) == std::vector<std::string>{"a: txt=12345"});
  }
}

TEST_CASE("what old programs wrote is read: no magic, signed sums, folders by their slash", "[dataset]") {
  const Folder folder;
  const auto v7 = [](std::string_view name) {
    return with_field(with_field(tar_member(name, ""), 257, std::string(8, '\0')), 156, std::string(1, '\0'));
  };
  auto is_signed = tar_member("\xFC.txt", "u");
  is_signed.replace(148, 8, [&] {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? ' ' : static_cast<signed char>(is_signed[i]);
    return octal(static_cast<std::uint64_t>(sum), 7) + " ";
  }());
  put(folder / "f", v7("folder.d/") + v7("a.txt") + is_signed + tar_end);
  CHECK(all_of({folder / "f"}) == std::vector<std::string>{"a: txt=", "\xFC: txt=u"});
}

TEST_CASE("the key ends at the first dot of the last name, as in WebDataset", "[dataset]") {
  using accel::dataset::detail::key_and_extension;
  using Names = std::pair<std::string, std::string>;
  CHECK(key_and_extension("a.jpg") == Names("a", "jpg"));
  CHECK(key_and_extension("./v1.2/a.seg.PNG") == Names("./v1.2/a", "seg.png"));
  CHECK(key_and_extension("a.") == Names("a", ""));
  CHECK(!key_and_extension("a"));
  CHECK(!key_and_extension("v1.2/a"));
  CHECK(!key_and_extension("v1.2/.a.jpg"));
  CHECK(!key_and_extension(""));
}

TEST_CASE("an archive that would lose a part of a sample is refused with offset and remedy", "[dataset]") {
  const Folder folder;
  const auto good = tar_member("a.txt", "x");
  const auto refused = [&](const std::string& bytes, const std::string& text) {
    put(folder / "f", bytes);
    INFO(text);
    CHECK_THROWS_MATCHES(Tar({folder / "f"}, described), DataError,
                         MessageMatches(ContainsSubstring("f: ") && ContainsSubstring(text)));
    CHECK_THROWS_AS(all_of({folder / "f"}), DataError);
    TarStream stream({folder / "f"}, described);
    CHECK_THROWS_MATCHES(rest_of(stream), DataError, MessageMatches(ContainsSubstring(text)));
  };
  refused("", "expected a member or the two blocks of zeros that end an archive at offset 0, found the end");
  refused(good, "at offset 1024, found the end of the file; it is cut short");
  refused(good + tar_end + "more", "expected zeros behind the end of the archive at offset 2048, found more");
  refused(good + tar_end + good + tar_end, "put together with tar --concatenate, not with cat");
  refused("PK" + std::string(510, 'x'), "not a tar archive, or damaged");
  refused(with_field(good, 0, "b").replace(0, 1, "a"), "expected a header with the checksum ");
  refused("\x1F\x8B\x08", "a compressed one; unpack it with gunzip");
  refused(with_field(good, 124, "77777777777"), "expected 8589934591 bytes at offset 512");
  refused(with_field(good, 124, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
          "expected a size, octal or in base 256, below 2^63");
  refused(with_field(good, 124, "\x80\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
          "expected a size, octal or in base 256, below 2^63");
  refused(with_field(good, 124, "00000000009\0"), "at offset 124, found \"00000000009");
  refused(tar_member("a.jpg", "", '1') + tar_end, "the hard link; archive with --hard-dereference: \"a.jpg\"");
  refused(tar_member("a.jpg", "", '2') + tar_end, "the symbolic link; archive with --dereference: \"a.jpg\"");
  refused(tar_member("a.jpg", "", 'S') + tar_end, "archive without --sparse");
  refused(tar_member("a.jpg", "", '3') + tar_end, "type \"3\": \"a.jpg\"");
  refused(tar_member("p", tar_record("GNU.sparse.major", "1"), 'x') + good + tar_end, "a sparse one");
  refused(tar_member("p", tar_record("path", "b.txt"), 'g') + good + tar_end, "of one member only");
  refused(tar_member("p", "9 path=b", 'x') + good + tar_end, "expected a record `length key=value` at offset 512");
  refused(tar_member("p", "99999999999999999999 path=b\n", 'x') + good + tar_end, "expected a record");
  refused(tar_member("p", "2 \n", 'x') + good + tar_end, "expected a record");
  refused(tar_member("p", "7 path\n", 'x') + good + tar_end, "expected a record");
  refused(tar_member("p", tar_record("size", "-1"), 'x') + good + tar_end, "expected a size");
  refused(tar_member("p", tar_record("size", "99999999999999"), 'x') + good + tar_end, "expected 99999999999999 bytes");
  refused(tar_member("L", "b.txt", 'L') + tar_end, "the member that a long name announces");
  refused(tar_member("L", std::string((1 << 20) + 1, 'n'), 'L') + good + tar_end, "at most 1048576 bytes");
  refused(good + good + tar_end, "expected a file of sample \"a\" once, found \"txt\" again at offset 1024");
  refused(good + tar_member("b.txt", "") + tar_member("a.cls", "") + tar_end,
          "expected the files of sample \"a\" side by side, found more of them at offset 1536; archive with --sort");
}

TEST_CASE("fifty thousand folders in an archive are passed over, not recursed into", "[dataset]") {
  const Folder folder;
  const auto directory = tar_member("d/", "", '5');
  std::string bytes;
  for (int i = 0; i < 50'000; ++i) bytes += directory;
  put(folder / "f", bytes + tar_member("a.txt", "x") + tar_end);
  CHECK(all_of({folder / "f"}).size() == 1);
}

TEST_CASE("an archive that is cut short is refused, one with damaged headers refused or read", "[dataset]") {
  const Folder folder;
  const auto whole = tar_member("p", tar_record("path", "a.txt"), 'x') + tar_member("a", "some text") +
                     tar_member("L", "b.txt", 'L') + tar_member("b", "") + tar_member("b.cls", "1") +
                     std::string(512, '\0');
  const auto read = [&] {
    std::size_t size = 0;
    const Tar tar({folder / "f"}, described);
    for (std::size_t row = 0; row < tar.size(); ++row) size += tar.get(row).size();
    if (size == 0) throw DataError("nothing left");
  };
  put(folder / "f", whole);
  read();
  CHECK(accel::testing::damage(folder / "f", whole, whole.size(), 3000, read) > 2000);
}

TEST_CASE("what decode throws names the shard, the sample and its offset", "[dataset]") {
  const Folder folder;
  put(folder / "f", tar_member("a.txt", "x") + tar_member("b.cls", "seven") + tar_end);
  const Tar texts({folder / "f"}, [](const TarSample& sample) { return std::string(sample.text("txt")); });
  CHECK(texts.get(0) == "x");
  CHECK_THROWS_MATCHES(
      texts.get(1), DataError,
      MessageMatches(ContainsSubstring("f: sample \"b\" at offset 1024: expected a file \"txt\", found \"cls\"")));
  const Tar numbers({folder / "f"}, [](const TarSample& sample) { return std::stoi(std::string(sample.text("cls"))); });
  CHECK_THROWS_MATCHES(numbers.get(1), DataError,
                       MessageMatches(ContainsSubstring("sample \"b\" at offset 1024: stoi")));
  CHECK_THROWS_AS(texts.get(2), InvalidArgument);
  CHECK_THROWS_AS(Tar({folder / "none"}, described), DataError);
  std::filesystem::resize_file(folder / "f", 512);
  CHECK_THROWS_MATCHES(texts.get(1), DataError, MessageMatches(ContainsSubstring("as when it was opened, found 512")));
}

TEST_CASE("decode may take a random stream, and a sample gives its bytes as a tensor", "[dataset]") {
  const Folder folder;
  put(folder / "f", tar_member("a.bin", std::string("\1\2\xFF", 3)) + tar_member("b.bin", "") + tar_end);
  const Tar tar({folder / "f"}, [](const TarSample& sample, at::Generator& random) {
    return std::pair{sample.tensor("bin"), at::randint(1000, {1}, random, at::kLong)};
  });
  auto random = at::detail::createCPUGenerator(3), same = at::detail::createCPUGenerator(3);
  const auto [bytes, drawn] = tar.get(0, random);
  CHECK(bytes.equal(torch::tensor({1, 2, 255}, torch::kByte)));
  CHECK(drawn.equal(torch::randint(1000, {1}, same, torch::kLong)));
  CHECK(tar.get(1, random).first.sizes() == at::IntArrayRef({0}));
}

TEST_CASE("ranks read each shard once in an epoch, in an order that seed and epoch decide", "[dataset]") {
  const Folder folder;
  Paths shards;
  for (int shard = 0; shard < 7; ++shard) {
    std::string bytes;
    for (int i = 0; i <= shard; ++i) bytes += tar_member(accel::message(shard, "-", i, ".txt"), "");
    shards.push_back(folder / std::to_string(shard));
    put(shards.back(), bytes + tar_end);
  }
  const auto key = [](const TarSample& sample) { return sample.key; };
  std::set<std::vector<std::string>> orders;
  for (const int ranks : {1, 2, 3, 7}) {
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::string> all;
      for (int rank = 0; rank < ranks; ++rank) {
        TarStream stream(shards, key, {.shuffle = true, .seed = 5, .shard = rank, .shards = ranks});
        stream.start(epoch);
        const auto mine = rest_of(stream);
        CHECK(!stream.next());
        all.insert(all.end(), mine.begin(), mine.end());
        stream.start(epoch);
        CHECK(rest_of(stream) == mine);
      }
      if (ranks == 1) orders.insert(all);
      CHECK(all.size() == 28);
      CHECK(std::set<std::string>(all.begin(), all.end()).size() == 28);
    }
  }
  CHECK(orders.size() == 3);
  CHECK_THROWS_MATCHES(
      (TarStream(shards, key, {.shards = 8})), InvalidArgument,
      MessageMatches(ContainsSubstring("expected at least one for each of 8 shards (ranks), found 7")));
  CHECK_THROWS_AS((TarStream(shards, key, {.shard = 2, .shards = 2})), InvalidArgument);
  CHECK_THROWS_AS((TarStream(Paths{}, key)), InvalidArgument);
}

TEST_CASE("a stream of shards goes on where it was saved, at every row", "[dataset]") {
  const Folder folder;
  Paths shards;
  for (const std::string name : {"x", "y", "z"}) {
    std::string bytes = tar_member("README", "of " + name);
    for (int i = 0; i < 3 && name != "y"; ++i)
      bytes += tar_member("L", name + std::to_string(i) + ".txt", 'L') + tar_member("short", "data") +
               tar_member(name + std::to_string(i) + ".cls", "");
    shards.push_back(folder / name);
    put(shards.back(), bytes + tar_member("LICENSE", "") + tar_end);
  }
  const accel::dataset::StreamOptions options{.shuffle = true, .seed = 1};
  TarStream whole(shards, described, options);
  whole.start(4);
  const auto rows = rest_of(whole);
  REQUIRE(rows.size() == 6);
  for (std::size_t done = 0; done <= rows.size(); ++done) {
    TarStream before(shards, described, options), after(shards, described, options);
    before.start(4);
    if (done % 2 == 0) before.skip(static_cast<std::int64_t>(done));
    for (std::size_t i = 0; done % 2 == 1 && i < done; ++i) CHECK(before.next() == rows[i]);
    after.load_state_dict(before.state_dict());
    CHECK(rest_of(after) == std::vector(rows.begin() + static_cast<std::ptrdiff_t>(done), rows.end()));
    CHECK(after.state_dict().integer("row") == 6);
  }
  whole.skip(100);
  CHECK(!whole.next());
  TarStream other(shards, described, {.shuffle = true, .seed = 2});
  CHECK_THROWS_MATCHES(other.load_state_dict(whole.state_dict()), CheckpointError,
                       MessageMatches(ContainsSubstring("expected seed = 2, as this stream has it, found 1")));
}

TEST_CASE("threads that read the same shards read the same samples", "[dataset]") {
  const Folder folder;
  std::string bytes;
  for (int i = 0; i < 500; ++i)
    bytes += tar_member(std::to_string(i) + ".txt", std::string(static_cast<std::size_t>(i), 'x'));
  put(folder / "f", bytes + tar_end);
  const Tar tar({folder / "f"}, [](const TarSample& sample) { return sample.text("txt").size(); });
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (auto& count : wrong)
    threads.emplace_back([&] {
      for (std::size_t row = 0; row < 500; ++row) count += tar.get(row) == row ? 0 : 1;
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
}

TEST_CASE("indexing shards shows how far it has come", "[dataset]") {
  const Folder folder;
  put(folder / "f", tar_member("a.txt", "") + tar_member("b.txt", "") + tar_end);
  std::vector<std::string> lines;
  std::chrono::steady_clock::time_point now{};
  const Tar tar({folder / "f"}, described,
                {.show = [&](const std::string& line) { lines.push_back(line); },
                 .now = [&] { return now += std::chrono::seconds(2); }});
  CHECK(lines == std::vector<std::string>{"indexing " + (folder / "f").string() + ": 0.5 of 2.0 kB",
                                          "indexing " + (folder / "f").string() + ": 1.0 of 2.0 kB"});
}
