// Saver: brings the parts of a training into a folder, while the training goes on.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <accel/checkpoint/detail/part_state.hpp>
#include <accel/checkpoint/detail/save.hpp>
#include <accel/checkpoint/detail/sites.hpp>
#include <accel/checkpoint/folder.hpp>
#include <accel/checkpoint/part.hpp>
#include <accel/checkpoint/save_event.hpp>
#include <accel/checkpoint/snapshot.hpp>
#include <accel/collective/agree.hpp>
#include <accel/core/error.hpp>
#include <accel/core/log.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/no_signals.hpp>
#include <accel/launch/notice_board.hpp>

namespace accel::inline v0_1::checkpoint {

struct Options {
  std::filesystem::path folder = "checkpoints";  // of those that are numbered
  Retention keep{};                              // of those, too
  bool asynchronous = true;                      // save_state returns when it has a snapshot
  double timeout_s = 1800;                       // for a save to be on the disk
  bool on_sigterm = false;                       // SIGTERM ends nothing, but is_preempted() says so: time to save
};

/// What the user gives for one save.
struct SaveOptions {
  std::optional<double> metric{};      // to keep the best by: rank 0's; one that is not finite is none
  std::optional<bool> asynchronous{};  // unset: Options::asynchronous
};

/// One per accelerator. Every save goes through it, one after the other.
class Saver {
 public:
  Saver(launch::ControlPlane control, int rank, Log log, Options options, Seconds patience)
      : control_(std::move(control)),
        notices_(control_.notices("checkpoint")),
        rank_(rank),
        log_(std::move(log)),
        options_(std::move(options)),
        patience_(patience),
        sites_(message(control_.peers()[static_cast<std::size_t>(rank)])) {
    ACCEL_CHECK(options_.timeout_s > 0, ConfigError, "checkpoint.timeout_s = ", options_.timeout_s, " must be above 0");
    check_count("total_limit", options_.keep.total_limit);
    check_count("keep_every", options_.keep.keep_every);
    check_count("keep_best", options_.keep.keep_best);
  }
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  /// Waits for what is under way, and logs how it went wrong, if it did.
  ~Saver() {
    try {
      wait();
    } catch (const std::exception& error) {
      log_.warning("the last save: ", first_line(error));
    } catch (...) {
      log_.warning("the last save: something that is no std::exception");
    }
  }

  [[nodiscard]] const Options& options() const { return options_; }

  /// The tensors of a snapshot that is still being made may be written to afterwards.
  ///
  /// Cost     a comparison where there is none.
  void settle() {
    if (snapshot_ != nullptr) std::exchange(snapshot_, nullptr)->settle();
  }
  /// The same of those that lie where `written` does; see has_snapshot().
  void settle(std::span<const at::Tensor> written) {
    if (snapshot_ != nullptr) snapshot_->settle(written);
  }
  /// Whether there may be something to settle.
  [[nodiscard]] bool has_snapshot() const { return snapshot_ != nullptr; }

  /// Whether the last save is not over yet.
  [[nodiscard]] bool is_under_way() const {
    return under_way_.valid() && under_way_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  }

  /// Until the last save is over.
  ///
  /// Throws   CheckpointError for a save that failed, once.
  void wait() {
    if (!under_way_.valid()) return;
    auto result = std::exchange(under_way_, {});
    const auto save = std::exchange(save_, nullptr);
    snapshot_ = nullptr;
    if (result.wait_for(deadline_.remaining()) != std::future_status::ready) {
      save->give_up();
      thread_.detach();
      memory_ = std::make_shared<CopyMemory>();  // what is left behind may still write to the old
      throw CheckpointError(message("save_state: ", place_.string(), " is not on the disk after ", options_.timeout_s,
                                    " s, and is given up; is the disk still there?"));
    }
    if (thread_.joinable()) thread_.join();
    late_.insert(late_.end(), save->torn().begin(), save->torn().end());
    result.get();
  }

  /// Until when the other ranks come that wait for the last save first.
  [[nodiscard]] Deadline meeting() const {
    const Seconds left = under_way_.valid() ? std::max(Seconds(0), Seconds(deadline_.remaining())) : Seconds(0);
    return Deadline::in(patience_ + left);
  }

