// Save: one save under way: files, the agreement that they are complete, and the checkpoint that they become.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include <accel/checkpoint/detail/part_state.hpp>
#include <accel/checkpoint/folder.hpp>
#include <accel/checkpoint/manifest.hpp>
#include <accel/checkpoint/save_event.hpp>
#include <accel/checkpoint/snapshot.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>
#include <accel/core/file.hpp>
#include <accel/core/log.hpp>
#include <accel/core/progress.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/notice_board.hpp>
#include <accel/launch/peer.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/safetensors.hpp>

namespace accel::inline v0_1::checkpoint::detail {

/// A save under way: all that its thread needs, which outlives whoever began it.
class Save {
 public:
  struct Start {
    launch::NoticeBoard notices;
    int rank = 0;
    int world_size = 1;
    std::int64_t number = 0;  // of the saves of this job
    std::int64_t step = 0;
    std::filesystem::path place{};   // of the checkpoint
    std::filesystem::path folder{};  // that becomes it
    std::string id{};
    std::vector<Writers> groups{};
    std::vector<PartState> parts{};
    std::vector<bool> is_shared{};
    std::vector<std::string> late{};  // tensors that were found written to in an earlier save: copied at once
    Retention keep{};
    bool is_numbered = false;
    bool others_wait = false;  // it is not asynchronous: see Snapshot
    std::optional<double> metric{};
    std::vector<SaveHook> after{};
    Log log;
    Deadline deadline;
  };

  Save(Start start, std::optional<UnfinishedFolder> folder, std::shared_ptr<CopyMemory> memory)
      : start_(std::move(start)), folder_(std::move(folder)), memory_(std::move(memory)) {
    for (const Writers& group : start_.groups)
      if (std::find(group.ranks.begin(), group.ranks.end(), start_.rank) != group.ranks.end()) group_ = &group;
    const auto who = shared_out(start_.parts, start_.is_shared, *group_);
    std::vector<tensor::NamedTensor> later, now;
    for (std::size_t p = 0; p < start_.parts.size(); ++p) {
      PartState& part = start_.parts[p];
      for (std::size_t t = 0; t < part.tensors.size(); ++t) {
        auto& [name, tensor] = part.tensors[t];
        if (start_.is_shared[p] && who[p][t] != start_.rank) continue;
        const std::string full = entry_of(p).stored_name(name);
        const bool waits = part.sharing == Sharing::replicated &&
                           std::find(start_.late.begin(), start_.late.end(), full) == start_.late.end();
        Written& written = (waits ? later_ : now_).emplace_back();
        written.part = p;
        written.name = name;
        written.declared = tensor::safetensors::declared(start_.place, {full, tensor});
        (waits ? later : now).push_back({full, tensor});
      }
    }
    snapshot_.emplace(later, now, *memory_, start_.others_wait);
    for (PartState& part : start_.parts) part.tensors.clear();  // the snapshot holds what is needed of them
  }

  [[nodiscard]] Snapshot& snapshot() { return *snapshot_; }
  [[nodiscard]] Deadline deadline() const { return start_.deadline; }

  /// On a thread of its own.
  ///
  /// Throws   CheckpointError, on every rank that hears of it, where the checkpoint did not come to be.
  void run() {
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t bytes = 0;  // of a leader's folder
    std::string verdict;
    // What the others say may not come in time, which is no error of another kind.
    const std::string unheard = error_of([&] { verdict = become(bytes); });
    if (verdict.empty()) verdict = unheard;
    if (!verdict.empty()) {
      const std::string text = message("save_state: ", start_.place.string(), " was not saved: ", verdict);
      if (start_.rank == 0) start_.log.warning(text);
      throw CheckpointError(text);
    }
    if (is_given_up()) return;
    if (start_.rank == group_->leader() && start_.is_numbered) prune();
    if (start_.rank == 0) {
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      start_.log.info("saved ", start_.place.string(), ": ", bytes, " bytes in ", std::round(1e3 * seconds) / 1e3,
                      " s");
    }
    for (const auto& hook : start_.after) hook({start_.place, start_.step, start_.rank});
  }

  /// Nobody waits for it any more: when its disk answers again, it is to change nothing.
  void give_up() { is_given_up_.store(true); }

  /// Tensors that somebody wrote to before they were copied.
  [[nodiscard]] const std::vector<std::string>& torn() const { return torn_; }

  /// What rank `rank` may have posted in save `number`.
  [[nodiscard]] static std::vector<std::string> keys_of(std::int64_t number, int rank) {
    std::vector<std::string> keys;
    for (const std::string_view what : {"wrote", "complete", "placed"}) keys.push_back(key(number, what, rank));
    if (rank == 0)
      for (const std::string_view what : {"verdict", "outcome"}) keys.push_back(key(number, what, 0));
    return keys;
  }

 private:
  /// A tensor that this rank writes.
  struct Written {
    std::size_t part = 0;
    std::string name;
    tensor::safetensors::Declared declared;
  };

