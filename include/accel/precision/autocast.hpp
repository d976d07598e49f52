// Autocast: a region in which LibTorch runs matrix products and convolutions in 16 bits, and what needs it in 32.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceType.h>

namespace accel::inline v0_1::precision {

/// As torch.autocast(device, dtype, enabled) in Python, for this thread. Regions nest; one that is not enabled
/// computes in the tensors' own dtype. Casts of weights are kept until the outermost region ends, unless `cache`
/// is false, as it must be while a CUDA graph is captured: what is kept would lie in the graph's memory.
///
/// Source   torch/amp/autocast_mode.py: what it saves, sets and restores, and in which order.
class [[nodiscard]] Autocast {
 public:
  Autocast(c10::DeviceType device, at::ScalarType dtype, bool enabled = true, bool cache = true)
      : device_(device),
        was_enabled_(at::autocast::is_autocast_enabled(device)),
        had_dtype_(at::autocast::get_autocast_dtype(device)),
        had_cache_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
    at::autocast::increment_nesting();
    at::autocast::set_autocast_cache_enabled(cache);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, was_enabled_);
    at::autocast::set_autocast_dtype(device_, had_dtype_);
    at::autocast::set_autocast_cache_enabled(had_cache_);
  }

 private:
  c10::DeviceType device_;
  bool was_enabled_;
  at::ScalarType had_dtype_;
  bool had_cache_;
};

/// Casts of weights that were kept are those of weights before: to be called where somebody has changed these, as an
/// optimizer does, for who has a region around more than a forward.
inline void forget_casts() {
  at::autocast::clear_cache();
}

}  // namespace accel::inline v0_1::precision
