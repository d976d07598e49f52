// Nccl: one GPU per process, through NCCL itself. The only header that sees NCCL and CUDA.
#pragma once

// Empty without: target accel::nccl defines it.
#if defined(ACCEL_WITH_NCCL) && ACCEL_WITH_NCCL

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iomanip>
#include <ios>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <accel/backend/basic_nccl.hpp>
#include <accel/launch/within.hpp>

#if NCCL_VERSION_CODE < 22809
#error "accel needs the headers of NCCL 2.28.9 or newer: pip install 'nvidia-nccl-cu13>=2.28.9', or set NCCL_ROOT"
#endif

namespace accel::inline v0_1::backend {

/// NCCL, and a stream of its own, on one CUDA device.
///
/// Source   NCCL's user guide: non-blocking communicators, fault tolerance, window registration.
class NcclDriver {
 public:
  using Comm = ncclComm_t;
  using Window = ncclWindow_t;

  /// Owns a CUDA event that measures no time.
  class Event {
   public:
    explicit Event(c10::DeviceIndex index) : index_(index) {
      const c10::cuda::CUDAGuard guard(index);
      check_cuda(::cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    }
    Event(Event&& other) noexcept : index_(other.index_), event_(std::exchange(other.event_, nullptr)) {}
    Event& operator=(Event&& other) noexcept {
      std::swap(index_, other.index_);
      std::swap(event_, other.event_);
      return *this;
    }
    ~Event() {
      if (event_ == nullptr) return;
      const OnDevice guard(index_);
      (void)::cudaEventDestroy(event_);
    }

    /// Allowed while another thread captures a graph.
    [[nodiscard]] NcclAnswer state() const {
      cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
      (void)::cudaThreadExchangeStreamCaptureMode(&mode);
      const cudaError_t result = ::cudaEventQuery(event_);
      (void)::cudaThreadExchangeStreamCaptureMode(&mode);
      if (result == cudaSuccess) return {};
      if (result != cudaErrorNotReady)
        return {NcclAnswer::State::failed, message("CUDA says: ", ::cudaGetErrorString(result))};
      (void)::cudaGetLastError();  // clears it: LibTorch would report it
      return {NcclAnswer::State::in_progress};
    }

    [[nodiscard]] cudaEvent_t native() const { return event_; }

   private:
    c10::DeviceIndex index_;
    cudaEvent_t event_ = nullptr;
  };

  // From here on the device is that of this thread, too: on another one its first call would make a context. The
  // stream is of high priority: communication that is ready should not queue behind a backward.
  explicit NcclDriver(int index)
      : index_(entered(static_cast<c10::DeviceIndex>(index))), engine_(c10::cuda::getStreamFromPool(true, index_)) {
    check_cuda(::cudaFree(nullptr));  // NCCL wants the device's context
  }

  /// Else the first call of a thread makes a context on the first device.
  static void enter_thread(c10::Device device) noexcept {
    if (::cudaSetDevice(device.index()) != cudaSuccess) (void)::cudaGetLastError();  // the next call will say it
  }

  static int device_count() { return c10::cuda::device_count(); }

  static std::string uuid(int index) {
    cudaDeviceProp properties{};
    check_cuda(::cudaGetDeviceProperties(&properties, index));
    std::ostringstream text;  // as nvidia-smi -L writes it
    text << "GPU-" << std::hex << std::setfill('0');
    for (std::size_t i = 0; i < sizeof(properties.uuid.bytes); ++i)
      text << (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") << std::setw(2)
           << static_cast<unsigned>(static_cast<unsigned char>(properties.uuid.bytes[i]));
    return text.str();
  }

  /// From 2.30.3 on and if asked for: an experiment of NCCL's, good for tests alone.
  static bool ranks_share_devices() {
    const char* const variable = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    return variable != nullptr && std::string_view(variable) == "1" && version_code() >= 23003;
  }

  static bool has_windows() { return version_code() >= 22703; }

  static std::string version() {
    const int code = version_code();
    return message(code / 10000, ".", code / 100 % 100, ".", code % 100);
  }

  [[nodiscard]] c10::Device device() const { return {c10::DeviceType::CUDA, index_}; }

  [[nodiscard]] bool is_capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(::cudaStreamIsCapturing(c10::cuda::getCurrentCUDAStream(index_), &status));
    return status != cudaStreamCaptureStatusNone;
  }

  [[nodiscard]] std::string unique_id() const {
    const c10::cuda::CUDAGuard guard(index_);
    ncclUniqueId id{};
    const ncclResult_t result = ::ncclGetUniqueId(&id);
    ACCEL_CHECK(result == ncclSuccess, CommError, "ncclGetUniqueId: ", text(result, nullptr));
    return {id.internal, sizeof(id.internal)};
  }

