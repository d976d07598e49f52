// Exchange: how the data of a collective moves between the memories of the ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/backend/detail/course.hpp>
#include <accel/backend/detail/neighbours.hpp>
#include <accel/backend/detail/rank_order.hpp>
#include <accel/core/error.hpp>

namespace accel::inline v0_1::backend::detail {

/// The ranks do not call the same.
struct CallsDiffer : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A collective that a rank has called.
struct Operation {
  Call call;
  at::Tensor input, output;                   // kept until it is over; one and the same where it works in place
  std::shared_ptr<const std::string> name{};  // where the ranks say what they call; see Checked

  [[nodiscard]] const std::byte* source() const { return static_cast<const std::byte*>(input.const_data_ptr()); }
  [[nodiscard]] std::byte* target() const { return static_cast<std::byte*>(output.data_ptr()); }
};

/// One collective after the other, each in the same steps on all ranks.
///
/// A rank announces an operation: in an entry of its board it says what it calls and where its data can
/// be read. Small messages lie in a slot beside the entry, and everybody reads all of them. Of large
/// ones each rank reduces a slice, and takes the others' slices from them: where they are, if all lie in
/// allocate()'s memory, else piece by piece through scratch. Nobody writes another rank's memory.
class Exchange {
 public:
  explicit Exchange(Neighbours& neighbours) : neighbours_(neighbours), parts_(index(world_size())) {}

  /// Says on this rank's board what it calls as operation `number`, and where its data is.
  void announce(const Operation& operation, std::uint64_t number) {
    const Call& call = operation.call;
    const std::size_t slot = slot_of(number);
    Board& mine = neighbours_.mine();
    Board::Entry& entry = mine.entries[slot];
    entry.call = call;
    entry.place = neighbours_.segment().place(operation.source(), call.bytes);
    if (operation.name) {
      const std::size_t size = std::min(operation.name->size(), entry.name.size() - 1);
      std::copy_n(operation.name->data(), size, entry.name.data());
      entry.name[size] = '\0';
    }
    const bool sends = call.kind != Call::Kind::broadcast || call.root == rank();
    if (small(call) && sends) copy(mine.messages[slot].data(), operation.source(), call.bytes);
    neighbours_.publish(&Standing::announced, number);
  }

  /// Operation `number`, which this rank has announced. Where it stops, awaited() is what it waits for.
  [[nodiscard]] Course run(const Operation& operation, std::uint64_t number) {
    number_ = number;
    awaited_ = {};
    switch (operation.call.kind) {
      case Call::Kind::all_reduce:
        return all_reduce(operation);
      case Call::Kind::broadcast:
        return broadcast(operation);
      case Call::Kind::all_gather:
        return all_gather(operation);
      case Call::Kind::reduce_scatter:
        return reduce_scatter(operation);
    }
    return {};
  }

  [[nodiscard]] Neighbours::Awaited& awaited() { return awaited_; }

 private:
  using Standing = Board::Standing;

  Course all_reduce(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes;
    std::byte* const data = operation.target();
    if (small(operation.call)) {
      reduce(operation.call, data, bytes, [&](int r) { return message_of(r); });
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      const auto at = [this, begin](int r) { return data_of(r, begin, 0); };
      if (!directly) {
        turn_over();
        if (!in_place) copy(own_scratch(), data + begin, size);
        co_await everybody_here();
      }
      std::byte* const mine = in_place ? data + begin : own_scratch();
      const Slice own = slice(size, rank());
      reduce(operation.call, mine + own.begin, own.size, [&](int r) { return at(r) + own.begin; });
      co_await everybody_here();

      for (int r = 0; r < world_size(); ++r) {
        const Slice theirs = slice(size, r);
        if (r != rank() || !in_place) copy(data + begin + theirs.begin, at(r) + theirs.begin, theirs.size);
      }
    }
    step();
    if (in_place) co_await steps(0, world_size());  // then its caller may write there again
  }