  [[nodiscard]] static std::string key(std::int64_t number, std::string_view what, int rank) {
    return message(number, "/", what, "/", rank);
  }
  [[nodiscard]] std::string key(std::string_view what, int rank = 0) const { return key(start_.number, what, rank); }

  [[nodiscard]] PartEntry entry_of(std::size_t p) const {
    PartEntry entry;
    entry.name = start_.parts[p].name;
    if (!start_.is_shared[p]) entry.rank = start_.rank;
    return entry;
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return start_.folder; }
  [[nodiscard]] bool is_given_up() const { return is_given_up_.load(); }

  /// Writes, agrees and takes the place. Gives why it did not come to be, if it did not.
  [[nodiscard]] std::string become(std::uint64_t& bytes) {
    nlohmann::json own;
    if (const std::string error = error_of([&] { own = write(); }); !error.empty()) own = {{"error", error}};
    // A path in an error may be no UTF-8, and the others wait for this.
    start_.notices.post(key("wrote", start_.rank), own.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                        start_.deadline);
    // The leader of a folder makes one of what its ranks have written, ...
    const bool leads = start_.rank == group_->leader();
    if (leads) {
      const std::string error = error_of([&] {
        bytes = complete();
        folder_->flush();
      });
      start_.notices.post(key("complete", start_.rank), error, start_.deadline);
    }
    // ... rank 0 decides, when all are complete, that there is a checkpoint, ...
    if (start_.rank == 0) start_.notices.post(key("verdict"), gathered("complete"), start_.deadline);
    std::string verdict = start_.notices.read(key("verdict"), start_.deadline);
    if (leads) {
      const std::string error = error_of([&] {
        if (!verdict.empty()) return;
        ACCEL_CHECK(!is_given_up(), CheckpointError, "it was given up");
        if (const std::string left = folder_->finish(); !left.empty())
          start_.log.warning("what was at ", start_.place.string(), " before could not be removed: ", left);
      });
      start_.notices.post(key("placed", start_.rank), error, start_.deadline);
    }
    // ... and tells how it went.
    if (verdict.empty()) {
      if (start_.rank == 0) start_.notices.post(key("outcome"), gathered("placed"), start_.deadline);
      verdict = start_.notices.read(key("outcome"), start_.deadline);
    }
    return verdict;
  }

  /// This rank's file, and what the leader is to know of it.
  [[nodiscard]] nlohmann::json write() {
    snapshot_->copy();
    check_untorn();
    std::vector<tensor::safetensors::Declared> declared;
    const auto written = [&](std::size_t i) -> const Written& {
      return i < later_.size() ? later_[i] : now_[i - later_.size()];
    };
    std::int64_t total = 0;
    for (std::size_t i = 0; i < snapshot_->size(); ++i) {
      declared.push_back(written(i).declared);
      total += static_cast<std::int64_t>((*snapshot_)[i].nbytes());
    }
    const std::string name = message("rank", start_.rank, ".safetensors");
    const auto plan = tensor::safetensors::plan(folder() / name, declared, {{"format", "pt"}});
    OutputFile file(folder() / name);
    Progress progress(message("writing ", file.path().string()), total, Counted::bytes);
    file.write(plan.header.data(), plan.header.size());
    nlohmann::json said{{"file", name}, {"header", crc32c(std::as_bytes(std::span(plan.header)))}};
    for (const std::size_t i : plan.order) {
      const std::span bytes(static_cast<const std::byte*>((*snapshot_)[i].const_data_ptr()), (*snapshot_)[i].nbytes());
      std::uint32_t sum = 0;
      // In pieces that are in the cache when they are written, and as large as that allows: file systems give large
      // writes large pages.
      for (std::size_t at = 0; at < bytes.size(); at += piece) {
        const auto some = bytes.subspan(at, std::min(piece, bytes.size() - at));
        sum = crc32c(some, sum);
        file.write(some.data(), some.size());
        progress.reached(static_cast<std::int64_t>(file.size()));
      }
      const Written& one = written(i);
      said["tensors"].push_back(
          {one.part, one.name, tensor::safetensors::format_name(one.declared.dtype), one.declared.shape, sum});
    }
    said["values"] = nlohmann::json::array();
    for (std::size_t p = 0; p < start_.parts.size(); ++p) {
      if (start_.is_shared[p] && start_.rank != group_->leader()) continue;
      said["parts"].push_back(p);  // also those that hold nothing
      for (const auto& [value, number] : start_.parts[p].values)
        said["values"].push_back({p, value, std::visit([](auto one) { return nlohmann::json(one); }, number)});
    }
    said["bytes"] = file.size();
    file.flush();
    file.close();
    check_untorn();  // a write that had begun before the copy was over by now
    return said;
  }

