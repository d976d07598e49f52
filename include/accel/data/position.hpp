// Position: where a batch stands in its epoch, and how many rows stand behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/round.hpp>

namespace accel::inline v0_1::data {

/// One batch of this rank among those of the epoch.
struct Position {
  std::int64_t index = 0;        // of the batch, from 0; a resumed epoch goes on counting
  std::int64_t length = 0;       // batches of the epoch, on this rank; -1 until a stream knows
  std::int64_t rows = 0;         // valid rows of this rank's batch, from the front; 0 for a filler
  std::int64_t weight_rows = 0;  // rows its gradient speaks for ...
  std::int64_t round_rows = 1;   // ... of those of all ranks in this round
  bool has_all_ranks = true;     // every rank has a batch in this round

  [[nodiscard]] bool is_last() const { return index + 1 == length; }

  /// Batches that follow, this one included; `most` if that is not known.
  [[nodiscard]] std::int64_t left(std::int64_t most) const { return length < 0 ? most : length - index; }

  /// This rank's share of the mean over the rows of the round.
  ///
  /// Throws   InvalidArgument in a round in which some rank has no batch: it could take no part in the mean.
  [[nodiscard]] double share() const {
    ACCEL_CHECK(has_all_ranks, InvalidArgument, "backward: this is the last round of an uneven loader, in which some ",
                "ranks have no batch and so no backward; train with the loader's default, which gives every rank one");
    return static_cast<double>(weight_rows) / static_cast<double>(round_rows);
  }
};

/// One pass over a loader that has handed out a batch and is not over.
struct Pass {
  const Rounds* rounds = nullptr;
  Position position;
  const std::byte* batch_begin = nullptr;  // the storage of the batch object in the user's hands
  const std::byte* batch_end = nullptr;

  /// Whether every rank, not only this one, has the same share of both rounds: all must judge alike.
  [[nodiscard]] bool shares_like(const Pass& other) const {
    if (this == &other) return true;
    for (int rank = 0; rank < rounds->world_size(); ++rank)
      if (rounds->part(position.index, rank).weight * other.position.round_rows !=
          other.rounds->part(other.position.index, rank).weight * position.round_rows)
        return false;
    return true;
  }

  [[nodiscard]] bool holds(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return !std::less<>()(byte, batch_begin) && std::less<>()(byte, batch_end);
  }
};

/// The passes in flight, innermost last. A pass leaves when its iterator goes, `break` included.
class InFlight {
 public:
  void enter(const Pass* pass) { passes_.push_back(pass); }
  void leave(const Pass* pass) noexcept { std::erase(passes_, pass); }

  /// The innermost pass, or null.
  [[nodiscard]] const Pass* innermost() const { return passes_.empty() ? nullptr : passes_.back(); }

  /// The pass whose current batch lies at `address`, or has a member there; or null.
  [[nodiscard]] const Pass* find(const void* address) const {
    for (const Pass* pass : passes_)
      if (pass->holds(address)) return pass;
    return nullptr;
  }

  /// Where the batch at `address` stands.
  ///
  /// Throws   InvalidArgument for what no pass has handed out.
  [[nodiscard]] Position position_of(const void* address) const {
    const Pass* pass = find(address);
    ACCEL_CHECK(pass != nullptr, InvalidArgument,
                "accumulate: this is no batch of a prepared loader that is in flight; iterate by reference, ",
                "`for (auto& batch : loader)`, or call accumulate() for data of another source");
    return pass->position;
  }

  /// This rank's share of the current round; `even` where no pass is in flight.
  ///
  /// Throws   InvalidArgument if passes disagree: then only accumulate(batch) says which is meant.
  [[nodiscard]] double share(double even) const {
    if (passes_.empty()) return even;
    const Pass& last = *passes_.back();
    for (const Pass* pass : passes_)
      ACCEL_CHECK(pass->shares_like(last), InvalidArgument,
                  "backward: two loaders are in flight and the ranks' shares of their rows differ (here ",
                  last.position.share(), " and ", pass->position.share(),
                  "); say which batch the loss is of: `auto micro_step = accelerator.accumulate(batch);`");
    return last.position.share();
  }

 private:
  std::vector<const Pass*> passes_;
};

}  // namespace accel::inline v0_1::data
