// Backend: how tensors cross the ranks. The contract, and the vocabulary of its calls.
#pragma once

#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/named.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>
#include <accel/launch/rendezvous.hpp>
#include <accel/launch/topology.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1 {

/// What a reduction does element by element. There is no mean: the wire carries sums, and a mean
/// is a scale that its caller applies.
enum class ReduceOp { sum, max, min };

/// A collective under way. Owns the tensors it works on.
///
/// A type W is a Work if
/// 1. wait() returns when the result is there: on the CPU it blocks until the backend's own
///    deadline; on a GPU the current stream waits and the host does not: see backend::waits_on_stream;
/// 2. wait_until(deadline) throws CommError on that deadline;
/// 3. done() never blocks, and is true only if wait() would return at once. An engine that cannot tell
///    before says false until wait() has returned.
template <class W>
concept Work = std::movable<W> && requires(W& work, const W& self, Deadline deadline) {
  { work.wait() } -> std::same_as<void>;
  { work.wait_until(deadline) } -> std::same_as<void>;
  { self.done() } -> std::same_as<bool>;
};

/// A group of ranks and the engine that moves tensors between them.
///
/// A type B is a Backend if it is named, made from a launch::Meeting and its own Options, and
/// offers the calls below. All of them are collective but send and recv: every rank calls them, in
/// the same order, with tensors of equal shape and dtype that are dense, contiguous and on
/// device(). They return at once, or overlap nothing; the result is there after wait() on the returned
/// Work. What a rank calls wrong by itself is refused before anything is sent. After a CommError the
/// group is unusable and says so on the next call.
template <class B>
concept Backend =
    Named<B> && std::movable<B> && std::constructible_from<B, const launch::Meeting&, const typename B::Options&> &&
    requires(B& backend, const B& self, at::Tensor& tensor, std::span<at::Tensor> tensors, ReduceOp op, int peer,
             Bytes bytes, std::span<const int> ranks, std::string_view text) {
      { self.rank() } -> std::same_as<int>;
      { self.world_size() } -> std::same_as<int>;
      { self.device() } -> std::same_as<c10::Device>;
      { self.timeout() } -> std::same_as<Seconds>;             // of a wait() without a deadline
      { backend.all_reduce(tensor, op) } -> Work;              // in place
      { backend.all_reduce(tensors, op) } -> Work;             // grouped: one launch where the engine can
      { backend.broadcast(tensor, peer) } -> Work;             // in place, from rank `peer`
      { backend.all_gather(tensor, tensor) } -> Work;          // (output [world * n], input [n])
      { backend.reduce_scatter(tensor, tensor, op) } -> Work;  // (output [n], input [world * n])
      { backend.send(tensor, peer) } -> Work;
      { backend.recv(tensor, peer) } -> Work;
      { backend.allocate(bytes) } -> std::same_as<at::Tensor>;  // u8[bytes] that the engine likes
      { backend.split(ranks, text) } -> std::same_as<B>;        // called by the members only, equal on them
      { backend.control() } -> std::same_as<launch::ControlPlane&>;
      { backend.abort(text) } noexcept;  // afterwards every call says so
    };

