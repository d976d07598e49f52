// Saver and Reader: what ranks save comes back bit for bit, or an error says what is wrong and the older one is there.
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/core/mapped_file.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include "checkpoint/training.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

namespace {

namespace saver {

namespace fs = std::filesystem;
using accel::CheckpointError;
using accel::message;
using accel::checkpoint::Options;
using accel::checkpoint::Part;
using accel::checkpoint::Reader;
using accel::checkpoint::SaveHook;
using accel::checkpoint::Saver;
using accel::checkpoint::Sharing;
using accel::tensor::StateDict;
using accel::testing::Folder;
using accel::testing::Rank;
using accel::testing::thrown_by;
using accel::testing::checkpoints::check;
using accel::testing::checkpoints::on_ranks_in_folder;
using accel::testing::checkpoints::same_bits;
using accel::testing::checkpoints::Training;
using Catch::Matchers::ContainsSubstring;
using Group = accel::testing::Group<accel::backend::Gloo>;

TEST_CASE("what a saver has saved is what the parts were then, on every rank", "[saver]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    const fs::path place = saver.save(std::nullopt, training.parts(), 5, {}, {}, {});
    CHECK(place == base / "checkpoint_0");
    // The next step: it writes to the weights only when they are copied, and to the rest at once.
    training.random.fill_(99);
    training.rows = 99;
    saver.settle();
    training.weight.fill_(99);
    training.half.fill_(99);
    saver.wait();
    check(place, rank.rank, rank.world_size);
    // All have written: the two large tensors are not with the same rank.
    const Reader reader(place);
    CHECK(reader.manifest().files.size() == static_cast<std::size_t>(rank.world_size));
  });
}

TEST_CASE("checkpoints are numbered behind the newest, the oldest go, and one by name takes the place of another",
          "[saver]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    Training training(rank.rank);
    {
      Saver saver(group->control(), rank.rank, accel::Log(),
                  {.folder = base, .keep = {.total_limit = 2, .keep_every = 4}}, accel::Seconds(20));
      for (int i = 0; i < 7; ++i) (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {});
      saver.wait();
      (void)saver.save(base / "named", training.parts(), 1, {}, {}, {});
      (void)saver.save(base / "named", training.parts(), 5, {}, {}, {});
    }
    (void)group->control().all_gather("all are done", "", accel::Deadline::in(accel::Seconds(20)));
    std::vector<std::int64_t> numbers;
    for (const auto& one : accel::checkpoint::numbered_checkpoints(base)) numbers.push_back(one.number);
    CHECK(numbers == std::vector<std::int64_t>{0, 4, 5, 6});
    check(base / "named", rank.rank, rank.world_size);
    Saver next(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    CHECK(next.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {}) == base / "checkpoint_7");
    for (const auto& name : accel::names_in(base))
      CHECK(name.find(accel::checkpoint::detail::unfinished) == std::string::npos);
  });
}

TEST_CASE("a rank that cannot write makes the save fail on every rank, and the older checkpoint stays", "[saver]") {
  on_ranks_in_folder({2, 3}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    (void)saver.save(base / "last", training.parts(), 5, {}, {}, {});
    // A file in its way.
    const SaveHook in_the_way = [&](const accel::checkpoint::SaveEvent& event) {
      if (rank.rank == 1) std::ofstream(event.folder / "rank1.safetensors") << "mine";
    };
    training.rows = 13;
    const std::vector<SaveHook> before{in_the_way};
    (void)saver.save(base / "last", training.parts(), 6, {}, before, {});
    const std::string error = thrown_by<CheckpointError>([&] { saver.wait(); });
    CHECK_THAT(error,
               ContainsSubstring("rank 1") && ContainsSubstring("rank1.safetensors: cannot create it: File exists"));
    check(base / "last", rank.rank, rank.world_size);
    saver.wait();  // it is told once
    training.rows = 12;
    (void)saver.save(base / "last", training.parts(), 5, {.asynchronous = false}, {}, {});
    check(base / "last", rank.rank, rank.world_size);
  });
}

