// Checkpointing: what of a training goes into its checkpoints, and how it comes back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include <accel/checkpoint/folder.hpp>
#include <accel/checkpoint/part.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/save_event.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/collective/agree.hpp>
#include <accel/core/error.hpp>
#include <accel/core/log.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1 {

/// What load_state does with a checkpoint that has other parts than this training.
struct LoadOptions {
  bool strict = true;  // it is an error; else it is said, and what fits is loaded
};

}  // namespace accel::inline v0_1

namespace accel::inline v0_1::prepare {

/// One per accelerator.
class Checkpointing {
 public:
  Checkpointing(launch::ControlPlane control, int rank, Log log, checkpoint::Options options, Seconds patience)
      : control_(control),
        rank_(rank),
        log_(log),
        patience_(patience),
        saver_(std::move(control), rank, std::move(log), std::move(options), patience) {}

  /// From now on `part` is saved and loaded, for as long as `object` lives. It is called `kind`, the next one of that
  /// kind `kind.1`.
  void add(const std::string& kind, std::weak_ptr<const void> object, checkpoint::Part part) {
    const std::int64_t number = kinds_[kind]++;
    part.name = number == 0 ? kind : message(kind, ".", number);
    parts_.push_back({std::move(object), std::move(part)});
  }

  /// Hooks run in the order in which they came. Of a save: before, when the folder is there and nothing is in it;
  /// after, when the checkpoint is in its place, on the thread that has saved it. Of a load: before, when it is
  /// chosen, and neither checked nor has anything changed; after, when everything is as it was.
  void before_save(checkpoint::SaveHook hook) { before_save_.push_back(std::move(hook)); }
  void after_save(checkpoint::SaveHook hook) { after_save_.push_back(std::move(hook)); }
  void before_load(checkpoint::SaveHook hook) { before_load_.push_back(std::move(hook)); }
  void after_load(checkpoint::SaveHook hook) { after_load_.push_back(std::move(hook)); }

  /// What is copied in the background may be written to when this has returned.
  void settle() { saver_.settle(); }
  /// The same of those that lie where `written` does.
  void settle(std::span<const at::Tensor> written) { saver_.settle(written); }
  [[nodiscard]] bool has_snapshot() const { return saver_.has_snapshot(); }
  void wait() { saver_.wait(); }
  [[nodiscard]] bool is_under_way() const { return saver_.is_under_way(); }
  [[nodiscard]] const checkpoint::Options& options() const { return saver_.options(); }

  std::filesystem::path save(const std::optional<std::filesystem::path>& place, std::int64_t step,
                             const checkpoint::SaveOptions& options) {
    return saver_.save(place, living_parts(), step, options, before_save_, after_save_);
  }

  /// The newest checkpoint in `folder`, or where the options say, that all ranks see.
  ///
  /// Order    collective.
  [[nodiscard]] std::optional<std::filesystem::path> latest(const std::optional<std::filesystem::path>& folder) {
    const std::filesystem::path base = folder.value_or(saver_.options().folder);
    Json own{{"numbers", Json::array()}};
    const std::string error = error_of([&] {
      for (const auto& one : checkpoint::numbered_checkpoints(base)) own["numbers"].push_back(one.number);
    });
    if (!error.empty()) own["error"] = error;
    std::optional<std::set<std::int64_t>> common;
    std::size_t rank = 0;
    for (const auto& text : control_.all_gather("latest_checkpoint", own.dump(), deadline())) {
      const Json said = Json::parse(text);
      ACCEL_CHECK(!said.contains("error"), CheckpointError, "latest_checkpoint: rank ", rank, ": ",
                  said.at("error").template get<std::string>());
      const auto numbers = said.at("numbers").template get<std::set<std::int64_t>>();
      if (!common)
        common = numbers;
      else
        std::erase_if(*common, [&](std::int64_t number) { return !numbers.contains(number); });
      ++rank;
    }
    if (common->empty()) return std::nullopt;
    return base / message(checkpoint::detail::number_prefix, *common->rbegin());
  }

