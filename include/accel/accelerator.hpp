// Accelerator: the facade. Its includes are the map of the library, from the ground floor up.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

// Floor 0: standard library only
#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/core/log.hpp>
#include <accel/core/named.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
// Floor 1: who am I, and where are the others
#include <accel/launch/control_plane.hpp>
#include <accel/launch/environment.hpp>
#include <accel/launch/rendezvous.hpp>
#include <accel/launch/star.hpp>
#include <accel/launch/threads.hpp>
#include <accel/launch/topology.hpp>
// Floor 2: tensors without autograd or modules
#include <accel/tensor/flat.hpp>
#include <accel/tensor/outline.hpp>
#include <accel/tensor/packed.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/tree.hpp>
#include <accel/tensor/tree_path.hpp>
// Floor 3: the axes and the inputs
#include <accel/backend/backend.hpp>
#include <accel/backend/checked.hpp>
#include <accel/backend/gloo.hpp>
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
#include <accel/backend/nccl.hpp>
#endif
#include <accel/backend/single.hpp>
#include <accel/backend/traced.hpp>
#include <accel/data/batch_plan.hpp>
#include <accel/data/loader.hpp>
#include <accel/data/sampler.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/precision/bf16.hpp>
#include <accel/precision/bf16_weights.hpp>
#include <accel/precision/fp16.hpp>
#include <accel/precision/fp32.hpp>
#include <accel/precision/precision.hpp>
// Floor 4: operations built from a Backend
#include <accel/collective/agree.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/batch_size.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/collective/first.hpp>
#include <accel/collective/object.hpp>
#include <accel/collective/pad.hpp>
#include <accel/collective/random.hpp>
#include <accel/collective/reduce.hpp>
#include <accel/collective/scatter.hpp>
#include <accel/collective/split.hpp>
#include <accel/gradient/accumulation.hpp>
#include <accel/gradient/clip.hpp>
#include <accel/gradient/reducer.hpp>
// Floor 5: what acts on whole results
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/checkpoint/weights.hpp>
#include <accel/metrics/for_metrics.hpp>
#include <accel/metrics/running_mean.hpp>
#include <accel/optim/adafactor.hpp>
#include <accel/optim/adagrad.hpp>
#include <accel/optim/adam.hpp>
#include <accel/optim/ema.hpp>
#include <accel/optim/lamb.hpp>
#include <accel/optim/lion.hpp>
#include <accel/optim/muon.hpp>
#include <accel/optim/plateau.hpp>
#include <accel/optim/schedule.hpp>
#include <accel/optim/scheduler.hpp>
#include <accel/optim/sgd.hpp>
// Floor 6: the user's objects on one side, the machinery on the other
#include <accel/prepare/engine.hpp>
#include <accel/prepare/loss_mean.hpp>
#include <accel/prepare/options.hpp>
#include <accel/prepare/over_ranks.hpp>
#include <accel/prepare/process_control.hpp>
#include <accel/prepare/scope.hpp>
#include <accel/prepare/start.hpp>

#include <accel/fwd.hpp>

namespace accel::inline v0_1 {

using collective::BatchSizeSearch;
using collective::PadOptions;
using collective::Part;
using collective::Reduction;
using collective::SeedOptions;
using collective::SplitOptions;

/// Trains a LibTorch program on any number of ranks. Make one, pass model, optimizer and data
/// through prepare(), call backward() in place of loss.backward().
///
/// Which rank does what, and when, such as on_main_process(), is in prepare::ProcessControl; values over the ranks,
/// such as gather() and reduce(), in prepare::OverRanks, which adds to it.
///
/// Template  Backend    how tensors cross the ranks: backend::Single, backend::Gloo, one of them in
///                      backend::Checked or backend::Traced, or your own
///           Precision  what forward computes in: precision::Fp32, Bf16, Fp16, Bf16Weights, or your own
/// Order     every rank makes its accelerators in the same order and calls their methods in the same
///           order, but for those that only read.
/// Throws    accel::Error and its kinds, with `[rank 1/4]` in front. The constructor: ConfigError for
///           variables that contradict each other, CommError if ranks do not come.
template <class BackendType, class PrecisionType>
class Accelerator : public prepare::OverRanks<BackendType, PrecisionType> {
 public:
  using Options = AcceleratorOptions<BackendType, PrecisionType>;

