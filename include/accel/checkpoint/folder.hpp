// Folder: where checkpoints lie, which is the newest, how one takes its place, and which go.
#pragma once

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accel/checkpoint/manifest.hpp>
#include <accel/core/error.hpp>
#include <accel/core/file.hpp>

namespace accel::inline v0_1::checkpoint {

namespace detail {

inline constexpr std::string_view number_prefix = "checkpoint_";
inline constexpr std::string_view unfinished = ".unfinished-";  // behind a name: nobody's checkpoint yet, or any more

/// `checkpoint_12` gives 12, and anything else nothing.
[[nodiscard]] inline std::optional<std::int64_t> number_of(std::string_view name) {
  if (!name.starts_with(number_prefix)) return std::nullopt;
  const std::string_view digits = name.substr(number_prefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool is_plain = error == std::errc() && end == digits.data() + digits.size() && !digits.starts_with('-') &&
                        (digits == "0" || !digits.starts_with('0'));
  return is_plain ? std::optional(number) : std::nullopt;
}

inline void remove_folder(const std::filesystem::path& folder) {
  std::error_code failed;
  std::filesystem::remove_all(folder, failed);
  if (failed) fail_io(folder, "remove it", failed.value());
}

}  // namespace detail

/// A checkpoint that counts itself.
struct Numbered {
  std::int64_t number = 0;
  std::filesystem::path path;
};

/// Whether there is a checkpoint at `folder`: one takes its place only when it is complete.
///
/// Throws   CheckpointError where that cannot be told: a disk that does not answer is not one without checkpoints.
[[nodiscard]] inline bool is_checkpoint(const std::filesystem::path& folder) {
  std::error_code failed;
  const auto kind = std::filesystem::status(folder / manifest_file, failed).type();
  if (kind == std::filesystem::file_type::none) fail_io(folder / manifest_file, "look at it", failed.value());
  return kind == std::filesystem::file_type::regular;
}

/// The checkpoints `checkpoint_<number>` in `base`, oldest first. What else is there does not count.
[[nodiscard]] inline std::vector<Numbered> numbered_checkpoints(const std::filesystem::path& base) {
  std::vector<Numbered> found;
  for (const auto& name : names_in(base))
    if (const auto number = detail::number_of(name); number && is_checkpoint(base / name))
      found.push_back({*number, base / name});
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
  return found;
}

/// The newest of them, by number.
[[nodiscard]] inline std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& base) {
  auto all = numbered_checkpoints(base);
  if (all.empty()) return std::nullopt;
  return std::move(all.back().path);
}

/// One job writes to a place at a time. The system holds the lock for as long as this lives, and no longer than its
/// process.
class FolderLock {
 public:
  /// `owner` is what others are told.
  ///
  /// Throws   CheckpointError with the other's name, if somebody else has it.
  FolderLock(std::filesystem::path path, const std::string& owner)
      : path_(std::move(path)), file_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (file_.get() < 0) fail_io(path_, "create it");
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (::fcntl(file_.get(), F_OFD_SETLK, &lock) != 0) {
      if (errno != EAGAIN && errno != EACCES) fail_io(path_, "lock it");
      std::string other(512, '\0');
      const ssize_t count = ::pread(file_.get(), other.data(), other.size(), 0);
      other.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
      throw CheckpointError(message(path_.string(), ": ", other.empty() ? "another job" : other,
                                    " writes its checkpoints here; give each job a folder of its own"));
    }
    if (::ftruncate(file_.get(), 0) != 0 ||
        ::pwrite(file_.get(), owner.data(), owner.size(), 0) != static_cast<ssize_t>(owner.size()))
      fail_io(path_, "write to it");
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  Descriptor file_;
};

/// Which checkpoints stay when a new one is there. The newest always does.
struct Retention {
  std::optional<std::int64_t> total_limit{};  // the newest; unset: all
  std::optional<std::int64_t> keep_every{};   // and those whose number is a multiple
  std::optional<std::int64_t> keep_best{};    // and so many with the best metric, of those that have one
  bool greater_is_better = false;             // of metrics, such as losses
};

namespace detail {

/// Those that go, by number. `metrics`: of each, in their order, if it has one.
[[nodiscard]] inline std::vector<std::int64_t> superfluous(std::vector<std::int64_t> numbers,
                                                           const std::vector<std::optional<double>>& metrics,
                                                           const Retention& keep) {
  if (!keep.total_limit) return {};
  std::vector<bool> stays(numbers.size(), false);
  const auto newest = static_cast<std::size_t>(std::max<std::int64_t>(*keep.total_limit, 1));
  for (std::size_t i = 0; i < numbers.size(); ++i)
    stays[i] = i + newest >= numbers.size() || (keep.keep_every && numbers[i] % *keep.keep_every == 0);
  if (keep.keep_best) {
    std::vector<std::size_t> judged;
    for (std::size_t i = 0; i < numbers.size(); ++i)
      if (metrics[i]) judged.push_back(i);
    // Of equal ones the newer.
    std::stable_sort(judged.begin(), judged.end(), [&](std::size_t a, std::size_t b) {
      if (*metrics[a] != *metrics[b]) return (*metrics[a] > *metrics[b]) == keep.greater_is_better;
      return a > b;
    });
    for (std::size_t k = 0; k < judged.size() && k < static_cast<std::size_t>(*keep.keep_best); ++k)
      stays[judged[k]] = true;
  }
  std::vector<std::int64_t> gone;
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!stays[i]) gone.push_back(numbers[i]);
  return gone;
}

}  // namespace detail

