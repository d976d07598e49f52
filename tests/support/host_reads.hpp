// HostReads: how often a number of a tensor was brought to the host, for which it waits where the tensor is on a GPU.
#pragma once

#include <memory>
#include <string_view>

#include <ATen/record_function.h>

namespace accel::testing {

/// Counts the item() of this thread, also within LibTorch's operators, but for fused optimizers: those for the CPU read
/// the number of steps, those for a GPU do not.
class HostReads {
 public:
  HostReads() {
    reads_ = 0;
    const auto begins = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
      const std::string_view name(function.name());
      if (name == "aten::_local_scalar_dense" && fused_ == 0) ++reads_;
      if (name.starts_with("aten::_fused_")) ++fused_;
      return nullptr;
    };
    const auto ends = [](const at::RecordFunction& function, at::ObserverContext*) {
      if (std::string_view(function.name()).starts_with("aten::_fused_")) --fused_;
    };
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(begins, ends).scopes({at::RecordScope::FUNCTION}));
  }
  HostReads(const HostReads&) = delete;
  HostReads& operator=(const HostReads&) = delete;
  ~HostReads() { at::removeCallback(handle_); }

  [[nodiscard]] int count() const { return reads_; }

 private:
  static inline thread_local int reads_ = 0;
  static inline thread_local int fused_ = 0;  // how many of them are being called

  at::CallbackHandle handle_ = 0;
};

}  // namespace accel::testing
