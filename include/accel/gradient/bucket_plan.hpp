// Bucket plan: where gradients lie in memory, and which of them travel together. Pure functions of sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>

namespace accel::inline v0_1::gradient {

/// What the plan needs to know of a parameter.
struct ParameterSize {
  std::int64_t numel = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::Device device = c10::Device(c10::DeviceType::CPU);
  std::size_t model = 0;

  [[nodiscard]] std::int64_t bytes() const { return numel * static_cast<std::int64_t>(c10::elementSize(dtype)); }
};

/// How large a bucket may become: one size for all, or those of the first buckets, of which the last
/// holds for the rest. Empty: an eighth of what is reduced, between 1 MiB and 25 MiB.
class Caps {
 public:
  Caps() = default;
  Caps(Bytes all) : caps_{all} {}
  Caps(std::initializer_list<Bytes> caps) : caps_(caps) {}

  /// Measured when the first model is prepared: as large as what the link sends in ten times its latency, so
  /// that latency is a tenth of what a bucket takes, and more of them are under way while backward runs.
  [[nodiscard]] static Caps automatic() {
    Caps caps;
    caps.is_automatic_ = true;
    return caps;
  }
  [[nodiscard]] bool is_automatic() const { return is_automatic_; }

  /// Of bucket number `index` of a model of `total`.
  [[nodiscard]] Bytes of(std::size_t index, Bytes total) const {
    if (!caps_.empty()) return caps_[std::min(index, caps_.size() - 1)];
    // Enough buckets for most of the communication to begin before backward ends, and none so small
    // that latency counts. 25 MiB is DDP's.
    return std::clamp(Bytes{(total.count + 7) / 8}, 1_MiB, 25_MiB);
  }

  friend std::ostream& operator<<(std::ostream& out, const Caps& caps) {
    if (caps.is_automatic_) return out << "a size that is measured";
    if (caps.caps_.empty()) return out << "an eighth of the gradients (1 to 25 MiB)";
    for (std::size_t i = 0; i < caps.caps_.size(); ++i) out << (i == 0 ? "" : ", ") << caps.caps_[i];
    return out;
  }

 private:
  std::vector<Bytes> caps_;
  bool is_automatic_ = false;
};

struct BucketCaps {
  Caps bucket_cap{};
  Bytes last_bucket_cap = 1_MiB;  // DDP's cap of its first bucket, put to where it counts
};

/// Where gradients lie: a segment of memory per model, dtype and device, and in it the parameters in the
/// order in which backward finishes them, so that what travels together lies together.
struct Layout {
  struct Segment {
    std::size_t model = 0;
    c10::ScalarType dtype = c10::ScalarType::Float;
    c10::Device device = c10::Device(c10::DeviceType::CPU);
    std::int64_t numel = 0;
  };

  struct Place {
    std::size_t segment = 0;
    std::int64_t offset = 0;  // in elements, a multiple of 64 bytes: a cache line, and the widest vector
    std::int64_t numel = 0;

    [[nodiscard]] std::int64_t end() const { return offset + numel; }
  };

  std::vector<Segment> segments;
  std::vector<Place> places;       // by parameter
  std::vector<std::size_t> order;  // of parameters, over all segments
};

/// The order to begin with: the reverse of registration.
[[nodiscard]] inline std::vector<std::size_t> reverse_registration(std::size_t parameters) {
  std::vector<std::size_t> order(parameters);
  std::iota(order.rbegin(), order.rend(), std::size_t{0});
  return order;
}

[[nodiscard]] inline Layout lay_out(std::span<const ParameterSize> parameters, std::vector<std::size_t> order) {
  constexpr std::int64_t alignment = 64;  // bytes
  Layout layout{.segments = {}, .places = std::vector<Layout::Place>(parameters.size()), .order = std::move(order)};
  for (const std::size_t i : layout.order) {
    const ParameterSize& size = parameters[i];
    auto segment = std::find_if(layout.segments.begin(), layout.segments.end(), [&](const Layout::Segment& one) {
      return one.model == size.model && one.dtype == size.dtype && one.device == size.device;
    });
    if (segment == layout.segments.end())
      segment = layout.segments.insert(segment, {size.model, size.dtype, size.device, 0});
    const std::int64_t line = alignment / static_cast<std::int64_t>(c10::elementSize(size.dtype));
    const std::int64_t offset = (segment->numel + line - 1) / line * line;
    layout.places[i] = {static_cast<std::size_t>(segment - layout.segments.begin()), offset, size.numel};
    segment->numel = offset + size.numel;
  }
  return layout;
}

/// Gradients that travel together: a range of a segment.
struct PlannedBucket {
  std::size_t segment = 0;
  std::int64_t begin = 0, end = 0;      // elements of the segment
  std::vector<std::size_t> parameters;  // in the order in which they are expected

