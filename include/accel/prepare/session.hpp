// Session: what an accelerator shares with the objects it has prepared.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/log.hpp>
#include <accel/data/position.hpp>
#include <accel/gradient/accumulation.hpp>
#include <accel/gradient/clip.hpp>
#include <accel/launch/topology.hpp>
#include <accel/precision/host_flag.hpp>
#include <accel/precision/loss_scaler.hpp>
#include <accel/prepare/checkpointing.hpp>
#include <accel/prepare/overflow.hpp>
#include <accel/prepare/prepared_model.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1 {

/// By how much one step of the optimizer advances a prepared schedule.
enum class SchedulerStepping {
  PerUpdate,   // one step: total_steps are those of the optimizer
  PerProcess,  // world_size steps, or one with split_batches: Accelerate's rule, for total_steps that are counted so
};

[[nodiscard]] inline std::string_view name_of(SchedulerStepping stepping) {
  return stepping == SchedulerStepping::PerUpdate ? "PerUpdate" : "PerProcess";
}

}  // namespace accel::inline v0_1

namespace accel::inline v0_1::prepare {

/// Of an optimizer whose loss is scaled.
struct StepCount {
  const void* optimizer = nullptr;                                // the user's
  std::vector<std::shared_ptr<const PreparedModel>> models = {};  // whose parameters it steps
  std::int64_t attempts = 0;                                      // steps that were to be taken ...
  precision::HostFlag skipped = {};                               // ... and how many of them were not

  /// The host waits for a GPU.
  [[nodiscard]] std::int64_t taken() const { return attempts - static_cast<std::int64_t>(skipped.get()); }
};

/// One per accelerator; every wrapper shares it, so that the order of destruction does not matter.
struct Session {
  Session(launch::Topology own, c10::Device where, Log logger, gradient::Accumulation windows)
      : topology(own), device(where), log(std::move(logger)), accumulation(windows) {}
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// The mean of every rank's loss, weighted as its gradient is: the same number on every rank.
  ///
  /// Cost     one all_reduce of a number, which the host waits for.
  [[nodiscard]] virtual at::Tensor mean_loss(const at::Tensor& loss) = 0;

  /// The mean of `value` over the ranks; one that is equal on all of them is what it was, bit for bit.
  ///
  /// Cost     one round over the control plane, which the host waits for.
  [[nodiscard]] virtual double mean(double value) = 0;

  /// `flag` (f32[]) becomes the largest over the ranks, for the device, and if it `host_reads` it for the host; where
  /// the ranks never came together 1.
  ///
  /// Throws   CommError; only if `host_reads` where the host is ahead.
  virtual void agree_on_max(const at::Tensor& flag, bool host_reads) = 0;

  /// f32[] on the device: 1 if the last reduction never came to its end, so that no step may follow it. Undefined where
  /// that is an error of backward.
  [[nodiscard]] virtual at::Tensor lost() const { return {}; }

  /// The host waits for that end.
  ///
  /// Throws   CommError if it never came.
  virtual void await_reduction() {}

  /// In place of it on a rank that cannot step: `flag` becomes 2 for all.
  virtual void refuse_step(const at::Tensor& flag, std::string_view reason) noexcept = 0;

  /// Sets `overflow` if `found_inf`, which all ranks have alike.
  virtual void name_overflow(const at::Tensor& found_inf, std::span<const std::shared_ptr<PreparedModel>> of,
                             std::span<const at::Tensor> parameters) = 0;

  /// The current stream's work may be recorded for a CUDA graph.
  [[nodiscard]] virtual bool may_be_capturing() const { return false; }

  /// Before a forward of `model`: its buffers are rank 0's of the last reduction, if there was one since.
  virtual void put_buffers(const PreparedModel&) {}

  /// What `model` has for gradients, in as few tensors as they lie in.
  [[nodiscard]] virtual std::vector<at::Tensor> gradients(const PreparedModel& model) const = 0;

  /// What the other ranks, where there are any, hear should this one fail.
  virtual void note_step(std::uint64_t /*what*/) noexcept {}
  virtual void note_error(const Error&) {}

  /// Runs a call of the user's: what leaves it carries the rank, and is what the others read if it ends
  /// this one.
  template <class Body>
  decltype(auto) at_rank(Body&& body) {
    try {
      return std::forward<Body>(body)();
    } catch (Error& error) {
      error.add_label(topology.label());
      note_error(error);
      throw;
    }
  }