  /// Begins a save of `parts`, or, if it is not to be asynchronous, makes it. `place`: unset for the next number in the
  /// folder of the options. Gives where the checkpoint will be.
  ///
  /// Order    collective, with the same parts and place.
  /// Throws   CheckpointError, on every rank: where an earlier save has failed, and that was not told yet; where this
  ///          one cannot begin. Then nothing has changed.
  std::filesystem::path save(const std::optional<std::filesystem::path>& place, std::span<const Part> parts,
                             std::int64_t step, const SaveOptions& own, std::span<const SaveHook> before,
                             std::vector<SaveHook> after) {
    const Deadline meeting = this->meeting();
    const bool is_asynchronous = own.asynchronous.value_or(options_.asynchronous);
    const std::int64_t least_number = place ? 0 : next_number(meeting);
    detail::Save::Start start{.notices = notices_,
                              .rank = rank_,
                              .world_size = static_cast<int>(control_.peers().size()),
                              .number = ++saves_,
                              .step = step,
                              .late = late_,
                              .keep = options_.keep,
                              .is_numbered = !place,
                              .others_wait = !is_asynchronous,
                              .metric = std::nullopt,  // rank 0's
                              .after = std::move(after),
                              .log = log_,
                              .deadline = meeting};  // until the last save is over
    std::optional<UnfinishedFolder> folder;
    // 1. What this rank has, and where rank 0 puts it.
    Json said{{"traces", Json::array()}};
    std::vector<std::string> names{place ? message("the place ", place->string()) : "no place", message("step ", step)};
    const std::string trouble = error_of([&] {
      wait();
      start.deadline = Deadline::in(Seconds(options_.timeout_s));
      for (const Part& part : parts) {
        start.parts.push_back(detail::PartState::of(part));
        names.push_back(part.name);
        said["traces"].push_back(start.parts.back().trace());
      }
      if (rank_ != 0) return;
      folder.emplace(sites_.begin(place, options_.folder, least_number));
      said["place"] = bytes_of(folder->place());
      said["word"] = folder->word();
      // What cannot be compared cannot be the best.
      if (own.metric && std::isfinite(*own.metric)) said["metric"] = *own.metric;
    });
    said["names"] = names;
    if (!trouble.empty()) said["error"] = trouble;
    const auto all = told_by_all("save_state", said, meeting);
    check_alike(all, start.parts, start.is_shared);
    start.place = path_of(all.front().at("place"));
    if (all.front().contains("metric")) start.metric = all.front().at("metric").get<double>();
    const auto word = all.front().at("word").get<std::string>();
    start.folder = UnfinishedFolder::path_of(start.place, word);
    start.id = word;
    forget_notices(start.deadline);
    // 2. Who sees that folder writes to it. Hosts that do not have disks of their own: there it is made again.
    start.groups = groups_of(start.folder, meeting);
    if (start.groups.size() > 1) {
      Json made = Json::object();
      const std::string failed = error_of([&] {
        for (const auto& group : start.groups)
          if (group.leader() == rank_ && rank_ != 0)
            folder.emplace(sites_.begin_as(start.place, word, start.is_numbered));
      });
      if (!failed.empty()) made["error"] = failed;
      (void)told_by_all("save_state: the folders of other hosts", made, meeting);
    }
    for (const auto& left : sites_.take_troubles())
      log_.warning("save_state: what an earlier job has left could not be removed: ", left);
    Json began = Json::object();
    const std::string refused = error_of([&] {
      for (const auto& hook : before) hook({start.folder, step, rank_});
      const std::filesystem::path own_place = start.place;
      save_ = std::make_shared<detail::Save>(std::move(start), std::move(folder), memory_);
      place_ = own_place;
    });
    if (!refused.empty()) began["error"] = refused;
    try {
      (void)told_by_all("save_state: beginning", began, meeting);
    } catch (...) {
      save_ = nullptr;  // and its folder
      throw;
    }
    // 3. From here on this rank goes on by itself. Where it cannot, the others read so in its notices.
    deadline_ = save_->deadline();
    snapshot_ = &save_->snapshot();
    const auto task = std::make_shared<std::packaged_task<void()>>([save = save_] { save->run(); });
    under_way_ = task->get_future();
    try {
      const launch::NoSignals guard;
      thread_ = std::thread([task] { (*task)(); });
    } catch (const std::system_error&) {
      (*task)();  // a system that has no more threads has this one
    }
    if (!is_asynchronous)
      collective::all_or_none<CheckpointError>(control_, "save_state", this->meeting(), [&] { wait(); });
    return place_;
  }

 private:
  using Json = nlohmann::json;

  static void check_count(std::string_view name, const std::optional<std::int64_t>& count) {
    ACCEL_CHECK(!count || *count >= 1, ConfigError, "checkpoint.keep.", name, " = ", *count, " must be at least 1");
  }

  /// What all ranks say. Where one has an error, that is everybody's.
  [[nodiscard]] std::vector<Json> told_by_all(std::string_view purpose, const Json& said, Deadline deadline) {
    std::vector<Json> all;
    for (const auto& text :
         control_.all_gather(purpose, said.dump(-1, ' ', false, Json::error_handler_t::replace), deadline))
      all.push_back(Json::parse(text));
    for (std::size_t rank = 0; rank < all.size(); ++rank)
      ACCEL_CHECK(!all[rank].contains("error"), CheckpointError, purpose, ": rank ", rank, ": ",
                  all[rank].at("error").template get<std::string>());
    return all;
  }