  explicit Accelerator(const Options& options = {}) : Accelerator(options, launch::detect()) {}

  /// For collectives of your own, and for what a backend offers beyond its contract, as Traced does.
  [[nodiscard]] BackendType& backend() { return engine_->backend; }

  /// What was detected, from where, every setting in force, and the buckets of what is prepared.
  [[nodiscard]] std::string describe() const {
    return message(description_, "buckets: ", engine_->describe_buckets(), "\n");
  }

  /// The buckets of what is prepared, to begin with another time: Options::gradient.plan. Best saved after
  /// the second step, when the order is known in which gradients arrive. Empty at one rank.
  [[nodiscard]] std::string bucket_plan() const { return engine_->bucket_plan(); }

  // Prepare and train

  /// The prepared counterparts of modules, optimizers, loaders, schedulers and averages, in the order given;
  /// one argument gives the object itself. Lvalues are borrowed and must outlive what is returned.
  ///
  /// Order    collective. Rank 0's parameters and buffers are what every rank has afterwards.
  /// Throws   InvalidArgument on every rank if the models, the optimizers' options or the accelerators'
  ///          settings differ between ranks, if a tensor is not dense, or if an optimizer holds what no
  ///          prepared model has.
  template <class... Args>
  [[nodiscard]] auto prepare(Args&&... args) {
    return at_rank([&] { return prepare::prepare(engine_, prepare::part_of(std::forward<Args>(args))...); });
  }

  /// loss.backward(), and the mean of the gradients over the ranks. `.grad` is then what PyTorch's
  /// DDP leaves there; in micro-steps that only accumulate it holds this rank's share of the mean.
  ///
  /// Shape    loss: one number, the mean over the rows of this rank's batch.
  /// Throws   what autograd throws, and InvalidArgument. On any rank, in a backward that reduces, either
  ///          ends the group: every other rank's call throws CommError with the reason.
  void backward(const at::Tensor& loss, bool retain_graph = false) {
    at_rank([&] { engine_->backward(loss, retain_graph); });
  }

  /// A micro-step on `batch`, which is what a prepared loader gave (by reference), or one of its
  /// members. The accumulation_steps-th, or the epoch's last, reduces and lets the optimizer step.
  template <class Batch>
  [[nodiscard]] prepare::MicroStepScope accumulate(const Batch& batch) {
    return at_rank(
        [&] { return prepare::MicroStepScope(engine_, engine_->in_flight.position_of(std::addressof(batch))); });
  }
  /// The same for data that no prepared loader gave: no window is known to end early.
  [[nodiscard]] prepare::MicroStepScope accumulate() {
    return at_rank([&] { return prepare::MicroStepScope(engine_, std::nullopt); });
  }

  /// Forgets the accumulation window that is open, and the gradients that wait for its reduction, as
  /// after a backward in it threw. The next micro-step begins a window.
  ///
  /// Order    every rank, at the same place.
  void give_up_window() { engine_->give_up_window(); }

  [[nodiscard]] prepare::NoSync no_sync() { return prepare::NoSync(engine_); }
  [[nodiscard]] bool sync_gradients() const { return engine_->accumulation.synchronises(); }

  /// Scales the gradients of `model` so that their norm is at most `max_norm`; returns the norm before.
  /// In a micro-step that only accumulates: nothing, and the model's last norm (NaN at first).
  ///
  /// Throws   InvalidArgument where the gradients are this rank's only, as after no_sync.
  template <class Model>
  at::Tensor clip_grad_norm_(const Model& model, double max_norm, double norm_type = 2.0) {
    return at_rank([&] { return engine_->clip_grad_norm_(model.prepared(), max_norm, norm_type); });
  }

