// Agree on max: a flag that steps are taken by, the largest over the ranks.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <accel/backend/backend.hpp>
#include <accel/backend/witness.hpp>

namespace accel::inline v0_1::collective {

/// `flag` (f32[]) becomes the largest over the ranks. Where the host goes on before that is known, and the ranks never
/// came together, it becomes 1: then nothing that depends on it is to happen.
///
/// Cost     one all_reduce of a number; with such a backend of one more per rank, and a few small kernels.
template <Backend B>
class AgreeOnMax {
 public:
  explicit AgreeOnMax(B& backend) : backend_(&backend), witness_(backend.rank(), backend.world_size()) {}

  /// `host_reads` it next.
  ///
  /// Throws   CommError; only if `host_reads` where the ranks never came together.
  void operator()(const at::Tensor& flag, bool host_reads) {
    if (backend_->world_size() == 1) return;
    if constexpr (backend::waits_on_stream<B>) {
      const std::int64_t ranks = backend_->world_size();
      const int number = witness_.next();
      at::Tensor message = at::zeros({1 + ranks}, flag.options());  // the flag and the witness
      message[0].copy_(flag);
      message[1 + backend_->rank()].fill_(number);
      auto work = backend_->all_reduce(message, ReduceOp::max);
      if (host_reads)
        backend::wait_on_host(*backend_, work);
      else
        work.wait();
      const at::Tensor is_lost = at::ne(message.narrow(0, 1, ranks), number).any();
      flag.copy_(at::where(is_lost, 1.0F, message[0]));
    } else {
      at::Tensor all = flag;
      auto work = backend_->all_reduce(all, ReduceOp::max);
      work.wait();
    }
  }

 private:
  B* backend_;
  backend::Witness witness_;
};

}  // namespace accel::inline v0_1::collective
