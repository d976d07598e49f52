// The order of an epoch as a list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <accel/data/order.hpp>
#include <accel/data/sampler.hpp>

namespace accel::testing {

[[nodiscard]] inline std::vector<std::int64_t> listed(const data::Order& order) {
  return order.rows();
}

/// What a loader with shuffle visits.
[[nodiscard]] inline std::vector<std::int64_t> epoch_order(std::int64_t rows, std::uint64_t seed, std::int64_t epoch) {
  return listed(data::sampler::random().order({.rows = rows, .seed = seed, .epoch = epoch}));
}

}  // namespace accel::testing
