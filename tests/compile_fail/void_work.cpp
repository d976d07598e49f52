// expect: all_reduce\(tensor, op\).* does not satisfy return-type-requirement|'void' does not satisfy 'Work'
#include <torch/torch.h>

#include <accel/accelerator.hpp>

// A backend whose all_reduce gives nothing to wait for.
struct Hasty : accel::backend::Single {
  using Single::Single;
  void all_reduce(const at::Tensor&, accel::ReduceOp) {}
  void all_reduce(std::span<at::Tensor>, accel::ReduceOp) {}
  Hasty split(std::span<const int>, std::string_view) { return *this; }
};

static_assert(accel::Backend<Hasty>);
