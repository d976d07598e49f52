// Disks that fail: whichever call of a save does not succeed, or is the last of its process, the older checkpoint is
// whole, the error says which file and why, and training goes on.
#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/folder.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/saver.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "checkpoint/training.hpp"
#include "support/captured.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"
#include "support/tower.hpp"

namespace accel::testing::disk {

/// What is to happen at one of the calls that follow.
struct Fault {
  std::atomic<int> left = -1;  // calls before it; below 0: none is planned
  std::atomic<int> error = 0;  // 0: the process is killed; below 0: the call waits until that is no more so
  std::atomic<int> calls = 0;  // since it was planned
};
inline Fault fault;

/// What was done to the disk, in its order, while it is on.
struct Diary {
  struct Deed {
    std::string what;
    std::filesystem::path path;
    std::filesystem::path to{};
  };
  std::mutex mutex;  // of the deeds
  std::atomic<bool> is_on = false;
  std::vector<Deed> deeds;

  void note(const char* what, const std::filesystem::path& path, const std::filesystem::path& to = {}) {
    if (!is_on) return;
    const std::lock_guard lock(mutex);
    deeds.push_back({what, path, to});
  }
  void note(const char* what, int fd) {
    if (!is_on) return;
    std::error_code ignored;
    note(what, std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored));
  }
};
inline Diary diary;

inline void plan(int left, int error) {
  fault.calls = 0;
  fault.error = error;
  fault.left = left;
}

/// Whether this call fails.
inline bool strikes() {
  if (fault.left < 0) return false;
  ++fault.calls;
  if (fault.left.fetch_sub(1) != 0) return false;
  if (fault.error == 0) ::raise(SIGKILL);
  if (fault.error < 0) {
    while (fault.error < 0) ::usleep(1000);
    return false;
  }
  errno = fault.error;
  return true;
}

/// Whether it is a file or a folder: sockets and pipes are nobody's disk.
inline bool is_on_disk(int fd) {
  struct stat status{};
  return fault.left >= 0 && ::fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

}  // namespace accel::testing::disk

