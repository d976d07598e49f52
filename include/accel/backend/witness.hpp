// Witness: what shows a device that a collective has taken place, where the host does not wait to know.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/any.h>
#include <ATen/ops/ne.h>

namespace accel::inline v0_1::backend {

/// A byte per rank in a message that is reduced to its maximum. Each rank says a number at its own place, and who finds
/// it at all of them knows that the message comes from all; what each has sent before that came before it. An abort
/// gives no such message: a kernel of NCCL's that is aborted sends on what it has, without that of the rank for which
/// it has waited. It is another number each time, as what it has may be what an earlier message has brought.
///
/// Not seen is a rank that aborts one collective for want of a peer, whose message then comes in time for the next: it
/// would have to come within the microseconds in which aborted kernels follow each other. Before that the others have
/// heard of the failure, and have aborted theirs.
class Witness {
 public:
  Witness() = default;
  Witness(int rank, int world_size)
      : rank_(static_cast<std::size_t>(rank)), ranks_(static_cast<std::size_t>(world_size)) {}

  /// Bytes that it takes: whole words, so that eight ranks are compared at a time.
  [[nodiscard]] std::size_t size() const { return (ranks_ + 7) / 8 * 8; }

  /// The number of the next message, 1 to 127.
  std::uint8_t next() { return number_ = static_cast<std::uint8_t>(number_ % 127 + 1); }

  /// What this rank says in the next message. `place`: u8[size()], zeros.
  void say(std::uint8_t* place) {
    place[rank_] = next();
    for (std::size_t i = ranks_; i < size(); ++i) place[i] = number_;  // nobody's
  }

  /// Queues on the device: `lost` becomes 1 if `words` is not what all say, else 0.
  ///
  /// Shape    words: i64[size() / 8], the place in the message that has come, or i64[] for one. lost: f32[].
  void compare(const at::Tensor& words, at::Tensor& lost) const {
    constexpr std::int64_t all = 0x0101010101010101;
    if (words.dim() == 0)
      at::ne_out(lost, words, all * number_);  // one kernel
    else
      lost.copy_(at::ne(words, all * number_).any());
  }

 private:
  std::size_t rank_ = 0;
  std::size_t ranks_ = 1;
  std::uint8_t number_ = 0;  // of the last message
};

}  // namespace accel::inline v0_1::backend
