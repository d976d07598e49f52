// What a rank of a benchmark can be asked to repeat, and how long a step of it takes.
#pragma once

#include <torch/torch.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace bench {

/// A count of operator new that only a program with allocations.cpp has; elsewhere null.
[[gnu::weak]] extern std::int64_t allocations();

/// Where a step's time and allocations go. Off, a mark costs a test of one flag.
class Phases {
 public:
  static constexpr std::array<std::string_view, 5> names = {"zero_grad", "forward", "backward", "clip", "optimizer"};
  enum Name : std::size_t { zero_grad, forward, backward, clip, optimizer };
  struct Share {
    double nanoseconds = 0;
    std::int64_t allocations = 0;
  };

  void begin_step() {
    steps_.emplace_back();
    last_ = now();
  }

  /// What happened since the last mark belongs to `name`.
  void done(Name name) {
    if (!measure) return;
    const Mark mark = now();
    steps_.back()[name].nanoseconds += std::chrono::duration<double, std::nano>(mark.time - last_.time).count();
    steps_.back()[name].allocations += mark.allocations - last_.allocations;
    last_ = now();  // without what this call itself has taken
  }

  [[nodiscard]] const std::vector<std::array<Share, names.size()>>& steps() const { return steps_; }

  bool measure = false;

 private:
  struct Mark {
    std::chrono::steady_clock::time_point time;
    std::int64_t allocations = 0;
  };
  static Mark now() { return {std::chrono::steady_clock::now(), allocations != nullptr ? allocations() : 0}; }

  std::vector<std::array<Share, names.size()>> steps_;
  Mark last_;
};

/// Something that all ranks repeat together.
class Workload {
 public:
  Workload() = default;
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;
  virtual ~Workload() = default;

  /// Returns the loss of this rank.
  virtual torch::Tensor step(Phases& phases) = 0;

  /// A step by whose result the systems are compared: one number.
  virtual torch::Tensor probe(Phases& phases) { return step(phases); }
};

}  // namespace bench