// The program's own definitions come before the C library's.
extern "C" {
int fsync(int fd) {
  if (accel::testing::disk::is_on_disk(fd) && accel::testing::disk::strikes()) return -1;
  accel::testing::disk::diary.note("flush", fd);
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
ssize_t write(int fd, const void* from, std::size_t count) {
  if (accel::testing::disk::is_on_disk(fd) && accel::testing::disk::strikes()) return -1;
  accel::testing::disk::diary.note("write", fd);
  return static_cast<ssize_t>(::syscall(SYS_write, fd, from, count));
}
int mkdir(const char* path, mode_t mode) noexcept {
  if (accel::testing::disk::strikes()) return -1;
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
int rename(const char* from, const char* to) noexcept {
  if (accel::testing::disk::strikes()) return -1;
  accel::testing::disk::diary.note("rename", from, to);
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned int flags) noexcept {
  if (accel::testing::disk::strikes()) return -1;
  accel::testing::disk::diary.note("rename", from, to);
  return static_cast<int>(::syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}
}

namespace {

namespace disks {

namespace fs = std::filesystem;
namespace disk = accel::testing::disk;
using accel::CheckpointError;
using accel::checkpoint::Saver;
using accel::testing::Captured;
using accel::testing::Folder;
using accel::testing::Rank;
using accel::testing::run_ranks;
using accel::testing::SharedFolder;
using accel::testing::thrown_by;
using accel::testing::checkpoints::check;
using accel::testing::checkpoints::on_ranks_in_folder;
using accel::testing::checkpoints::Training;
using Catch::Matchers::ContainsSubstring;
using Group = accel::testing::Group<accel::backend::Gloo>;

void wait_for_all(Group& group) {
  group->control().barrier("all are here", accel::Deadline::in(accel::Seconds(60)));
}

std::vector<std::string> unfinished_in(const fs::path& base) {
  std::vector<std::string> found;
  for (const auto& name : accel::names_in(base))
    if (name.find(accel::checkpoint::detail::unfinished) != std::string::npos) found.push_back(name);
  return found;
}

}  // namespace disks

TEST_CASE("all that a checkpoint consists of is on the disk before it takes its place, and its name before it is told",
          "[saver][disk]") {
  using namespace disks;
  const Folder folder;
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = folder.path(), .keep = {.total_limit = 1}}, accel::Seconds(60));
  const std::vector<accel::checkpoint::SaveHook> before{
      [](const accel::checkpoint::SaveEvent& event) { std::ofstream(event.folder / "notes.txt") << "learnt a lot"; }};
  const std::vector<accel::checkpoint::SaveHook> after{
      [](const accel::checkpoint::SaveEvent& event) { disk::diary.note("told", event.folder); }};
  for (const bool is_named : {false, true, true}) {  // a name that is free, and one that is taken: exchanged
    std::optional<fs::path> place;
    if (is_named) place = folder / "best";
    disk::diary.deeds.clear();
    disk::diary.is_on = true;
    const fs::path made = saver.save(place, training.parts(), 5, {.asynchronous = false}, before, after);
    disk::diary.is_on = false;
    const auto& deeds = disk::diary.deeds;
    const auto place_taken = std::find_if(deeds.begin(), deeds.end(),
                                          [&](const auto& deed) { return deed.what == "rename" && deed.to == made; });
    REQUIRE(place_taken != deeds.end());
    const fs::path unfinished = place_taken->path;
    const auto flushed_at = [&](const fs::path& path) {  // the last time before
      auto at = place_taken;
      while (at != deeds.begin() && !(at->what == "flush" && at->path == path)) --at;
      INFO(path);
      CHECK(at->what == "flush");
      CHECK(at->path == path);
      return at;
    };
    const auto folder_flushed = flushed_at(unfinished);
    for (const char* name : {"rank0.safetensors", "manifest.json", "notes.txt"}) {
      const auto flushed = flushed_at(unfinished / name);
      CHECK(flushed < folder_flushed);
      CHECK(std::none_of(flushed, deeds.end(),
                         [&](const auto& deed) { return deed.what == "write" && deed.path == unfinished / name; }));
    }
    const auto is = [&](const char* what, const fs::path& path) {
      return std::find_if(place_taken, deeds.end(),
                          [&](const auto& deed) { return deed.what == what && deed.path == path; });
    };
    const auto name_flushed = is("flush", folder.path()), told = is("told", made);
    REQUIRE(name_flushed != deeds.end());
    REQUIRE(told != deeds.end());
    CHECK(name_flushed < told);
  }
}

TEST_CASE("whichever call of a save fails, on whichever rank, that save alone is lost", "[saver][disk]") {
  using namespace disks;
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& base) {
    Group group;
    const Training training(rank.rank);
    Saver saver(group->control(), rank.rank, accel::Log("", false, accel::Log::Level::off),
                {.folder = base, .keep = {.total_limit = 2}}, accel::Seconds(60));
    Training own(rank.rank);
    const auto save = [&] { return saver.save(std::nullopt, own.parts(), 5, {.asynchronous = false}, {}, {}); };
    for (int i = 0; i < 2; ++i) (void)save();  // the second finds the lock and the folder there
    for (int victim = 0; victim < rank.world_size; ++victim) {
      int failures = 0;
      for (int number = 0;; ++number) {
        wait_for_all(group);
        const auto before = accel::checkpoint::latest_checkpoint(base);
        wait_for_all(group);
        if (rank.rank == victim) disk::plan(number, EIO);
        const std::string error = thrown_by<CheckpointError>([&] { (void)save(); });
        const bool struck = disk::fault.calls > number;
        disk::plan(-1, 0);
        const auto struck_anywhere =
            group->control().all_gather("struck", struck ? "1" : "0", accel::Deadline::in(accel::Seconds(60)));
        INFO("call " << number << " of rank " << victim << ": " << error);
        const auto newest = accel::checkpoint::latest_checkpoint(base);
        REQUIRE(newest.has_value());
        check(*newest, rank.rank, rank.world_size);
        if (error.empty()) {
          CHECK(newest != before);
        } else {
          ++failures;
          CHECK_THAT(error, ContainsSubstring(base.string()) && ContainsSubstring("Input/output error"));
        }
        if (struck_anywhere[static_cast<std::size_t>(victim)] == "0") break;  // a save has no more of them
      }
      CHECK(failures >= 4);
      (void)save();
      wait_for_all(group);
      CHECK(unfinished_in(base).empty());
    }
  });
}

