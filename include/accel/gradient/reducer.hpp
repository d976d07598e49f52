// Reducer: the way of a gradient from autograd to the other ranks and back, in order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/gradient/arena.hpp>
#include <accel/gradient/arrival_order.hpp>
#include <accel/gradient/bucket_plan.hpp>
#include <accel/gradient/confirmation.hpp>
#include <accel/gradient/forecast.hpp>
#include <accel/gradient/ledger.hpp>
#include <accel/gradient/measure_cap.hpp>
#include <accel/gradient/saved_plan.hpp>
#include <accel/gradient/schedule.hpp>
#include <accel/gradient/stepper.hpp>
#include <accel/gradient/watch.hpp>
#include <accel/tensor/flat.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::gradient {

struct ReducerOptions {
  BucketCaps caps{};
  bool overlap = true;            // start a bucket when it is full; false: all of them after backward
  bool broadcast_buffers = true;  // rank 0's, whenever a backward has reduced their model: DDP's default
  std::string plan{};             // of an earlier run, accelerator.bucket_plan(): then caps do not count
};

/// Sums the gradients of all models over the ranks while backward still runs.
///
/// begin(), then autograd, then end(), start_rest() and wait(). The root gradient of backward carries
/// 1/world_size (or a rank's share of the rows), so that the sums on the wire arrive as the mean that
/// DDP leaves. What the gradients are in between, each model's ledger knows.
///
/// Memory   one more copy of the trainable parameters, of which `.grad` are views.
/// Order    buckets start in the order of the plan, which is the same on all ranks.
/// Source   Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training.
/// Differs  from DDP: what is not used is told from earlier steps and not by a traversal of the graph, and
///          costs neither bytes nor overlap. A sparse gradient is reduced as a dense one.
template <Backend B>
class Reducer final : Hooks::Listener {
 public:
  Reducer(B& backend, ReducerOptions options) : backend_(&backend), options_(std::move(options)) {}

  /// One model more, by its record and the ledger of its trainable parameters. They, and the watch that it
  /// gets, must outlive the reducer's last call.
  ///
  /// Order    every rank, with equal parameters.
  void add(const tensor::Record& record, Ledger& ledger, std::unique_ptr<Watch>& watch) {
    const bool is_planned = !options_.plan.empty();
    installed_ = is_planned ? installed_plan(options_.plan, names(&record)) : InstalledPlan();
    if (!is_planned && options_.caps.bucket_cap.is_automatic())
      options_.caps.bucket_cap = *(measured_cap_ = measure_cap(*backend_));
    const std::size_t first = sizes_.size();
    std::vector<at::Tensor> tensors = arena_.parameters();
    for (const auto& tensor : ledger.parameters()) {
      sizes_.push_back({tensor.numel(), tensor.scalar_type(), tensor.device(), models_.size()});
      model_of_.push_back(models_.size());
      tensors.push_back(tensor);
    }
    Hooks::Listener* const self = this;
    watch = std::make_unique<Watch>(ledger.parameters(), self, first);
    models_.push_back({&record, &ledger, watch.get(), first, sizes_.size()});
    Layout layout = lay_out(sizes_, is_planned ? installed_.order : reverse_registration(sizes_.size()));
    const auto memory = allocate(layout);
    arena_ = Arena(std::move(tensors), std::move(layout), memory);  // gradients move in with the next backward
    arrived_.assign(sizes_.size(), 0);
    confirmation_ = Confirmation<B>(*backend_, sizes_.size());
    forecast_ = Forecast(sizes_.size());
    schedules_.clear();
    schedule_of(0).expect(std::vector<std::uint8_t>(sizes_.size(), 1));
    arrival_order_ = ArrivalOrder<B>(!is_planned);
  }

  /// There is a model with something to reduce.
  [[nodiscard]] bool has_models() const { return !models_.empty(); }

  /// Where gradients lie now.
  [[nodiscard]] const Arena& arena() const { return arena_; }

  /// The buckets in force where everything is used: how many, and of what sizes.
  [[nodiscard]] std::string describe() const {
    return models_.empty() ? "none" : gradient::describe(schedules_.front().buckets, arena_.layout());
  }

  /// The same to begin with another time: ReducerOptions::plan.
  [[nodiscard]] std::string plan() const {
    return models_.empty() ? std::string() : saved_plan(schedules_.front().buckets, names());
  }

