// Bucket plan: which gradients travel together. A pure function of sizes, dtypes and caps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <accel/core/units.hpp>

namespace accel::inline v0_1::gradient {

/// What the plan needs to know of a parameter.
struct ParameterSize {
  std::int64_t numel = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::Device device = c10::Device(c10::DeviceType::CPU);
};

struct BucketCaps {
  Bytes bucket_cap = 25_MiB;      // DDP's default
  Bytes last_bucket_cap = 1_MiB;  // DDP's cap of its first bucket, put to where it counts
};

/// One bucket: parameters by their place in the model, and where each begins in the flat buffer.
struct PlannedBucket {
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::Device device = c10::Device(c10::DeviceType::CPU);
  std::vector<std::size_t> parameters;
  std::vector<std::int64_t> offsets;  // in elements
  std::int64_t numel = 0;

  bool operator==(const PlannedBucket&) const = default;
};

/// Packs parameters into buckets in the reverse of their registration, which is about the order in
/// which backward finishes them. A bucket holds one dtype and device and stays under its cap unless
/// a single parameter exceeds it; no parameter is split.
///
/// The last bucket, with the parameters of the first layers, is kept small: backward is over when it
/// is full, so nothing hides its reduction. Buckets are listed in the order in which they fill.
///
/// Source   Li et al. 2020, PyTorch Distributed, section 3.2.
/// Differs  DDP makes its first bucket small, and plans again after the first step.
[[nodiscard]] inline std::vector<PlannedBucket> plan_buckets(std::span<const ParameterSize> parameters,
                                                             const BucketCaps& caps = {}) {
  const auto bytes_of = [&](std::size_t i) {
    return parameters[i].numel * static_cast<std::int64_t>(c10::elementSize(parameters[i].dtype));
  };
  const auto fits = [&](std::size_t i, const PlannedBucket& bucket, Bytes cap) {
    const auto size = static_cast<std::int64_t>(c10::elementSize(bucket.dtype));
    return bucket.parameters.empty() || bucket.numel * size + bytes_of(i) <= cap.count;
  };
  const auto add = [&](std::size_t i, PlannedBucket& bucket) {
    bucket.parameters.push_back(i);
    bucket.offsets.push_back(bucket.numel);
    bucket.numel += parameters[i].numel;
  };
  const auto empty_like = [&](std::size_t i) {
    return PlannedBucket{parameters[i].dtype, parameters[i].device, {}, {}, 0};
  };

  // The last bucket reaches from the first parameter of the model as far as its cap.
  std::vector<bool> in_last(parameters.size(), false);
  PlannedBucket last = parameters.empty() ? PlannedBucket{} : empty_like(0);
  const auto shares = [&](std::size_t i, const PlannedBucket& bucket) {
    return parameters[i].dtype == bucket.dtype && parameters[i].device == bucket.device;
  };
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!shares(i, last)) continue;
    if (!fits(i, last, caps.last_bucket_cap)) break;
    add(i, last);
    in_last[i] = true;
  }

  std::vector<PlannedBucket> full;
  std::vector<PlannedBucket> open;  // at most one per dtype and device
  for (std::size_t i = parameters.size(); i-- > 0;) {
    auto bucket = std::find_if(open.begin(), open.end(), [&](const PlannedBucket& one) { return shares(i, one); });
    if (bucket == open.end()) {
      bucket = open.insert(open.end(), empty_like(i));
    } else {
      const bool begins_last = in_last[i] && !in_last[bucket->parameters.back()];
      if (begins_last || (!in_last[i] && !fits(i, *bucket, caps.bucket_cap)))
        full.push_back(std::exchange(*bucket, empty_like(i)));
    }
    add(i, *bucket);
  }
  std::move(open.begin(), open.end(), std::back_inserter(full));
  // A bucket is full when its earliest-registered parameter arrives. No two share one: no sort has to be stable.
  std::sort(full.begin(), full.end(),
            [](const PlannedBucket& a, const PlannedBucket& b) { return a.parameters.back() > b.parameters.back(); });
  return full;
}

}  // namespace accel::inline v0_1::gradient
