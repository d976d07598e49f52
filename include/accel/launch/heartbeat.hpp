// Heartbeat: every rank learns within moments which rank has ended, failed, hangs, or was cut off.
#pragma once

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <istream>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/last_words.hpp>
#include <accel/launch/detail/line_socket.hpp>
#include <accel/launch/peer.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch {

/// Three of them are silence: a stopped process is given up after 4.5 s.
inline constexpr Seconds default_beat{1.5};

/// Watches the ranks of a job, and carries the first failure to all of them.
///
/// Every rank keeps one connection to rank 0, which passes the news on. A process that ends is seen by
/// its closed connection, at once; one that is stopped or cut off by its silence, after three beats;
/// one that fails says so itself. The first failure that a rank hears of is the one it keeps: what
/// follows from it is no news.
///
/// Cost     a thread, and a line of some 40 bytes per rank and beat. On the way of a step nothing but
///          two relaxed stores per collective and two loads.
/// Throws   CommError from the constructor if rank 0 cannot be reached.
class Heartbeat {
 public:
  /// Rank 0 tells through `store` where it listens; the others reach it at `host`, where the store is.
  /// `interval` 0: silence is never a failure, as one wants it under a debugger.
  Heartbeat(const c10::intrusive_ptr<c10d::Store>& store, const std::string& host, int rank, std::vector<Peer> peers,
            Seconds interval, Deadline deadline)
      : rank_(rank), peers_(std::move(peers)), interval_(interval), links_(peers_.size()), left_(peers_.size()) {
    ACCEL_CHECK(interval.count() >= 0, ConfigError, "heartbeat_s = ", interval.count(),
                " must not be negative; with 0 nobody is given up for being silent");
    wake_ = detail::Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_.is_open()) detail::throw_errno("heartbeat: eventfd");
    if (rank == 0)
      open(*store);
    else
      connect(store, host, deadline);
    start();
  }

  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  ~Heartbeat() {
    try {
      leave();
    } catch (const std::exception&) {
      // No memory for words: the others will see the connection end.
    }
    ending_.store(true);
    wake();
    thread_.join();
  }

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

  /// An error of this rank, which may be handled, or be what ends it.
  void note_error(std::string_view text) {
    const std::lock_guard lock(mutex_);
    last_error_ = text;
  }

  // What the others hear of it

  /// This rank has failed: every rank is told, unless another had failed before.
  void publish(std::string_view reason) {
    const std::lock_guard lock(mutex_);
    fail(message(peers_[own()], " failed ", progress(), ": ", reason));
  }

  /// The last word of this rank. Returns when it is sent; rank 0, which the others may still need for
  /// its store, waits for theirs. Never longer than a second.
  void leave() {
    std::unique_lock lock(mutex_);
    if (std::exchange(leaving_, true)) return;
    const bool torn = std::uncaught_exceptions() > 0;
    if (torn)
      fail(message(peers_[own()], " was ended by an exception ", progress(),
                   last_error_.empty() ? "; what it says stands in the output of that rank" : ": " + last_error_));
    else
      tell(message("left ", rank_, ' ', line(progress())));
    wake();
    changed_.wait_for(lock, failure_.empty() ? farewell_timeout : farewell_timeout_after_failure,
                      [&] { return sent() && (rank_ > 0 || torn || alone()); });
  }

  // What it hears of the others

  /// Whether a rank is known to have failed.
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }

  /// The sentence about the first rank that failed, waiting for it up to `patience`: the news of a
  /// connection that broke may still be on its way. Empty while all are well.
  [[nodiscard]] std::string failure(Seconds patience = Seconds(0)) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience, [&] { return !failure_.empty(); });
    return failure_;
  }

  /// A sentence about a rank that has left, and will never come to this collective or this round; or
  /// empty. The number 0 asks for neither.
  [[nodiscard]] std::string missed_by(std::int64_t collective, std::int64_t round) const {
    const std::lock_guard lock(mutex_);
    for (std::size_t r = 0; r < left_.size(); ++r)
      if (left_[r] && (left_[r]->collectives < collective || left_[r]->rounds < round))
        return message(peers_[r], " has left the training ", *left_[r]);
    return {};
  }

  /// A sentence about this rank if it has left; else empty.
  [[nodiscard]] std::string departure_of(int rank) const {
    const std::lock_guard lock(mutex_);
    const auto r = static_cast<std::size_t>(rank);
    return left_[r] ? message(peers_[r], " has left the training ", *left_[r]) : std::string();
  }

  /// A sentence about the rank that is furthest behind, if it had not begun that collective when it was
  /// last heard of, or has missed a beat since; or empty. For a wait that took too long.
  [[nodiscard]] std::string suspect(std::int64_t collective) {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    const Standing last = rank_ == 0 ? hindmost(now) : now - links_[0].heard > 1.5 * interval_ ? of(0) : behind_;
    if (last.heard == Clock::time_point{}) return {};  // nobody has been heard of yet
    if (last.rank == rank_ || (last.progress.collectives >= collective && now - last.heard <= 1.5 * interval_))
      return {};
    return message(peers_[static_cast<std::size_t>(last.rank)], " was furthest behind, ", tenths(now - last.heard),
                   " s ago ", last.progress);
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// How far a rank was when it was last heard of.
  struct Standing {
    int rank = 0;
    Clock::time_point heard{};
    Progress progress{};
  };

  /// A connection. Rank 0 has one to every rank, the others have one to rank 0.
  struct Link {
    detail::LineSocket socket;
    Clock::time_point heard = Clock::now();
    Progress progress;     // of the other end
    bool expected = true;  // something should come from there
  };

  struct Stranger {
    detail::LineSocket socket;
    Clock::time_point came;
  };

  void open(c10d::Store& store) {
    listener_ = detail::listen_anywhere();
    // Who does not know it is no rank of this job.
    std::random_device random;
    token_ = message(std::hex, random(), random(), random(), random());
    const std::string place = message(detail::port_of(listener_), ' ', token_);
    store.set("heartbeat", std::vector<std::uint8_t>(place.begin(), place.end()));
    links_[0].expected = false;
  }

  void connect(const c10::intrusive_ptr<c10d::Store>& store, const std::string& host, Deadline deadline) {
    const auto bytes = within(deadline, [store, deadline] {
      store->wait({"heartbeat"}, deadline.remaining());
      return store->get("heartbeat");
    });
    std::istringstream place(std::string(bytes.begin(), bytes.end()));
    int port = 0;
    place >> port >> token_;
    for (std::size_t r = 1; r < links_.size(); ++r) links_[r].expected = false;
    links_[0].socket = within(deadline, [host, port, deadline] { return detail::connect_to(host, port, deadline); });
    links_[0].socket.write(message("hello ", token_, ' ', rank_));
  }

  void start() {
    // Signals are for the program's own threads: no handler must find itself in this one.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { watch(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void wake() noexcept {
    const std::uint64_t one = 1;
    // It fails only if the counter is full, and then the thread is awake anyway.
    [[maybe_unused]] const auto written = ::write(wake_.number(), &one, sizeof one);
  }

  /// An exception that nobody caught: the program ends when this returns.
  void last_words(const std::string& text) {
    const auto end = Clock::now() + span(farewell_timeout_after_failure);
    // Not by lock(): the thread that ends may be the one that holds it.
    std::unique_lock lock(mutex_, std::try_to_lock);
    while (!lock.owns_lock() && Clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      (void)lock.try_lock();
    }
    if (!lock.owns_lock()) return;
    fail(message(peers_[own()], " was ended by an exception ", progress(), ": ", text));
    changed_.wait_until(lock, end, [&] { return sent(); });
  }

  // All below under the mutex, which the thread lets go only while it waits.

  [[nodiscard]] std::size_t own() const { return static_cast<std::size_t>(rank_); }

  [[nodiscard]] static Clock::duration span(Seconds seconds) {
    return std::chrono::duration_cast<Clock::duration>(seconds);
  }

  [[nodiscard]] Progress progress() const {
    const char* const operation = operation_.load(std::memory_order_relaxed);
    return {steps_.load(std::memory_order_relaxed), collectives_.load(std::memory_order_relaxed), rounds_,
            operation != nullptr ? operation : round_};
  }

  [[nodiscard]] static std::string line(const Progress& progress) {
    return message(progress.steps, ' ', progress.collectives, ' ', progress.rounds, ' ', progress.operation);
  }

  [[nodiscard]] static Progress parse_progress(std::istream& text) {
    Progress progress;
    text >> progress.steps >> progress.collectives >> progress.rounds >> std::ws;
    std::getline(text, progress.operation);
    return progress;
  }

  void tell(const std::string& text) {
    for (auto& link : links_) link.socket.write(text);
  }

  /// Keeps the first failure, and passes it on.
  void fail(const std::string& sentence) {
    if (!failure_.empty()) return;
    failure_ = sentence;
    failed_.store(true, std::memory_order_release);
    tell("failed " + sentence);
    wake();
    changed_.notify_all();
  }

  [[nodiscard]] Standing of(int rank) const {
    const Link& link = links_[static_cast<std::size_t>(rank)];
    return {rank, link.heard, link.progress};
  }

  /// On rank 0, which hears of all.
  [[nodiscard]] Standing hindmost(Clock::time_point now) const {
    Standing last{0, now, progress()};
    for (std::size_t r = 1; r < links_.size(); ++r)
      if (links_[r].expected && links_[r].progress.collectives < last.progress.collectives)
        last = of(static_cast<int>(r));
    return last;
  }

  void beat(Clock::time_point now) {
    tell("beat " + line(progress()));
    if (rank_ > 0) return;
    const Standing last = hindmost(now);
    tell(message("behind ", last.rank, ' ', Seconds(now - last.heard).count(), ' ', line(last.progress)));
  }

  [[nodiscard]] bool sent() const {
    return std::none_of(links_.begin(), links_.end(), [](const Link& link) { return link.socket.has_output(); });
  }

  [[nodiscard]] bool alone() const {
    return std::none_of(links_.begin(), links_.end(), [](const Link& link) { return link.expected; });
  }

  void watch() {
    std::unique_lock lock(mutex_);
    std::vector<pollfd> polled;
    auto last_turn = Clock::now();
    auto next_beat = last_turn;
    while (!ending_) {
      wait(lock, polled, next_beat);
      const auto now = Clock::now();
      // After a pause of this very process: the others were silent only to it.
      if (now - last_turn > 2 * interval_)
        for (auto& link : links_) link.heard = now;
      last_turn = now;
      for (std::size_t r = 0; r < links_.size(); ++r)
        if (polled[r].revents != 0) read(r, now);
      meet_strangers(now);
      if (interval_.count() > 0) {
        for (std::size_t r = 0; r < links_.size(); ++r) check_silence(r, now);
        if (now >= next_beat) {
          beat(now);
          next_beat = now + span(interval_);
        }
      }
      for (auto& link : links_) link.socket.flush();
      changed_.notify_all();
    }
  }

  /// Sleeps until something comes or goes, or the next beat is due. `polled` begins with the links.
  void wait(std::unique_lock<std::mutex>& lock, std::vector<pollfd>& polled, Clock::time_point next_beat) const {
    polled.clear();
    const auto add = [&](int number, bool writes) {  // poll passes over negative numbers
      polled.push_back({.fd = number, .events = static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN), .revents = 0});
    };
    for (const auto& link : links_) add(link.socket.number(), link.socket.has_output());
    for (const auto& stranger : strangers_) add(stranger.socket.number(), false);
    add(listener_.number(), false);
    add(wake_.number(), false);
    int timeout_ms = -1;
    if (interval_.count() > 0) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_beat - Clock::now()).count();
      timeout_ms = static_cast<int>(std::max<std::int64_t>(left, 0));
    }
    lock.unlock();
    ::poll(polled.data(), polled.size(), timeout_ms);
    std::uint64_t count = 0;
    [[maybe_unused]] const auto drained = ::read(wake_.number(), &count, sizeof count);  // none if nobody woke it
    lock.lock();
  }

  void read(std::size_t r, Clock::time_point now) {
    Link& link = links_[r];
    const bool open = link.socket.receive();
    while (const auto text = link.socket.next_line()) {
      hear(r, *text);
      link.heard = now;
    }
    if (open) return;
    link.socket.close();
    if (std::exchange(link.expected, false))
      fail(message(peers_[r], " has ended without a word: killed, or by exit; ", last_heard(link, now)));
  }

  void hear(std::size_t r, const std::string& text) {
    std::istringstream words(text);
    std::string kind;
    words >> kind;
    if (kind == "beat") {
      links_[r].progress = parse_progress(words);
    } else if (kind == "behind") {
      std::size_t who = 0;
      double ago_s = 0;
      words >> who >> ago_s;
      if (who < peers_.size())
        behind_ = {static_cast<int>(who), Clock::now() - span(Seconds(ago_s)), parse_progress(words)};
    } else if (kind == "left") {
      std::size_t who = 0;
      words >> who >> std::ws;
      if (who >= left_.size()) return;
      left_[who] = parse_progress(words);
      if (who == r) links_[r].expected = false;
      if (rank_ == 0) tell(text);
    } else if (kind == "failed") {
      words >> std::ws;
      std::string sentence;
      std::getline(words, sentence);
      fail(sentence);
    }
  }

  /// New connections prove themselves by the token, or are dropped.
  void meet_strangers(Clock::time_point now) {
    if (!listener_.is_open()) return;
    for (int fd = 0; fd >= 0;) {
      fd = ::accept4(listener_.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) strangers_.push_back({detail::LineSocket(detail::Descriptor(fd)), now});
    }
    std::erase_if(strangers_, [&](Stranger& stranger) {
      const bool open = stranger.socket.receive();
      const auto text = stranger.socket.next_line();
      if (!text) return !open || now - stranger.came > introduction_timeout;
      std::istringstream words(*text);
      std::string hello;
      std::string token;
      std::size_t rank = 0;
      words >> hello >> token >> rank;
      if (hello != "hello" || token != token_ || rank >= links_.size() || links_[rank].socket.is_open()) return true;
      links_[rank].socket = std::move(stranger.socket);
      links_[rank].heard = now;
      if (!failure_.empty()) links_[rank].socket.write("failed " + failure_);
      return true;
    });
  }

  void check_silence(std::size_t r, Clock::time_point now) {
    const Link& link = links_[r];
    if (!link.expected || now - link.heard <= 3 * interval_) return;
    const Seconds silence = now - link.heard;
    const char* reason = ": it never connected";
    if (link.socket.is_open())
      reason = link.socket.acknowledged() ? " while its host answers: the process is stopped, or gets no time to run"
                                          : " and its host does not answer: the network is cut, or the host is down";
    fail(message(peers_[r], " is silent since ", tenths(silence), " s", reason, "; ", last_heard(link, now)));
  }

  [[nodiscard]] static std::string last_heard(const Link& link, Clock::time_point now) {
    return message("last heard of ", tenths(now - link.heard), " s ago, ", link.progress);
  }

  [[nodiscard]] static double tenths(Seconds seconds) { return std::round(10 * seconds.count()) / 10; }

  // Ranks that finish a training together do so within milliseconds of each other.
  static constexpr Seconds farewell_timeout{1};
  static constexpr Seconds farewell_timeout_after_failure{0.3};  // some are gone; the rest may still ask who
  static constexpr std::chrono::seconds introduction_timeout{5};

  int rank_;
  std::vector<Peer> peers_;
  Seconds interval_;
  std::string token_;
  detail::Descriptor wake_;  // an eventfd
  detail::Descriptor listener_;

  std::atomic<const char*> operation_{nullptr};  // null: see round_
  std::atomic<std::int64_t> collectives_{0};
  std::atomic<std::int64_t> steps_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> ending_{false};

  mutable std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::string round_;
  std::int64_t rounds_ = 0;
  std::string last_error_;
  std::string failure_;
  bool leaving_ = false;
  std::vector<Link> links_;                    // by rank
  std::vector<std::optional<Progress>> left_;  // by rank: what those had done that have left
  std::vector<Stranger> strangers_;
  Standing behind_;  // as rank 0 tells the others

  std::thread thread_;
  detail::LastWords last_words_{[this](const std::string& text) { last_words(text); }};
};

}  // namespace accel::inline v0_1::launch