  NcclAnswer init(Comm& comm, int world_size, const std::string& bytes, int rank, const NcclOptions& options) {
    const c10::cuda::CUDAGuard guard(index_);
    ncclUniqueId id{};
    std::memcpy(id.internal, bytes.data(), std::min(bytes.size(), sizeof(id.internal)));
    ncclConfig_t config = initial_config();
    config.blocking = 0;  // what hangs can be aborted
    if (options.max_ctas > 0) config.maxCTAs = options.max_ctas;
    return answer(::ncclCommInitRankConfig(&comm, world_size, id, rank, &config), comm);
  }

  NcclAnswer state(Comm& comm) {
    ncclResult_t result = ncclSuccess;
    const ncclResult_t asked = ::ncclCommGetAsyncError(comm, &result);
    return answer(asked == ncclSuccess ? result : asked, comm);
  }

  /// Finalizing tells the peers; one that has ended does not answer, and then nothing is waited for.
  void destroy(Comm& comm, Deadline deadline) noexcept {
    const OnDevice guard(index_);
    ncclResult_t result = ::ncclCommFinalize(comm);
    while (result == ncclInProgress && !deadline.passed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (::ncclCommGetAsyncError(comm, &result) != ncclSuccess) break;
    }
    if (result != ncclSuccess) return (void)abort(comm);
    (void)bounded("ncclCommDestroy", device(), [doomed = comm, device = device()] {
      enter_thread(device);
      (void)::ncclCommDestroy(doomed);
    });
    comm = nullptr;
  }

  /// Nothing of CUDA's comes before it, which might hang: NCCL tells its kernels to end first of all.
  bool abort(Comm& comm) noexcept {
    const bool ended = bounded("ncclCommAbort", device(), [doomed = comm] { (void)::ncclCommAbort(doomed); });
    comm = nullptr;
    return ended;
  }

  NcclAnswer group_start() { return answer(::ncclGroupStart(), nullptr); }
  NcclAnswer group_end() { return answer(::ncclGroupEnd(), nullptr); }

  NcclAnswer all_reduce(Comm& comm, const at::Tensor& tensor, ReduceOp op) {
    return on_device(comm, [&] {
      return ::ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), count(tensor), dtype(tensor), native(op), comm,
                             engine_.stream());
    });
  }

