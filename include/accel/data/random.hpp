// Random: the seeds of random streams, as pure functions of what the stream is for.
#pragma once

#include <cstdint>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

namespace accel::inline v0_1::data {

/// A number whose bits all depend on all bits of `value`.
///
/// Source   the finaliser of SplitMix64: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators.
[[nodiscard]] constexpr std::uint64_t scrambled(std::uint64_t value) {
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
  value = (value ^ value >> 27) * 0x94d049bb133111eb;
  return value ^ value >> 31;
}

/// The seed of a stream that belongs to `number` of what `seed` is for.
[[nodiscard]] constexpr std::uint64_t derived_seed(std::uint64_t seed, std::uint64_t number) {
  return scrambled(seed + scrambled(number + 0x9e3779b97f4a7c15));  // golden ratio: 0 is not mapped to itself
}

/// The random numbers of a dataset's get(row, random): for every sample a stream of its own, which depends on the seed
/// of the order, on the epoch, and on where in it the sample stands. So it is the same whatever the number of workers
/// and ranks, and after a resume; no two ranks augment alike.
class SampleRandom {
 public:
  SampleRandom(std::uint64_t seed, std::int64_t epoch)
      : seed_(derived_seed(seed, static_cast<std::uint64_t>(epoch))), generator_(at::detail::createCPUGenerator(0)) {}

  /// The stream of the sample at `position`; the one before it is over.
  [[nodiscard]] at::Generator& at(std::int64_t position) {
    generator_.set_current_seed(derived_seed(seed_, static_cast<std::uint64_t>(position)));
    return generator_;
  }

 private:
  std::uint64_t seed_;
  at::Generator generator_;
};

}  // namespace accel::inline v0_1::data
