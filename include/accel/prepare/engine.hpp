// Engine: the machinery behind one accelerator: its ranks, its precision, its reducers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ios>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/checkpoint/part.hpp>
#include <accel/checkpoint/random_part.hpp>
#include <accel/checkpoint/saver.hpp>
#include <accel/collective/agree.hpp>
#include <accel/collective/agree_on_max.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/core/error.hpp>
#include <accel/gradient/gradients.hpp>
#include <accel/gradient/reducer.hpp>
#include <accel/gradient/root.hpp>
#include <accel/gradient/scaled.hpp>
#include <accel/precision/precision.hpp>
#include <accel/prepare/ema.hpp>
#include <accel/prepare/link.hpp>
#include <accel/prepare/loader.hpp>
#include <accel/prepare/model.hpp>
#include <accel/prepare/optimizer.hpp>
#include <accel/prepare/options.hpp>
#include <accel/prepare/overflow.hpp>
#include <accel/prepare/parts.hpp>
#include <accel/prepare/preemption.hpp>
#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/scheduler.hpp>
#include <accel/prepare/session.hpp>
#include <accel/prepare/waiting_part.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

/// Shared by an accelerator and everything it has prepared.
template <Backend B, Precision P>
class Engine final : public Session {
 public:
  Engine(B connected, const launch::Topology& own, Log logger, gradient::Accumulation windows,
         const gradient::ReducerOptions& options, const typename P::Options& precision_options)
      : Session(own, connected.device(), std::move(logger), std::move(windows)),
        backend(std::move(connected)),
        precision(precision_options, device),
        precision_options_(precision_options),
        reducer_options_(options),
        reducer_(backend, options),
        agree_on_max_(backend) {
    scaler = precision.scaler();
    host_is_ahead = backend::waits_on_stream<B> && topology.world_size > 1;
  }

  /// The parts of a checkpoint that are nobody's whom the user has prepared.
  void keep_own_parts(checkpoint::Options options) {
    checkpointing.emplace(backend.control(), topology.rank, log, std::move(options),
                          std::chrono::duration_cast<Seconds>(backend.timeout()));
    if (checkpointing->options().on_sigterm) preemption_.emplace();
    const auto add = [&](const char* name, checkpoint::Part part) {
      checkpointing->add(name, alive_, std::move(part));
    };
    const auto own = [&](auto& object) {
      auto part = checkpoint::part_of("", object, topology.rank, topology.world_size);
      part.mismatch = [&object](const checkpoint::SavedPart& saved) { return checkpoint::tried(object, saved.own()); };
      return part;
    };
    if constexpr (tensor::Stateful<P>) add("precision", own(precision));
    add("accumulation", own(accumulation));
    add("gradients", waiting_part(*this));
    checkpoint::Part buckets;
    buckets.state = [this] { return reducer_.state_dict(); };
    buckets.load = [this](const checkpoint::SavedPart& saved) -> std::string {
      const bool is_same = saved.ranks_then() == topology.world_size;
      if (reducer_.load_state_dict(saved.own(), is_same) || !is_same) return {};
      return "gradients travel in other buckets than before, so that their sums may be rounded otherwise";
    };
    add("buckets", std::move(buckets));
    auto random = checkpoint::random_part(device, topology.rank);
    random.turn = detail::Turn::random;
    add("random", std::move(random));
  }

  /// The others speak over rank 0: it stays until they have nothing more to say.
  ~Engine() override {
    checkpointing.reset();  // the last save comes to its end first
    backend.control().farewell();
  }

  /// Some rank was asked to come to its end: on all ranks after the same step.
  [[nodiscard]] bool is_preempted() const {
    if (topology.world_size > 1) return reducer_.is_ending();
    return preemption_ && Preemption::was_asked();
  }

