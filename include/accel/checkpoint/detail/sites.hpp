// Sites: the folders that a job writes its checkpoints to: locked, cleaned, and with a number that is free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <accel/checkpoint/folder.hpp>
#include <accel/core/error.hpp>
#include <accel/core/file.hpp>

namespace accel::inline v0_1::checkpoint::detail {

/// Of one process that makes folders for checkpoints.
class Sites {
 public:
  /// `owner` is what another job is told that wants to write there, too.
  explicit Sites(std::string owner) : owner_(std::move(owner)) {}

  /// A folder that is to become `place`, or if unset the next number in `base`, which is `least_number` at least.
  ///
  /// Throws   CheckpointError where another job writes there, or the folder cannot be made.
  [[nodiscard]] UnfinishedFolder begin(const std::optional<std::filesystem::path>& place,
                                       const std::filesystem::path& base, std::int64_t least_number) {
    const std::filesystem::path site = absolute(place ? parent_of(*place) : base);
    std::optional<std::string> name;
    if (place) name = place->filename().string();
    ACCEL_CHECK(!name || (!name->empty() && *name != "." && *name != ".."), CheckpointError, place->string(),
                ": expected the name of a folder that is to be made");
    claim(site, lock_of(name));
    if (name) check_replaceable(site / *name);
    const std::int64_t number = name ? 0 : std::max(least_number, next_number(site));
    return UnfinishedFolder(site / (name ? *name : message(number_prefix, number)), word());
  }

  /// The same on another host, where rank 0 has chosen place and word.
  [[nodiscard]] UnfinishedFolder begin_as(const std::filesystem::path& place, const std::string& word,
                                          bool is_numbered) {
    claim(parent_of(place), is_numbered ? std::nullopt : lock_of(place.filename().string()));
    check_replaceable(place);
    return UnfinishedFolder(place, word);
  }

  /// What earlier jobs have left and could not be removed, once.
  [[nodiscard]] std::vector<std::string> take_troubles() { return std::exchange(troubles_, {}); }

  /// Behind the newest that has one, whether it is a checkpoint, was left there, or may still come to be: a save that
  /// was given up because the disk did not answer.
  [[nodiscard]] static std::int64_t next_number(const std::filesystem::path& site) {
    std::int64_t next = 0;
    for (const auto& name : names_in(site))
      if (const auto number = number_of(name.substr(0, name.find(unfinished)))) next = std::max(next, *number + 1);
    return next;
  }

 private:
  [[nodiscard]] static std::filesystem::path absolute(const std::filesystem::path& path) {
    std::error_code failed;
    auto result = std::filesystem::absolute(path, failed);
    if (failed) fail_io(path, "find out where it is", failed.value());
    return result;
  }

  /// Who names a number itself writes where the numbered ones are.
  [[nodiscard]] static std::optional<std::string> lock_of(const std::optional<std::string>& name) {
    return name && number_of(*name) ? std::nullopt : name;
  }

  /// Once for each site: this job's from now on, and clean.
  void claim(const std::filesystem::path& site, const std::optional<std::string>& name) {
    const std::filesystem::path lock = site / message(".", name ? *name : "checkpoints", ".lock");
    if (locks_.contains(lock.string())) return;
    std::error_code failed;
    std::filesystem::create_directories(site, failed);
    if (failed) fail_io(site, "create the folder", failed.value());
    const auto at = locks_.emplace(lock.string(), FolderLock(lock, owner_)).first;
    try {
      for (auto& trouble : remove_orphans(site, name)) troubles_.push_back(std::move(trouble));
    } catch (...) {
      locks_.erase(at);
      throw;
    }
  }

  /// Nobody else's: hosts that share a disk do not share process numbers.
  [[nodiscard]] static std::string word() {
    std::random_device random;
    return hex(random()) + hex(random());
  }

  std::string owner_;
  std::map<std::string, FolderLock> locks_;  // by path
  std::vector<std::string> troubles_;
};

}  // namespace accel::inline v0_1::checkpoint::detail
