// Declarations only, light: for headers that name an Accelerator without using it.
#pragma once

namespace accel::inline v0_1 {

namespace backend {
class Single;
class Gloo;
class Nccl;  // where target accel::nccl is linked
}  // namespace backend

namespace precision {
struct Fp32;
}  // namespace precision

template <class Backend, class Precision>
class Accelerator;

}  // namespace accel::inline v0_1