  /// All save the same parts; which of them are the same on all ranks.
  static void check_alike(const std::vector<Json>& all, const std::vector<detail::PartState>& parts,
                          std::vector<bool>& is_shared) {
    for (std::size_t rank = 1; rank < all.size(); ++rank)
      ACCEL_CHECK(all[rank].at("names") == all.front().at("names"), InvalidArgument,
                  "save_state differs between ranks: rank 0 has ", all.front().at("names").dump(), ", rank ", rank,
                  " has ", all[rank].at("names").dump());
    for (std::size_t p = 0; p < parts.size(); ++p) {
      std::size_t rank = 0;
      while (rank < all.size() && all[rank].at("traces").at(p) == all.front().at("traces").at(p)) ++rank;
      const bool is_alike = rank == all.size();
      ACCEL_CHECK(is_alike || parts[p].sharing != Sharing::replicated, InvalidArgument, "save_state: ", parts[p].name,
                  " has other tensors on rank ", rank, " than on rank 0; build it the same way on every rank");
      is_shared.push_back(is_alike && parts[p].sharing != Sharing::own);
    }
  }

  /// Behind the newest on the disks of all hosts, where there are several.
  [[nodiscard]] std::int64_t next_number(Deadline deadline) {
    const auto& peers = control_.peers();
    if (std::all_of(peers.begin(), peers.end(), [&](const auto& peer) { return peer.host == peers.front().host; }))
      return 0;
    std::int64_t most = 0;
    Json own{{"number", 0}};
    const std::string error = error_of([&] { own["number"] = detail::Sites::next_number(options_.folder); });
    if (!error.empty()) own["error"] = error;
    for (const auto& said : told_by_all("save_state: the newest", own, deadline))
      most = std::max(most, said.at("number").template get<std::int64_t>());
    return most;
  }

  /// Rank 0's folder is written to by all who see it, the others by host.
  [[nodiscard]] std::vector<detail::Writers> groups_of(const std::filesystem::path& folder, Deadline deadline) {
    std::error_code ignored;
    const bool sees = std::filesystem::is_directory(folder, ignored);
    const auto answers = control_.all_gather("save_state: who sees the folder", sees ? "1" : "0", deadline);
    std::vector<detail::Writers> groups(1);
    std::vector<std::string> hosts{""};
    for (std::size_t rank = 0; rank < answers.size(); ++rank) {
      const std::string host = answers[rank] == "1" ? "" : control_.peers()[rank].host;
      const auto found = std::find(hosts.begin(), hosts.end(), host) - hosts.begin();
      if (static_cast<std::size_t>(found) == hosts.size()) {
        hosts.push_back(host);
        groups.emplace_back();
      }
      groups[static_cast<std::size_t>(found)].ranks.push_back(static_cast<int>(rank));
    }
    ACCEL_CHECK(answers.front() == "1", CheckpointError, "save_state: ", folder.string(),
                " is not there any more, which rank 0 has just made; does somebody clean up there?");
    return groups;
  }

  /// In JSON, whatever its bytes are.
  [[nodiscard]] static Json bytes_of(const std::filesystem::path& path) {
    return std::vector<unsigned char>(path.native().begin(), path.native().end());
  }
  [[nodiscard]] static std::filesystem::path path_of(const Json& bytes) {
    const auto all = bytes.get<std::vector<unsigned char>>();
    return std::string(all.begin(), all.end());
  }

  /// Those of the save before this one, which is over on every rank.
  void forget_notices(Deadline deadline) {
    for (const auto& key : std::exchange(notices_left_, detail::Save::keys_of(saves_, rank_)))
      notices_.withdraw(key, deadline);
  }

  launch::ControlPlane control_;
  launch::NoticeBoard notices_;
  int rank_;
  Log log_;
  Options options_;
  Seconds patience_;  // for the other ranks to come
  detail::Sites sites_;
  std::int64_t saves_ = 0;
  std::vector<std::string> notices_left_;
  std::vector<std::string> late_;  // tensors that somebody wrote to before they were copied
  std::shared_ptr<CopyMemory> memory_ = std::make_shared<CopyMemory>();
  std::shared_ptr<detail::Save> save_;
  Snapshot* snapshot_ = nullptr;  // its, while it may have to be settled
  std::future<void> under_way_;
  std::thread thread_;
  std::filesystem::path place_;
  Deadline deadline_ = Deadline::in(Seconds(0));
};

}  // namespace accel::inline v0_1::checkpoint