TEST_CASE("whichever call of a save is a job's last, the newest checkpoint is whole, and the next job cleans up",
          "[saver][disk]") {
  using namespace disks;
  const SharedFolder folder;
  const fs::path& base = folder.path();
  const auto save = [&](int kill_at) {
    return run_ranks(1,
                     [&](Rank rank) {
                       Group group;
                       Training training(rank.rank);
                       Saver saver(group->control(), rank.rank, accel::Log("", false, accel::Log::Level::off),
                                   {.folder = base, .keep = {.total_limit = 2}}, accel::Seconds(60));
                       (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
                       CHECK(unfinished_in(base).empty());
                       disk::plan(std::stoi(std::getenv("ACCEL_TEST_KILL_AT")), 0);
                       (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
                       std::cout << "it lives\n";
                     },
                     {.variables = {{"ACCEL_TEST_KILL_AT", std::to_string(kill_at)}}});
  };
  std::optional<fs::path> before;
  for (int number = 0;; ++number) {
    const auto results = save(number);
    if (accel::testing::in_another_launch(results)) continue;
    INFO("killed at call " << number << ": " << results.front().output);
    const auto newest = accel::checkpoint::latest_checkpoint(base);
    REQUIRE(newest.has_value());
    CHECK(newest != before);
    check(*newest, 0, 1);
    before = newest;
    if (results.front().succeeded()) {
      CHECK(number >= 8);
      return;
    }
    REQUIRE(results.front().signal == SIGKILL);
  }
}

TEST_CASE("where another checkpoint is to be replaced, one of both is there whichever call fails, or is a job's last",
          "[saver][disk]") {
  using namespace disks;
  const SharedFolder folder;
  const fs::path best = folder / "best";
  const auto save = [&](int call, int error) {
    Training training(0);
    Saver saver({}, 0, accel::Log("", false, accel::Log::Level::off), {.folder = folder.path()}, accel::Seconds(60));
    const auto one = [&] { (void)saver.save(best, training.parts(), 5, {.asynchronous = false}, {}, {}); };
    one();
    CHECK(unfinished_in(folder.path()).empty());
    disk::plan(call, error);
    const std::string failure = thrown_by<CheckpointError>(one);
    const bool struck = disk::fault.calls > call;
    disk::plan(-1, 0);
    if (!failure.empty())
      CHECK_THAT(failure, ContainsSubstring(folder.path().string()) && ContainsSubstring("Input/output error"));
    CHECK(failure.empty() != struck);
    return struck;
  };
  for (int call = 0;; ++call) {
    INFO("killed at call " << call);
    const auto results = run_ranks(1, [&](Rank) { (void)save(std::stoi(std::getenv("ACCEL_TEST_KILL_AT")), 0); },
                                   {.variables = {{"ACCEL_TEST_KILL_AT", std::to_string(call)}}});
    if (accel::testing::in_another_launch(results)) continue;
    check(best, 0, 1);
    if (results.front().succeeded()) {
      CHECK(call >= 8);
      break;
    }
    REQUIRE(results.front().signal == SIGKILL);
  }
  for (int call = 0, goes_on = 1; goes_on != 0; ++call) {
    INFO("call " << call << " fails");
    goes_on = save(call, EIO) ? 1 : 0;
    check(best, 0, 1);
  }
}

TEST_CASE("a save on a disk that does not answer is given up, and changes nothing when it does", "[saver][disk]") {
  using namespace disks;
  const Folder folder;
  Training training(0);
  const Captured captured;
  {
    Saver saver({}, 0, accel::Log(), {.folder = folder.path(), .timeout_s = 2}, accel::Seconds(60));
    (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    (void)saver.save(folder / "best", training.parts(), 5, {.asynchronous = false}, {}, {});
    for (const bool is_named : {false, true}) {
      std::optional<fs::path> place;
      if (is_named) place = folder / "best";
      bool called = false;
      const std::vector<accel::checkpoint::SaveHook> after{[&](const accel::checkpoint::SaveEvent&) { called = true; }};
      training.rows = 99;
      disk::plan(2, -1);
      (void)saver.save(place, training.parts(), 6, {}, {}, after);
      CHECK_THAT(thrown_by<CheckpointError>([&] { saver.wait(); }),
                 ContainsSubstring("is not on the disk after 2 s, and is given up"));
      disk::fault.left = -1;
      training.rows = 12;
      const auto next = saver.save(place, training.parts(), 5, {.asynchronous = false}, {}, {});
      CHECK(next == folder / (is_named ? "best" : "checkpoint_2"));
      REQUIRE(unfinished_in(folder.path()).size() == 1);
      disk::fault.error = 0;  // it answers
      const accel::Deadline soon = accel::Deadline::in(accel::Seconds(20));
      while (!unfinished_in(folder.path()).empty() && !soon.passed()) ::usleep(1000);
      CHECK(unfinished_in(folder.path()).empty());
      CHECK_FALSE(fs::exists(folder / "checkpoint_1"));
      check(next, 0, 1);
      CHECK_FALSE(called);
    }
  }
  // What takes so long has said how far it was.
  CHECK_THAT(captured.text(), ContainsSubstring("accel: writing " + (folder / "best.unfinished-").string()) &&
                                  ContainsSubstring("/rank0.safetensors: 0.4 of 4.1 kB\n"));
}

TEST_CASE("where the disk of one rank does not answer, all give that save up, and the next one is theirs again",
          "[saver][disk]") {
  using namespace disks;
  on_ranks_in_folder({2, 3}, [](Rank rank, const fs::path& base) {
    Group group;
    Training training(rank.rank);
    Saver saver(group->control(), rank.rank, accel::Log("", false, accel::Log::Level::off),
                {.folder = base, .timeout_s = 2}, accel::Seconds(60));
    (void)saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    training.rows = 99;
    if (rank.rank == 1) disk::plan(2, -1);
    (void)saver.save(std::nullopt, training.parts(), 6, {}, {}, {});
    const std::string error = thrown_by<CheckpointError>([&] { saver.wait(); });
    CHECK_THAT(error, ContainsSubstring(base.string()));
    if (rank.rank == 1) CHECK_THAT(error, ContainsSubstring("is not on the disk after 2 s, and is given up"));
    CHECK(accel::checkpoint::latest_checkpoint(base) == base / "checkpoint_0");
    disk::fault.left = -1;
    training.rows = 12;
    const auto next = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    check(next, rank.rank, rank.world_size);
    disk::fault.error = 0;  // it answers
    const auto after = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    check(after, rank.rank, rank.world_size);
    check(next, rank.rank, rank.world_size);
  });
}

TEST_CASE("beside a slow disk a step inside of backward waits for copies of what it writes to, and of nothing else",
          "[saver][disk]") {
  using namespace disks;
  using accel::testing::bits;
  on_ranks_in_folder({2, 3}, [](Rank rank, const fs::path& base) {
    using A = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;
    A::Options options{.log = accel::Log::Level::off};
    options.gradient.caps = {.bucket_cap = accel::Bytes(64), .last_bucket_cap = accel::Bytes(32)};
    options.checkpoint = {.folder = base};
    A accelerator(options);
    auto net = std::make_shared<accel::testing::Tower>();
    auto [model, optimizer] = accelerator.prepare(net, accel::optim::AdamW(net->parameters(), {.lr = 1e-2}));
    optimizer.step_in_backward();
    const auto step = [&, &own = optimizer](const std::function<void()>& reached) {
      accelerator.backward(net->watched_loss(torch::full({2, 6}, 0.3 + rank.rank), reached));
      own.step();
      own.zero_grad();
    };
    for (int i = 0; i < 3; ++i) step([] {});
    disk::plan(2, -1);
    (void)accelerator.save_state();
    // What has not stepped yet must still be as it was, so that a write by hand is noticed. A snapshot that had been
    // waited for as a whole would not mind.
    const auto last = net->layers[3]->bias;
    const auto before = bits({last});
    bool has_stepped = false;
    step([&] {
      has_stepped = bits({last}) != before;
      const torch::NoGradGuard no_grad;
      net->layers[0]->bias.add_(0);
    });
    disk::fault.left = -1;
    disk::fault.error = 0;  // it answers
    CHECK(has_stepped);
    const std::string error = thrown_by<CheckpointError>([&] { accelerator.wait_for_save(); });
    CHECK_THAT(error, ContainsSubstring(": model/layer0.bias was written to while that was copied"));
  });
}

TEST_CASE("hidden: a job on a disk that is full", "[.][saver]") {
  using namespace disks;
  const fs::path base = std::getenv("ACCEL_TEST_CHECKPOINTS");
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = base}, accel::Seconds(60));
  (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {});
  saver.wait();
  training.weight = torch::ones({1 << 18});  // 1 MB
  (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {});
  const std::string error = thrown_by<CheckpointError>([&] { saver.wait(); });
  CHECK_THAT(error,
             ContainsSubstring("rank0.safetensors: cannot write") && ContainsSubstring("No space left on device"));
  check(base / "checkpoint_0", 0, 1);
  CHECK(unfinished_in(base).empty());  // and its bytes are free again
  training.weight = Training(0).weight;
  check(saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {}), 0, 1);
  std::cout << error << "\nit went on\n";
}

