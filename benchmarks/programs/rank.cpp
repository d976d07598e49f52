// One rank of a benchmark in C++: rank <system> [cpu | cuda]
//
// It waits for commands, one JSON object per line of standard input, and answers each with a line on the file
// descriptor $ACCEL_BENCH_REPLY. Between them it sleeps, while the systems it is compared with run. Commands:
//
//   {"do": "open", "id": "a", "case": {...}}                    makes a model, weights or a buffer
//   {"do": "run", "id": "a", "warm": 5, "steps": 100}           times steps: {"ns": [...]}
//   {"do": "run_both", "id": "a", "other": "b", "warm": 5, "steps": 100}   in turns: {"ns": [...], "other_ns": [...]}
//   {"do": "phases", "id": "a", "warm": 5, "steps": 100}        times their phases, and counts allocations
//   {"do": "losses", "id": "a", "steps": 10}                    runs steps: {"losses": [...]}
//   {"do": "close", "id": "a"}                                  forgets it
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
#include <c10/cuda/CUDAFunctions.h>
#endif

#include "models.hpp"
#include "optimizers.hpp"
#include "peers.hpp"
#include "with_accel.hpp"
#include "workload.hpp"

namespace bench {
namespace {

using nlohmann::json;

class Rank {
 public:
  Rank(std::string system, c10::Device device) : system_(std::move(system)), device_(device) {
    if (system_ == "per_tensor" || system_ == "cpp_reducer") group_ = make_group(device_);
  }

  json answer(const json& command) {
    const std::string what = command.at("do"), id = command.at("id");
    if (what == "open") return open(id, command.at("case"));
    if (what == "close") return workloads_.erase(id), json::object();
    Workload& workload = *workloads_.at(id);
    Phases phases;
    const std::int64_t steps = command.at("steps");
    if (what == "losses") return losses(workload, steps, phases);
    if (what == "run_both") return run_both(workload, *workloads_.at(command.at("other")), command.at("warm"), steps);
    for (std::int64_t i = 0; i < command.at("warm"); ++i) workload.step(phases);
    if (what == "run") return run(workload, steps, phases);
    if (what == "phases") return run_phases(workload, steps, phases);
    throw std::invalid_argument("there is no command \"" + what + "\"");
  }

 private:
  json open(const std::string& id, const Case& c) {
    workloads_[id] = make(c);
    json facts = json::object();
    if (system_ == "accel" && c.contains("shared_memory") && !has_shared_memory<accel::backend::Gloo>)
      facts["unknown"] = "shared_memory";
    return facts;
  }

  std::unique_ptr<Workload> make(const Case& c) {
    const std::string system = c.value("system", system_);  // another one, where both share the process
    if (c.contains("moved_bytes")) return std::make_unique<MoveBytes>(c);
    if (c.contains("shapes")) return optimizer_step(c, system == "accel");
    if (system == "accel") return with_accel(c, device_);
    if (c.contains("bytes")) return std::make_unique<PlainAllReduce>(c, device_, group_);
    if (system == "libtorch") return std::make_unique<Libtorch>(c, device_);
    if (system == "per_tensor") return std::make_unique<PerTensor>(c, device_, group_);
    if (system == "cpp_reducer") return std::make_unique<CppReducer>(c, device_, group_);
    throw std::invalid_argument("there is no system \"" + system + "\"");
  }

  json losses(Workload& workload, std::int64_t steps, Phases& phases) {
    json values = json::array();
    for (std::int64_t i = 0; i < steps; ++i) values.push_back(workload.probe(phases).item<double>());
    return {{"losses", values}};
  }

  json run(Workload& workload, std::int64_t steps, Phases& phases) {
    json times = json::array();
    finish();
    for (std::int64_t i = 0; i < steps; ++i) times.push_back(time(workload, phases));
    return {{"ns", times}};
  }

  /// Step by step, so that neither the moment nor what the process has done before tells them apart.
  json run_both(Workload& one, Workload& other, std::int64_t warm, std::int64_t steps) {
    Phases phases;
    json times = json::array(), other_times = json::array();
    for (std::int64_t i = -warm; i < steps; ++i) {
      const auto ns = time(one, phases);
      const auto other_ns = time(other, phases);
      if (i < 0) continue;
      times.push_back(ns);
      other_times.push_back(other_ns);
    }
    return {{"ns", times}, {"other_ns", other_times}};
  }

  std::int64_t time(Workload& workload, Phases& phases) const {
    const auto begin = std::chrono::steady_clock::now();
    workload.step(phases);
    finish();
    return std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count();
  }

  json run_phases(Workload& workload, std::int64_t steps, Phases& phases) {
    phases.measure = true;
    json rows = json::object();
    for (const auto& name : Phases::names)
      rows[std::string(name)] = {{"ns", json::array()}, {"allocations", json::array()}};
    for (std::int64_t i = 0; i < steps; ++i) {
      phases.begin_step();
      workload.step(phases);
      finish();
    }
    for (const auto& step : phases.steps())
      for (std::size_t i = 0; i < step.size(); ++i) {
        rows[std::string(Phases::names[i])]["ns"].push_back(step[i].nanoseconds);
        rows[std::string(Phases::names[i])]["allocations"].push_back(step[i].allocations);
      }
    return {{"phases", rows}};
  }

  /// A step on a device is over when the device says so.
  void finish() const {
    if (device_.is_cuda()) torch::cuda::synchronize(device_.index());
  }

  std::string system_;
  c10::Device device_;
  Group group_;
  std::map<std::string, std::unique_ptr<Workload>> workloads_;
};

int serve(const std::string& system, c10::Device device) {
  std::ofstream reply("/dev/fd/" + variable("ACCEL_BENCH_REPLY"));
  // Numbers near 0, as a trained model has them, cost many times as much: a run's length would show in its steps.
  at::globalContext().setFlushDenormal(true);
  at::set_num_threads(1);
  const auto say = [&](const json& answer) { reply << answer.dump() << std::endl; };
  try {
    Rank rank(system, device);
    say({{"ready", true}});
    for (std::string line; std::getline(std::cin, line);) say(rank.answer(json::parse(line)));
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::cerr << text << "\n";
    say({{"error", text.substr(0, text.find('\n'))}});  // the rest are frames
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  if (argc < 2) return std::cerr << "usage: rank <system> [cpu | cuda]\n", 2;
  c10::Device device(c10::DeviceType::CPU);
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL
  if (argc > 2 && std::string(argv[2]) == "cuda") {
    device = c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(bench::rank()));
    c10::cuda::set_device(device.index());
  }
#endif
  return bench::serve(argv[1], device);
}