  Course broadcast(const Operation& operation) {
    const int root = operation.call.root;
    const bool sends = root == rank();
    // Who has only to compare it waits for all.
    const bool compares = operation.call.name != 0;
    co_await announced(compares ? 0 : root, compares ? world_size() : root + 1);
    check_calls(operation.call, compares ? 0 : root, compares ? world_size() : root + 1);
    const std::size_t bytes = operation.call.bytes;
    if (small(operation.call)) {
      if (!sends) copy(operation.target(), message_of(root), bytes);
      co_return;
    }
    const bool directly = lie_in_place(root, root + 1);
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        if (sends) copy(own_scratch(), operation.source() + begin, size);
        co_await everybody_here();
      }
      if (!sends) copy(operation.target() + begin, data_of(root, begin, 0), size);
    }
    step();
    if (sends && directly) co_await steps(0, world_size());
  }

  Course all_gather(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes;
    if (small(operation.call)) {
      for (int r = 0; r < world_size(); ++r) copy(operation.target() + index(r) * bytes, message_of(r), bytes);
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        if (!in_place) copy(own_scratch(), operation.source() + begin, size);
        co_await everybody_here();
      }
      for (int r = 0; r < world_size(); ++r) {
        const std::byte* const from = r == rank() ? operation.source() + begin : data_of(r, begin, 0);
        copy(operation.target() + index(r) * bytes + begin, from, size);
      }
    }
    step();
    if (in_place) co_await steps(0, world_size());
  }

  Course reduce_scatter(const Operation& operation) {
    co_await announced(0, world_size());
    check_calls(operation.call, 0, world_size());
    const std::size_t bytes = operation.call.bytes / index(world_size());  // of a rank's part
    if (small(operation.call)) {
      reduce(operation.call, operation.target(), bytes, [&](int r) { return message_of(r) + index(rank()) * bytes; });
      co_return;
    }
    const bool in_place = place(rank()) >= 0;
    const bool directly = lie_in_place(0, world_size());
    const std::size_t most = directly ? bytes : Board::piece / index(world_size()) / line * line;
    for (std::size_t begin = 0; begin < bytes; begin += most) {
      const std::size_t size = std::min(most, bytes - begin);
      if (!directly) {
        turn_over();
        for (int r = 0; !in_place && r < world_size(); ++r)
          copy(own_scratch() + index(r) * size, operation.source() + index(r) * bytes + begin, size);
        co_await everybody_here();
      }
      reduce(operation.call, operation.target() + begin, size,
             [&](int r) { return data_of(r, index(rank()) * bytes + begin, index(rank()) * size); });
    }
    step();
    if (in_place) co_await steps(0, world_size());
  }

  // What they are written with

  /// For co_await: until the ranks [first, end) are that far.
  Until until(Neighbours::Counter counter, std::uint64_t value, int first, int end) {
    awaited_ = {counter, value, first, end};
    return {neighbours_.reached(awaited_)};
  }
  Until announced(int first, int end) { return until(&Standing::announced, number_, first, end); }
  Until steps(int first, int end) { return until(&Standing::steps, steps_, first, end); }

  void step() { neighbours_.publish(&Standing::steps, ++steps_); }

  /// Nobody goes on before everybody is here.
  Until everybody_here() {
    step();
    return steps(0, world_size());
  }

  static constexpr std::size_t line = 64;
  static std::size_t slot_of(std::uint64_t number) { return (number - 1) % Board::slots; }
  static std::size_t index(int number) { return static_cast<std::size_t>(number); }

  [[nodiscard]] int rank() const { return neighbours_.rank(); }
  [[nodiscard]] int world_size() const { return neighbours_.world_size(); }

  /// Each rank reads all small messages, so that several ranks send less in this way.
  [[nodiscard]] bool small(const Call& call) const {
    return call.bytes <= std::max<std::size_t>(4096, Board::slot / static_cast<std::size_t>(world_size() - 1));
  }

  /// What rank r has announced, of the operation that runs.
  [[nodiscard]] const Board::Entry& entry(int r) const { return neighbours_.of(r).entries[slot_of(number_)]; }
  [[nodiscard]] const std::byte* message_of(int r) const { return neighbours_.of(r).messages[slot_of(number_)].data(); }
  [[nodiscard]] std::int64_t place(int r) const { return entry(r).place; }

  /// Whether what these ranks bring can be read where it is.
  [[nodiscard]] bool lie_in_place(int first, int end) const {
    for (int r = first; r < end; ++r)
      if (place(r) < 0) return false;
    return true;
  }

  /// Where to read what rank r brings: at this offset if it lies in place, at the other one of its scratch.
  [[nodiscard]] const std::byte* data_of(int r, std::size_t offset, std::size_t scratch_offset) const {
    if (place(r) >= 0) return neighbours_.at(r, place(r)) + offset;
    return neighbours_.of(r).scratch[half_].data() + scratch_offset;
  }

  /// The scratch has two halves, taken by turns: who writes into one has met everybody who read it.
  void turn_over() { half_ ^= 1; }
  [[nodiscard]] std::byte* own_scratch() { return neighbours_.mine().scratch[half_].data(); }

  /// What rank r calls, by its name if it has one.
  [[nodiscard]] std::string told(int r) const {
    const Board::Entry& one = entry(r);
    return one.call.name == 0 ? message("rank ", r, " calls ", one.call)
                              : message("rank ", r, " calls ", std::string(one.name.data()));
  }

  /// Throws   CallsDiffer that names the first of these ranks, and the first that calls something else than it.
  void check_calls(const Call& call, int first, int end) const {
    const auto differs = [&](int r) { return entry(r).call != call; };
    int other = first;
    while (other < end && !differs(other)) ++other;
    if (other == end) return;
    if (differs(first)) {
      for (other = first; other < end && entry(other).call == entry(first).call;) ++other;
      if (other == end) other = rank();
    }
    throw CallsDiffer(message("the ranks do not call the same: ", told(first), ", ", told(other),
                              "; every rank must call the same collectives, in the same order, with equal shapes and ",
                              "dtypes"));
  }

  struct Slice {
    std::size_t begin, size;
  };

  /// The part of a message that a rank reduces, in whole cache lines.
  [[nodiscard]] Slice slice(std::size_t bytes, int r) const {
    const std::size_t lines = (bytes + line - 1) / line;
    const auto end_of = [&](int ranks) { return std::min(bytes, lines * index(ranks) / index(world_size()) * line); };
    return {end_of(r), end_of(r + 1) - end_of(r)};
  }

  template <class At>
  void reduce(const Call& call, std::byte* out, std::size_t bytes, At&& at) {
    for (int r = 0; r < world_size(); ++r) parts_[index(r)] = at(r);
    rank_order_.reduce(call.dtype, call.op, out, parts_, bytes);
  }

  static void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    if (to != from && bytes > 0) std::memcpy(to, from, bytes);
  }

  Neighbours& neighbours_;
  std::uint64_t number_ = 0;  // of the operation that runs: 1, 2, ...
  std::uint64_t steps_ = 0;   // equal on all ranks between two operations
  std::size_t half_ = 0;
  Neighbours::Awaited awaited_;
  std::vector<const std::byte*> parts_;
  RankOrder rank_order_;
};

}  // namespace accel::inline v0_1::backend::detail
