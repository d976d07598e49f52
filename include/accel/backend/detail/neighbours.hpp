// Neighbours: the ranks of one host, each of which reads what the others have written.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <accel/backend/backend.hpp>
#include <accel/backend/detail/segment.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/rendezvous.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::backend::detail {

/// What must be equal on all ranks.
struct Call {
  enum class Kind : std::int32_t { all_reduce, broadcast, all_gather, reduce_scatter };
  Kind kind = Kind::all_reduce;
  ReduceOp op = ReduceOp::sum;
  c10::ScalarType dtype = c10::ScalarType::Byte;  // of what is reduced; what is only moved goes as bytes
  std::int32_t root = 0;
  std::size_t bytes = 0;   // that each rank brings
  std::uint64_t name = 0;  // hash of what the ranks call it; 0: they do not say

  bool operator==(const Call&) const = default;

  friend std::ostream& operator<<(std::ostream& out, const Call& call) {
    constexpr std::array names = {"all_reduce", "broadcast", "all_gather", "reduce_scatter"};
    return out << names[static_cast<std::size_t>(call.kind)] << " of " << Bytes{static_cast<std::int64_t>(call.bytes)}
               << " of " << tensor::dtype_name(call.dtype);
  }
};

/// What a rank has written for the others: only by itself, so that nobody's end leaves it half done.
struct Board {
  static constexpr std::size_t slots = 16;             // small messages under way
  static constexpr std::size_t slot = 64UL * 1024;     // what goes through one
  static constexpr std::size_t piece = 1024UL * 1024;  // of a large message that lies elsewhere: half a core's cache
  static constexpr std::size_t longest_name = 256;     // bytes of it
  static constexpr std::uint32_t here = 0, left = 1, broken = 2;

  /// How far the rank is. Counters only grow; one cache line holds all.
  struct alignas(128) Standing {
    std::atomic<std::uint64_t> announced{0};  // operations whose entry and slot are written
    std::atomic<std::uint64_t> steps{0};      // of large messages, see Exchange
    std::atomic<std::uint64_t> finished{0};   // operations: of those before it nothing is read any more
    std::atomic<std::uint32_t> sleepers{0};   // threads that want to hear the others' bell
    std::atomic<std::uint32_t> bell{0};       // changes when there is news for sleepers
    std::atomic<std::uint32_t> gone{here};    // left: nothing comes any more; broken: nor is the rest as it was
  };

  struct Entry {
    Call call;
    std::int64_t place = -1;              // in the rank's segment; -1: its data comes through the scratch
    std::array<char, longest_name> name;  // of a call that has one, cut
  };

  Standing standing;
  std::array<Entry, slots> entries;
  alignas(page) std::array<std::array<std::byte, slot>, slots> messages;
  alignas(page) std::array<std::array<std::byte, piece>, 2> scratch;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

/// The boards of all ranks, and waiting for what is written there.
class Neighbours {
 public:
  using Counter = std::atomic<std::uint64_t> Board::Standing::*;

  /// That the counter of the ranks [rank, end) reaches a value; this one's own does not count.
  struct Awaited {
    Counter counter = &Board::Standing::announced;
    std::uint64_t value = 0;
    int rank = 0;
    int end = 0;
  };

  Neighbours(int rank, std::shared_ptr<OwnSegment> own, std::vector<std::optional<PeerSegment>> peers)
      : rank_(rank), own_(std::move(own)), peers_(std::move(peers)), mine_(::new(own_->fixed()) Board) {
    for (int other = 0; other < world_size(); ++other)
      boards_.push_back(other == rank ? mine_ : reinterpret_cast<const Board*>(peers_[index(other)]->fixed()));
    // With fewer cores than ranks spinning takes what the awaited rank needs to come.
    spins_ = ::sysconf(_SC_NPROCESSORS_ONLN) >= world_size();
  }

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int world_size() const { return static_cast<int>(peers_.size()); }
  [[nodiscard]] OwnSegment& segment() { return *own_; }
  [[nodiscard]] Board& mine() { return *mine_; }
  [[nodiscard]] const Board& of(int rank) const { return *boards_[index(rank)]; }

  /// What lies at `place` of that rank's segment.
  [[nodiscard]] const std::byte* at(int rank, std::int64_t place) const {
    const std::byte* const fixed = rank == rank_ ? own_->fixed() : peers_[index(rank)]->fixed();
    return fixed - page + place;
  }

  /// All that this rank wrote before is seen by who sees the value.
  void publish(Counter counter, std::uint64_t value) {
    // Not only released: the load of the sleepers must not come before it, or one of them sleeps on.
    (mine_->standing.*counter).store(value);
    ring();
  }

  void leave(std::uint32_t how) noexcept {
    mine_->standing.gone.store(how);
    ring();
  }

  [[nodiscard]] bool reached(Awaited& awaited) const {
    for (; awaited.rank < awaited.end; ++awaited.rank)
      if (awaited.rank != rank_ && (of(awaited.rank).standing.*awaited.counter).load() < awaited.value) return false;
    return true;
  }