TEST_CASE("what is written to before it is copied is named, and copied at once the next time", "[saver]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    training.weight = torch::zeros({64 << 20 >> 2});  // 64 MB: not copied before it is written to
    training.half = torch::zeros({64 << 20 >> 1}, torch::kBFloat16);
    const auto write = [&] {
      training.half.add_(1);
      training.weight.add_(1);
    };
    (void)saver.save(base / "last", training.parts(), 5, {}, {}, {});
    write();
    const std::string error = thrown_by<CheckpointError>([&] { saver.wait(); });
    CHECK_THAT(error, ContainsSubstring(rank.world_size == 1 ? "model/half" : "model/") &&
                          ContainsSubstring("written to while that was copied"));
    // At two ranks each has one of the two.
    (void)saver.save(base / "last", training.parts(), 5, {}, {}, {});
    write();
    saver.wait();
    const Reader reader(base / "last");
    CHECK(same_bits(reader.part("model", rank.rank)->own().tensor("weight"), torch::ones({64 << 20 >> 2})));
  });
}

TEST_CASE("a hook that throws on one rank throws on all, and the checkpoint is there", "[saver]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    const int last = rank.world_size - 1;
    const auto hooks = [&](auto what) {
      return std::vector<SaveHook>{[=](const accel::checkpoint::SaveEvent&) {
        if (rank.rank == last) throw what;
      }};
    };
    const auto after = hooks(std::runtime_error("no upload"));
    std::string error = thrown_by<std::runtime_error>(
        [&] { (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, after); });
    CHECK_THAT(error, ContainsSubstring("no upload"));
    if (rank.rank != last) CHECK_THAT(error, ContainsSubstring(message("save_state failed on rank ", last)));
    check(base / "checkpoint_0", rank.rank, rank.world_size);
    // In the background the next save tells it.
    (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, after);
    error = thrown_by<CheckpointError>([&] { (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {}); });
    CHECK_THAT(error, ContainsSubstring(message("save_state: rank ", last, ": no upload")));
    check(base / "checkpoint_1", rank.rank, rank.world_size);
    // Before the save it ends it, whatever it throws.
    const auto before = hooks(7);
    CHECK_THAT(thrown_by<CheckpointError>([&] { (void)saver.save(std::nullopt, training.parts(), 5, {}, before, {}); }),
               ContainsSubstring(message("rank ", last, ": something that is no std::exception")));
    CHECK_FALSE(fs::exists(base / "checkpoint_2"));
    (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {});
    saver.wait();
    check(base / "checkpoint_2", rank.rank, rank.world_size);
  });
}

TEST_CASE("a checkpoint that is cut short while it is read is an error, and ends no process", "[saver]") {
  const Folder folder;
  Training training(0);
  training.weight = torch::ones({100'000});
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  const fs::path place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
  const Reader reader(place);
  reader.verify();
  const fs::path file = place / "rank0.safetensors";
  if (::madvise(const_cast<std::byte*>(accel::MappedFile(file).bytes().data()), 4096, MADV_POPULATE_READ) != 0)
    SKIP("this system is older than Linux 5.14");
  fs::resize_file(file, 100'000);
  CHECK_THAT(thrown_by<CheckpointError>([&] { reader.verify(); }),
             ContainsSubstring("rank0.safetensors: the disk fails, or the file was cut short, at tensor model/"));
}

TEST_CASE("what is kept of a checkpoint is in memory of its own, and holds longer than the checkpoint", "[saver]") {
  const Folder folder;
  Training training(0);
  training.weight = torch::rand({3'000'000});  // several pieces of work
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  const fs::path place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
  torch::Tensor kept;
  {
    Reader reader(place);
    reader.verify_and_keep(std::nullopt, {"model"});
    kept = reader.part("model", 0)->own().tensor("weight");
    CHECK(kept.is_same(reader.part("model", 0)->own().tensor("weight")));
    reader.verify_and_keep(std::nullopt, {"nothing of that name"});
    CHECK_FALSE(kept.is_same(reader.part("model", 0)->own().tensor("weight")));
  }
  fs::remove_all(place);
  CHECK(torch::equal(kept, training.weight));
  CHECK(kept.storage().use_count() == 1);
  kept.add_(1);
  CHECK(torch::equal(kept, training.weight + 1));
}

TEST_CASE("a place may have a name that is no UTF-8", "[saver]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    const fs::path place = base / "caf\xe9";
    for (int i = 0; i < 2; ++i) CHECK(saver.save(place, training.parts(), 5, {.asynchronous = false}, {}, {}) == place);
    check(place, rank.rank, rank.world_size);
  });
}

TEST_CASE("ranks that do not save the same are told which one differs", "[saver]") {
  on_ranks_in_folder({2}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    auto parts = training.parts();
    if (rank.rank == 1) parts.pop_back();
    CHECK_THAT(thrown_by<accel::InvalidArgument>([&] { (void)saver.save(base / "a", parts, 5, {}, {}, {}); }),
               ContainsSubstring("rank 0 has") && ContainsSubstring("\"random\""));
    if (rank.rank == 1) training.half = training.half.to(torch::kFloat);
    CHECK_THAT(
        thrown_by<accel::InvalidArgument>([&] { (void)saver.save(base / "a", training.parts(), 5, {}, {}, {}); }),
        ContainsSubstring("model has other tensors on rank 1 than on rank 0"));
    CHECK_FALSE(fs::exists(base / "a"));
  });
}

