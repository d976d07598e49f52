// expect: self.output\(tensor\).* does not satisfy|in the requirement.*self.output\(tensor\)|convertible_to<void, at::Tensor>' was not satisfied
#include <torch/torch.h>

#include <accel/accelerator.hpp>

// A precision whose forward gives nothing.
struct Silent : accel::precision::Passthrough {
  using Passthrough::Passthrough;
  static constexpr std::string_view name = "silent";
  void output(const at::Tensor&) const {}
};

static_assert(accel::Precision<Silent>);