  launch::Topology topology;
  c10::Device device;
  Log log;
  gradient::Accumulation accumulation;
  data::InFlight in_flight;
  std::optional<Checkpointing> checkpointing;  // made by the engine, which has the control plane it needs
  std::int64_t steps = 0;                      // that the first prepared optimizer has taken
  std::atomic<bool> trigger = false;           // set here, and not yet seen by all
  std::vector<std::shared_ptr<PreparedModel>> models;
  precision::LossScaler* scaler = nullptr;       // null unless the loss is scaled
  std::optional<Overflow> overflow;              // of the last step that was skipped, if they are to be named
  std::vector<std::weak_ptr<StepCount>> counts;  // of the optimizers, if the loss is scaled
  SchedulerStepping scheduler_stepping = SchedulerStepping::PerUpdate;
  bool host_is_ahead = false;    // backward has returned before the gradients have come
  bool split_batches = false;    // some prepared loader has it
  std::uint64_t optimizers = 0;  // prepared so far

  /// Of the optimizers that step one of `which`.
  [[nodiscard]] std::vector<std::shared_ptr<StepCount>> step_counts_of(
      std::span<const std::shared_ptr<PreparedModel>> which) const {
    std::vector<std::shared_ptr<StepCount>> own;
    for (const auto& weak : counts) {
      auto count = weak.lock();
      if (count == nullptr) continue;
      const auto& stepped = count->models;
      if (std::find_first_of(stepped.begin(), stepped.end(), which.begin(), which.end()) != stepped.end())
        own.push_back(std::move(count));
    }
    return own;
  }

  /// Of `optimizer`; of all, if it is none of these.
  [[nodiscard]] std::vector<std::shared_ptr<StepCount>> step_counts(const void* optimizer) const {
    std::vector<std::shared_ptr<StepCount>> all, own;
    for (const auto& weak : counts)
      if (auto count = weak.lock()) (count->optimizer == optimizer ? own : all).push_back(std::move(count));
    return own.empty() ? all : own;
  }

  /// The prepared model that has this parameter, or null.
  [[nodiscard]] std::shared_ptr<PreparedModel> model_of(const at::Tensor& parameter) const {
    for (const auto& model : models)
      if (model->record.holds(parameter)) return model;
    return nullptr;
  }

  /// Those that have one of `parameters`, each once.
  [[nodiscard]] std::vector<std::shared_ptr<PreparedModel>> models_of(std::span<const at::Tensor> parameters) const {
    std::vector<std::shared_ptr<PreparedModel>> found;
    for (const auto& parameter : parameters) {
      auto model = model_of(parameter);
      if (model != nullptr && std::find(found.begin(), found.end(), model) == found.end())
        found.push_back(std::move(model));
    }
    return found;
  }

  /// Scales the gradients of `model` so that their norm is at most `max_norm`; returns the norm before,
  /// or in a micro-step that only adds up the last one.
  at::Tensor clip_grad_norm_(PreparedModel& model, double max_norm, double norm_type) const {
    for (const auto& stepper : model.steppers)
      ACCEL_CHECK(stepper.expired(), InvalidArgument, "clip_grad_norm_: an optimizer of ", model.record.label,
                  " steps inside of backward, before the norm of all gradients is known; clip without ",
                  "optimizer.step_in_backward()");
    if (accumulation.only_adds_up()) return model.norm;
    check_gradients(model, "clip_grad_norm_");
    check_source(model, "clip_grad_norm_");
    if (scaler == nullptr) return model.norm = gradient::clip_to_norm_(gradients(model), max_norm, norm_type);
    const at::Tensor& found = model.scaled.found_inf();
    model.norm = gradient::clip_scaled_to_norm_(gradients(model), model.scaled.scale(), found, max_norm, norm_type);
    model.scaled.note_clipped();
    model.scaled.divided_unless(found);
    model.scaled.note_found(model.ledger.mark());
    return model.norm;
  }

  /// Divides the gradients of `model` by what the loss was multiplied by; once.
  void unscale(PreparedModel& model) const {
    if (!model.scaled.is_scaled()) return;
    const c10::AutoGradMode no_grad(false);
    const auto pieces = gradients(model);
    // As GradScaler: the inverse in f64, rounded once.
    const at::Tensor inverse = model.scaled.scale().to(at::kDouble).reciprocal().to(at::kFloat);
    if (!pieces.empty()) at::_foreach_mul_(pieces, inverse);
    model.scaled.divided();
  }

