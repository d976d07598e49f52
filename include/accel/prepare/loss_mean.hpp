// LossMean: the mean of a loss over steps and ranks, weighted by the rows of the current batch.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include <ATen/core/Tensor.h>

#include <accel/backend/backend.hpp>
#include <accel/data/position.hpp>
#include <accel/metrics/running_mean.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/engine.hpp>

namespace accel::inline v0_1::prepare {

/// What Accelerator::running_mean() gives. Adding to it costs no synchronisation.
template <Backend B, Precision P>
class LossMean {
 public:
  explicit LossMean(std::shared_ptr<Engine<B, P>> engine) : engine_(std::move(engine)), mean_(engine_->backend) {}

  /// `value` counts as often as the current batch has rows; once outside of a prepared loader.
  void update(const at::Tensor& value) {
    const data::Pass* pass = engine_->in_flight.innermost();
    update(value, pass == nullptr ? 1 : pass->position.rows);
  }
  void update(const at::Tensor& value, std::int64_t weight) {
    engine_->at_rank([&] { mean_.update(value, weight); });
  }

  /// Collective; the host waits here. NaN if nothing was added.
  [[nodiscard]] double compute() {
    return engine_->at_rank([&] { return mean_.compute(); });
  }
  void reset() { mean_.reset(); }

 private:
  std::shared_ptr<Engine<B, P>> engine_;
  metrics::RunningMean<B> mean_;
};

}  // namespace accel::inline v0_1::prepare