  /// Everything as it was. `place`: a checkpoint, or a folder with numbered ones, of which it takes the newest; unset:
  /// that of the options. Gives the checkpoint, and in `steps` its step.
  ///
  /// Order    collective.
  /// Throws   CheckpointError on every rank, before anything has changed, for what is missing, damaged, or does not
  ///          fit, and what a hook throws before; what a part or a hook throws while it is loaded or behind that, after
  ///          which the training cannot go on.
  std::filesystem::path load(const std::optional<std::filesystem::path>& place, const LoadOptions& options,
                             std::int64_t& steps) {
    bool is_one = false;
    collective::all_or_none<CheckpointError>(control_, "load_state", saver_.meeting(), [&] {
      saver_.wait();
      is_one = place && checkpoint::is_checkpoint(*place);
      for (const auto& part : living_parts()) {
        const std::string obstacle = part.load_obstacle ? part.load_obstacle() : std::string();
        ACCEL_CHECK(obstacle.empty(), CheckpointError, "load_state: ", part.name, ": ", obstacle);
      }
    });
    const std::filesystem::path folder = chosen(place, is_one);
    std::optional<checkpoint::Reader> reader;
    collective::all_or_none<CheckpointError>(control_, "load_state", deadline(), [&] { reader.emplace(folder); });
    const auto& manifest = reader->manifest();
    const auto ranks = static_cast<int>(control_.peers().size());
    const std::vector<std::string> lines{message(folder.string(), ", save ", manifest.id, " of step ", manifest.step,
                                                 " by ", manifest.world_size, " ranks")};
    collective::require_equal(control_, "load_state", lines, deadline());
    const checkpoint::SaveEvent event{folder, manifest.step, rank_};
    collective::all_or_none<CheckpointError>(control_, "load_state: hooks", deadline(), [&] {
      for (const auto& hook : before_load_) hook(event);
    });
    const std::vector<checkpoint::Part> parts = living_parts();
    std::vector<std::pair<const checkpoint::Part*, checkpoint::SavedPart>> found;
    std::vector<std::string> notes;
    collective::all_or_none<CheckpointError>(control_, "load_state", deadline(), [&] {
      std::set<std::string> kept;
      for (const auto& part : parts)
        if (part.keeps) kept.insert(part.name);
      reader->verify_and_keep(manifest.world_size == ranks ? std::optional(rank_) : std::nullopt, kept);
      const std::string misfits = match(parts, *reader, found);
      if (misfits.empty()) return;
      ACCEL_CHECK(!options.strict, CheckpointError, folder.string(), " does not fit this training: ", misfits,
                  "; build the same, or load what fits with {.strict = false}");
      notes.push_back(message(folder.string(), " does not fit this training: ", misfits));
    });
    std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.first->turn < b.first->turn; });
    if (manifest.world_size != ranks)
      notes.push_back(message("saved by ", manifest.world_size, " ranks and loaded by ", ranks,
                              ": sums over the ranks ",
                              "are rounded otherwise, and a sample's random numbers are those of another rank"));
    collective::all_or_none<CheckpointError>(control_, "load_state: loading", deadline(), [&] {
      for (const auto& [part, saved] : found)
        if (const std::string note = part->load(saved); !note.empty()) notes.push_back(message(part->name, ": ", note));
    });
    std::string joined;
    std::set<std::string> told;
    for (const auto& said : control_.all_gather("load_state: what is not as it was", Json(notes).dump(), deadline()))
      for (const auto& note : Json::parse(said).get<std::vector<std::string>>())
        if (told.insert(note).second) joined += message(joined.empty() ? "" : "; ", note);
    if (rank_ == 0 && !joined.empty()) log_.warning("load_state: ", joined);
    steps = manifest.step;
    collective::all_or_none<CheckpointError>(control_, "load_state: hooks", deadline(), [&] {
      for (const auto& hook : after_load_) hook(event);
    });
    return folder;
  }

 private:
  using Json = nlohmann::json;

  struct Registered {
    std::weak_ptr<const void> object;
    checkpoint::Part part;
  };

  [[nodiscard]] Deadline deadline() const { return Deadline::in(patience_); }

  [[nodiscard]] std::vector<checkpoint::Part> living_parts() const {
    std::vector<checkpoint::Part> living;
    for (const auto& [object, part] : parts_)
      if (!object.expired()) living.push_back(part);
    return living;
  }

  /// `is_one`: the place is a checkpoint, as far as this rank sees.
  [[nodiscard]] std::filesystem::path chosen(const std::optional<std::filesystem::path>& place, bool is_one) {
    const auto answers = control_.all_gather("load_state: is it a checkpoint", is_one ? "1" : "0", deadline());
    if (std::find(answers.begin(), answers.end(), "0") == answers.end()) return *place;
    const auto missing = std::find(answers.begin(), answers.end(), "0") - answers.begin();
    ACCEL_CHECK(std::find(answers.begin(), answers.end(), "1") == answers.end(), CheckpointError,
                "load_state: ", place->string(), " is a checkpoint on some ranks, and not on rank ", missing,
                "; is it on a disk of one host?");
    const auto newest = latest(place);
    ACCEL_CHECK(newest, CheckpointError, "load_state: there is no checkpoint in ",
                place.value_or(saver_.options().folder).string());
    return *newest;
  }

  /// Those that are on both sides, and in words all that does not fit.
  [[nodiscard]] std::string match(const std::vector<checkpoint::Part>& parts, const checkpoint::Reader& reader,
                                  std::vector<std::pair<const checkpoint::Part*, checkpoint::SavedPart>>& found) const {
    std::string misfits;
    const auto say = [&](const auto&... words) { misfits += message(misfits.empty() ? "" : "; ", words...); };
    std::set<std::string_view> known;
    for (const auto& part : parts) {
      known.insert(part.name);
      auto saved = reader.part(part.name, rank_);
      if (!saved) {
        say(part.name, " is not in it");
        continue;
      }
      const std::string mismatch = part.mismatch ? part.mismatch(*saved) : std::string();
      if (!mismatch.empty()) say(part.name, ": ", mismatch);
      if (mismatch.empty() || part.takes_what_fits) found.emplace_back(&part, *std::move(saved));
    }
    std::set<std::string_view> unknown;
    for (const auto& entry : reader.manifest().parts)
      if (!known.contains(entry.name) && unknown.insert(entry.name).second) say(entry.name, " is only there");
    return misfits;
  }

  launch::ControlPlane control_;
  int rank_;
  Log log_;
  Seconds patience_;
  std::vector<Registered> parts_;
  std::map<std::string, std::int64_t> kinds_;
  std::vector<checkpoint::SaveHook> before_save_, after_save_, before_load_, after_load_;
  checkpoint::Saver saver_;
};

}  // namespace accel::inline v0_1::prepare
