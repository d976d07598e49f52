// The loops that accel is measured against, as one would write them with LibTorch alone.
#pragma once

#include <torch/torch.h>

// LibTorch's header is empty without it.
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO 1
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <unordered_map>
#include <utility>
#include <vector>
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "models.hpp"
#include "workload.hpp"

namespace bench {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

inline std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(std::string("the driver sets ") + name + ", and it is not set");
  return value;
}

inline int rank() {
  return std::stoi(variable("RANK"));
}
inline int world_size() {
  return std::stoi(variable("WORLD_SIZE"));
}

/// LibTorch's own group of all ranks, with what its engine takes by default.
inline Group make_group(c10::Device device) {
  c10d::TCPStoreOptions at_rank0;
  at_rank0.port = static_cast<std::uint16_t>(std::stoi(variable("MASTER_PORT")));
  at_rank0.isServer = rank() == 0;
  const auto store = c10::make_intrusive<c10d::TCPStore>(variable("MASTER_ADDR"), at_rank0);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank(), world_size());
  if (device.is_cuda()) {
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
    const auto engine = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank(), world_size());
    group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, engine);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
#endif
    return group;
  }
  const auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::minutes(10));
  const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
  options->devices.push_back(interface != nullptr ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                                  : c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  const auto engine = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank(), world_size(), options);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, engine);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  return group;
}

/// The optimizer of the peers.
inline std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Case& c, const Net& net) {
  const double lr = c.at("lr");
  if (c.at("optimizer") == "sgd") return std::make_unique<torch::optim::SGD>(net.parameters(), lr);
  return std::make_unique<torch::optim::AdamW>(net.parameters(), torch::optim::AdamWOptions(lr).weight_decay(1e-2));
}

/// Every rank trains by itself.
class Libtorch : public Workload {
 public:
  Libtorch(const Case& c, c10::Device device)
      : loop_(c), net_(make_net(c, device)), batches_(*net_, rank(), device), optimizer_(make_optimizer(c, *net_)) {}

  torch::Tensor step(Phases& phases) override {
    if (!loop_.keeps_gradients) zero_grad();
    phases.done(Phases::zero_grad);
    torch::Tensor loss;
    for (int micro_step = 1; micro_step <= loop_.micro_steps; ++micro_step) {
      const auto& batch = batches_.next();
      before_forward(micro_step == loop_.micro_steps);
      const auto output = net_->forward(batch.data);
      before_backward(micro_step == loop_.micro_steps);
      loss = net_->loss(output, batch.target);
      phases.done(Phases::forward);
      (loop_.micro_steps == 1 ? loss : loss / loop_.micro_steps).backward();
      phases.done(Phases::backward);
    }
    after_backward();
    phases.done(Phases::backward);
    if (loop_.max_norm > 0) torch::nn::utils::clip_grad_norm_(net_->parameters(), loop_.max_norm);
    phases.done(Phases::clip);
    optimizer_->step();
    phases.done(Phases::optimizer);
    return loss.detach();
  }

 protected:
  virtual void zero_grad() { optimizer_->zero_grad(); }
  virtual void before_forward(bool) {}
  virtual void before_backward(bool) {}
  virtual void after_backward() {}

  [[nodiscard]] Net& net() { return *net_; }

 private:
  Loop loop_;
  std::shared_ptr<Net> net_;
  Batches batches_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

/// One all-reduce per tensor after backward, all of them under way at once.
/// Source  pytorch/examples, cpp/distributed/dist-mnist.cpp
class PerTensor : public Libtorch {
 public:
  PerTensor(const Case& c, c10::Device device, Group group) : Libtorch(c, device), group_(std::move(group)) {}

 private:
  void before_forward(bool) override {
    for (const auto& buffer : net().buffers()) {
      std::vector<torch::Tensor> tensors{buffer};
      group_->broadcast(tensors)->wait();
    }
  }
  void after_backward() override {
    works_.clear();
    for (const auto& parameter : net().parameters()) {
      std::vector<torch::Tensor> tensors{parameter.grad()};
      works_.push_back(group_->allreduce(tensors));
    }
    for (const auto& work : works_) work->wait();
    for (const auto& parameter : net().parameters()) parameter.grad().div_(group_->getSize());
  }

  Group group_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

/// The engine of DistributedDataParallel, driven as torch/nn/parallel/distributed.py drives it.
class CppReducer : public Libtorch {
 public:
  CppReducer(const Case& c, c10::Device device, Group group) : Libtorch(c, device), group_(std::move(group)) {
    const auto parameters = net().parameters();
    const std::vector<bool> sparse(parameters.size(), false);
    const auto cap = static_cast<std::int64_t>(c.value("bucket_cap_mib", 25.0) * (1 << 20));
    const auto first_cap = c.contains("bucket_cap_mib") ? cap : std::int64_t{c10d::kDefaultFirstBucketBytes};
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
        parameters, {std::numeric_limits<std::size_t>::max() / 2}, sparse);  // one bucket until they are rebuilt
    std::reverse(buckets.begin(), buckets.end());
    std::unordered_map<std::size_t, std::string> names;
    for (const auto& parameter : net().named_parameters()) names.emplace(names.size(), parameter.key());
    reducer_ = std::make_unique<c10d::Reducer>(parameters, buckets, group_, sparse, cap, false, c.value("views", false),
                                               names, first_cap, false, false, std::vector<std::int64_t>{});
  }

 private:
  /// torch::optim's detaches gradients in place, which those that are views of a bucket refuse.
  void zero_grad() override {
    for (auto& parameter : net().parameters()) parameter.mutable_grad().reset();
  }
  void before_forward(bool last) override {
    if (last) reducer_->prepare_for_forward();
    reducer_->rebuild_buckets();
    const auto buffers = net().buffers();
    if (last && !buffers.empty()) c10d::broadcast_coalesced(group_, buffers, 250 << 20);  // DDP's size, rank 0's values
  }
  void before_backward(bool last) override {
    if (last) reducer_->prepare_for_backward({});
  }

  Group group_;
  std::unique_ptr<c10d::Reducer> reducer_;
};

/// An all-reduce of `bytes` through LibTorch's group.
class PlainAllReduce : public Workload {
 public:
  PlainAllReduce(const Case& c, c10::Device device, Group group)
      : group_(std::move(group)), tensors_{torch::zeros(c.at("bytes").get<std::int64_t>() / 4, device)} {}

  torch::Tensor step(Phases&) override {
    group_->allreduce(tensors_)->wait();
    return tensors_[0];
  }

  /// The sum of 1, 2, ... world_size everywhere; then zeros again, which stay what they are.
  torch::Tensor probe(Phases& phases) override {
    tensors_[0].fill_(rank() + 1);
    const auto mean = step(phases).mean();
    tensors_[0].fill_(0);
    return mean;
  }

 private:
  Group group_;
  std::vector<torch::Tensor> tensors_;
};

}  // namespace bench