  /// reached(), after a short while if need be: news within it costs no call of the system. It looks as
  /// long as that was worth while lately, and now and then as long as it ever would: who shares its core
  /// with the awaited rank, or with a program that computes, learns to sleep at once.
  [[nodiscard]] bool reached_soon(Awaited& awaited) {
    constexpr int most = 800;  // some 40 us: what a sleep and its end take
    constexpr unsigned between = 16;
    if (reached(awaited)) return true;
    if (!spins_) return false;
    const int looks = ++waits_ % between == 0 ? most : looks_;
    for (int look = 0; look < looks; ++look) {
      relax();
      if (!reached(awaited)) continue;
      looks_ = std::min(most, std::max(looks_, 2 * look) + 8);
      return true;
    }
    looks_ /= 2;
    return false;
  }

  /// Sleeps until the awaited rank has news for anybody, at most that long. Without the lock.
  void sleep(std::unique_lock<std::mutex>& lock, const Awaited& awaited, std::chrono::nanoseconds most) {
    const auto& other = of(awaited.rank).standing;
    mine_->standing.sleepers.fetch_add(1);
    const std::uint32_t bell = other.bell.load();
    if ((other.*awaited.counter).load() < awaited.value && other.gone.load() == Board::here) {
      lock.unlock();
      const std::timespec time{most.count() / 1'000'000'000, most.count() % 1'000'000'000};
      // It fails if the bell has rung since, or after that time: both are looked at by the caller.
      (void)::syscall(SYS_futex, &other.bell, FUTEX_WAIT, bell, &time, nullptr, 0);
      lock.lock();
    }
    mine_->standing.sleepers.fetch_sub(1);
  }

  /// Ends the sleep of this process's own threads, and maybe that of others, whom it does not harm.
  void rouse() const noexcept {
    for (int other = 0; other < world_size(); ++other)
      if (other != rank_) wake(of(other).standing.bell);
  }

 private:
  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  void ring() noexcept {
    for (int other = 0; other < world_size(); ++other) {
      if (other == rank_ || of(other).standing.sleepers.load() == 0) continue;
      mine_->standing.bell.fetch_add(1);
      wake(mine_->standing.bell);
      return;
    }
  }

  static void wake(const std::atomic<std::uint32_t>& bell) noexcept {
    (void)::syscall(SYS_futex, &bell, FUTEX_WAKE, std::numeric_limits<int>::max(), nullptr, nullptr, 0);
  }

  int rank_;
  std::shared_ptr<OwnSegment> own_;
  std::vector<std::optional<PeerSegment>> peers_;  // by rank; none at this one's
  Board* mine_;
  std::vector<const Board*> boards_;
  bool spins_ = false;
  int looks_ = 0;  // of a wait, before it sleeps
  unsigned waits_ = 0;
};

/// The neighbours, or why the ranks do without.
struct Sharing {
  std::unique_ptr<Neighbours> neighbours;
  std::string why_not;
};

/// Collective: all ranks share memory or none does. `unwanted` says why this one does not want to.
[[nodiscard]] inline Sharing share_memory(const launch::Meeting& meeting, launch::ControlPlane& control,
                                          std::string unwanted, Deadline deadline) {
  constexpr char refusal = '!';
  const int own_rank = meeting.topology.rank;
  const auto own = static_cast<std::size_t>(own_rank);
  const auto& peers = meeting.peers;
  if (!std::all_of(peers.begin(), peers.end(), [&](const auto& peer) { return peer.network == peers[own].network; }))
    unwanted = "is on another host than others";
  std::shared_ptr<OwnSegment> segment;
  try {
    if (unwanted.empty()) segment = std::make_shared<OwnSegment>(sizeof(Board), meeting.topology.world_size);
  } catch (const std::exception& error) {
    unwanted = message("cannot have such memory: ", first_line(error));
  }
  const auto refused = [&](const std::vector<std::string>& words) {
    for (std::size_t r = 0; r < words.size(); ++r)
      if (words[r].front() == refusal) return message("rank ", r, " ", words[r].substr(1));
    return std::string();
  };
  const auto names =
      control.all_gather("Gloo: connecting", segment ? segment->name().text() : refusal + unwanted, deadline);
  if (auto why_not = refused(names); !why_not.empty()) return {nullptr, std::move(why_not)};

  std::vector<std::optional<PeerSegment>> others(peers.size());
  std::string problem = "well";
  for (std::size_t r = 0; r < peers.size(); ++r) try {
      if (r != own) others[r].emplace(peers[r].pid, SegmentName::parse(names[r]));
    } catch (const std::exception& error) {
      problem = message(refusal, "cannot open rank ", r, "'s memory: ", first_line(error));
    }
  Sharing sharing;
  if (problem.front() != refusal)
    sharing.neighbours = std::make_unique<Neighbours>(own_rank, std::move(segment), std::move(others));
  // When it returns everybody's board is there.
  sharing.why_not = refused(control.all_gather("Gloo: sharing memory", problem, deadline));
  if (!sharing.why_not.empty()) sharing.neighbours.reset();
  return sharing;
}

}  // namespace accel::inline v0_1::backend::detail
