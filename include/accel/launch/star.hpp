// Star: the connection of every rank to rank 0. Over it go beats, failures and small values.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/address.hpp>
#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/door.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/greeting.hpp>
#include <accel/launch/detail/knock.hpp>
#include <accel/launch/detail/last_words.hpp>
#include <accel/launch/detail/links.hpp>
#include <accel/launch/detail/lobby.hpp>
#include <accel/launch/detail/pace.hpp>
#include <accel/launch/detail/poller.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/switchboard.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/no_signals.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch {

/// Watches the ranks of a job, carries the first failure to all of them, and small values between them.
///
/// Every rank keeps one connection to rank 0, which passes on what it hears. A process that ends is seen by
/// its closed connection, at once; one that is stopped or cut off by its silence, after three beats;
/// one that fails says so itself.
///
/// What is known, and what follows from it, is for detail::Switchboard to say; here are the thread, the connections and
/// the lock.
///
/// Cost     a thread, and some 60 bytes per rank and beat. On the way of a step nothing but two relaxed stores per
///          collective and three loads.
class Star {
 public:
  /// On rank 0: waits at the door until all have come.
  ///
  /// Throws   CommError at the deadline, with who came and who is missing; ConfigError if the ranks disagree. So do
  ///          all the others.
  Star(Peer own, StarTerms terms, std::shared_ptr<detail::Door> door, Deadline deadline)
      : Star(own.rank, own.world_size, std::move(terms)) {
    lobby_.emplace(own, std::move(door), poller_, terms_);
    gathering_.emplace(std::move(own), terms_.run_id, terms_.is_drawn);
    gather(deadline);
    start();
  }

  /// On the others: goes to rank 0 at one of `addresses`, and waits for its word that all have come.
  ///
  /// Throws   what rank 0 does; CommError if it does not answer.
  Star(const Peer& own, StarTerms terms, const std::vector<detail::Address>& addresses, int port, Deadline deadline)
      : Star(own.rank, 1, std::move(terms)) {
    detail::Joined joined = detail::join(own, terms_, addresses, port, deadline);
    own_address_ = detail::place_of(joined.connection.descriptor());
    links_.open(0, std::move(joined.connection));
    terms_.run_id = joined.welcome.run_id;
    // One for all: who beats more slowly than another listens is no silent rank.
    terms_.interval = joined.welcome.interval;
    board_.emplace(rank_, std::move(joined.welcome.peers), terms_.interval, Clock::now());
    for (const auto& message : joined.more) hear(0, message, Clock::now());
    pass_on();
    start();
  }

  Star(const Star&) = delete;
  Star& operator=(const Star&) = delete;

  ~Star() {
    if (!thread_.joinable()) return;
    try {
      leave();
    } catch (const std::exception&) {
      // No memory for words: the others will see the connection end.
    }
    ending_.store(true);
    poller_.wake();
    thread_.join();
  }

  [[nodiscard]] const std::vector<Peer>& peers() const { return board_->roster().peers(); }
  [[nodiscard]] const std::string& run_id() const { return terms_.run_id; }

  /// Not on rank 0: this rank's address, as rank 0 sees it if there is nothing in between.
  [[nodiscard]] detail::Address own_address() const { return own_address_.value(); }

  // What this rank does

  /// `operation` is a literal: only its address is kept.
  void began(const char* operation, std::int64_t number) noexcept {
    pace_.began(operation, number);
    forget_handled_error();
  }
  void began_round(std::string_view purpose, std::int64_t number) {
    forget_handled_error();
    const std::lock_guard lock(mutex_);
    pace_.began_round(purpose, number);
  }
  void stepped() noexcept { pace_.stepped(); }

  /// An error that this rank has thrown: it is what ended the rank if it still exists when that happens, as nothing
  /// keeps the text of an exception that was handled.
  void note_error(std::weak_ptr<const std::string> text) {
    const std::lock_guard lock(mutex_);
    last_error_ = std::move(text);
    has_error_ = true;
  }

  // What the others hear of it

