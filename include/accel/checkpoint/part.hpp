// Part: one thing that a checkpoint keeps, by its name, whatever its type.
#pragma once

#include <concepts>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::checkpoint {

/// What a checkpoint has of one part: the same for all ranks, or of each its own.
class SavedPart {
 public:
  /// Of all ranks, then; and this one now.
  SavedPart(std::map<int, tensor::StateDict> by_rank, std::optional<tensor::StateDict> of_all, int rank, int ranks_then)
      : by_rank_(std::move(by_rank)), of_all_(std::move(of_all)), rank_(rank), ranks_then_(ranks_then) {}

  /// This rank's. A rank that was not there when it was saved gets rank 0's.
  [[nodiscard]] const tensor::StateDict& own() const { return of(is_own() ? rank_ : 0); }

  /// own() was this rank's when it was saved.
  [[nodiscard]] bool is_own() const { return of_all_.has_value() || by_rank_.contains(rank_); }

  [[nodiscard]] const tensor::StateDict& of(int rank) const {
    if (of_all_) return *of_all_;
    const auto found = by_rank_.find(rank);
    ACCEL_CHECK(found != by_rank_.end(), CheckpointError, "it has nothing of rank ", rank,
                ", as on a disk of another host");
    return found->second;
  }

  /// It was the same on all ranks, or there was one only.
  [[nodiscard]] bool is_shared() const { return of_all_.has_value(); }

  /// World size at which it was saved.
  [[nodiscard]] int ranks_then() const { return ranks_then_; }

 private:
  std::map<int, tensor::StateDict> by_rank_;
  std::optional<tensor::StateDict> of_all_;
  int rank_;
  int ranks_then_;
};

/// Whose a part is.
enum class Sharing {
  replicated,  // the same on every rank, as weights are: written once, copied in the background
  compared,    // small: the ranks compare what they have, and write it once if it is the same; copied at once
  own,         // each rank has its own, and writes it; copied at once
};

/// What may be written to a checkpoint, and how it comes to be.
struct Part {
  std::string name{};  // "model", "optimizer.1": its place in the checkpoint
  Sharing sharing = Sharing::compared;

  std::function<tensor::StateDict()> state{};

  /// Why it cannot be loaded now, and what to do; empty if it can. Unset: it always can.
  std::function<std::string()> load_obstacle{};
  /// Why what is saved does not fit, as a list of names; empty if it does. Unset: load() finds out.
  std::function<std::string(const SavedPart&)> mismatch{};
  /// What load() is given is in memory of its own, which it may keep and write to; else it may be a file's, which must
  /// not be written to.
  bool keeps = false;
  /// Of what does not fit as a whole load() takes what fits.
  bool takes_what_fits = false;
  /// Gives what could not be as it was, as at another number of ranks; as a rule nothing.
  std::function<std::string(const SavedPart&)> load{};

  /// Parts are read in the order of their turns: what the first ones change the later ones put right.
  int turn = 0;
};

/// Copies of all tensors.
[[nodiscard]] inline tensor::StateDict owned(const tensor::StateDict& state) {
  tensor::StateDict result;
  for (const auto& [name, tensor] : state.entries()) result.add(name, tensor.clone());
  return result;
}

/// Why `object` cannot take `saved`, if it cannot: afterwards it is as it was. Of small states.
template <tensor::Stateful T>
[[nodiscard]] std::string tried(T& object, const tensor::StateDict& saved) {
  const tensor::StateDict before = owned(std::as_const(object).state_dict());
  std::string why = error_of([&] { object.load_state_dict(owned(saved)); });
  object.load_state_dict(before);
  return why;
}

/// Stateful, where each rank has a share of something: what metrics have counted, say.
template <class T>
concept Share = tensor::Stateful<T> && requires(T& object, const tensor::StateDict& state) {
  { T::holds_nothing(state) } -> std::same_as<bool>;
  object.reset();
};

/// Of anything Stateful, which must outlive it.
///
/// At another number of ranks: what was the same on all of them goes on; of shares the only one that holds something
/// does, on rank 0. Else it does not fit.
template <tensor::Stateful T>
[[nodiscard]] Part part_of(std::string name, T& object, int rank, int ranks) {
  Part part{.name = std::move(name), .sharing = Share<T> ? Sharing::own : Sharing::compared};
  part.keeps = true;
  part.state = [&object] { return std::as_const(object).state_dict(); };
  const auto holders = [](const SavedPart& saved) {
    std::vector<int> found;
    if constexpr (Share<T>)
      for (int of = 0; of < saved.ranks_then(); ++of)
        if (!T::holds_nothing(saved.of(of))) found.push_back(of);
    return found;
  };
  part.mismatch = [holders, ranks](const SavedPart& saved) -> std::string {
    if (saved.ranks_then() == ranks || saved.is_shared() || (Share<T> && holders(saved).size() <= 1)) return {};
    return message("each of ", saved.ranks_then(), " ranks had its own, which cannot be divided among ", ranks);
  };
  part.load = [&object, holders, rank, ranks](const SavedPart& saved) -> std::string {
    if constexpr (Share<T>) {
      if (saved.ranks_then() != ranks) {
        object.reset();
        const auto found = holders(saved);
        if (rank == 0 && !found.empty()) object.load_state_dict(saved.of(found.front()));
        return {};
      }
    }
    object.load_state_dict(saved.own());
    return {};
  };
  return part;
}

}  // namespace accel::inline v0_1::checkpoint