  NcclAnswer broadcast(Comm& comm, const at::Tensor& tensor, int root) {
    return on_device(comm, [&] {
      return ::ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclUint8, root, comm,
                             engine_.stream());
    });
  }

  NcclAnswer all_gather(Comm& comm, const at::Tensor& output, const at::Tensor& input) {
    return on_device(comm, [&] {
      return ::ncclAllGather(input.data_ptr(), output.data_ptr(), input.nbytes(), ncclUint8, comm, engine_.stream());
    });
  }

  NcclAnswer reduce_scatter(Comm& comm, const at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    return on_device(comm, [&] {
      return ::ncclReduceScatter(input.data_ptr(), output.data_ptr(), count(output), dtype(output), native(op), comm,
                                 engine_.stream());
    });
  }

  NcclAnswer send(Comm& comm, const at::Tensor& tensor, int peer) {
    return on_device(
        comm, [&] { return ::ncclSend(tensor.data_ptr(), tensor.nbytes(), ncclUint8, peer, comm, engine_.stream()); });
  }

  NcclAnswer recv(Comm& comm, const at::Tensor& tensor, int peer) {
    return on_device(
        comm, [&] { return ::ncclRecv(tensor.data_ptr(), tensor.nbytes(), ncclUint8, peer, comm, engine_.stream()); });
  }

  /// Memory that NCCL's peers can map; undefined where the device or driver cannot.
  at::Tensor allocate(Bytes bytes) {
    const c10::cuda::CUDAGuard guard(index_);
    void* memory = nullptr;
    if (::ncclMemAlloc(&memory, static_cast<std::size_t>(bytes.count)) != ncclSuccess) {
      (void)::cudaGetLastError();  // LibTorch's next check would find it
      return {};
    }
    const auto release = [device = device()](void* own) {
      // LibTorch's allocator would know when the streams are done with it; NCCL's does not.
      (void)bounded("ncclMemFree", device, [own, device] {
        enter_thread(device);
        (void)::cudaDeviceSynchronize();
        (void)::ncclMemFree(own);
      });
    };
    return at::from_blob(memory, {bytes.count}, release, at::TensorOptions().dtype(at::kByte).device(device()),
                         device());
  }

  NcclAnswer open_window(Comm& comm, const at::Tensor& memory, Window& window) {
    return on_device(comm, [&] {
      return ::ncclCommWindowRegister(comm, memory.data_ptr(), memory.nbytes(), &window, NCCL_WIN_COLL_SYMMETRIC);
    });
  }

  void close_window(Comm& comm, Window& window) noexcept {
    const OnDevice guard(index_);
    if (window != nullptr) (void)::ncclCommWindowDeregister(comm, window);
    window = nullptr;
  }

  Event make_event() { return Event(index_); }

  void record_current(Event& event) { record(event, c10::cuda::getCurrentCUDAStream(index_)); }
  void record_engine(Event& event) { record(event, engine_); }
  void engine_waits(Event& event) { wait(engine_, event); }
  void current_waits(Event& event) { wait(c10::cuda::getCurrentCUDAStream(index_), event); }

 private:
  /// The guard of paths that must not throw, as c10's may.
  class OnDevice {
   public:
    explicit OnDevice(c10::DeviceIndex index) noexcept {
      if (::cudaGetDevice(&before_) != cudaSuccess || before_ == index) before_ = none;
      if (before_ != none) (void)::cudaSetDevice(index);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() {
      if (before_ != none) (void)c10::cuda::MaybeSetDevice(static_cast<c10::DeviceIndex>(before_));
    }

   private:
    static constexpr int none = -1;
    int before_ = none;
  };

  /// On a thread of its own, for no more than a few seconds: what hangs then is left behind, and ends with the process.
  /// Whether it has ended.
  template <class Body>
  static bool bounded(const char* call, c10::Device device, Body body) noexcept {
    try {
      launch::within(Deadline::in(Seconds(5)), std::move(body));
      return true;
    } catch (const std::exception& error) {
      // NOLINTNEXTLINE(modernize-use-std-print): of C++23
      std::fprintf(stderr, "accel: warning: %s on cuda:%d is left behind: %s\n", call, device.index(), error.what());
      return false;
    }
  }

  static c10::DeviceIndex entered(c10::DeviceIndex index) {
    c10::cuda::set_device(index);
    return index;
  }

  static void check_cuda(cudaError_t result) {
    ACCEL_CHECK(result == cudaSuccess, CommError, "CUDA says: ", ::cudaGetErrorString(result));
  }

  // NCCL's macro is a C initializer of this very struct.
  static ncclConfig_t initial_config() {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    return config;
  }

  static int version_code() {
    int code = 0;
    (void)::ncclGetVersion(&code);
    return code;
  }

  static std::string text(ncclResult_t result, ncclComm_t comm) {
    const char* const detail = ::ncclGetLastError(comm);
    const std::string_view more = detail == nullptr ? "" : detail;
    // An error of CUDA's is often one that a kernel has left, long before: what it was, only CUDA says.
    const cudaError_t left = ::cudaPeekAtLastError();
    return message(::ncclGetErrorString(result), more.empty() ? "" : ": ", more.substr(0, more.find('\n')),
                   left == cudaSuccess ? "" : "; CUDA says: ", left == cudaSuccess ? "" : ::cudaGetErrorString(left));
  }

  static NcclAnswer answer(ncclResult_t result, ncclComm_t comm) {
    if (result == ncclSuccess) return {};
    if (result == ncclInProgress) return {NcclAnswer::State::in_progress};
    return {NcclAnswer::State::failed, text(result, comm)};
  }

  template <class Call>
  [[nodiscard]] NcclAnswer on_device(Comm& comm, Call&& call) const {
    const c10::cuda::CUDAGuard guard(index_);
    return answer(call(), comm);
  }

  void record(Event& event, c10::cuda::CUDAStream stream) const {
    const c10::cuda::CUDAGuard guard(index_);
    check_cuda(::cudaEventRecord(event.native(), stream.stream()));
  }
  void wait(c10::cuda::CUDAStream stream, const Event& event) const {
    const c10::cuda::CUDAGuard guard(index_);
    check_cuda(::cudaStreamWaitEvent(stream.stream(), event.native(), 0));
  }

  static std::size_t count(const at::Tensor& tensor) { return static_cast<std::size_t>(tensor.numel()); }

  static ncclDataType_t dtype(const at::Tensor& tensor) {
    using enum c10::ScalarType;
    const auto type = tensor.scalar_type();
    if (type == Float) return ncclFloat32;
    if (type == Double) return ncclFloat64;
    if (type == Half) return ncclFloat16;
    if (type == BFloat16) return ncclBfloat16;
    if (type == Long) return ncclInt64;
    if (type == Int) return ncclInt32;
    if (type == Char) return ncclInt8;
    return ncclUint8;  // and flags, which are 0 or 1
  }

  // No mean: it would cost NVLink's own sums.
  static ncclRedOp_t native(ReduceOp op) {
    if (op == ReduceOp::max) return ncclMax;
    if (op == ReduceOp::min) return ncclMin;
    return ncclSum;
  }

  c10::DeviceIndex index_;
  c10::cuda::CUDAStream engine_;
};

/// One GPU per process, on one host or on several, by the NCCL that LibTorch loads. The device is the
/// one of this process's local rank.
///
/// Throws   ConfigError on every rank if one of them has no GPU for itself; CommError if the ranks do
///          not reach each other. See BasicNccl.
class Nccl : public BasicNccl<NcclDriver> {
 public:
  using BasicNccl::BasicNccl;

  [[nodiscard]] Nccl split(std::span<const int> ranks, std::string_view part_name) {
    return {part_of(ranks, part_name), options()};
  }
};

}  // namespace accel::inline v0_1::backend

static_assert(accel::backend::DrivesNccl<accel::backend::NcclDriver>);
static_assert(accel::Backend<accel::backend::Nccl>);

#endif  // ACCEL_WITH_NCCL
