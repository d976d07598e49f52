// Link: what a loader needs of the other ranks, whatever the backend.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::prepare {

/// Bytes of rank 0's on their way.
class ArrivingBytes {
 public:
  virtual ~ArrivingBytes() = default;

  /// u8[bytes] on the CPU.
  ///
  /// Throws   CommError.
  [[nodiscard]] virtual at::Tensor wait() = 0;
};

class Link {
 public:
  virtual ~Link() = default;

  /// Every rank's `value`, by rank, for which each may take `patience` in addition.
  [[nodiscard]] virtual std::vector<std::string> all_gather(std::string_view purpose, const std::string& value,
                                                            Seconds patience) = 0;
  /// Rank 0's `value`, for which it may take `patience` in addition.
  [[nodiscard]] virtual std::string broadcast(std::string_view purpose, const std::string& value, Seconds patience) = 0;
  /// Throws   InvalidArgument on every rank, naming two, if `value` differs.
  virtual void require_equal(std::string_view subject, const std::string& value) = 0;

  /// Sends rank 0's `bytes` (u8[size] on the CPU; there alone defined).
  [[nodiscard]] virtual std::unique_ptr<ArrivingBytes> send(const at::Tensor& bytes, std::int64_t size) = 0;
};

/// Over the backend of `Engine`.
template <class Engine, Backend B>
class LinkOver final : public Link {
 public:
  explicit LinkOver(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

  std::vector<std::string> all_gather(std::string_view purpose, const std::string& value, Seconds patience) override {
    return control().all_gather(purpose, value, Deadline::in(engine_->backend.timeout() + patience));
  }
  std::string broadcast(std::string_view purpose, const std::string& value, Seconds patience) override {
    return control().broadcast(purpose, value, 0, Deadline::in(engine_->backend.timeout() + patience));
  }
  void require_equal(std::string_view subject, const std::string& value) override {
    collective::require_equal(control(), subject, std::vector{value}, Deadline::in(engine_->backend.timeout()));
  }

  std::unique_ptr<ArrivingBytes> send(const at::Tensor& bytes, std::int64_t size) override {
    const bool is_sender = engine_->backend.rank() == 0;
    at::Tensor message = is_sender ? bytes.to(engine_->backend.device())
                                   : at::empty({size}, at::TensorOptions(at::kByte).device(engine_->backend.device()));
    return std::make_unique<Arriving>(engine_, std::move(message));
  }

 private:
  class Arriving final : public ArrivingBytes {
   public:
    Arriving(std::shared_ptr<Engine> engine, at::Tensor message)
        : engine_(std::move(engine)), message_(std::move(message)), work_(engine_->backend.broadcast(message_, 0)) {}

    at::Tensor wait() override {
      backend::wait_on_host(engine_->backend, work_);
      return message_.cpu();
    }

   private:
    std::shared_ptr<Engine> engine_;
    at::Tensor message_;
    backend::WorkOf<B> work_;
  };

  [[nodiscard]] launch::ControlPlane& control() { return engine_->backend.control(); }

  std::shared_ptr<Engine> engine_;
};

}  // namespace accel::inline v0_1::prepare