TEST_CASE("hidden: a job on a disk that can only be read", "[.][saver]") {
  using namespace disks;
  const fs::path base = std::getenv("ACCEL_TEST_CHECKPOINTS");
  Training training(0);
  Saver saver({}, 0, accel::Log(), {.folder = base}, accel::Seconds(60));
  const std::string error =
      thrown_by<CheckpointError>([&] { (void)saver.save(std::nullopt, training.parts(), 5, {}, {}, {}); });
  CHECK_THAT(error, ContainsSubstring(base.string()) && ContainsSubstring("Read-only file system"));
  check(base / "checkpoint_1", 0, 1);
  std::cout << error << "\nit went on\n";
}

TEST_CASE("a disk that is full or can only be read is an error with path and reason, and training goes on",
          "[saver][disk]") {
  using accel::testing::exact_filter;
  using accel::testing::own_program;
  const accel::testing::Folder folder;
  const auto run = [](const std::string& name) { return "'" + own_program() + "' '" + exact_filter(name) + "'"; };
  // Of its own: a disk of 600 kB.
  const std::string line =
      "mount -t tmpfs -o size=600k none \"$ACCEL_TEST_CHECKPOINTS\" || { echo 'no mounts here'; exit 77; }; " +
      run("hidden: a job on a disk that is full") + " && mount -o remount,ro \"$ACCEL_TEST_CHECKPOINTS\" && " +
      run("hidden: a job on a disk that can only be read");
  const auto result = accel::testing::run_program({"unshare", "--mount", "bash", "-c", line},
                                                  {.variables = {{"ACCEL_TEST_CHECKPOINTS", folder.path().string()}}});
  INFO(result.output);
  if (result.exit_code == 77 || result.output.find("unshare: ") != std::string::npos)
    accel::testing::skip_without("namespaces", "this system allows no mounts of one's own");
  CHECK(result.succeeded());
  for (const char* word : {"No space left on device", "Read-only file system", "it went on"})
    CHECK_THAT(result.output, Catch::Matchers::ContainsSubstring(word));
}

}  // namespace