/// Whether a checkpoint may take `place`: nothing is there, or an empty folder, or a checkpoint and nothing else.
///
/// Throws   CheckpointError with the first name that would be lost.
inline void check_replaceable(const std::filesystem::path& place) {
  std::error_code failed;
  const auto kind = std::filesystem::symlink_status(place, failed).type();
  if (kind == std::filesystem::file_type::not_found) return;
  if (kind == std::filesystem::file_type::none) fail_io(place, "look at it", failed.value());
  ACCEL_CHECK(kind == std::filesystem::file_type::directory, CheckpointError, place.string(),
              ": expected a folder, or nothing, found something else; choose another name");
  const auto names = names_in(place);
  if (names.empty()) return;
  ACCEL_CHECK(is_checkpoint(place), CheckpointError, place.string(),
              ": a checkpoint takes the place of what is there, ", "and that is none: it holds ", names.front(),
              "; choose another name");
  const Manifest manifest = Manifest::read(place);
  for (const auto& name : names)
    ACCEL_CHECK(name == manifest_file || manifest.files.contains(name), CheckpointError, (place / name).string(),
                ": it does not belong to the checkpoint there, and would be lost with it; move it away");
}

/// Renames what is complete, and flushed, to its place. What was there before is whole until then, and gone afterwards;
/// where it could not be removed, gives the reason.
///
/// Throws   CheckpointError; then what was there is there.
[[nodiscard]] inline std::string put_in_place(const std::filesystem::path& made, const std::filesystem::path& place) {
  std::error_code ignored;
  if (!std::filesystem::exists(place, ignored)) {
    if (::rename(made.c_str(), place.c_str()) != 0) fail_io(place, message("rename ", made.string()));
    flush_folder(parent_of(place));
    return {};
  }
  // At no moment is there none.
  if (::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) fail_io(place, message("exchange it with ", made.string()));
    // A file system that cannot, such as NFS: who is killed between the two leaves the old one under its second name.
    std::filesystem::path aside = made;
    aside += "-old";
    if (::rename(place.c_str(), aside.c_str()) != 0) fail_io(place, message("rename it to ", aside.string()));
    if (::rename(made.c_str(), place.c_str()) != 0) {
      const int error = errno;
      (void)::rename(aside.c_str(), place.c_str());
      fail_io(place, message("rename ", made.string()), error);
    }
    flush_folder(parent_of(place));
    return error_of([&] { detail::remove_folder(aside); });
  }
  try {
    flush_folder(parent_of(place));
  } catch (const CheckpointError&) {
    (void)::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE);
    throw;
  }
  return error_of([&] { detail::remove_folder(made); });
}

/// Removes a checkpoint. Half of one is never taken for a whole one.
inline void discard(const std::filesystem::path& checkpoint) {
  std::filesystem::path gone = checkpoint;
  gone += message(detail::unfinished, "gone");
  detail::remove_folder(gone);  // of an earlier time
  if (::rename(checkpoint.c_str(), gone.c_str()) != 0) fail_io(checkpoint, message("rename it to ", gone.string()));
  detail::remove_folder(gone);
}

/// A folder on its way to become a checkpoint. It goes with this object, unless it has taken its place.
class UnfinishedFolder {
 public:
  /// `word` makes its name one that nobody else has.
  UnfinishedFolder(std::filesystem::path place, std::string word)
      : place_(std::move(place)), word_(std::move(word)), path_(path_of(place_, word_)) {
    std::error_code failed;
    std::filesystem::create_directories(parent_of(path_), failed);
    if (failed) fail_io(parent_of(path_), "create the folder", failed.value());
    if (::mkdir(path_.c_str(), 0777) != 0) fail_io(path_, "create the folder");
    exists_ = true;
  }
  UnfinishedFolder(UnfinishedFolder&& other) noexcept
      : place_(std::move(other.place_)),
        word_(std::move(other.word_)),
        path_(std::move(other.path_)),
        exists_(std::exchange(other.exists_, false)) {}
  UnfinishedFolder& operator=(UnfinishedFolder&&) = delete;
  ~UnfinishedFolder() {
    std::error_code ignored;  // the next job removes what is left
    if (exists_) std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] const std::filesystem::path& place() const { return place_; }
  [[nodiscard]] const std::string& word() const { return word_; }

  [[nodiscard]] static std::filesystem::path path_of(const std::filesystem::path& place, std::string_view word) {
    return place.string() + message(detail::unfinished, word);
  }

  /// What is in it is on the disk.
  void flush() const { flush_folder(path_); }

  /// Gives why what was there before could not be removed, if it could not.
  ///
  /// Order    behind flush().
  [[nodiscard]] std::string finish() {
    check_replaceable(place_);  // once more: somebody may have put something there
    std::string left = put_in_place(path_, place_);
    exists_ = false;
    return left;
  }

 private:
  std::filesystem::path place_;
  std::string word_;
  std::filesystem::path path_;
  bool exists_ = false;
};

/// Removes what saves have left in `base` that did not come to their end. Nobody else may be saving there. `name`: of
/// one checkpoint; else of those with numbers. What an exchange in two steps has left half done is finished. Gives what
/// could not be removed, and why: no reason to save nothing more.
[[nodiscard]] inline std::vector<std::string> remove_orphans(const std::filesystem::path& base,
                                                             std::optional<std::string> name = std::nullopt) {
  std::vector<std::string> left;
  for (const auto& found : names_in(base)) {
    const auto end = found.find(detail::unfinished);
    if (end == std::string::npos) continue;
    const std::string of = found.substr(0, end);
    if (name ? of != *name : !detail::number_of(of)) continue;
    if (found.ends_with("-old") && !is_checkpoint(base / of)) {
      std::filesystem::rename(base / found, base / of);
      continue;
    }
    if (std::string error = error_of([&] { detail::remove_folder(base / found); }); !error.empty())
      left.push_back(std::move(error));
  }
  return left;
}

}  // namespace accel::inline v0_1::checkpoint