  /// All that the order of sums depends on, so that another run can go on with the same sums, bit for bit.
  ///
  /// Cost     the host waits for the last reduction.
  /// Order    collective, between two backwards.
  [[nodiscard]] tensor::StateDict state_dict() {
    const c10::AutoGradMode no_grad(false);
    tensor::StateDict state;
    if (!has_models()) return state;
    await();
    learn();
    plan_anew();
    const auto add = [&](std::string name, const auto& numbers) {
      const at::Tensor list = at::empty({static_cast<std::int64_t>(numbers.size())}, at::kLong);
      std::copy(numbers.begin(), numbers.end(), list.template mutable_data_ptr<std::int64_t>());
      state.add(std::move(name), list);
    };
    add("order", arena_.layout().order);
    add("bucket_of", installed_.bucket_of);
    add("forecast", forecast_.memory());
    state.add("observes", arrival_order_.observes());
    // What this rank waits for in each set of buckets: what comes against it is added behind, in another order.
    const at::Tensor arrives =
        at::zeros({static_cast<std::int64_t>(schedules_.size()), static_cast<std::int64_t>(sizes_.size())}, at::kByte);
    auto* place = arrives.mutable_data_ptr<std::uint8_t>();
    for (const Schedule& schedule : schedules_) {
      std::copy(schedule.arrives.begin(), schedule.arrives.end(), place);  // of one that nobody has used yet: none
      place += sizes_.size();
    }
    state.add("arrives", arrives);
    state.add("certain", schedules_.front().certain);
    if (measured_cap_) state.add("measured_cap", measured_cap_->count);
    return state;
  }