  bool operator==(const PlannedBucket&) const = default;
};

/// Packs parameters into buckets in the order of `layout`. A bucket stays under its cap, but one that is not
/// half full takes along what follows, so that no bias travels alone between two large weights. It ends
/// where a parameter follows that is not `used`; no parameter is split.
///
/// The last bucket is kept small: backward is over when it is full, so nothing hides its reduction. (What
/// comes before it goes along if it is small, too.) Buckets are listed in the order in which they fill.
///
/// Source   Li et al. 2020, PyTorch Distributed, section 3.2.
/// Differs  DDP makes its first bucket small, and sends zeros for what is not used.
///
/// `bucket_of`, where it is given, decides instead of the caps: a number for every parameter.
[[nodiscard]] inline std::vector<PlannedBucket> plan_buckets(const Layout& layout, const BucketCaps& caps,
                                                             std::span<const std::uint8_t> used,
                                                             std::span<const std::size_t> bucket_of = {}) {
  const auto size_of = [&](std::size_t i) {
    const auto& place = layout.places[i];
    return place.numel * static_cast<std::int64_t>(c10::elementSize(layout.segments[place.segment].dtype));
  };
  std::vector<std::size_t> order;
  std::copy_if(layout.order.begin(), layout.order.end(), std::back_inserter(order),
               [&](std::size_t i) { return used[i] != 0; });
  Bytes total;
  for (const std::size_t i : order) total.count += size_of(i);

  // The last bucket reaches from the end of the order back as far as its cap.
  std::vector<bool> in_last(layout.places.size(), false);
  std::int64_t last_bytes = 0;
  for (auto one = order.rbegin(); one != order.rend(); ++one) {
    if (layout.places[*one].segment != layout.places[order.back()].segment) continue;
    last_bytes += size_of(*one);
    if (last_bytes > caps.last_bucket_cap.count && *one != order.back()) break;
    in_last[*one] = true;
  }

  struct Open {
    PlannedBucket bucket;
    std::size_t last_position = 0;  // in the order: when it is full
    std::int64_t bytes = 0;
  };
  std::vector<Open> full;
  std::vector<Open> open(layout.segments.size());
  std::size_t begun = 0;  // buckets, for the caps
  std::vector<std::int64_t> cap_of(layout.segments.size(), 0);
  for (std::size_t position = 0; position < order.size(); ++position) {
    const std::size_t i = order[position];
    const Layout::Place& place = layout.places[i];
    Open& now = open[place.segment];
    auto& parameters = now.bucket.parameters;
    const auto follows = [&] {  // with nothing between them but what aligns
      const auto line = 64 / static_cast<std::int64_t>(c10::elementSize(layout.segments[place.segment].dtype));
      return place.offset - now.bucket.end < line;
    };
    const bool begins_last = !parameters.empty() && in_last[i] && !in_last[parameters.back()] &&
                             4 * now.bytes >= caps.last_bucket_cap.count;  // else it is not worth a message
    const std::int64_t cap = cap_of[place.segment];
    const auto shares = [&] { return bucket_of[parameters.back()] == bucket_of[i]; };
    const bool fits = in_last[i] || now.bytes + size_of(i) <= cap || 2 * now.bytes < cap;
    const auto ends = [&] { return bucket_of.empty() ? begins_last || !fits : !shares(); };
    if (!parameters.empty() && (ends() || !follows())) full.push_back(std::exchange(now, {}));
    if (parameters.empty()) {
      now.bucket.segment = place.segment;
      now.bucket.begin = place.offset;
      cap_of[place.segment] = caps.bucket_cap.of(begun++, total).count;
    }
    parameters.push_back(i);
    now.bucket.end = place.end();
    now.bytes += size_of(i);
    now.last_position = position;
  }
  for (auto& one : open)
    if (!one.bucket.parameters.empty()) full.push_back(std::move(one));
  // No two share a position: no sort has to be stable.
  std::sort(full.begin(), full.end(), [](const Open& a, const Open& b) { return a.last_position < b.last_position; });
  std::vector<PlannedBucket> plan;
  for (auto& one : full) plan.push_back(std::move(one.bucket));
  return plan;
}

/// `3: 4 MiB (2 parameters), 4 MiB (2 parameters), 1 MiB (2 parameters)`
[[nodiscard]] inline std::string describe(const std::vector<PlannedBucket>& buckets, const Layout& layout) {
  std::string text = message(buckets.size(), buckets.size() == 1 ? " of " : ": ");
  constexpr std::size_t most = 12;  // of which one reads the sizes
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    if (b == most - 1 && buckets.size() > most) {
      text += message(", ", buckets.size() - most, " more");
      b = buckets.size() - 1;
    }
    const auto& [segment, begin, end, parameters] = buckets[b];
    const auto size = static_cast<std::int64_t>(c10::elementSize(layout.segments[segment].dtype));
    text += message(b == 0 ? "" : ", ", Bytes{(end - begin) * size}, " (", parameters.size(),
                    parameters.size() == 1 ? " parameter)" : " parameters)");
  }
  return text;
}

}  // namespace accel::inline v0_1::gradient
