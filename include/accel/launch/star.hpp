// Star: the connection of every rank to rank 0. Over it go beats, failures and small values.
#pragma once

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/detail/address.hpp>
#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/descriptor.hpp>
#include <accel/launch/detail/door.hpp>
#include <accel/launch/detail/exchanges.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/last_words.hpp>
#include <accel/launch/detail/roster.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch {

/// Three of them are silence: a stopped process is given up after 4.5 s.
inline constexpr Seconds default_beat{1.5};

/// Watches the ranks of a job, carries the first failure to all of them, and small values between them.
///
/// Every rank keeps one connection to rank 0, which passes on what it hears. A process that ends is seen by
/// its closed connection, at once; one that is stopped or cut off by its silence, after three beats;
/// one that fails says so itself.
///
/// What is known, and what follows from it, is detail::Roster's and detail::Exchanges'; here are the thread, the
/// connections and the lock.
///
/// Cost     a thread, and some 60 bytes per rank and beat. On the way of a step nothing but two relaxed stores per
///          collective and two loads.
class Star {
 public:
  /// What all ranks of a job have alike.
  struct Terms {
    std::string where{};        // MASTER_ADDR and MASTER_PORT, for people
    std::string run_id{};       // who has another is of another run; empty, but not on rank 0: whichever that has
    std::int64_t creation = 0;  // of the accelerators of a process, which one
    std::string token{};        // who does not know it is no rank of this job
    Seconds interval = default_beat;
  };

  /// On rank 0: waits at the door until all have come.
  ///
  /// Throws   CommError at the deadline, with who came and who is missing; ConfigError if the ranks disagree. So do
  ///          all the others.
  Star(Peer own, Terms terms, std::shared_ptr<detail::Door> door, Deadline deadline)
      : Star(own.rank, std::move(terms)) {
    door_ = std::move(door);
    gathering_.emplace(own, terms_.run_id);
    links_.resize(static_cast<std::size_t>(own.world_size));
    gather(deadline);
    start();
  }

  /// On the others: goes to rank 0 at one of `addresses`, and waits for its word that all have come.
  ///
  /// Throws   what rank 0 does; CommError if it does not answer.
  Star(Peer own, Terms terms, const std::vector<detail::Address>& addresses, int port, Deadline deadline)
      : Star(own.rank, std::move(terms)) {
    links_.resize(1);
    join(own, addresses, port, deadline);
    start();
  }

  Star(const Star&) = delete;
  Star& operator=(const Star&) = delete;

  ~Star() {
    if (door_ != nullptr) door_->close_room(terms_.creation);
    if (!thread_.joinable()) return;
    try {
      leave();
    } catch (const std::exception&) {
      // No memory for words: the others will see the connection end.
    }
    ending_.store(true);
    wake();
    thread_.join();
  }

  [[nodiscard]] const std::vector<Peer>& peers() const { return roster_->peers(); }
  [[nodiscard]] const std::string& run_id() const { return terms_.run_id; }

  /// Not on rank 0: this rank's address, as rank 0 sees it if there is nothing in between.
  [[nodiscard]] detail::Address own_address() const { return own_address_.value(); }

  // What this rank does

  /// `operation` is a literal: only its address is kept.
  void began(const char* operation, std::int64_t number) noexcept {
    operation_.store(operation, std::memory_order_relaxed);
    collectives_.store(number, std::memory_order_relaxed);
  }
  void began_round(std::string_view purpose, std::int64_t number) {
    const std::lock_guard lock(mutex_);
    round_ = purpose;
    rounds_ = number;
    operation_.store(nullptr, std::memory_order_relaxed);
  }
  void stepped() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

  /// An error that this rank has thrown: it is what ended the rank if it still exists when that happens, as nothing
  /// keeps the text of an exception that was handled.
  void note_error(std::weak_ptr<const std::string> text) {
    const std::lock_guard lock(mutex_);
    last_error_ = std::move(text);
  }

  // What the others hear of it

  /// This rank has failed: every rank is told, unless another had failed before.
  void publish(std::string_view reason) {
    const std::lock_guard lock(mutex_);
    fail(message(self(), " failed ", progress(), ": ", reason));
  }