  /// Something of the user's.
  template <tensor::Stateful T>
  void keep(T& object) {
    auto part = checkpoint::part_of("", object, topology.rank, topology.world_size);
    part.turn = detail::Turn::users;
    checkpointing->add("custom", alive_, std::move(part));
  }

  B backend;
  P precision;

  /// Prepares everything, or throws on every rank. Order: list tied parameters once, compare between
  /// ranks, move to the device, broadcast from rank 0, hook.
  template <class... Parts>
  void prepare(Parts&... parts) {
    const Deadline deadline = Deadline::in(backend.timeout());
    auto& control = backend.control();
    Inspection inspection{
        .session = *this,
        .lines = common_settings<B, P>(accumulation, scheduler_stepping, reducer_options_, precision_options_),
        .weights_dtype = precision.weights_dtype()};
    collective::all_or_none<InvalidArgument>(control, "prepare", deadline, [&] {
      (inspect_model(parts, inspection), ...);
      for (const auto& model : inspection.models) precision.check(model->record);
      (inspect(parts, inspection), ...);
    });
    collective::require_equal(control, "prepare: what it is given", inspection.lines, deadline);
    collective::all_or_none<InvalidArgument>(control, "prepare: moving to the device", deadline, [&] {
      (move_model(parts, device), ...);
      if (inspection.weights_dtype)
        for (const auto& model : inspection.models) model->record.cast(*inspection.weights_dtype);
    });
    for (auto& model : inspection.models) take(std::move(model));
    split_batches |= inspection.split_batches;
    take_buffers();
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
    ACCEL_CHECK(
        !in_backward_.exchange(true), InvalidArgument, "backward: it is called inside of another ",
        "accelerator.backward, from a hook or on another thread; add what its loss is to the loss of the outer one");
    const Leaving leaving{in_backward_};
    // Where no micro-step is under way but should be, the windows of the ranks would drift apart.
    const bool others_wait = accumulation.synchronises() || !accumulation.admits_backward();
    try {
      const auto step = micro_step();
      check_loss(loss);
      check_torn();
      auto steppers = step.synchronises ? steppers_of_step(retain_graph) : Steppers{};
      // A scaled loss overflows where PyTorch's does: the share of this rank is no part of it.
      const auto split = P::scales_loss ? gradient::SplitFactor{1.0 / static_cast<double>(step.length), step.share}
                                        : gradient::split_factor(step.factor());
      begin(step, split.arrival, steppers);
      loss.backward(root_gradient(loss, split.root), retain_graph);
      end(step, steppers);
    } catch (const CommError&) {
      give_up();  // the ranks know why
      throw;
    } catch (const std::exception& error) {
      give_up();
      if (others_wait) end_group(first_line(error));
      throw;
    } catch (...) {
      give_up();
      if (others_wait) end_group("something that is no std::exception");
      throw;
    }
    accumulation.after_backward();
  }

  void agree_on_max(const at::Tensor& flag, bool host_reads) override { agree_on_max_(flag, host_reads); }

  void refuse_step(const at::Tensor& flag, std::string_view reason) noexcept override {
    if (topology.world_size == 1) return;
    if (!flag.is_cpu() || host_is_ahead)  // the others do not wait to read a flag
      return backend.abort(message("its step threw: ", reason));
    try {
      flag.fill_(2);
      agree_on_max(flag, true);
    } catch (const std::exception& error) {
      log.warning("step: the others could not be told that it was refused here: ", first_line(error));
    }
  }

  void name_overflow(const at::Tensor& found_inf, std::span<const std::shared_ptr<PreparedModel>> of,
                     std::span<const at::Tensor> parameters) override {
    if (found_inf.item<float>() == 0) return;
    overflow = first_overflow(backend.control().all_gather("who has an overflow", overflow_of(of, parameters),
                                                           Deadline::in(backend.timeout())));
    if (!overflow) return;
    log.info("step skipped: the gradient of ", overflow->parameter, " is not finite on rank ", overflow->rank,
             ", with a loss scale of ", scaler->value());
  }

