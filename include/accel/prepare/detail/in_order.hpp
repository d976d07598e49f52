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
  InOrder(std::function<Item()> make, int prefetch, double timeout_s) : make_(std::move(make)), patience_(timeout_s) {
    if (prefetch > 0)
      ahead_.emplace(1, prefetch, 0, std::numeric_limits<std::int64_t>::max(),
                     [how = make_](std::int64_t, int) { return how(); });
  }

  [[nodiscard]] Item take() { return ahead_ ? *ahead_->take(patience_) : make_(); }
  [[nodiscard]] bool is_ready() const { return ahead_ && ahead_->has_next(); }
  [[nodiscard]] Seconds patience() const { return patience_; }

 private:
  std::function<Item()> make_;
  Seconds patience_;
  std::optional<data::Ahead<Item>> ahead_;
};

}  // namespace accel::inline v0_1::prepare::detail