  /// This rank ends by an exception: every rank is told, as above.
  void ended_by(std::string_view text) {
    const std::lock_guard lock(mutex_);
    fail(message(self(), " was ended by an exception ", progress(), ": ", text));
  }

  /// The last word of this rank. Returns when it is sent; rank 0, which the others may still need, waits for theirs.
  /// Never longer than a second.
  void leave() {
    std::unique_lock lock(mutex_);
    if (std::exchange(leaving_, true)) return;
    const bool torn = std::uncaught_exceptions() > 0;
    if (torn) {
      const auto text = last_error_.lock();
      fail(message(self(), " was ended by an exception ", progress(),
                   text ? ": " + *text : "; what it says stands in the output of that rank"));
    } else {
      roster_->leave(progress());
      post_letters();
      flush();
    }
    changed_.wait_for(lock, roster_->failure().empty() ? farewell_timeout : farewell_timeout_after_failure,
                      [&] { return sent() && (rank_ > 0 || torn || roster_->is_alone()); });
  }

  // What it hears of the others

  /// Whether a rank is known to have failed.
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }

  /// The sentence about the first rank that failed, waiting for it up to `patience`: the news of a
  /// connection that broke may still be on its way. Empty while all are well.
  [[nodiscard]] std::string failure(Seconds patience = Seconds(0)) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience, [&] { return failed(); });
    return roster_->failure();
  }

  /// See detail::Roster.
  [[nodiscard]] std::string missed_by(std::int64_t collective, std::int64_t round) const {
    const std::lock_guard lock(mutex_);
    return roster_->missed_by(collective, round);
  }
  [[nodiscard]] std::string departure_of(int rank) const {
    const std::lock_guard lock(mutex_);
    return roster_->departure_of(rank);
  }
  [[nodiscard]] std::string suspect(std::int64_t collective) const {
    const std::lock_guard lock(mutex_);
    return roster_->suspect(collective, progress(), Clock::now());
  }

  // Values by name

  /// What rank 0's shelf answers; nothing at the deadline, or if a rank has failed.
  [[nodiscard]] std::optional<std::string> ask(const detail::Inquiry& inquiry, Deadline deadline) {
    std::unique_lock lock(mutex_);
    const std::int64_t id = ++inquiries_;
    if (rank_ == 0)
      reply(shelf_.ask(0, id, inquiry));
    else
      post(0, {Word::ask, inquiry.packed(id)});
    flush();
    changed_.wait_for(lock, deadline.remaining(), [&] { return replies_.contains(id) || failed(); });
    auto found = replies_.extract(id);
    return found.empty() ? std::nullopt : std::optional(std::move(found.mapped()));
  }

  // Exchanges of small values

  /// How an exchange ended. `answered`: `value` is what came of it. `interrupted`: a rank has failed, or has left
  /// without coming to it. `late`: the deadline has passed.
  struct Answer {
    enum class Ending { answered, interrupted, late };
    Ending ending{};
    std::string value{};
  };

  /// Brings `own`, and waits for the others as far as what this rank gets depends on them.
  [[nodiscard]] Answer exchange(detail::Contribution own, Deadline deadline) {
    using enum Answer::Ending;
    const detail::ExchangeKey key = own.key;
    std::unique_lock lock(mutex_);
    if (rank_ == 0)
      bring(0, std::move(own));
    else
      post(0, {detail::Word::bring, own.packed()});
    flush();
    const auto has_left = [&] { return key.group.empty() && !roster_->missed_by(0, key.number).empty(); };
    changed_.wait_for(lock, deadline.remaining(), [&] { return results_.contains(key) || failed() || has_left(); });
    if (auto result = results_.extract(key); !result.empty()) return {answered, std::move(result.mapped())};
    return {failed() || has_left() ? interrupted : late, {}};
  }

  /// After that exchange was late: rank 0 says, to everybody, who among `members` (ranks of the job) has not come.
  /// The sentence; empty if rank 0 does not answer.
  [[nodiscard]] std::string ask_who_is_late(const detail::ExchangeKey& key, std::string_view purpose, double seconds,
                                            const std::vector<int>& members) {
    detail::Packer body;
    body.text(key.group).number(key.number).text(purpose).real(seconds);
    for (const int member : members) body.number(member);
    std::unique_lock lock(mutex_);
    detail::Message inquiry{detail::Word::late, body.take()};
    if (rank_ == 0)
      name_missing(inquiry);
    else
      post(0, std::move(inquiry));
    flush();
    changed_.wait_for(lock, answer_timeout, [&] { return failed(); });
    return roster_->failure();
  }

 private:
  using Message = detail::Message;
  using Word = detail::Word;
  using Clock = detail::Clock;
  using Time = detail::Time;

  struct Link {
    detail::Connection connection{};
    bool is_dirty = false;      // there is something to flush
    bool awaits_space = false;  // epoll tells when more can be sent
  };

  Star(int rank, Terms terms) : rank_(rank), terms_(std::move(terms)) {
    ACCEL_CHECK(terms_.interval.count() >= 0, ConfigError, "heartbeat_s = ", terms_.interval.count(),
                " must not be negative; with 0 nobody is given up for being silent");
    epoll_ = detail::Descriptor(::epoll_create1(EPOLL_CLOEXEC));
    wake_ = detail::Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.is_open() || !wake_.is_open()) detail::throw_errno("rendezvous: epoll and eventfd");
    watch_for(wake_.number(), wake_event, EPOLLIN, EPOLL_CTL_ADD);
  }

  // 1. The ranks meet. No thread yet.

  void gather(Deadline deadline) {
    door_->open_room(terms_.creation, wake_.number());
    wake();  // somebody may have been waiting there
    listen();
    while (!gathering_->is_complete() && !gathering_->verdict()) {
      if (deadline.passed())
        gathering_->give_up(deadline.span_s(), terms_.where);
      else
        turn(Clock::now() + std::min<Clock::duration>(deadline.remaining(), std::chrono::milliseconds(100)));
    }
    if (gathering_->verdict()) refuse_all();
    const std::lock_guard lock(mutex_);
    meet(gathering_->peers());
    detail::Packer everybody;
    everybody.text(terms_.run_id);
    for (const Peer& peer : roster_->peers())
      everybody.number(peer.rank).text(peer.host).text(peer.network).number(peer.pid).number(peer.world_size);
    const Message welcome{Word::welcome, everybody.take()};
    for (std::size_t r = 1; r < links_.size(); ++r) post(static_cast<int>(r), welcome);
    flush();
  }

  /// Who comes a moment later hears why, too.
  [[noreturn]] void refuse_all() {
    const auto end = Clock::now() + std::chrono::milliseconds(500);
    const auto& verdict = *gathering_->verdict();
    const auto all_know = [&] {
      const std::lock_guard lock(mutex_);
      return sent() && gathering_->is_complete();
    };
    {
      const std::lock_guard lock(mutex_);
      for (std::size_t r = 1; r < links_.size(); ++r) post(static_cast<int>(r), refusal(verdict));
      flush();
    }
    while (Clock::now() < end && !all_know()) turn(end);
    verdict.raise();
  }

  /// Rank 0 may come later than this rank, and may drop it unheard, as where too many come at a time.
  void join(const Peer& own, const std::vector<detail::Address>& addresses, int port, Deadline deadline) {
    std::string problem;
    for (std::chrono::milliseconds pause(10);; pause = std::min(2 * pause, std::chrono::milliseconds(200))) {
      try {
        if (knock(own, addresses, port, deadline, problem)) return;
      } catch (const NobodyThere& nobody) {
        if (problem.empty() || !deadline.passed()) problem = nobody.what();  // the last one ends by the time alone
      }
      ACCEL_CHECK(!deadline.passed(), CommError, "rendezvous: rank ", own.rank, " of ", own.world_size,
                  " found no rank 0 at ", terms_.where, " within ", deadline.span_s(),
                  " s; is it running, and are MASTER_ADDR and MASTER_PORT right? What came of it: ", problem);
      std::this_thread::sleep_for(std::min(pause, deadline.remaining()));
    }
  }

  struct NobodyThere : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

  /// Whether rank 0 has let this rank in. False: it was dropped, and may try again.
  bool knock(const Peer& own, const std::vector<detail::Address>& addresses, int port, Deadline deadline,
             std::string& problem) {
    detail::Connection connection = [&] {
      try {
        return detail::Connection(detail::connect_to(addresses, port, deadline));
      } catch (const CommError& error) {
        throw NobodyThere(error.what());
      }
    }();
    connection.write({Word::hello, detail::Packer()
                                       .text(magic)
                                       .text(ACCEL_VERSION)
                                       .text(terms_.token)
                                       .number(terms_.creation)
                                       .number(own.rank)
                                       .take()});
    connection.write({Word::introduce, detail::Packer()
                                           .text(terms_.run_id)
                                           .text(own.host)
                                           .text(own.network)
                                           .number(own.pid)
                                           .number(own.world_size)
                                           .take()});
    connection.flush();
    std::vector<Message> heard;
    bool asked = false;
    // A moment more, for rank 0 to say who is missing.
    const Deadline end = Deadline::in(deadline.remaining() + answer_timeout);
    while (heard.empty()) {
      if (deadline.passed() && !std::exchange(asked, true)) {
        connection.write({Word::late, detail::Packer().real(deadline.span_s()).take()});
        connection.flush();
      }
      ACCEL_CHECK(!end.passed(), CommError, "rendezvous: somebody is at ", terms_.where, ", but within ",
                  deadline.span_s(), " s has not said that all ranks have come, nor who is missing; the process of ",
                  "rank 0 is stopped, has not come to its accelerator number ", terms_.creation + 1,
                  ", or another program has the port");
      pollfd ready{.fd = connection.number(), .events = POLLIN, .revents = 0};
      const auto most = deadline.passed() ? end.remaining() : deadline.remaining();
      if (::poll(&ready, 1, static_cast<int>(most.count())) <= 0) continue;
      if (!connection.read(read_budget, longest_message, heard) && heard.empty()) {
        problem = "somebody is there, and hangs up without a word";
        return false;
      }
    }
    detail::Unpacker body(heard.front().body);
    if (heard.front().word == Word::elsewhere) {
      problem = message("accel ", body.text(), " is there, and this is ", ACCEL_VERSION);
      return false;
    }
    if (heard.front().word == Word::refuse) {
      const bool is_setting = body.number() != 0;
      detail::Refusal{is_setting, std::string(body.text())}.raise();
    }
    ACCEL_CHECK(heard.front().word == Word::welcome, CommError, "rendezvous: who answers at ", terms_.where,
                " speaks in other words than rank 0");
    terms_.run_id = body.text();
    std::vector<Peer> peers;
    while (!body.is_over()) {
      Peer peer;
      peer.rank = static_cast<int>(body.number());
      peer.host = body.text();
      peer.network = body.text();
      peer.pid = body.number();
      peer.world_size = static_cast<int>(body.number());
      peers.push_back(std::move(peer));
    }
    own_address_ = detail::place_of(connection.descriptor());
    links_[0].connection = std::move(connection);
    watch_for(links_[0].connection.number(), 0, EPOLLIN, EPOLL_CTL_ADD);
    meet(std::move(peers));
    for (std::size_t i = 1; i < heard.size(); ++i) take(0, heard[i], Clock::now());
    return true;
  }

  void meet(std::vector<Peer> peers) { roster_.emplace(rank_, std::move(peers), terms_.interval, Clock::now()); }

  [[nodiscard]] static Message refusal(const detail::Refusal& why) {
    return {Word::refuse, detail::Packer().number(why.is_setting ? 1 : 0).text(why.sentence).take()};
  }

  void start() {
    // Signals are for the program's own threads: no handler must find itself in this one.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] {
      while (!ending_) turn(std::nullopt);
    });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    last_words_.emplace([this](const std::string& text) { last_words(text); });
  }

  // 2. One turn of the thread: what has come, what is due.

  /// Sleeps until something comes, until the roster has something to do, or until `end`.
  void turn(std::optional<Time> end) {
    std::array<epoll_event, 256> events{};
    const int count = ::epoll_wait(epoll_.number(), events.data(), static_cast<int>(events.size()), timeout_ms(end));
    const Time now = Clock::now();
    inbox_.clear();
    ended_.clear();
    // Reading needs no lock: who floods this rank delays none of its own threads, and by the budget no other rank.
    for (int i = 0; i < count; ++i) read(events[static_cast<std::size_t>(i)]);
    const std::lock_guard lock(mutex_);
    for (const auto& [rank, message] : inbox_) take(rank, message, now);
    for (const int rank : ended_) close(rank, now);
    meet_visitors(now);
    if (roster_) {
      roster_->turn(progress(), now,
                    [&](int rank) { return links_[static_cast<std::size_t>(rank)].connection.acknowledged(); });
      post_letters();
    }
    flush();
    if (leaving_ || !ended_.empty()) changed_.notify_all();
  }

  [[nodiscard]] int timeout_ms(std::optional<Time> end) {
    const std::lock_guard lock(mutex_);
    std::optional<Time> next = end;
    const auto consider = [&](std::optional<Time> time) {
      if (time && (!next || *time < *next)) next = time;
    };
    if (roster_) consider(roster_->next_turn());
    if (door_ != nullptr && !is_listening_) consider(listen_again_);
    for (const auto& [id, visitor] : visitors_) consider(visitor.came + introduction_timeout);
    if (!next) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000'000));
  }

  void read(const epoll_event& event) {
    if (event.data.u64 == wake_event) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto drained = ::read(wake_.number(), &count, sizeof count);
    } else if (event.data.u64 == door_event) {
      accept();
    } else if (event.data.u64 < first_visitor) {
      const auto rank = static_cast<int>(event.data.u64);
      auto& connection = links_[static_cast<std::size_t>(rank)].connection;
      std::vector<Message> messages;
      if ((event.events & ~EPOLLOUT) != 0U && !connection.read(read_budget, longest_message, messages))
        ended_.push_back(rank);
      for (auto& message : messages) inbox_.emplace_back(rank, std::move(message));
    } else {
      const auto found = visitors_.find(event.data.u64);
      if (found != visitors_.end() && !read_visitor(found->first, found->second)) visitors_.erase(found);
    }
  }

  /// False: the connection has ended.
  bool read_visitor(std::uint64_t id, detail::Visitor& visitor) {
    std::vector<Message> messages;
    const bool is_known = visitor.rank >= 0;
    const bool open = visitor.connection.read(is_known ? read_budget : hello_budget,
                                              is_known ? longest_introduction : hello_budget, messages);
    for (auto& message : messages) words_of_visitors_.emplace_back(id, std::move(message));
    return open || !messages.empty();
  }

  /// A few at a time, and never more than some: each may be nobody.
  void accept() {
    for (int i = 0; i < 16 && visitors_.size() < most_visitors; ++i) {
      detail::Descriptor next = door_->accept();
      if (!next.is_open()) {
        // No descriptors, or no memory: others may give some back.
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
          stop_listening(std::chrono::milliseconds(200));
        return;
      }
      let_in({detail::Connection(std::move(next)), Clock::now()});
    }
    if (visitors_.size() >= most_visitors) stop_listening(std::chrono::milliseconds(20));
  }

  void let_in(detail::Visitor visitor) {
    const std::uint64_t id = ++last_visitor_;
    auto& kept = visitors_.emplace(id, std::move(visitor)).first->second;
    watch_for(kept.connection.number(), id, EPOLLIN, EPOLL_CTL_ADD);
    for (auto& message : std::exchange(kept.said, {})) words_of_visitors_.emplace_back(id, std::move(message));
  }

  void listen() {
    is_listening_ = true;
    watch_for(door_->number(), door_event, EPOLLIN, EPOLL_CTL_ADD);
  }

  void stop_listening(std::chrono::milliseconds pause) {
    if (!std::exchange(is_listening_, false)) return;
    watch_for(door_->number(), door_event, 0, EPOLL_CTL_DEL);
    listen_again_ = Clock::now() + pause;
  }

  // The rest is called with the mutex held.

  void take(int rank, const Message& message, Time now) {
    try {
      if (!roster_) {  // rank 0 still gathers
        if (message.word == Word::late) gathering_->give_up(detail::Unpacker(message.body).real(), terms_.where);
        return;
      }
      roster_->hear(rank, message, now);
      if (message.word == Word::bring && rank_ == 0) {
        bring(rank, detail::Contribution::unpacked(message.body));
      } else if (message.word == Word::late && rank_ == 0) {
        name_missing(message);
      } else if (message.word == Word::ask && rank_ == 0) {
        const auto [id, inquiry] = detail::Inquiry::unpacked(message.body);
        reply(shelf_.ask(rank, id, inquiry));
      } else if (message.word == Word::tell) {
        detail::Unpacker body(message.body);
        const std::int64_t id = body.number();
        replies_[id] = body.text();
        changed_.notify_all();
      } else if (message.word == Word::give) {
        detail::Unpacker body(message.body);
        detail::ExchangeKey key{std::string(body.text()), 0};
        key.number = body.number();
        results_[std::move(key)] = body.text();
        changed_.notify_all();
      } else if (message.word == Word::left) {
        changed_.notify_all();
      }
      post_letters();
    } catch (const std::exception&) {
      ended_.push_back(rank);  // it does not speak as a rank does
    }
  }

  void close(int rank, Time now) {
    auto& link = links_[static_cast<std::size_t>(rank)];
    link = {};  // which ends its watch, too
    if (roster_)
      roster_->lose(rank, now);
    else
      gathering_->forget(rank);
    if (roster_) post_letters();
  }

  void bring(int rank, detail::Contribution own) {
    try {
      const auto result = exchanges_.bring(rank, std::move(own));
      for (const int to : result.to) {
        if (to != 0) {
          post(to, {Word::give,
                    detail::Packer().text(result.key.group).number(result.key.number).text(result.value).take()});
          continue;
        }
        results_[result.key] = result.value;
        changed_.notify_all();
      }
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }

  void reply(std::vector<detail::Shelf::Reply> all) {
    for (auto& one : all) {
      if (one.to != 0) {
        post(one.to, {Word::tell, detail::Packer().number(one.id).text(one.value).take()});
        continue;
      }
      replies_[one.id] = std::move(one.value);
      changed_.notify_all();
    }
  }

  void name_missing(const Message& inquiry) {
    detail::Unpacker body(inquiry.body);
    detail::ExchangeKey key{std::string(body.text()), 0};
    key.number = body.number();
    const std::string purpose(body.text());
    const double seconds = body.real();
    std::vector<int> members;
    while (!body.is_over()) members.push_back(static_cast<int>(body.number()));
    std::vector<std::string> names;
    for (const int rank : exchanges_.missing(key, members))
      names.push_back(message(roster_->peers().at(static_cast<std::size_t>(rank))));
    if (names.empty()) return;  // meanwhile all have come
    fail(message(purpose, " gave up after ", seconds, " s: no word from ", listed(names),
                 "; look at the output of these ranks, or raise timeout_s"));
  }

  /// New connections prove that they are ranks of this job, or are dropped.
  void meet_visitors(Time now) {
    if (door_ == nullptr) return;
    for (auto& visitor : door_->take_from_room(terms_.creation)) {
      visitor.came = now;
      let_in(std::move(visitor));
    }
    auto words = std::exchange(words_of_visitors_, {});
    for (auto word = words.begin(); word != words.end(); ++word) {
      const auto found = visitors_.find(word->first);
      if (found == visitors_.end()) continue;
      auto& visitor = found->second;
      const bool is_ours = meet_visitor(visitor, word->second);
      if (is_ours) continue;
      if (visitor.elsewhere) {
        for (auto later = word + 1; later != words.end(); ++later)
          if (later->first == word->first) visitor.said.push_back(std::move(later->second));
        hand_over(std::move(visitor));
      }
      visitors_.erase(found);
    }
    const Clock::duration most =
        visitors_.size() < most_visitors ? introduction_timeout : introduction_timeout_in_a_crowd;
    std::erase_if(visitors_, [&](const auto& one) { return now - one.second.came > most; });
    if (!is_listening_ && now >= listen_again_ && visitors_.size() < most_visitors) listen();
  }

  /// False: it is no visitor any more, or was dropped.
  bool meet_visitor(detail::Visitor& visitor, const Message& message) try {
    detail::Unpacker body(message.body);
    if (visitor.rank < 0) {
      if (message.word != Word::hello || body.text() != magic) return false;
      if (body.text() != ACCEL_VERSION)
        return answer(visitor, {Word::elsewhere, detail::Packer().text(ACCEL_VERSION).take()});
      if (body.text() != terms_.token) return false;
      const std::int64_t creation = body.number();
      const std::int64_t rank = body.number();
      if (rank < 0 || rank > 1'000'000'000 || creation < 0) return false;
      visitor.rank = static_cast<int>(rank);
      if (creation == terms_.creation) return true;
      visitor.elsewhere = creation;
      return false;
    }
    if (message.word != Word::introduce) return false;
    const std::string run_id(body.text());
    Peer peer;
    peer.rank = visitor.rank;
    peer.host = body.text();
    peer.network = body.text();
    peer.pid = body.number();
    peer.world_size = static_cast<int>(body.number());
    if (const auto refused = gathering_->admit(peer, run_id)) return answer(visitor, refusal(*refused));
    const auto rank = static_cast<std::size_t>(visitor.rank);
    links_[rank].connection = std::move(visitor.connection);
    watch_for(links_[rank].connection.number(), rank, EPOLLIN, EPOLL_CTL_MOD);
    return false;
  } catch (const std::exception&) {
    return false;
  }

  /// He wants to another accelerator of this process, which may be there already, or not yet.
  void hand_over(detail::Visitor visitor) {
    const std::int64_t creation = *std::exchange(visitor.elsewhere, std::nullopt);
    watch_for(visitor.connection.number(), 0, 0, EPOLL_CTL_DEL);
    if (creation > terms_.creation || door_->has_room(creation))
      return door_->put_into_room(creation, std::move(visitor));
    (void)answer(visitor, refusal({.is_setting = false,
                                   .sentence = message("rendezvous: accelerator number ", creation + 1,
                                                       " of rank 0 at ", terms_.where, " has ended already")}));
  }

  static bool answer(detail::Visitor& visitor, const Message& last_word) {
    visitor.connection.write(last_word);
    visitor.connection.flush();
    return false;
  }

  void fail(std::string_view sentence) {
    roster_->fail(sentence);
    post_letters();
    flush();
  }

  void post_letters() {
    if (!failed() && !roster_->failure().empty()) {
      failed_.store(true, std::memory_order_release);
      changed_.notify_all();
    }
    for (const auto& letter : roster_->take_letters()) {
      if (letter.to >= 0)
        post(letter.to, letter.message);
      else
        for (std::size_t r = 0; r < links_.size(); ++r) post(static_cast<int>(r), letter.message);
    }
  }

  void post(int rank, const Message& message) {
    auto& link = links_[static_cast<std::size_t>(rank)];
    if (!link.connection.is_open()) return;
    link.connection.write(message);
    if (!std::exchange(link.is_dirty, true)) dirty_.push_back(rank);
  }

  /// Sends what it can. For the rest epoll tells when there is space.
  void flush() {
    for (const int rank : std::exchange(dirty_, {})) flush(rank);
  }

  void flush(int rank) {
    auto& link = links_[static_cast<std::size_t>(rank)];
    link.is_dirty = false;
    link.connection.flush();
    const bool awaits_space = link.connection.has_output();
    if (awaits_space) {
      link.is_dirty = true;
      dirty_.push_back(rank);
    }
    if (awaits_space == link.awaits_space || !link.connection.is_open()) return;
    link.awaits_space = awaits_space;
    watch_for(link.connection.number(), static_cast<std::uint64_t>(rank), awaits_space ? EPOLLIN | EPOLLOUT : EPOLLIN,
              EPOLL_CTL_MOD);
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
    fail(message(self(), " was ended by an exception ", progress(), ": ", text));
    changed_.wait_until(lock, end, [&] { return sent(); });
  }

  [[nodiscard]] const Peer& self() const { return roster_->peer(rank_); }

  [[nodiscard]] Progress progress() const {
    const char* const operation = operation_.load(std::memory_order_relaxed);
    return {steps_.load(std::memory_order_relaxed), collectives_.load(std::memory_order_relaxed), rounds_,
            operation != nullptr ? operation : round_};
  }

  [[nodiscard]] bool sent() const {
    return std::none_of(links_.begin(), links_.end(), [](const Link& link) { return link.connection.has_output(); });
  }

  void watch_for(int number, std::uint64_t id, std::uint32_t what, int how) const {
    epoll_event event{};
    event.events = what;
    event.data.u64 = id;
    if (::epoll_ctl(epoll_.number(), how, number, &event) != 0) detail::throw_errno("rendezvous: epoll_ctl");
  }

  void wake() const noexcept {
    const std::uint64_t one = 1;
    // It fails only if the counter is full, and then the thread is awake anyway.
    [[maybe_unused]] const auto written = ::write(wake_.number(), &one, sizeof one);
  }

  // Ranks that finish a training together do so within milliseconds of each other.
  static constexpr Seconds farewell_timeout{1};
  static constexpr Seconds farewell_timeout_after_failure{0.3};  // some are gone; the rest may still ask who
  static constexpr Seconds answer_timeout{0.5};                  // of a rank 0 that is well
  static constexpr std::chrono::seconds introduction_timeout{5};
  static constexpr std::chrono::milliseconds introduction_timeout_in_a_crowd{500};
  static constexpr std::size_t most_visitors = 64;
  static constexpr std::size_t hello_budget = 256;  // bytes, of who has not said hello
  static constexpr std::size_t longest_introduction = 1 << 16;
  static constexpr std::size_t longest_message = 1UL << 31;
  static constexpr std::size_t read_budget = 1 << 16;  // bytes of a connection in a turn: all have theirs
  // What an event of epoll is about: a rank, or one of these.
  static constexpr std::uint64_t wake_event = ~0ULL;
  static constexpr std::uint64_t door_event = ~1ULL;
  static constexpr std::uint64_t first_visitor = 1ULL << 32;
  static constexpr std::string_view magic = "accel";

  int rank_;
  Terms terms_;
  detail::Descriptor epoll_;
  detail::Descriptor wake_;                     // an eventfd
  std::shared_ptr<detail::Door> door_;          // on rank 0
  std::optional<detail::Address> own_address_;  // on the others

  std::atomic<const char*> operation_{nullptr};  // null: see round_
  std::atomic<std::int64_t> collectives_{0};
  std::atomic<std::int64_t> steps_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> ending_{false};

  // Of the thread that turns.
  std::vector<std::pair<int, Message>> inbox_;
  std::vector<int> ended_;
  std::map<std::uint64_t, detail::Visitor> visitors_;
  std::vector<std::pair<std::uint64_t, Message>> words_of_visitors_;
  std::uint64_t last_visitor_ = first_visitor;
  bool is_listening_ = false;
  Time listen_again_{};

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::string round_;
  std::int64_t rounds_ = 0;
  std::weak_ptr<const std::string> last_error_;
  bool leaving_ = false;
  std::optional<detail::Gathering> gathering_;  // on rank 0
  std::optional<detail::Roster> roster_;        // once all have met
  detail::Exchanges exchanges_;                 // on rank 0
  std::map<detail::ExchangeKey, std::string> results_;
  detail::Shelf shelf_;  // on rank 0
  std::int64_t inquiries_ = 0;
  std::map<std::int64_t, std::string> replies_;
  std::vector<Link>
      links_;               // by rank; on others than rank 0 one, to that. Only the thread reads, opens and closes them
  std::vector<int> dirty_;  // ranks

  std::thread thread_;
  std::optional<detail::LastWords> last_words_;
};

}  // namespace accel::inline v0_1::launch