  [[nodiscard]] at::Tensor lost() const override { return reducer_.lost(); }
  void await_reduction() override { reducer_.await(); }

  [[nodiscard]] bool may_be_capturing() const override { return backend::may_be_capturing(backend); }

  void note_step(std::uint64_t what) noexcept override {
    backend.control().stepped();
    reducer_.note_step(what);
  }
  void note_error(const Error& error) override { backend.control().note_error(error); }

  [[nodiscard]] at::Tensor mean_loss(const at::Tensor& loss) override {
    if (topology.world_size == 1) return loss;
    const c10::AutoGradMode no_grad(false);
    at::Tensor mean = loss.detach() * micro_step().share;
    auto work = backend.all_reduce(mean, ReduceOp::sum);
    backend::wait_on_host(backend, work);
    return mean;
  }

  [[nodiscard]] double mean(double value) override {
    if (topology.world_size == 1) return value;
    const auto texts = backend.control().all_gather("the mean of a value", message(std::hexfloat, value),
                                                    Deadline::in(backend.timeout()));
    if (std::count(texts.begin(), texts.end(), texts.front()) == topology.world_size) return value;
    double sum = 0;
    for (const auto& text : texts) sum += std::stod(text);
    return sum / topology.world_size;
  }

  [[nodiscard]] std::vector<at::Tensor> gradients(const PreparedModel& model) const override {
    if (!reducer_.has_models() || model.watch == nullptr) return own_gradients(model);
    return reducer_.arena().pieces(model.watch->first(), model.watch->end_number());
  }

  /// The plan in force, as text.
  [[nodiscard]] std::string describe_buckets() const { return reducer_.describe(); }
  [[nodiscard]] std::string bucket_plan() const { return reducer_.plan(); }

  void put_buffers(const PreparedModel& model) override {
    if (buffers_) buffers_->put(model.number);
  }

 private:
  struct Leaving {
    std::atomic<bool>& in_backward;
    ~Leaving() { in_backward = false; }
  };

  /// What all ranks have agreed on becomes a model of this accelerator.
  void take(std::shared_ptr<PreparedModel> model) {
    collective::broadcast_coalesced(backend, model->record.tensors(), 0);
    model->ledger = gradient::Ledger(tensor::tensors_of(model->record.trainable_parameters()), topology.world_size);
    arrival_.add(model->ledger.parameters());
    if (topology.world_size > 1 && !model->ledger.parameters().empty())
      reducer_.add(model->record, model->ledger, model->watch);
    if constexpr (P::scales_loss) {
      model->scaled = gradient::Scaled(device);
      // What is not multiplied by the scale must not be divided by it.
      if (topology.world_size == 1 && !model->ledger.parameters().empty())
        model->watch = std::make_unique<gradient::Watch>(model->ledger.parameters(), nullptr, 0);
      if (scaler->options().name_overflow && model->watch != nullptr) model->watch->look_for_overflow();
    }
    model->number = models.size();
    checkpointing->add("model", model, weights_part(model));
    checkpointing->add("buffers", model, buffers_part(model, *this));
    models.push_back(std::move(model));
  }

  /// Of all models, whether a backward touches them or not: forward alone changes statistics.
  void take_buffers() {
    if (!reducer_options_.broadcast_buffers || topology.world_size == 1) return;
    if (buffers_) buffers_->put_all();  // what has arrived for those that were there already
    std::vector<std::vector<at::Tensor>> groups;
    for (const auto& model : models) groups.push_back(model->record.buffer_tensors());
    buffers_.emplace(backend, groups, 0);
  }

  static void check_loss(const at::Tensor& loss) {
    ACCEL_CHECK(loss.defined() && loss.numel() == 1, InvalidArgument, "backward: expected a loss of one number, found ",
                tensor::spec(loss), "; take its mean() or sum()");
    ACCEL_CHECK(
        loss.requires_grad(), InvalidArgument,
        "backward: the loss depends on no parameter that requires a gradient; was forward run without gradients?");
  }