  /// The same on request.
  void unscale_gradients(PreparedModel& model) const {
    if (accumulation.only_adds_up()) return;
    check_gradients(model, "unscale_gradients");
    check_source(model, "unscale_gradients");
    unscale(model);
  }

  /// Lets go of the gradients that wait for a reduction, and of torn ones; the next micro-step begins a window.
  void give_up_window() {
    for (const auto& model : models)
      if (model->ledger.waiting() || model->ledger.torn()) model->ledger.let_go();
    accumulation.give_up();
  }

  /// Refuses to carry the gradients of a window into the next.
  void check_last_window() const {
    if (!accumulation.ended_without_backward()) return;
    for (const auto& model : models)
      ACCEL_CHECK(!model->ledger.waiting(), InvalidArgument, "accumulate: the last micro-step of the window ran no ",
                  "backward, so the gradients of ", model->record.label, " still wait for their reduction; ",
                  "run it, or give the window up, on every rank: accelerator.give_up_window()");
  }

  /// Refuses to go on with gradients that are not means over the ranks.
  void check_gradients(const PreparedModel& model, std::string_view call) const {
    ACCEL_CHECK(!model.ledger.torn(), InvalidArgument, call, ": ", torn(model));
    ACCEL_CHECK(!model.ledger.waiting(), InvalidArgument, call, ": the last backward of ", model.record.label,
                " ran under no_sync, or in a micro-step that only adds up, so its gradients are those of this rank ",
                "only; run the last backward of a step outside of no_sync");
  }

  /// Refuses gradients of which nobody knows what they are multiplied by.
  void check_source(const PreparedModel& model, std::string_view call) const {
    if (scaler == nullptr) return;
    const auto stray = model.stray(model.ledger.parameters());
    ACCEL_CHECK(!stray, InvalidArgument, call, ": the gradient of ", *stray, " of ", model.record.label,
                " comes from a backward that accelerator.backward did not run, so it is not multiplied by the loss ",
                "scale; call accelerator.backward(loss) in place of loss.backward()");
  }

  /// Why gradients are torn, and what to do.
  [[nodiscard]] static std::string torn(const PreparedModel& model) {
    return message("an earlier backward of ", model.record.label, " threw half-way, so its gradients are incomplete; ",
                   "clear them first, by optimizer.zero_grad(), or in an accumulation window, on every rank, by ",
                   "accelerator.give_up_window()");
  }

  /// Refuses a step on a model that is not what was prepared, or whose gradients are not reduced.
  ///
  /// Throws   InvalidArgument after net->to(...), after a late requires_grad, or under no_sync.
  void check_before_step(const PreparedModel& model) const {
    check_model(model);
    check_gradients(model, "step");
  }

  /// Refuses a model that is not what was prepared.
  ///
  /// Cost     two comparisons per parameter.
  void check_model(const PreparedModel& model) const {
    const tensor::Record& record = model.record;
    for (std::size_t i = 0; i < record.parameters.size(); ++i) {
      const auto& [name, tensor] = record.parameters[i];
      ACCEL_CHECK(tensor.device() == device && tensor.scalar_type() == record.dtypes[i], InvalidArgument,
                  "step: ", name, " was ", tensor::dtype_name(record.dtypes[i]), " on ", device.str(),
                  " when it was prepared and is ", tensor::dtype_name(tensor.scalar_type()), " on ",
                  tensor.device().str(), " now; ", to_remedy);
      ACCEL_CHECK(record.trainable[i] || !tensor.requires_grad(), InvalidArgument, "step: ", name,
                  " was frozen when it was prepared, so its gradient is not reduced; set requires_grad before prepare");
    }
    const auto lost = model.watch == nullptr ? std::nullopt : model.watch->lost_hook();
    ACCEL_CHECK(!lost, InvalidArgument, "step: autograd no longer reports the gradient of ",
                record.trainable_name(*lost),
                ": its post-accumulate hook was replaced; set hooks of your own before accelerator.prepare");
  }

 private:
  static constexpr std::string_view to_remedy =
      "call net->to(...) before accelerator.prepare, which moves to the device by itself";
};

}  // namespace accel::inline v0_1::prepare