  /// False if that was of other models. `is_own`: it is this rank's, at as many ranks.
  ///
  /// Order    collective, with the states of one save.
  bool load_state_dict(const tensor::StateDict& state, bool is_own) {
    const c10::AutoGradMode no_grad(false);
    if (!has_models() || !state.has("order")) return has_models() == state.has("order");
    const auto list = [&](const char* name) {
      const at::Tensor& numbers = state.tensor(name);
      const auto* const begin = numbers.const_data_ptr<std::int64_t>();
      return std::vector<std::int64_t>(begin, begin + numbers.numel());
    };
    const auto order = list("order"), bucket_of = list("bucket_of");
    auto forecast = Forecast::of(list("forecast"), sizes_.size());
    auto sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 0; i < sorted.size(); ++i)
      if (sorted[i] != static_cast<std::int64_t>(i)) return false;
    if (!forecast || order.size() != sizes_.size() || (!bucket_of.empty() && bucket_of.size() != order.size()))
      return false;
    if (measured_cap_ && state.has("measured_cap"))
      options_.caps.bucket_cap = *(measured_cap_ = Bytes{state.integer("measured_cap")});
    installed_ = {{order.begin(), order.end()}, {bucket_of.begin(), bucket_of.end()}};
    Layout layout = lay_out(sizes_, installed_.order);
    const auto memory = allocate(layout);
    arena_.move_to(std::move(layout), memory);
    forecast_ = *std::move(forecast);
    schedules_.clear();
    schedule_of(0).expect(std::vector<std::uint8_t>(sizes_.size(), 1));
    if (const at::Tensor& arrives = state.tensor("arrives"); is_own) {
      const auto parameters = static_cast<std::int64_t>(sizes_.size());
      if (arrives.dim() != 2 || arrives.size(1) != parameters || arrives.size(0) < 1 ||
          arrives.size(0) > static_cast<std::int64_t>(forecast_.size()))
        return false;
      const auto* place = arrives.const_data_ptr<std::uint8_t>();
      for (std::int64_t k = 0; k < arrives.size(0); ++k, place += parameters)
        schedule_of(static_cast<std::size_t>(k)).expect({place, place + parameters});
      schedules_.front().certain = state.integer("certain") != 0;
    }
    arrival_order_ = ArrivalOrder<B>(state.integer("observes") != 0);
    return true;
  }

  /// An optimizer has taken a step on this rank; `what` is equal on all ranks if they have taken the same.
  void note_step(std::uint64_t what) { confirmation_.note_step(what); }

  /// This rank was told to come to its end: the others hear so with the next reduction.
  void want_end() { wants_end_ = true; }
  /// Some rank was, as of the reduction before the last one; the same on all ranks.
  [[nodiscard]] bool is_ending() const { return is_ending_; }

  /// f32[] on the device: 1 if the last reduction never came to its end. Undefined if that is an error of wait().
  [[nodiscard]] const at::Tensor& lost() const { return confirmation_.lost(); }

  /// The host waits until the last reduction has come to its end.
  ///
  /// Throws   CommError if it never has.
  void await() { confirmation_.await(); }

  // 1. Backward begins.

  /// `reduces`: it is the last of a step. `factor`: by what a gradient is multiplied when it moves into the
  /// arena at once; others come multiplied. `steppers`: who steps as soon as gradients have arrived.
  ///
  /// Order    before Ledger::begin(), which writes to gradients.
  void begin(bool reduces, double factor, std::vector<std::shared_ptr<Stepper>> steppers = {}) {
    const c10::AutoGradMode no_grad(false);
    for (const auto& model : models_) model.watch->begin();
    if (reduces) plan_anew();
    arena_.leave_to_holders();
    arena_.move_in_all(arena_.layout().order);
    factor_ = factor;
    reduces_ = reduces;
    if (!reduces) return;
    steppers_ = std::move(steppers);
    stepped_.assign(steppers_.empty() ? 0 : sizes_.size(), 0);
    buckets_stepped_ = 0;
    learn();
    is_ending_ = heard_ending_;  // on all ranks with the same step, whenever each of them has heard it
    std::fill(arrived_.begin(), arrived_.end(), std::uint8_t{0});
    works_.clear();
    aside_.clear();
    late_.clear();
    next_ = 0;
    confirmation_.begin();
    schedule_ = &schedule_of(forecast_.next());
    missing_ = schedule_->expected;
  }

  // 2. A gradient arrives.

 private:
  void arrived(std::size_t i) override {
    const c10::AutoGradMode no_grad(false);
    if (!reduces_) {
      if (arena_.moves_at_once(i) && !arena_.is_in_place(i)) arena_.move_in(i, factor_);
      return;
    }
    ACCEL_CHECK(arrived_[i] == 0, InvalidArgument, "the gradient of ", names()[i], " arrived twice in one backward, ",
                "as it does when a part of the model runs backward by itself (checkpointing); run it under no_sync, ",
                "and reduce with a last backward");
    arrived_[i] = 1;
    arrival_order_.note(i);
    const std::size_t bucket = schedule_->bucket_of[i];
    if (bucket < next_) {  // nobody here expected it any more: its place is on its way without it
      late_.push_back({i, std::exchange(gradient(i), at::Tensor())});
      return;
    }
    if (arena_.moves_at_once(i) && !arena_.is_in_place(i)) arena_.move_in(i, factor_);
    if (schedule_->arrives[i] == 0 || bucket == Schedule::none) return;
    if (--missing_[bucket] > 0 || !options_.overlap) return;
    // Strictly in order, whichever is full first: all ranks must start the same one.
    while (next_ < missing_.size() && missing_[next_] == 0) start_next();
  }

  // 3. A bucket starts: what is expected of it is there, or backward is over.

  void start_next() {
    const PlannedBucket& bucket = schedule_->buckets[next_];
    arena_.move_in_all(bucket.parameters);
    for (const std::size_t i : bucket.parameters) {
      if (has_news(i)) confirmation_.set(i, Use::announced);
      if (!gradient(i).defined()) {
        arena_.zero(i);
      } else if (arrived_[i] == 0) {
        gradient(i).reset();  // out of the reach of autograd, which would add to what is on its way
        aside_.push_back(i);
      }
    }
    works_.push_back(backend_->all_reduce(schedule_->payloads[next_], ReduceOp::sum));
    ++next_;
    while (steps_early() && works_[buckets_stepped_].done()) step_bucket();
  }

  // 4. Backward is over.

 public:
  /// What comes from now on is nobody's that was announced.
  void end() {
    for (const auto& model : models_) model.watch->end();
  }

  /// The same where it threw.
  void give_up() {
    end();
    for (const std::size_t i : std::exchange(aside_, {})) arena_.show(i);
    steppers_.clear();
  }

  /// Starts what backward has not, without waiting. `send_more()` sends what is to come with it: lost() speaks of that,
  /// too.
  template <class Send>
  void start_rest(Send&& send_more) {
    const c10::AutoGradMode no_grad(false);
    while (next_ < schedule_->buckets.size()) start_next();
    for (std::size_t i = 0; i < sizes_.size(); ++i)
      if (schedule_->bucket_of[i] == Schedule::none && has_news(i)) confirmation_.set(i, Use::unannounced);
    for (const auto& late : late_) confirmation_.set(late.parameter, Use::unannounced);
    std::forward<Send>(send_more)();
    confirmation_.start(arrived_, schedule_->certain, wants_end_);
    arrival_order_.finish(*backend_, schedules_.front().buckets.size() > 1, arena_.layout().order, arrived_);
  }

  /// Until every gradient has arrived; leaves each as it is to be, and tells the ledgers.
  ///
  /// Throws   InvalidArgument, on every rank, if their optimizers have not taken the same number of steps.
  void wait() {
    const c10::AutoGradMode no_grad(false);
    while (steps_early()) step_bucket();
    for (auto& work : works_) work.wait();
    const auto found = confirmation_.wait();
    reduce_late(found);
    settle(found);
    step_rest(found);
    if (confirmation_.is_read()) learn();
  }

  // 5. What no bucket took along: used against all expectation.

 private:
  void reduce_late(std::span<const Use> found) {
    if (std::find(found.begin(), found.end(), Use::unannounced) == found.end()) return;
    struct Late {
      std::size_t i;
      at::Tensor sum;
      backend::WorkOf<B> work;
    };
    std::vector<Late> all;
    for (const std::size_t i : arena_.layout().order) {
      if (found[i] != Use::unannounced) continue;
      at::Tensor sum = at::zeros_like(arena_.view(i));
      contribute(i, sum);
      auto work = backend_->all_reduce(elements(sum), ReduceOp::sum);
      all.push_back({i, std::move(sum), std::move(work)});
    }
    for (auto& [i, sum, work] : all) {
      backend::wait_on_host(*backend_, work);  // it comes behind what lost() speaks of
      at::Tensor view = arena_.view(i);
      schedule_->bucket_of[i] == Schedule::none ? view.copy_(sum) : view.add_(sum);
    }
  }

  /// What this rank has for parameter i beside what its bucket took along.
  void contribute(std::size_t i, at::Tensor& sum) {
    if (schedule_->bucket_of[i] == Schedule::none) {
      arena_.move_in_all({&i, 1});
      if (gradient(i).defined()) sum.copy_(gradient(i));
      return;
    }
    for (const auto& late : late_)
      if (late.parameter == i) {
        sum.copy_(late.gradient.is_sparse() ? late.gradient.to_dense() : late.gradient);
        if (arena_.moves_at_once(i) && factor_ != 1.0) sum.mul_(factor_);
      }
  }

  /// The elements of a tensor without gaps, as they lie in memory; of complex ones their parts.
  [[nodiscard]] static at::Tensor elements(const at::Tensor& tensor) {
    return tensor::real_parts(tensor.as_strided({tensor.numel()}, {1}));
  }

  // 6. Everything has arrived.

  /// A parameter without a gradient here has one now if another rank has used it, and stays without one
  /// if nobody has, as in DDP. A model that nobody has touched is what it was.
  void settle(std::span<const Use> found) {
    for (const std::size_t i : std::exchange(aside_, {})) arena_.show(i);
    for (const Model& model : models_) {
      if (!model.is_used(found)) {
        model.ledger->added_up();
        continue;
      }
      for (std::size_t i = model.first; i < model.end; ++i)
        if (found[i] == Use::none)
          model.ledger->restore(i - model.first);
        else if (!gradient(i).defined())
          arena_.show(i);
      model.ledger->reduced();
    }
  }

  // 7. The step, where it is taken inside of backward.

  /// There is a bucket that will be the sum of all, as nobody can come late.
  [[nodiscard]] bool steps_early() const {
    return !steppers_.empty() && schedule_->certain && buckets_stepped_ < works_.size();
  }

  /// The next bucket: as a rule before earlier layers have run backward. What this rank has no news of
  /// waits for the confirmation: it may be that nobody has.
  void step_bucket() {
    backend::wait_on_host(*backend_, works_[buckets_stepped_]);
    std::vector<at::Tensor> ready;
    for (const std::size_t i : schedule_->buckets[buckets_stepped_].parameters)
      if (arrived_[i] != 0) {
        ready.push_back(arena_.parameters()[i]);
        stepped_[i] = 1;
      }
    ++buckets_stepped_;
    for (const auto& stepper : steppers_) stepper->step(ready);
  }

  void step_rest(std::span<const Use> found) {
    if (steppers_.empty()) return;
    await();
    std::vector<at::Tensor> rest;
    for (const Model& model : models_) {
      if (!model.is_used(found)) continue;
      for (std::size_t i = model.first; i < model.end; ++i)
        if (stepped_[i] == 0 && gradient(i).defined()) rest.push_back(arena_.parameters()[i]);
    }
    for (const auto& stepper : std::exchange(steppers_, {})) stepper->step(rest);
  }

  // 8. What is remembered for the next step.

  void learn() {
    const auto* learnt = confirmation_.take();
    if (learnt == nullptr) return;
    forecast_.learn(learnt->used);
    heard_ending_ = heard_ending_ || learnt->is_ending;
    if (schedules_.size() > forecast_.size()) schedules_.erase(schedules_.begin() + 1, schedules_.end());
    Schedule& schedule = schedule_of(forecast_.last());
    schedule.certain = learnt->complete && forecast_.last() == 0;
    schedule.expect(arrived_);
  }

  /// The plan is made anew, once, if gradients arrive in an order that makes other buckets.
  void plan_anew() {
    auto order = arrival_order_.take();
    if (!order) return;
    Layout layout = lay_out(sizes_, std::move(*order));
    const auto together = [&](const Layout& one) {
      auto plan = plan_buckets(one, options_.caps, forecast_.set(0));
      std::vector<std::vector<std::size_t>> buckets;
      for (auto& bucket : plan) {
        std::sort(bucket.parameters.begin(), bucket.parameters.end());
        buckets.push_back(std::move(bucket.parameters));
      }
      return buckets;
    };
    if (together(layout) == together(arena_.layout())) return;
    const auto memory = allocate(layout);
    arena_.move_to(std::move(layout), memory);
    for (auto& schedule : schedules_) schedule.plan(arena_, options_.caps, schedule.used, installed_.bucket_of);
  }

  Schedule& schedule_of(std::size_t number) {
    while (schedules_.size() <= number) {
      schedules_.emplace_back();
      schedules_.back().plan(arena_, options_.caps, forecast_.set(schedules_.size() - 1), installed_.bucket_of);
    }
    return schedules_[number];
  }

  struct Model {
    const tensor::Record* record;
    Ledger* ledger;
    Watch* watch;
    std::size_t first, end;  // its parameters among all

    /// Some rank has news for one of them.
    [[nodiscard]] bool is_used(std::span<const Use> found) const {
      const auto uses = found.subspan(first, end - first);
      return std::any_of(uses.begin(), uses.end(), [](Use use) { return use != Use::none; });
    }
  };

  struct LateGradient {
    std::size_t parameter;
    at::Tensor gradient;
  };

  [[nodiscard]] at::Tensor& gradient(std::size_t i) const { return arena_.parameters()[i].mutable_grad(); }

  [[nodiscard]] bool has_news(std::size_t i) const {
    const Model& model = models_[model_of_[i]];
    return model.ledger->has_news(i - model.first);
  }

  /// Of all parameters, behind the number of their model; of those of one `more` that is not there yet, too.
  [[nodiscard]] std::vector<std::string> names(const tensor::Record* more = nullptr) const {
    std::vector<std::string> names;
    const auto append = [&](std::size_t number, const tensor::Record& one) {
      for (const auto& parameter : one.trainable_parameters()) names.push_back(message(number, "/", parameter.name));
    };
    for (std::size_t m = 0; m < models_.size(); ++m) append(m, *models_[m].record);
    if (more != nullptr) append(models_.size(), *more);
    return names;
  }

  [[nodiscard]] std::vector<at::Tensor> allocate(const Layout& layout) {
    std::vector<at::Tensor> memory;
    for (const auto& segment : layout.segments) memory.push_back(backend_->allocate(Arena::bytes(segment)));
    return memory;
  }

  B* backend_;
  ReducerOptions options_;
  std::vector<Model> models_;
  std::vector<ParameterSize> sizes_;  // by parameter, of all models, as for all that follow
  std::vector<std::size_t> model_of_;
  std::optional<Bytes> measured_cap_;
  InstalledPlan installed_;  // empty unless there is a plan of an earlier run
  Arena arena_;
  Forecast forecast_;
  std::deque<Schedule> schedules_;  // by number of their used set
  ArrivalOrder<B> arrival_order_;   // once: buckets are planned anew by it
  Confirmation<B> confirmation_;

  bool wants_end_ = false;     // this rank
  bool heard_ending_ = false;  // some rank
  bool is_ending_ = false;     // and all know it

  // The backward that runs.
  bool reduces_ = false;
  double factor_ = 1.0;
  Schedule* schedule_ = nullptr;
  std::vector<std::uint8_t> arrived_;      // by parameter
  std::vector<std::size_t> missing_;       // parameters still expected, by bucket
  std::size_t next_ = 0;                   // the bucket to start next
  std::vector<backend::WorkOf<B>> works_;  // by bucket, as far as started
  std::vector<std::size_t> aside_;         // whose gradient autograd must not see before the end
  std::vector<LateGradient> late_;
  std::vector<std::shared_ptr<Stepper>> steppers_;
  std::vector<std::uint8_t> stepped_;  // by parameter, if there are steppers
  std::size_t buckets_stepped_ = 0;
};

}  // namespace accel::inline v0_1::gradient
