// Engine: the machinery behind one accelerator: its ranks, its precision, its reducers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/core/error.hpp>
#include <accel/gradient/gradients.hpp>
#include <accel/gradient/reducer.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/loader.hpp>
#include <accel/prepare/model.hpp>
#include <accel/prepare/optimizer.hpp>
#include <accel/prepare/parts.hpp>
#include <accel/prepare/scheduler.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

/// Shared by an accelerator and everything it has prepared.
template <Backend B, Precision P>
class Engine final : public Session {
 public:
  Engine(B connected, const launch::Topology& own, Log logger, gradient::Accumulation windows,
         const gradient::ReducerOptions& options)
      : Session(own, connected.device(), std::move(logger), std::move(windows)),
        backend(std::move(connected)),
        reducer_options_(options) {}

  /// Rank 0 may serve the store: it stays until the others no longer read from it.
  ~Engine() override { backend.control().farewell(); }

  B backend;
  P precision;

  /// Prepares everything, or throws on every rank. Order: move to the device, list tied parameters
  /// once, compare between ranks, broadcast from rank 0, hook.
  template <class... Parts>
  void prepare(Parts&... parts) {
    const Deadline deadline = Deadline::in(backend.timeout());
    auto& control = backend.control();
    Inspection inspection{.session = *this};
    collective::all_or_none<InvalidArgument>(control, "prepare", deadline, [&] {
      (inspect_model(parts, inspection), ...);
      (inspect(parts, inspection), ...);
    });
    collective::require_equal(control, "prepare: what it is given", inspection.lines, deadline);
    for (auto& model : inspection.models) {
      collective::broadcast_coalesced(backend, model->record.tensors(), 0);
      auto trainable = model->record.trainable_parameters();
      if (topology.world_size > 1 && !trainable.empty()) {
        reducers_.push_back(std::make_unique<gradient::Reducer<B>>(std::move(trainable), backend, reducer_options_));
        model->watch = reducers_.back().get();
      }
      models.push_back(std::move(model));
    }
    std::string seeds;
    const auto fallback = at::globalContext().defaultGenerator(c10::Device(c10::DeviceType::CPU)).current_seed();
    (propose_seed(parts, fallback, seeds), ...);
    if (!seeds.empty()) {
      std::istringstream agreed(control.broadcast("prepare: the loaders' seeds", seeds, 0, deadline));
      (accept_seed(parts, agreed), ...);
    }
  }

  /// Backward of `loss` and, if this micro-step synchronises, the mean of all gradients over the
  /// ranks. On return everything has arrived.
  void backward(const at::Tensor& loss, bool retain_graph) {
    ACCEL_CHECK(loss.defined() && loss.numel() == 1, InvalidArgument, "backward: expected a loss of one number, found ",
                tensor::spec(loss), "; take its mean() or sum()");
    ACCEL_CHECK(
        loss.requires_grad(), InvalidArgument,
        "backward: the loss depends on no parameter that requires a gradient; was forward run without gradients?");
    accumulation.check_scope();
    const double share = this->share();
    const bool synchronises = accumulation.synchronises();
    const bool only = reducers_.size() == 1;
    for (auto& reducer : reducers_) reducer->begin(synchronises, only);
    if (const double correction = accumulation.take_correction(); correction != 1.0) scale_waiting(correction);
    const auto before = marks(synchronises);
    try {
      loss.backward(root_gradient(loss, share * accumulation.loss_factor()), retain_graph);
    } catch (...) {
      for (auto& reducer : reducers_) reducer->cancel();
      throw;
    }
    finish_reductions(synchronises);
    note_waiting(synchronises, before);
    accumulation.after_backward();
  }

  void note_step() noexcept override { backend.control().stepped(); }
  void note_error(std::string_view text) override { backend.control().note_error(text); }

  [[nodiscard]] at::Tensor mean_loss(const at::Tensor& loss) override {
    if (topology.world_size == 1) return loss;
    const c10::AutoGradMode no_grad(false);
    at::Tensor mean = loss.detach() * share();
    auto work = backend.all_reduce(mean, ReduceOp::sum);
    work.wait();
    return mean;
  }

