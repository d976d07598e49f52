// The same loop with accel.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include <accel/accelerator.hpp>

#include "models.hpp"
#include "peers.hpp"
#include "workload.hpp"

namespace bench {

/// Whether ranks of one host reduce through memory that they share, and may be told not to.
template <class B>
constexpr bool has_shared_memory = requires(typename B::Options options) { options.shared_memory = false; };

/// The loss is scaled and forward stays what it is: what scaling costs by itself.
struct Scaled : accel::precision::Passthrough {
  using Options = accel::precision::LossScalerOptions;
  static constexpr std::string_view name = "scaled";
  static constexpr bool scales_loss = true;

  Scaled(const Options& options, c10::Device on) : Passthrough(on), own(options, on) {}
  accel::precision::LossScaler* scaler() { return &own; }

  accel::precision::LossScaler own;
};

template <class B, class P>
typename accel::Accelerator<B, P>::Options accel_options(const Case& c) {
  typename accel::Accelerator<B, P>::Options options;
  options.accumulation_steps = c.value("accumulation", 1);
  if (c.contains("heartbeat_s")) options.heartbeat_s = c["heartbeat_s"].get<double>();
  options.gradient.overlap = c.value("overlap", true);
  if (c.contains("bucket_cap_mib"))
    options.gradient.caps.bucket_cap =
        accel::Bytes{static_cast<std::int64_t>(c["bucket_cap_mib"].get<double>() * (1 << 20))};
  if (c.value("measured_cap", false)) options.gradient.caps.bucket_cap = accel::gradient::Caps::automatic();
  if constexpr (has_shared_memory<B>) options.backend.shared_memory = c.value("shared_memory", true);
  options.log = accel::Log::Level::off;
  return options;
}

/// What makes an optimizer for `net`: accel's own, or LibTorch's, which can be prepared just as well.
template <class Optimizer>
Optimizer make(const Case& c, const Net& net) {
  const double lr = c.at("lr");
  if constexpr (std::is_same_v<Optimizer, accel::optim::AdamW>)
    return Optimizer(net.parameters(), {.lr = lr, .weight_decay = 1e-2});
  else if constexpr (std::is_same_v<Optimizer, accel::optim::SGD>)
    return Optimizer(net.parameters(), {.lr = lr});
  else if constexpr (std::is_same_v<Optimizer, torch::optim::AdamW>)
    return Optimizer(net.parameters(), torch::optim::AdamWOptions(lr).weight_decay(1e-2));
  else
    return Optimizer(net.parameters(), torch::optim::SGDOptions(lr));
}

template <class B, class P, class Optimizer>
class WithAccel : public Workload {
 public:
  WithAccel(const Case& c, c10::Device device)
      : loop_(c),
        accelerator_(accel_options<B, P>(c)),
        net_(make_net(c, device)),
        batches_(*net_, rank(), device),
        raw_optimizer_(make<Optimizer>(c, *net_)),
        prepared_(accelerator_.prepare(net_, raw_optimizer_)) {
    auto& optimizer = std::get<1>(prepared_);
    if constexpr (requires { optimizer.step_in_backward(); })
      if (c.value("step_in_backward", false)) optimizer.step_in_backward();
  }

  torch::Tensor step(Phases& phases) override {
    auto& [model, optimizer] = prepared_;
    if (!loop_.keeps_gradients) optimizer.zero_grad();
    phases.done(Phases::zero_grad);
    torch::Tensor loss;
    const auto micro_step = [&] {
      const auto& batch = batches_.next();
      loss = net_->loss(model(batch.data), batch.target);
      phases.done(Phases::forward);
      accelerator_.backward(loss);
      phases.done(Phases::backward);
      if (loop_.max_norm > 0) accelerator_.clip_grad_norm_(model, loop_.max_norm);
      phases.done(Phases::clip);
      optimizer.step();
    };
    if (loop_.micro_steps == 1) {
      micro_step();
    } else {
      for (int i = 0; i < loop_.micro_steps; ++i) {
        const auto scope = accelerator_.accumulate();
        micro_step();
      }
    }
    phases.done(Phases::optimizer);
    return loss.detach();
  }

 private:
  using Accelerator = accel::Accelerator<B, P>;
  using Prepared =
      decltype(std::declval<Accelerator&>().prepare(std::declval<std::shared_ptr<Net>&>(), std::declval<Optimizer&>()));
  Loop loop_;
  Accelerator accelerator_;
  std::shared_ptr<Net> net_;
  Batches batches_;
  Optimizer raw_optimizer_;
  Prepared prepared_;
};

/// An all-reduce of `bytes` through the backend, of a buffer that it has allocated, as the reducer's are.
template <class B>
class AccelAllReduce : public Workload {
 public:
  explicit AccelAllReduce(const Case& c)
      : accelerator_(accel_options<B, accel::precision::Fp32>(c)),
        tensor_(accelerator_.backend().allocate(accel::Bytes{c.at("bytes")}).view(torch::kFloat).fill_(0)) {}

  torch::Tensor step(Phases&) override {
    accelerator_.backend().all_reduce(tensor_, accel::ReduceOp::sum).wait();
    return tensor_;
  }

  /// The sum of 1, 2, ... world_size everywhere; then zeros again, which stay what they are.
  torch::Tensor probe(Phases& phases) override {
    tensor_.fill_(rank() + 1);
    const auto mean = step(phases).mean();
    tensor_.fill_(0);
    return mean;
  }

 private:
  accel::Accelerator<B, accel::precision::Fp32> accelerator_;
  torch::Tensor tensor_;
};

template <class B>
std::unique_ptr<Workload> on_backend(const Case& c, c10::Device device) {
  if (c.contains("bytes")) return std::make_unique<AccelAllReduce<B>>(c);
  using accel::precision::Fp32;
  const bool sgd = c.at("optimizer") == "sgd";
  if (c.value("torch_optim", false)) {
    if (sgd) return std::make_unique<WithAccel<B, Fp32, torch::optim::SGD>>(c, device);
    return std::make_unique<WithAccel<B, Fp32, torch::optim::AdamW>>(c, device);
  }
  if (sgd) return std::make_unique<WithAccel<B, Fp32, accel::optim::SGD>>(c, device);
  return std::make_unique<WithAccel<B, Fp32, accel::optim::AdamW>>(c, device);
}

/// With AdamW only: every further type is half a minute of compiling.
inline std::unique_ptr<Workload> in_precision(const std::string& precision, const Case& c, c10::Device device) {
  using accel::backend::Gloo;
  using accel::optim::AdamW;
  if (precision == "bf16") return std::make_unique<WithAccel<Gloo, accel::precision::Bf16, AdamW>>(c, device);
  if (precision == "fp16") return std::make_unique<WithAccel<Gloo, accel::precision::Fp16, AdamW>>(c, device);
  if (precision == "scaled") return std::make_unique<WithAccel<Gloo, Scaled, AdamW>>(c, device);
  throw std::invalid_argument("there is no precision \"" + precision + "\"");
}

inline std::unique_ptr<Workload> with_accel(const Case& c, c10::Device device) {
  namespace backend = accel::backend;
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
  if (device.is_cuda()) return on_backend<backend::Nccl>(c, device);
#endif
  if (c.contains("precision")) return in_precision(c["precision"], c, device);
  const std::string adaptor = c.value("adaptor", "");
  if (adaptor == "traced") return on_backend<backend::Traced<backend::Gloo>>(c, device);
  if (adaptor == "checked") return on_backend<backend::Checked<backend::Gloo>>(c, device);
  return on_backend<backend::Gloo>(c, device);
}

}  // namespace bench
