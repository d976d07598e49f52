// Random: seeds, and generators that are equal on all ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::collective {

struct SeedOptions {
  bool device_specific = false;  // every rank its own: the seed and its rank
  bool deterministic = false;    // LibTorch refuses what has no deterministic algorithm; else that stays as it is
};

/// Seeds LibTorch's generators of the CPU and of all devices; gives the seed that this rank has got.
inline std::uint64_t set_seed(std::uint64_t seed, int rank, const SeedOptions& options) {
  if (options.device_specific) seed += static_cast<std::uint64_t>(rank);
  at::manual_seed(seed);
  if (options.deterministic) at::globalContext().setDeterministicAlgorithms(true, /*w=*/false);
  return seed;
}

/// LibTorch's own of the CPU and, if that is another, of `device`.
[[nodiscard]] inline std::vector<at::Generator> default_generators(c10::Device device) {
  std::vector<at::Generator> generators = {at::globalContext().defaultGenerator(c10::Device(c10::DeviceType::CPU))};
  if (!device.is_cpu()) generators.push_back(at::globalContext().defaultGenerator(device));
  return generators;
}

/// Gives every rank the state of rank 0's `generators`, so that they draw the same from then on.
///
/// Cost     one round over the control plane, of some 5 kB for a generator of the CPU.
/// Throws   InvalidArgument on every rank if a generator is undefined, or if their number or devices differ.
template <Backend B>
void synchronize_rng_states(B& backend, std::span<at::Generator> generators) {
  const auto said = agree_on_trees(
      backend.control(), "synchronize_rng_states", "give every rank generators of the same kind",
      Deadline::in(backend.timeout()), [&](Brought& own) {
        for (std::size_t i = 0; i < generators.size(); ++i) {
          ACCEL_CHECK(generators[i].defined(), InvalidArgument, "generator ", i, " is undefined");
          own.outline.add(message("[", i, "]"), message("a generator of ", generators[i].device().type()));
          if (backend.rank() != 0) continue;
          const std::lock_guard lock(generators[i].mutex());
          const at::Tensor state = generators[i].get_state();  // u8[bytes], on the CPU
          own.said.sizes.push_back(state.numel());
          own.said.bytes.append(static_cast<const char*>(state.const_data_ptr()),
                                static_cast<std::size_t>(state.numel()));
        }
      });
  if (backend.rank() == 0) return;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < generators.size(); ++i) {
    const std::int64_t size = said.front().sizes[i];
    const at::Tensor state = at::empty({size}, at::kByte);
    std::memcpy(state.mutable_data_ptr(), said.front().bytes.data() + begin, static_cast<std::size_t>(size));
    begin += static_cast<std::size_t>(size);
    const std::lock_guard lock(generators[i].mutex());
    generators[i].set_state(state);
  }
}

}  // namespace accel::inline v0_1::collective