  /// Divides the gradients of `model`, or of all models, by the loss scale, so that they are what they are without
  /// one; once, however often it is called. Not needed for steps and clipping. In a micro-step that only
  /// accumulates: nothing.
  ///
  /// Order    every rank: a scale that is no power of two is rounded otherwise where the step divides by it.
  /// Throws   InvalidArgument where the gradients are this rank's only, as after no_sync.
  template <class Model>
  void unscale_gradients(const Model& model) {
    at_rank([&] { engine_->unscale_gradients(model.prepared()); });
  }
  void unscale_gradients() {
    at_rank([&] {
      for (const auto& model : engine_->models) engine_->unscale_gradients(*model);
    });
  }

  /// A guard: until its end this thread computes in the accelerator's precision, or, if not `enabled`, inside of
  /// such a region in the tensors' own. Forward of a prepared model needs none.
  [[nodiscard]] auto autocast(bool enabled = true) {
    return engine_->precision.autocast(enabled, /*cache=*/!engine_->may_be_capturing());
  }

  /// The loss scale in force; 1 without one. The host waits for a GPU.
  [[nodiscard]] double loss_scale() const { return engine_->scaler == nullptr ? 1.0 : engine_->scaler->value(); }

  /// Where the gradients of the last skipped step came from, with {.precision = {.name_overflow = true}}.
  [[nodiscard]] const std::optional<prepare::Overflow>& overflow() const { return engine_->overflow; }

  /// What was made of Options::precision: its state is the loss scale's.
  [[nodiscard]] PrecisionType& precision() { return engine_->precision; }

  /// The mean of a loss over steps and ranks; adding to it costs no synchronisation.
  using LossMean = prepare::LossMean<BackendType, PrecisionType>;
  [[nodiscard]] LossMean running_mean() { return LossMean(engine_); }

  // Output

  /// Writes to standard output, one line, on the first rank of every host.
  template <class... Parts>
  void print(const Parts&... parts) const {
    if (this->is_local_main_process()) std::cout << message(parts...) + "\n" << std::flush;
  }
  [[nodiscard]] const Log& log() const { return engine_->log; }

  // Checkpoints

  /// Everything that the training needs to go on as if nothing had happened, in a folder: what is prepared, the loss
  /// scale, the window, random numbers, and what is registered. `place`: its folder; unset: the next number in
  /// Options::checkpoint.folder. Returns, with the name of the checkpoint, when there is a snapshot: the rest is done
  /// in the background, and the checkpoint is in its place when all of it is on the disk.
  ///
  /// Order    collective, between two micro-steps or at the end of one.
  /// Throws   CheckpointError, on every rank, also for an earlier save that failed in the background. Then the older
  ///          checkpoints are as they were, and training can go on.
  std::filesystem::path save_state(const std::optional<std::filesystem::path>& place = std::nullopt,
                                   const checkpoint::SaveOptions& options = {}) {
    return at_rank([&] { return engine_->checkpointing->save(place, engine_->steps, options); });
  }

  /// The same objects, prepared in the same order, go on as they were. `place`: a checkpoint, or a folder of numbered
  /// ones, of which it takes the newest; unset: that of the options. Gives which one it was.
  ///
  /// Order    collective, at any number of ranks: what then cannot be as it was is logged.
  /// Throws   CheckpointError on every rank, before anything has changed, for what is missing, damaged or does not fit;
  ///          what a registered object throws as it is loaded, after which the training cannot go on.
  std::filesystem::path load_state(const std::optional<std::filesystem::path>& place = std::nullopt,
                                   const LoadOptions& options = {}) {
    return at_rank([&] { return engine_->checkpointing->load(place, options, engine_->steps); });
  }

  /// Steps of the first prepared optimizer, those before the checkpoint that was loaded and those that an overflow
  /// skipped included.
  [[nodiscard]] std::int64_t steps() const { return engine_->steps; }

