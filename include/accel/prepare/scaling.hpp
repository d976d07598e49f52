// Scaling: a prepared optimizer's part in loss scaling: are its gradients finite on all ranks, and what then.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <accel/core/error.hpp>
#include <accel/gradient/finite.hpp>
#include <accel/gradient/grad_scale.hpp>
#include <accel/gradient/gradients.hpp>
#include <accel/precision/host_flag.hpp>
#include <accel/precision/loss_scaler.hpp>
#include <accel/prepare/session.hpp>

namespace accel::inline v0_1::prepare {

/// One per optimizer, where the loss is scaled.
class Scaling {
 public:
  /// Of the optimizer at this address.
  Scaling(std::shared_ptr<Session> session, const void* optimizer)
      : session_(std::move(session)),
        participant_(session_->scaler->join()),
        count_(std::make_shared<StepCount>(StepCount{.optimizer = optimizer})),
        found_inf_(at::zeros({}, at::TensorOptions(at::kFloat).device(session_->device))),
        skipped_steps_(at::zeros_like(found_inf_)) {
    std::erase_if(session_->counts, [](const auto& one) { return one.expired(); });
    session_->counts.emplace_back(count_);
  }

  /// Calls `check()`, and `take(GradScale)` for the step of `parameters`, which are all that the optimizer has, and
  /// belong to `models`. If it is `folding`, it divides gradients by the scale itself and obeys the flag on a GPU;
  /// otherwise they are divided before, and it is called only if the step is to be taken.
  ///
  /// Cost     a pass that reads the gradients, unless clipping has made it, and one all_reduce of a number. On a GPU
  ///          the host waits only if not `folding`.
  /// Order    every rank.
  /// Throws   what `check` throws, and on the other ranks InvalidArgument: none of them steps then, and none waits.
  template <class Check, class Take>
  void step(std::span<const std::shared_ptr<PreparedModel>> models, std::span<const at::Tensor> parameters,
            bool folding, Check&& check, Take&& take) {
    const bool owns_all = owns(models, parameters);
    try {
      check();
      look(models, parameters, owns_all);
    } catch (const std::exception& error) {
      session_->refuse_step(found_inf_, first_line(error));
      throw;
    }
    // Behind the reduction, and by the same way: where the ranks agree, that was not lost either.
    const bool is_known = !folding || (found_inf_.is_cpu() && !session_->host_is_ahead);
    session_->agree_on_max(found_inf_, is_known);
    const float found = is_known ? found_inf_.item<float>() : 0;
    ACCEL_CHECK(found <= 1, InvalidArgument, "step: another rank has refused this step, and says why; no rank has ",
                "taken it");
    const bool is_skipped = found != 0;
    const bool folds = folding && owns_all && have_one_scale(models);
    if (!folds && !is_skipped)
      for (const auto& model : models) session_->unscale(*model);
    if (!is_skipped) {
      const at::Tensor scale = folds && !models.empty() && models.front()->scaled.is_scaled()
                                   ? models.front()->scaled.scale()
                                   : at::Tensor();
      take(gradient::GradScale{
          .scale = scale, .found_inf = is_known ? at::Tensor() : found_inf_, .on_device = !is_known});
      if (folds)
        for (const auto& model : models) model->scaled.divided_unless(found_inf_);
    }
    skipped_.set(found_inf_);
    skipped_steps_.add_(found_inf_);
    ++count_->attempts;
    count_->models.assign(models.begin(), models.end());
    count_->skipped.set(skipped_steps_);
    if (session_->scaler->options().name_overflow) session_->name_overflow(found_inf_, models, parameters);
    // As GradScaler, which refuses it: a step without gradients says nothing of the scale.
    if (gradient::has_any(parameters)) session_->scaler->stepped(*participant_, found_inf_);
  }

  /// Whether the last step was skipped. The host waits for a GPU that is not there yet.
  [[nodiscard]] bool was_skipped() const { return skipped_.get() != 0; }

 private:
  /// No other optimizer has a part of these models.
  [[nodiscard]] static bool owns(std::span<const std::shared_ptr<PreparedModel>> models,
                                 std::span<const at::Tensor> parameters) {
    std::size_t trainable = 0;
    for (const auto& model : models) trainable += model->ledger.parameters().size();
    std::size_t own = 0;
    for (const auto& parameter : parameters) own += parameter.requires_grad() ? 1U : 0U;
    return own == trainable;
  }

  [[nodiscard]] static bool have_one_scale(std::span<const std::shared_ptr<PreparedModel>> models) {
    return std::all_of(models.begin(), models.end(), [&](const auto& model) {
      const auto& first = models.front()->scaled;
      return model->scaled.is_scaled() == first.is_scaled() &&
             (model == models.front() ||
              (first.is_exact() && model->scaled.is_exact() && model->scaled.update() == first.update()));
    });
  }

  void look(std::span<const std::shared_ptr<PreparedModel>> models, std::span<const at::Tensor> parameters,
            bool owns_all) {
    if (!owns_all) {
      gradient::find_inf(gradient::gradients_of(parameters), found_inf_);
      // What could not be clipped as a whole is not stepped in parts.
      for (const auto& model : models)
        if (const at::Tensor* clip_found = model->scaled.clip_found()) found_inf_.add_(*clip_found);
      found_inf_.clamp_(0, 1);
      return;
    }
    found_inf_.zero_();
    for (const auto& model : models) {
      const std::uint64_t mark = model->ledger.mark();
      if (!model->scaled.is_found(mark)) {
        gradient::find_inf(session_->gradients(*model), model->scaled.found_inf());
        model->scaled.note_found(mark);
      }
      found_inf_.add_(model->scaled.found_inf());
    }
    if (models.size() > 1) found_inf_.clamp_(0, 1);
  }

  std::shared_ptr<Session> session_;
  std::shared_ptr<precision::Rounds::Participant> participant_;
  std::shared_ptr<StepCount> count_;
  at::Tensor found_inf_;      // f32[], on the device
  at::Tensor skipped_steps_;  // f32[], there too
  precision::HostFlag skipped_;
};

}  // namespace accel::inline v0_1::prepare