  void check_untorn() {
    torn_ = snapshot_->torn();
    ACCEL_CHECK(torn_.empty(), CheckpointError, launch::listed(torn_), torn_.size() == 1 ? " was" : " were",
                " written to while that was copied, by something else than a prepared optimizer; the next save copies ",
                "it at once, or call accelerator.wait_for_snapshot() before");
  }

  /// Reads what the ranks of this folder have written, and writes the manifest. Gives the bytes of all.
  std::uint64_t complete() {
    Manifest manifest;
    manifest.library = message("accel ", ACCEL_VERSION);
    manifest.id = start_.id;
    manifest.world_size = start_.world_size;
    manifest.step = start_.step;
    manifest.metric = start_.metric;
    std::map<std::pair<std::size_t, int>, PartEntry> entries;  // by part and, if each has its own, rank
    const auto entry_of = [&](std::size_t p, int rank) -> PartEntry& {
      const std::pair of{p, start_.is_shared[p] ? -1 : rank};
      PartEntry& entry = entries[of];
      entry.name = start_.parts[p].name;
      if (of.second >= 0) entry.rank = rank;
      return entry;
    };
    // All of them first: where one has failed the folder goes, and nobody must be writing to it then.
    std::map<int, nlohmann::json> by_rank;
    for (const int rank : group_->ranks)
      by_rank[rank] = nlohmann::json::parse(start_.notices.read(key("wrote", rank), start_.deadline));
    std::uint64_t bytes = 0;
    for (const auto& [rank, said] : by_rank) {
      ACCEL_CHECK(!said.contains("error"), CheckpointError, "rank ", rank, ": ", said.at("error").get<std::string>());
      const auto file = said.at("file").get<std::string>();
      manifest.files[file] = {said.at("bytes"), said.at("header"), true};
      bytes += manifest.files[file].bytes;
      if (said.contains("tensors"))
        for (const auto& one : said.at("tensors"))
          entry_of(one.at(0), rank).tensors.push_back({one.at(1), file, one.at(2), one.at(3), one.at(4)});
      if (said.contains("parts"))
        for (const auto& one : said.at("parts")) (void)entry_of(one, rank);
      for (const auto& one : said.at("values"))
        entry_of(one.at(0), rank)
            .values.push_back({one.at(1), one.at(2).is_number_float()
                                              ? ValueEntry::Value(one.at(2).get<double>())
                                              : ValueEntry::Value(one.at(2).get<std::int64_t>())});
    }
    for (auto& [of, entry] : entries) manifest.parts.push_back(std::move(entry));
    add_other_files(manifest);
    const std::string text = manifest.text();
    OutputFile file(folder() / manifest_file);
    file.write(text.data(), text.size());
    file.flush();
    file.close();
    return bytes + text.size();
  }

  /// What hooks have put there.
  void add_other_files(Manifest& manifest) const {
    for (const auto& name : names_in(folder())) {
      if (manifest.files.contains(name) || name == manifest_file) continue;
      const InputFile file(folder() / name);
      manifest.files[name] = {file.size(), crc32c_of(file), false};
      file.flush();
    }
  }

  /// What the leaders have said that went wrong.
  [[nodiscard]] std::string gathered(std::string_view what) {
    std::string errors;
    for (const Writers& group : start_.groups) {
      const std::string error = error_of([&] {
        const std::string said = start_.notices.read(key(what, group.leader()), start_.deadline);
        ACCEL_CHECK(said.empty(), CheckpointError, said);
      });
      if (!error.empty()) errors += (errors.empty() ? "" : "; ") + error;
    }
    return errors;
  }

  /// Those that are superfluous now. One that cannot be removed is no reason to end anything.
  void prune() const {
    const auto tell = [&](const std::string& error) {
      if (!error.empty()) start_.log.warning("an old checkpoint could not be removed: ", error);
    };
    tell(error_of([&] {
      const auto base = parent_of(start_.place);
      std::vector<std::int64_t> numbers;
      std::vector<std::optional<double>> metrics;
      for (const auto& [number, path] : numbered_checkpoints(base)) {
        std::optional<double> metric;
        const std::string error = error_of([&, &at = path] {
          if (start_.keep.keep_best) metric = Manifest::read(at).metric;
        });
        tell(error);
        if (!error.empty()) continue;  // it may be the best one
        numbers.push_back(number);
        metrics.push_back(metric);
      }
      for (const std::int64_t number : superfluous(numbers, metrics, start_.keep))
        tell(error_of([&] { discard(base / message(number_prefix, number)); }));
    }));
  }

  static constexpr std::size_t piece = 1 << 20;

  Start start_;
  std::optional<UnfinishedFolder> folder_;  // of a leader
  std::shared_ptr<CopyMemory> memory_;
  const Writers* group_ = nullptr;
  std::vector<Written> later_, now_;  // in the order of the snapshot
  std::optional<Snapshot> snapshot_;
  std::vector<std::string> torn_;
  std::atomic<bool> is_given_up_ = false;
};

}  // namespace accel::inline v0_1::checkpoint::detail