  /// The newest complete checkpoint of `folder`, or of Options::checkpoint.folder, that all ranks see. Collective.
  [[nodiscard]] std::optional<std::filesystem::path> latest_checkpoint(
      const std::optional<std::filesystem::path>& folder = std::nullopt) {
    return at_rank([&] { return engine_->checkpointing->latest(folder); });
  }

  /// Whether the last save is not on the disk yet, as far as this rank knows.
  [[nodiscard]] bool is_saving() const { return engine_->checkpointing->is_under_way(); }

  /// Until the last save is on the disk. Throws CheckpointError if it failed.
  void wait_for_save() {
    at_rank([&] { engine_->checkpointing->wait(); });
  }
  /// After it weights and optimizer state may be written to by hand; prepared objects call it themselves.
  void wait_for_snapshot() {
    at_rank([&] { engine_->checkpointing->settle(); });
  }

  /// With {.checkpoint = {.on_sigterm = true}}: some rank was asked to come to its end, by SIGTERM, as schedulers do
  /// some time before they kill. The others hear of it with the gradients, so that all say so after the same step:
  /// then save_state, wait_for_save, and leave.
  ///
  /// Cost     none.
  [[nodiscard]] bool is_preempted() const { return engine_->is_preempted(); }

  /// From now on save_state and load_state keep `objects`, too, which must outlive the accelerator. What they are
  /// loaded from are tensors of their own, on the host.
  ///
  /// Order    every rank, in the same order.
  template <tensor::Stateful... Objects>
  void register_for_checkpointing(Objects&... objects) {
    at_rank([&] { (engine_->keep(objects), ...); });
  }

  /// `hook` runs on every rank: before_save when there is a folder to add files to, after_save when the checkpoint is
  /// in its place, on the thread that has written it; before_load when the checkpoint is chosen, and nothing is checked
  /// or changed yet, after_load at the end of load_state. What one throws is thrown on all ranks.
  void before_save(checkpoint::SaveHook hook) { engine_->checkpointing->before_save(std::move(hook)); }
  void after_save(checkpoint::SaveHook hook) { engine_->checkpointing->after_save(std::move(hook)); }
  void before_load(checkpoint::SaveHook hook) { engine_->checkpointing->before_load(std::move(hook)); }
  void after_load(checkpoint::SaveHook hook) { engine_->checkpointing->after_load(std::move(hook)); }

  /// Weights as `folder/model.safetensors`, or where they are too large for one file as several with an index, written
  /// by the main rank. Collective.
  template <class Net>
  void save_model(const prepare::Model<Net, PrecisionType>& model, const std::filesystem::path& folder,
                  const SaveModelOptions& options = {}) {
    at_rank([&] { checkpoint::save_weights(engine_->backend, model.record(), folder, options); });
  }
  /// Weights back into `model` on every rank, from such a folder or a file, read by the main rank, which gets what did
  /// not fit, if that is allowed. Collective.
  template <class Net>
  LoadReport load_model(const prepare::Model<Net, PrecisionType>& model, const std::filesystem::path& path,
                        const LoadModelOptions& options = {}) {
    return at_rank([&] {
      engine_->checkpointing->settle();
      auto report = checkpoint::load_weights(engine_->backend, model.record(), path, options);
      precision::forget_casts();
      return report;
    });
  }
  /// The user's module.
  template <class Net>
  [[nodiscard]] std::shared_ptr<Net> unwrap_model(const prepare::Model<Net, PrecisionType>& model) const {
    return model.ptr();
  }

 private:
  using Base = prepare::OverRanks<BackendType, PrecisionType>;
  using Base::at_rank;
  using Base::engine_;

  Accelerator(const Options& options, const launch::Launch& launch)
      : Base(prepare::connect<BackendType, PrecisionType>(options, launch)),
        description_(prepare::description(*engine_, options, launch,
                                          prepare::set_threads(options.threads, engine_->topology.local_world_size))) {}

  std::string description_;
};

}  // namespace accel::inline v0_1