TEST_CASE("a second job that writes to the same folder is told who was there first", "[saver]") {
  const Folder folder;
  accel::launch::ControlPlane alone;
  Training training(0);
  Saver first(alone, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  (void)first.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
  {
    Saver second(alone, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
    CHECK_THAT(thrown_by<CheckpointError>([&] { (void)second.save(std::nullopt, training.parts(), 5, {}, {}, {}); }),
               ContainsSubstring("writes its checkpoints here") && ContainsSubstring("rank 0"));
  }
  {
    // By a name that is a number it would be among the first one's, too.
    Saver second(alone, 0, accel::Log(), {.folder = folder / "other"}, accel::Seconds(5));
    CHECK_THAT(thrown_by<CheckpointError>(
                   [&] { (void)second.save(folder / "checkpoint_9", training.parts(), 5, {}, {}, {}); }),
               ContainsSubstring("writes its checkpoints here"));
    (void)second.save(folder / "best", training.parts(), 5, {}, {}, {});
  }
  CHECK(accel::checkpoint::numbered_checkpoints(folder.path()).size() == 1);
}

TEST_CASE("a checkpoint that cannot be judged stays, and the others go; what is not finite is no metric", "[saver]") {
  const Folder folder;
  Training training(0);
  Saver saver({}, 0, accel::Log("", false, accel::Log::Level::off),
              {.folder = folder.path(), .keep = {.total_limit = 1, .keep_best = 1}}, accel::Seconds(5));
  const auto save = [&](double metric) {
    return saver.save(std::nullopt, training.parts(), 5, {.metric = metric, .asynchronous = false}, {}, {});
  };
  std::ofstream(save(0.5) / accel::checkpoint::manifest_file) << "scrambled";
  for (const double metric : {std::nan(""), 0.2, 0.3, std::numeric_limits<double>::infinity(), 0.4}) (void)save(metric);
  std::vector<std::int64_t> numbers;
  for (const auto& one : accel::checkpoint::numbered_checkpoints(folder.path())) numbers.push_back(one.number);
  CHECK(numbers == std::vector<std::int64_t>{0, 2, 5});
  CHECK_FALSE(Reader(save(-std::numeric_limits<double>::infinity())).manifest().metric.has_value());
}

TEST_CASE("what is no checkpoint, or not only one, is not replaced by one", "[saver]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    const auto save = [&](const fs::path& place) {
      return saver.save(place, training.parts(), 5, {.asynchronous = false}, {}, {});
    };
    (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    const auto refused = [&](const fs::path& place) { return thrown_by<CheckpointError>([&] { (void)save(place); }); };
    if (rank.rank == 0) {
      fs::create_directories(base / "logs");
      std::ofstream(base / "logs" / "today.txt") << "words";
      std::ofstream(base / "a_file") << "words";
      fs::create_directories(base / "empty");
    }
    CHECK_THAT(refused(base), ContainsSubstring("and that is none: it holds .checkpoints.lock"));
    CHECK_THAT(refused(base / "logs"), ContainsSubstring("and that is none: it holds today.txt"));
    CHECK_THAT(refused(base / "a_file"), ContainsSubstring("expected a folder, or nothing, found something else"));
    CHECK(save(base / "empty") == base / "empty");
    (void)save(base / "empty");
    if (rank.rank == 0) std::ofstream(base / "empty" / "mine.txt") << "words";
    CHECK_THAT(refused(base / "empty"), ContainsSubstring("mine.txt: it does not belong to the checkpoint there"));
    CHECK(fs::exists(base / "logs" / "today.txt"));
    check(base / "checkpoint_0", rank.rank, rank.world_size);
    check(base / "empty", rank.rank, rank.world_size);
    (void)group->control().all_gather("all have looked", "", accel::Deadline::in(accel::Seconds(20)));
  });
}