  void check_torn() {
    for (const auto& model : models) {
      if (!model->ledger.torn()) continue;
      if (topology.world_size > 1) backend.control().check_failure("backward");  // then that is what is wrong
      throw InvalidArgument(message("backward: ", torn(*model)));
    }
  }

  /// A backward that reduces threw on this rank. The others reduce what it has not, or wait for it:
  /// whatever it sends next would be taken for that.
  void end_group(const std::string& reason) noexcept {
    if (topology.world_size > 1) backend.abort("its backward threw: " + reason);
  }

  using Steppers = std::vector<std::shared_ptr<gradient::Stepper>>;

  /// The optimizers that step inside of this backward.
  ///
  /// Throws   InvalidArgument where that cannot be right.
  [[nodiscard]] Steppers steppers_of_step(bool retain_graph) const {
    Steppers steppers;
    for (const auto& model : models) {
      for (const auto& weak : model->steppers) {
        auto stepper = weak.lock();
        if (stepper == nullptr || std::find(steppers.begin(), steppers.end(), stepper) != steppers.end()) continue;
        ACCEL_CHECK(!retain_graph, InvalidArgument, "backward: retain_graph keeps a graph whose weights ",
                    "optimizer.step_in_backward() changes; use one of them");
        ACCEL_CHECK(!stepper->has_stepped, InvalidArgument, "backward: an optimizer of ", model->record.label,
                    " has stepped inside of the last backward, and its step() was not called since; with ",
                    "optimizer.step_in_backward() a step is one backward: add losses up, or step without it");
        check_model(*model);
        const auto stray = model->stray(model->ledger.parameters());
        ACCEL_CHECK(!stray, InvalidArgument, "backward: the gradient of ", *stray, " of ", model->record.label,
                    " comes from a backward that accelerator.backward did not run; clear it first");
        steppers.push_back(std::move(stepper));
      }
    }
    return steppers;
  }

  [[nodiscard]] gradient::MicroStep micro_step() const {
    return accumulation.micro_step(in_flight, 1.0 / topology.world_size);
  }

  [[nodiscard]] at::Tensor root_gradient(const at::Tensor& loss, double factor) const {
    if constexpr (P::scales_loss)
      return gradient::root_gradient(loss, factor, scaler->scale());
    else
      return gradient::root_gradient(loss, factor);
  }

  /// The flat memory of its gradients, if they have one.
  [[nodiscard]] std::vector<at::Tensor> memory_of(const PreparedModel& model) const {
    if (!reducer_.has_models() || model.watch == nullptr) return {};
    return reducer_.arena().memory_of(model.watch->first(), model.watch->end_number());
  }

  template <class Visitor>
  void for_each_watch(Visitor&& visitor) {
    for (const auto& model : models)
      if (model->watch != nullptr) visitor(*model->watch);
  }

  void end_watching() {
    if (reducer_.has_models())
      reducer_.end();
    else
      for_each_watch([](gradient::Watch& watch) { watch.end(); });
  }

