// Witness: what shows a device that a collective has taken place, where the host does not wait to know.
#pragma once

#include <cstdint>

namespace accel::inline v0_1::backend {

/// Two numbers of a message that is reduced to its maximum: rank 0 says one of them, the last rank the other, and who
/// finds both knows that it comes from all. It is another number each time, for what an abort leaves may be what an
/// earlier message has brought: NCCL's kernels use their buffers again.
class Witness {
 public:
  Witness() = default;
  Witness(int rank, int world_size) : is_first_(rank == 0), is_last_(rank == world_size - 1) {}

  /// Before each message.
  void change() { number_ = static_cast<std::uint8_t>(number_ % 127 + 1); }

  /// 1 to 127.
  [[nodiscard]] std::uint8_t number() const { return number_; }

  // What this rank says.
  [[nodiscard]] std::uint8_t first() const { return is_first_ ? number_ : std::uint8_t{0}; }
  [[nodiscard]] std::uint8_t last() const { return is_last_ ? number_ : std::uint8_t{0}; }

 private:
  bool is_first_ = true;
  bool is_last_ = true;
  std::uint8_t number_ = 0;
};

}  // namespace accel::inline v0_1::backend