  /// This rank has failed: every rank is told, unless another had failed before.
  void publish(std::string_view reason) {
    const std::lock_guard lock(mutex_);
    fail(message(self(), " failed ", pace_.now(), ": ", reason));
  }

  /// This rank ends by an exception: every rank is told, as above.
  void ended_by(std::string_view text) {
    const std::lock_guard lock(mutex_);
    fail_by_exception(": " + std::string(text));
  }

  /// This rank begins no collective before its next exchange; `why` is the rest of a sentence about it. Where others
  /// wait for one of it, missed_by() says so.
  void halt(std::string_view why) {
    const std::lock_guard lock(mutex_);
    board_->halt(pace_.now(), why);
    pass_on();
  }

  /// The last word of this rank. Returns when it is sent; rank 0, which the others may still need, waits for theirs.
  /// Never longer than a second.
  void leave() {
    std::unique_lock lock(mutex_);
    if (std::exchange(leaving_, true)) return;
    const bool torn = std::uncaught_exceptions() > 0;
    if (torn) {
      const auto text = last_error_.lock();
      fail_by_exception(text ? ": " + *text : "; what it says stands in the output of that rank");
    } else {
      board_->leave(pace_.now());
      pass_on();
    }
    changed_.wait_for(lock, failed() ? farewell_timeout_after_failure : farewell_timeout,
                      [&] { return links_.sent() && (rank_ > 0 || torn || board_->roster().is_alone()); });
  }

  // What it hears of the others