namespace backend {

/// The Work that an operation of B returns.
template <class B>
using WorkOf = decltype(std::declval<B&>().all_reduce(std::declval<at::Tensor&>(), ReduceOp::sum));

/// The time that a collective may take: what the options say, or else the meeting.
///
/// Throws   ConfigError unless it is above 0.
[[nodiscard]] inline Seconds timeout_of(std::string_view engine, std::optional<double> option,
                                        const launch::Meeting& meeting) {
  const Seconds timeout = option ? Seconds(*option) : meeting.collective_timeout;
  ACCEL_CHECK(timeout.count() > 0, ConfigError, engine, ": timeout_s = ", timeout.count(), " must be above 0");
  return timeout;
}

/// Its wait() leaves the host free: what the host sees afterwards may be on its way still, or, after an abort, be what
/// nobody has sent. Such a backend says `static constexpr bool waits_on_stream = true`.
template <class B>
inline constexpr bool waits_on_stream = [] {
  if constexpr (requires { B::waits_on_stream; })
    return B::waits_on_stream;
  else
    return false;
}();

/// wait() for a result that the host acts by: when it returns, that is there.
template <class B>
void wait_on_host(const B& backend, WorkOf<B>& work) {
  if constexpr (waits_on_stream<B>)
    work.wait_until(Deadline::in(backend.timeout()));
  else
    work.wait();
}

/// Its name, and what it says of its settings where it says something.
template <class B>
[[nodiscard]] std::string description(const B& backend) {
  if constexpr (requires { backend.describe(); })
    return message(B::name, ", ", backend.describe());
  else
    return std::string(B::name);
}

/// A graph may record what is called now: on a GPU that is so where an engine cannot tell.
template <class B>
[[nodiscard]] bool may_be_capturing(const B& backend) {
  if constexpr (requires { backend.is_capturing(); }) return backend.is_capturing();
  return backend.device().is_cuda();
}

/// Checks that are common to every engine, before anything is sent.
inline void check_tensor(std::string_view operation, const at::Tensor& tensor, c10::Device device) {
  ACCEL_CHECK(tensor.defined(), InvalidArgument, operation, ": the tensor is undefined");
  ACCEL_CHECK(tensor.device() == device, InvalidArgument, operation, ": expected a tensor on ", device.str(),
              ", found ", tensor::spec(tensor), "; move it with .to(accelerator.device())");
  ACCEL_CHECK(tensor.is_contiguous(), InvalidArgument, operation, ": expected a contiguous tensor, found ",
              tensor::spec(tensor), " with other strides; call .contiguous() first");
}

/// The same, and that the group of `backend` is still whole.
template <class B>
void check(B& backend, std::string_view operation, const at::Tensor& tensor) {
  backend.control().check_failure(operation);
  check_tensor(operation, tensor, backend.device());
}

/// `whole` must hold one `part` per rank.
inline void check_parts(std::string_view operation, const at::Tensor& whole, const at::Tensor& part, int world_size) {
  ACCEL_CHECK(whole.scalar_type() == part.scalar_type() && whole.numel() == part.numel() * world_size, InvalidArgument,
              operation, ": expected ", world_size, " parts of ", tensor::spec(part), " in the whole, found ",
              tensor::spec(whole));
}

inline void check_peer(std::string_view operation, int peer, int world_size) {
  ACCEL_CHECK(peer >= 0 && peer < world_size, InvalidArgument, operation, ": rank ", peer, " is not in [0, ",
              world_size, ")");
}

/// The checks of a message: it goes to another rank.
template <class B>
void check_message(B& backend, std::string_view operation, const at::Tensor& tensor, int peer) {
  check(backend, operation, tensor);
  check_peer(operation, peer, backend.world_size());
  ACCEL_CHECK(peer != backend.rank(), InvalidArgument, operation, ": rank ", peer, " is this rank itself");
}

/// The checks of a reduction by `engine`: Gloo as well as NCCL knows these dtypes. A sum of flags would
/// not be a flag.
template <class B>
void check_reducible(B& backend, std::string_view engine, std::string_view operation, const at::Tensor& tensor,
                     ReduceOp op) {
  using enum c10::ScalarType;
  check(backend, operation, tensor);
  const auto dtype = tensor.scalar_type();
  bool known = dtype == Bool && op != ReduceOp::sum;
  for (const auto one : {Float, Double, Half, BFloat16, Long, Int, Char, Byte}) known = known || dtype == one;
  ACCEL_CHECK(known, InvalidArgument, operation, ": ", engine, " cannot reduce ", tensor::spec(tensor),
              op == ReduceOp::sum ? " to its sum" : "",
              "; convert it to f32, f64, f16, bf16, i64, i32, i8 or u8 first");
}

}  // namespace backend
}  // namespace accel::inline v0_1