  /// At one rank they lie wherever autograd has put them. Those of sparse embeddings become dense, as a reducer's are.
  [[nodiscard]] static std::vector<at::Tensor> own_gradients(const PreparedModel& model) {
    for (const auto& parameter : model.ledger.parameters()) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (gradient.defined() && gradient.layout() != at::kStrided) gradient = gradient.to_dense();
    }
    return gradient::gradients_of(model.record.parameter_tensors());
  }

  void begin(const gradient::MicroStep& step, double arrival_factor, const Steppers& steppers) {
    if constexpr (P::scales_loss)
      for (const auto& model : models) {
        const bool has_gradients = model->ledger.has_gradients();
        const auto factor = model->scaled.begin(scaler->scale(), scaler->updates(), has_gradients);
        if (factor) model->ledger.multiply(*factor);
      }
    // What the reducer moves to its place is multiplied on the way; a GPU's gradients wait for their bucket.
    const bool moves = topology.world_size > 1 && device.is_cpu();
    if (preemption_ && Preemption::was_asked()) reducer_.want_end();
    if (reducer_.has_models())
      reducer_.begin(step.synchronises, moves ? arrival_factor : 1.0, steppers);
    else
      for_each_watch([](gradient::Watch& watch) { watch.begin(); });
    for (const auto& model : models) {
      if (step.correction != 1.0) model->ledger.rescale(step.correction);
      model->ledger.begin(step.synchronises, [&] { return memory_of(*model); });
    }
    // Where there is no gradient yet, none is added to what is there: if it reduces, each arrives once.
    const auto adds = [](const auto& model) { return model->ledger.has_gradients(); };
    const bool only_moves =
        step.synchronises && arrival_factor != 1.0 && moves && std::none_of(models.begin(), models.end(), adds);
    arrival_.set(only_moves ? 1.0 : arrival_factor, moves);
  }

  void end(const gradient::MicroStep& step, const Steppers& steppers) {
    arrival_.set(1.0);
    end_watching();
    if (step.synchronises && topology.world_size > 1) {
      reduce();
    } else {
      for (const auto& model : models) {
        const bool is_touched = !steppers.empty() && model->ledger.has_news();
        step.synchronises ? model->ledger.reduced() : model->ledger.added_up();
        for (const auto& stepper : steppers)
          if (is_touched) stepper->step(model->ledger.parameters());
      }
    }
    for (const auto& stepper : steppers) stepper->has_stepped = true;
  }

  void give_up() {
    arrival_.set(1.0);
    end_watching();
    reducer_.give_up();
    for (const auto& model : models) model->ledger.threw();
    accumulation.backward_threw();
  }

  /// Everything is under way before anything is waited for; the buffers go behind the gradients, before the word that
  /// all has come.
  void reduce() {
    const auto send_buffers = [&] {
      if (buffers_) buffers_->start();
    };
    if (reducer_.has_models()) {
      reducer_.start_rest(send_buffers);
      reducer_.wait();
    } else {
      send_buffers();
    }
    if (buffers_) buffers_->wait(reducer_.lost());
  }

  typename P::Options precision_options_;
  gradient::ReducerOptions reducer_options_;
  gradient::Reducer<B> reducer_;  // of all models, where there is another rank
  gradient::ArrivalFactor arrival_;
  collective::AgreeOnMax<B> agree_on_max_;
  std::optional<collective::RepeatedBroadcast<B>> buffers_;  // of all models, in their order
  std::optional<Preemption> preemption_;
  std::shared_ptr<void> alive_ = std::make_shared<int>();  // for its own parts of a checkpoint
  std::atomic<bool> in_backward_ = false;
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
template <class E, Backend B, Precision P>
[[nodiscard]] auto wrap(EmaPart<E>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Ema<E>(std::move(part.ema), engine);
}
template <class L, Backend B, Precision P>
[[nodiscard]] auto wrap(LoaderPart<L>&& part, const std::shared_ptr<Engine<B, P>>& engine) {
  return Loader<L>(std::move(part.loader), engine, std::make_shared<LinkOver<Engine<B, P>, B>>(engine), part.seed);
}

/// What Accelerator::prepare gives: one wrapper, or a tuple of several.
template <Backend B, Precision P, class... Parts>
[[nodiscard]] auto prepare(const std::shared_ptr<Engine<B, P>>& engine, Parts... parts) {
  engine->prepare(parts...);
  if constexpr (sizeof...(Parts) == 1)
    return (wrap(std::move(parts), engine), ...);
  else
    return std::tuple{wrap(std::move(parts), engine)...};
}

}  // namespace accel::inline v0_1::prepare
