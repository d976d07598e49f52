// InOrder: one thing after the other, made by a thread ahead of time if that is wanted.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include <accel/core/units.hpp>
#include <accel/data/ahead.hpp>

namespace accel::inline v0_1::prepare::detail {

/// What `make()` gives, one after the other, made by a thread ahead of time if `prefetch` is not 0.
template <class Item>
class InOrder {
 public:
  InOrder(std::function<Item()> make, int prefetch, double timeout_s) : make_(std::move(make)) {
    if (prefetch > 0)
      ahead_.emplace(1, prefetch, 0, std::numeric_limits<std::int64_t>::max(), Seconds(timeout_s),
                     [how = make_](std::int64_t, int) { return how(); });
  }

  /// Not again once it has thrown.
  [[nodiscard]] Item take() { return ahead_ ? *ahead_->take() : make_(); }
  [[nodiscard]] bool is_ready() const { return ahead_ && ahead_->has_next(); }

 private:
  std::function<Item()> make_;
  std::optional<data::Ahead<Item>> ahead_;
};

}  // namespace accel::inline v0_1::prepare::detail