 private:
  /// This rank's share of the mean over the rows of all.
  [[nodiscard]] double share() const {
    const auto position = accumulation.position();
    return position ? position->share() : in_flight.share(1.0 / topology.world_size);
  }

  /// What autograd starts from: the factor of the loss. 1 is what it takes by itself.
  at::Tensor root_gradient(const at::Tensor& loss, double factor) {
    if (factor == 1.0) return {};
    if (!root_.defined() || root_factor_ != factor || root_.scalar_type() != loss.scalar_type() ||
        root_.device() != loss.device() || root_.sizes() != loss.sizes()) {
      root_ = at::full(loss.sizes(), factor, loss.options().requires_grad(false));
      root_factor_ = factor;
    }
    return root_;
  }

  /// With several models the ranks first agree which of them anybody's backward has touched: all
  /// must reduce the same ones, in the same order.
  ///
  /// Cost     with several models one all_reduce of a byte for each, which the host waits for.
  void finish_reductions(bool synchronises) {
    if (!synchronises || reducers_.size() < 2) {
      for (auto& reducer : reducers_) reducer->finish(true);
      return;
    }
    at::Tensor news = at::empty({static_cast<std::int64_t>(reducers_.size())}, at::kByte);
    auto* flags = news.template mutable_data_ptr<std::uint8_t>();
    for (const auto& reducer : reducers_) *flags++ = reducer->has_news() ? 1 : 0;
    news = news.to(device);
    auto work = backend.all_reduce(news, ReduceOp::max);
    work.wait();
    news = news.cpu();
    const auto* agreed = news.template const_data_ptr<std::uint8_t>();
    for (auto& reducer : reducers_) reducer->finish(*agreed++ != 0);
  }

  void scale_waiting(double factor) {
    const c10::AutoGradMode no_grad(false);
    for (const auto& model : models) {
      if (!model->unfinished()) continue;
      const auto gradients = gradient::gradients_of(model->record.parameters);
      if (!gradients.empty()) at::_foreach_mul_(gradients, factor);
    }
  }

  /// What changes when backward adds to a gradient: the tensor, or its version.
  using Mark = std::pair<const void*, std::uint32_t>;

  /// One rank has no hooks that tell which of several models a backward touches: compare gradients.
  [[nodiscard]] std::vector<std::vector<Mark>> marks(bool synchronises) const {
    if (synchronises || topology.world_size > 1 || models.size() < 2) return {};
    std::vector<std::vector<Mark>> result(models.size());
    for (std::size_t m = 0; m < models.size(); ++m)
      for (const auto& gradient : gradient::gradients_of(models[m]->record.parameters))
        result[m].emplace_back(gradient.unsafeGetTensorImpl(), gradient._version());
    return result;
  }

  void note_waiting(bool synchronises, const std::vector<std::vector<Mark>>& before) {
    if (topology.world_size > 1) return;  // the reducers know
    const auto now = marks(synchronises);
    for (std::size_t m = 0; m < models.size(); ++m) {
      const bool touched = now.empty() || now[m] != before[m];
      models[m]->waits = !synchronises && (models[m]->waits || touched);
    }
  }

  gradient::ReducerOptions reducer_options_;
  std::vector<std::unique_ptr<gradient::Reducer<B>>> reducers_;
  at::Tensor root_;  // the last root gradient: it rarely changes from step to step
  double root_factor_ = 1.0;
};

/// The wrapper that a part becomes.
template <class Net, Backend B, Precision P>
[[nodiscard]] auto wrap(ModelPart<Net>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Model<Net, P>(std::move(part.net), std::move(part.prepared), engine, engine->precision);
}
template <class O, Backend B, Precision P>
[[nodiscard]] auto wrap(OptimizerPart<O>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Optimizer<O>(std::move(part.optimizer), engine);
}
template <class S, Backend B, Precision P>
[[nodiscard]] auto wrap(SchedulerPart<S>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Scheduler<S>(std::move(part.scheduler), engine);
}
template <class D, Backend B, Precision P>
[[nodiscard]] auto wrap(LoaderPart<D>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Loader<D>(std::move(part.loader), engine, part.seed);
}

}  // namespace accel::inline v0_1::prepare