TEST_CASE("the best by a metric stay, and a save waits for the one before it", "[saver]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    Training training(rank.rank);
    Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base, .keep = {.total_limit = 1, .keep_best = 2}},
                accel::Seconds(20));
    std::atomic<int> ended = 0;  // the next save's thread may be there already
    const std::vector<SaveHook> after{[&](const accel::checkpoint::SaveEvent&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ++ended;
    }};
    int begun = 0;
    for (const double metric : {0.3, 0.1, 0.2, 0.4, 0.5}) {
      (void)saver.save(std::nullopt, training.parts(), 5, {.metric = metric}, {}, after);
      CHECK(ended == begun++);
    }
    saver.wait();
    CHECK(ended == 5);
    std::vector<std::int64_t> numbers;
    for (const auto& one : accel::checkpoint::numbered_checkpoints(base)) numbers.push_back(one.number);
    CHECK(numbers == std::vector<std::int64_t>{1, 2, 4});
    CHECK(Reader(base / "checkpoint_1").manifest().metric == 0.1);
    (void)group->control().all_gather("all have looked", "", accel::Deadline::in(accel::Seconds(20)));
  });
}

TEST_CASE("hosts that share no disk have a whole checkpoint each, with a number that none of them has had", "[saver]") {
  if (const auto allowed = accel::testing::run_program({"unshare", "--mount", "--uts", "true"}, {});
      !allowed.succeeded())
    accel::testing::skip_without("namespaces", "this system allows no mounts of one's own");
  on_ranks_in_folder({2}, [](Rank rank, const fs::path& base) {
    if (rank.rank == 1) {
      // A host of another name, which has a disk of its own there, and an old checkpoint on it.
      REQUIRE(::unshare(CLONE_NEWNS | CLONE_NEWUTS) == 0);
      REQUIRE(::sethostname("another", 7) == 0);
      REQUIRE(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
      REQUIRE(::mount("none", base.c_str(), "tmpfs", 0, "size=16m") == 0);
      fs::create_directories(base / "checkpoint_4");
      std::ofstream(base / "checkpoint_4" / "manifest.json") << "old";
    }
    auto control = accel::testing::meet().control_plane();
    {
      Saver saver(control, rank.rank, accel::Log(), {.folder = base, .keep = {.total_limit = 1}}, accel::Seconds(20));
      Training training(rank.rank);
      for (const char* name : {"checkpoint_5", "checkpoint_6"}) {
        const auto place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
        CHECK(place == base / name);
        check(place, rank.rank, 2);
        CHECK(Reader(place).manifest().files.size() == 1);
      }
      CHECK(accel::checkpoint::numbered_checkpoints(base).size() == 1);
      // Where one cannot write, there is none on the other either.
      if (rank.rank == 1) fs::create_directories(base / "named" / "of somebody else");
      CHECK_THAT(thrown_by<CheckpointError>([&] { (void)saver.save(base / "named", training.parts(), 5, {}, {}, {}); }),
                 ContainsSubstring("rank 1: ") && ContainsSubstring("of somebody else"));
      CHECK_FALSE(fs::exists(base / "named" / "manifest.json"));
    }
    const auto own = Reader(base / "checkpoint_6").manifest().id;
    for (const auto& id : control.all_gather("the save", own, accel::Deadline::in(accel::Seconds(20))))
      CHECK(id == own);
    control.farewell();
  });
}

TEST_CASE("files that a hook adds are part of the checkpoint, and checked with it", "[saver]") {
  const Folder folder;
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = folder.path()}, accel::Seconds(5));
  const std::vector<SaveHook> before{
      [](const accel::checkpoint::SaveEvent& event) { std::ofstream(event.folder / "notes.txt") << "learnt a lot"; }};
  fs::path seen;
  const auto place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, before,
                                {[&](const accel::checkpoint::SaveEvent& event) { seen = event.folder; }});
  CHECK(seen == place);
  Reader(place).verify();
  std::ofstream(place / "notes.txt") << "learnt a bot";
  CHECK_THAT(thrown_by<CheckpointError>([&] { Reader(place).verify(); }),
             ContainsSubstring("notes.txt: it is damaged: bytes 0 to 12"));
}

}  // namespace saver

}  // namespace