  /// Whether a rank is known to have failed.
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }

  /// The sentence about the first rank that failed, waiting for it up to `patience`: the news of a
  /// connection that broke may still be on its way. Empty while all are well.
  [[nodiscard]] std::string failure(Seconds patience = Seconds(0)) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience, [&] { return failed(); });
    return board_->roster().failure();
  }

  /// Until a rank has failed, or `is_over` and nudge(), or something else has come; not longer than `patience`.
  void wait_for_news(Seconds patience, const std::atomic<bool>& is_over) {
    std::unique_lock lock(mutex_);
    if (!failed() && !is_over) changed_.wait_for(lock, patience);
  }
  void nudge() {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }

  /// See detail::Roster: of who has left, and of who has halted.
  [[nodiscard]] std::string missed_by(std::int64_t collective, std::int64_t round) const {
    const std::lock_guard lock(mutex_);
    if (std::string sentence = board_->roster().missed_by(collective, round); !sentence.empty()) return sentence;
    return board_->roster().halted_before(collective, pace_.now().rounds);
  }
  [[nodiscard]] std::string departure_of(int rank) const {
    const std::lock_guard lock(mutex_);
    return board_->roster().departure_of(rank);
  }

  /// A sentence about the rank that is furthest behind, if it has not begun that collective; or empty. For a wait that
  /// took too long: all are asked how far they are, which takes a moment.
  [[nodiscard]] std::string suspect(std::int64_t collective) {
    std::unique_lock lock(mutex_);
    const auto& roster = board_->roster();
    say({Word::report, {}});
    changed_.wait_for(lock, report_timeout + for_all(report_timeout_per_rank), [&] { return failed(); });
    const int known = roster.comparisons();
    say({Word::compare, {}});
    if (rank_ > 0)
      changed_.wait_for(lock, report_timeout + for_all(answer_timeout_per_rank),
                        [&] { return failed() || roster.comparisons() > known; });
    return roster.suspect(collective, pace_.now(), Clock::now());
  }

  // Values by name

  /// What rank 0's shelf answers; nothing at the deadline, or if a rank has failed, or rank 0 has left.
  [[nodiscard]] std::optional<std::string> ask(const detail::Inquiry& inquiry, Deadline deadline) {
    std::unique_lock lock(mutex_);
    const std::int64_t id = board_->ask(inquiry, pace_.now(), Clock::now());
    pass_on();
    wait_for_rank_0(lock, deadline, [&] { return board_->has_reply(id); });
    return board_->take_reply(id);
  }

  // Exchanges of small values

  /// How an exchange ended. `answered`: `value` is what came of it. `interrupted`: a rank has failed, or one has left
  /// without coming to it, or rank 0 at all. `late`: the deadline has passed.
  struct Answer {
    enum class Ending { answered, interrupted, late };
    Ending ending{};
    std::string value{};
  };

  /// Brings `own`, and waits for what comes of it when all have come. `members`: of a part of the job, ranks of that.
  [[nodiscard]] Answer exchange(const detail::Contribution& own, const std::vector<int>& members, Deadline deadline) {
    using enum Answer::Ending;
    const detail::ExchangeKey& key = own.key;
    const auto& roster = board_->roster();
    std::unique_lock lock(mutex_);
    say({Word::bring, own.packed()});
    const auto is_missed = [&] { return key.group.empty() && !roster.missed_by(0, key.number).empty(); };
    // How far who has left had come in a part of the job only rank 0 knows.
    const auto leavers = [&] {
      return std::count_if(members.begin(), members.end(), [&](int member) { return roster.has_left(member); });
    };
    for (std::ptrdiff_t known = 0;;) {
      wait_for_rank_0(lock, deadline, [&] { return board_->has_result(key) || is_missed() || leavers() > known; });
      if (board_->has_result(key) || failed() || leavers() == known) break;
      known = leavers();
      say({Word::late, detail::Inquest{key, own.purpose, true, 0, members}.packed()});
    }
    return take_result(key, failed() || is_missed() || roster.has_left(0) ? interrupted : late);
  }

  /// After an exchange was late: rank 0 says, to everybody, who of its members has not come, as failure() has it then.
  /// Or the last has come after all: `answered`. `late`: rank 0 does not answer.
  [[nodiscard]] Answer ask_who_is_late(const detail::Inquest& inquest) {
    using enum Answer::Ending;
    std::unique_lock lock(mutex_);
    say({Word::late, inquest.packed()});
    // All may be asking at the same time.
    changed_.wait_for(lock, answer_timeout + for_all(answer_timeout_per_rank),
                      [&] { return failed() || board_->has_result(inquest.key); });
    return take_result(inquest.key, failed() ? interrupted : late);
  }

 private:
  using Message = detail::Message;
  using Word = detail::Word;
  using Clock = detail::Clock;
  using Time = detail::Time;

  /// `links`: how many ranks this one may be connected to, itself among them.
  Star(int rank, int links, StarTerms terms) : rank_(rank), terms_(std::move(terms)), links_(poller_, links) {
    ACCEL_CHECK(terms_.interval.count() >= 0, ConfigError, "heartbeat_s = ", terms_.interval.count(),
                " must not be negative; with 0 nobody is given up for being silent");
    constexpr Seconds as_good_as_never = std::chrono::hours(24 * 365);
    if (terms_.interval > as_good_as_never) terms_.interval = Seconds(0);
  }

  /// Who goes on, outside of a handler, has done with what was thrown before, though he may keep it.
  void forget_handled_error() {
    if (!has_error_.load(std::memory_order_relaxed)) return;
    if (std::uncaught_exceptions() > 0 || std::current_exception() != nullptr) return;
    const std::lock_guard lock(mutex_);
    last_error_.reset();
    has_error_ = false;
  }

  // 1. The ranks meet at rank 0. No thread yet.

  void gather(Deadline deadline) {
    constexpr std::chrono::milliseconds glance(100);
    while (!gathering_->is_complete() && !gathering_->verdict()) {
      if (deadline.passed())
        gathering_->give_up(deadline.span_s(), terms_.where);
      else
        turn(Clock::now() + std::min<Clock::duration>(deadline.remaining(), glance));
    }
    if (gathering_->verdict()) refuse_all();
    const std::lock_guard lock(mutex_);
    board_.emplace(rank_, gathering_->peers(), terms_.interval, Clock::now());
    links_.write({detail::Letter::everybody, detail::Welcome{terms_.run_id, terms_.interval, peers()}.packed()});
    links_.flush();
  }

  /// Who comes a moment later hears why, too.
  [[noreturn]] void refuse_all() {
    const auto end = Clock::now() + std::chrono::milliseconds(500);
    const auto& verdict = *gathering_->verdict();
    const auto all_know = [&] {
      const std::lock_guard lock(mutex_);
      return links_.sent() && gathering_->is_complete();
    };
    {
      const std::lock_guard lock(mutex_);
      links_.write({detail::Letter::everybody, detail::refusal(verdict)});
      links_.flush();
    }
    while (Clock::now() < end && !all_know()) turn(end);
    verdict.raise();
  }

  void start() {
    {
      const NoSignals guard;
      thread_ = std::thread([this] { watch(); });
    }
    last_words_.emplace([this](const std::string& text) { last_words(text); });
  }

  void watch() {
    try {
      while (!ending_) turn(std::nullopt);
    } catch (const std::exception& error) {
      // No memory, or the system refuses what it never does: this rank no longer hears the others.
      end_watching(error.what());
    }
  }

  void end_watching(const char* why) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      fail(message(self(), " failed ", pace_.now(), ": it no longer hears the others: ", why));
    } catch (const std::exception&) {
      failed_.store(true, std::memory_order_release);  // without memory for words
    }
  }

  // 2. One turn: what has come, what is due.

  /// Sleeps until something comes, until there is something to do without, or until `end`.
  void turn(std::optional<Time> end) {
    inbox_.clear();
    alive_.clear();
    ended_.clear();
    // Reading needs no lock: who floods this rank delays none of its own threads, and by the budget no other rank.
    const bool has_read_all = poller_.wait(earliest(end), [&](std::uint64_t name) { read(name); });
    const Time now = Clock::now();
    const std::lock_guard lock(mutex_);
    if (board_)
      for (const int rank : alive_) board_->sign_of_life(rank, now);
    for (const auto& [rank, message] : inbox_) hear(rank, message, now);
    for (const int rank : ended_) disconnect(rank, now);
    if (lobby_)
      for (auto& newcomer : lobby_->newcomers(now)) admit(std::move(newcomer));
    if (board_) {
      board_->turn(pace_.now(), now, [&](int rank) { return links_.acknowledged(rank); }, has_read_all);
      pass_on();
    } else {
      links_.flush();
    }
    if (leaving_) changed_.notify_all();
  }

  [[nodiscard]] std::optional<Time> earliest(std::optional<Time> end) const {
    const std::lock_guard lock(mutex_);
    for (const auto& next :
         {board_ ? board_->roster().next_turn() : std::nullopt, lobby_ ? lobby_->next_turn() : std::nullopt})
      if (next && (!end || *next < *end)) end = next;
    return end;
  }

  void read(std::uint64_t name) {
    if (name >= detail::Lobby::first_name) return lobby_->read(name);
    const int rank = static_cast<int>(name);
    std::vector<Message> messages;
    if (!links_.read(rank, messages)) ended_.push_back(rank);
    alive_.push_back(rank);
    for (auto& message : messages) inbox_.emplace_back(rank, std::move(message));
  }

  // The rest is called with the mutex held.

  /// What came of that exchange, or that nothing did.
  [[nodiscard]] Answer take_result(const detail::ExchangeKey& key, Answer::Ending otherwise) {
    auto found = board_->take_result(key);
    if (!found) return {otherwise, {}};
    return {Answer::Ending::answered, *std::move(found)};
  }

  /// Until `is_over()`, a rank has failed, the deadline has passed, or rank 0 has left and a moment has passed in which
  /// its last answers come.
  template <class IsOver>
  void wait_for_rank_0(std::unique_lock<std::mutex>& lock, Deadline deadline, IsOver&& is_over) {
    changed_.wait_for(lock, deadline.remaining(),
                      [&] { return is_over() || failed() || board_->roster().has_left(0); });
    if (is_over() || failed() || deadline.passed()) return;
    changed_.wait_for(lock, std::min<Seconds>(deadline.remaining(), farewell_timeout),
                      [&] { return is_over() || failed(); });
  }

  void admit(detail::Newcomer newcomer) {
    const int rank = newcomer.peer.rank;
    if (const auto refused = gathering_->admit(newcomer.peer, newcomer.run_id))
      return detail::Lobby::refuse(newcomer.connection, detail::refusal(*refused));
    links_.adopt(rank, std::move(newcomer.connection));
  }

  void disconnect(int rank, Time now) {
    links_.close(rank);
    if (board_)
      board_->lose(rank, now);
    else
      gathering_->forget(rank);
  }

  void hear(int from, const Message& message, Time now) {
    try {
      if (board_)
        board_->hear(from, message, pace_.now(), now);
      else if (message.word == Word::overdue)  // rank 0 still gathers
        gathering_->give_up(detail::Unpacker(message.body).real(), terms_.where);
    } catch (const std::exception&) {
      ended_.push_back(from);  // it does not speak as a rank does
    }
  }

  /// To rank 0, which may be this one.
  void say(Message message) {
    board_->say(std::move(message), pace_.now(), Clock::now());
    pass_on();
  }

  void fail(std::string_view sentence) {
    board_->fail(sentence);
    pass_on();
  }

  void fail_by_exception(std::string_view what) {
    fail(message(self(), " was ended by an exception ", pace_.now(), what));
  }

  /// Who waits here looks again, and what the switchboard has for others is sent. In this order: what others do when
  /// they hear of a failure, this rank is not to take for well.
  void pass_on() {
    if (board_->take_news()) {
      if (!board_->roster().failure().empty()) failed_.store(true, std::memory_order_release);
      changed_.notify_all();
    }
    for (const auto& letter : board_->take_letters()) links_.write(letter);
    links_.flush();
  }

  /// An exception that nobody caught: the program ends when this returns.
  void last_words(const std::string& text) {
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(farewell_timeout_after_failure);
    // Not by lock(): the thread that ends may be the one that holds it.
    std::unique_lock lock(mutex_, std::try_to_lock);
    while (!lock.owns_lock() && Clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      (void)lock.try_lock();
    }
    if (!lock.owns_lock()) return;
    fail_by_exception(": " + text);
    changed_.wait_until(lock, end, [&] { return links_.sent(); });
  }

  [[nodiscard]] const Peer& self() const { return board_->roster().peer(rank_); }

  [[nodiscard]] Seconds for_all(Seconds per_rank) const { return per_rank * static_cast<double>(peers().size()); }

  // Ranks that finish a training together do so within milliseconds of each other.
  static constexpr Seconds farewell_timeout{1};
  static constexpr Seconds farewell_timeout_after_failure{0.3};  // some are gone; the rest may still ask who
  static constexpr Seconds answer_timeout{0.5};                  // of a rank 0 that is well
  static constexpr Seconds answer_timeout_per_rank{0.001};
  static constexpr Seconds report_timeout{0.15};  // of star threads, which have little else to do
  static constexpr Seconds report_timeout_per_rank{0.0001};

  int rank_;
  StarTerms terms_;
  std::optional<detail::Address> own_address_;  // not on rank 0

  std::atomic<bool> failed_{false};
  std::atomic<bool> has_error_{false};  // see last_error_
  std::atomic<bool> ending_{false};

  detail::Poller poller_;

  // Of the thread that turns.
  std::vector<std::pair<int, Message>> inbox_;
  std::vector<int> alive_;  // who has sent anything, be it a part of a message
  std::vector<int> ended_;
  std::optional<detail::Lobby> lobby_;  // on rank 0

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  detail::Pace pace_;
  std::weak_ptr<const std::string> last_error_;
  bool leaving_ = false;
  std::optional<detail::Gathering> gathering_;  // on rank 0
  std::optional<detail::Switchboard> board_;    // once all have met
  detail::Links links_;                         // on others than rank 0 only to that

  std::thread thread_;
  std::optional<detail::LastWords> last_words_;
};

}  // namespace accel::inline v0_1::launch
