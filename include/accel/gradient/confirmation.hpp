// Confirmation: what every rank has contributed to a reduction, told to all behind the last bucket.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accel/backend/backend.hpp>
#include <accel/backend/witness.hpp>
#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>

namespace accel::inline v0_1::gradient {

/// Of a parameter, by any rank.
enum class Use : std::uint8_t {
  none,         // nobody has news for it
  announced,    // its bucket took them along
  unannounced,  // somebody has news that no bucket took along
};

/// One byte per parameter, of which the largest over the ranks counts, and six more: whether a rank
/// lacks a gradient, how many steps it has taken and which, to see that all have taken the same, and whether it is to
/// come to its end. It is the last
/// message of a reduction, so that nothing is lost where it has come: of a backend whose host does not wait, a byte per
/// rank is the witness of that.
///
/// Cost     one all_reduce of a byte per parameter, and of that witness. A GPU's answer is waited for only where a
///          parameter may have been unused or unannounced somewhere; else it is read when the next reduction begins.
template <Backend B>
class Confirmation {
 public:
  /// What the answer says of the reduction, for the ones to come.
  struct Answer {
    std::vector<std::uint8_t> used;  // by parameter
    bool complete = false;           // no rank lacked a gradient
    bool is_ending = false;          // a rank was told to
  };

  Confirmation() = default;
  Confirmation(B& backend, std::size_t parameters)
      : backend_(&backend),
        parameters_(parameters),
        witness_(backend.rank(), backend.world_size()),
        mine_(at::zeros({static_cast<std::int64_t>(size())}, host_options(backend))),
        message_(mine_.to(backend.device(), at::kByte, /*non_blocking=*/false, /*copy=*/is_ahead)),
        read_(comes_by_copy() ? at::zeros_like(mine_, host_options(backend)) : message_) {
    answer_.used.resize(parameters);
    if constexpr (is_ahead) {
      arrived_witness_ = message_.slice(0, static_cast<std::int64_t>(witness_place())).view(at::kLong).squeeze();
      lost_ = at::zeros({}, at::TensorOptions(at::kFloat).device(backend.device()));
    }
  }

  /// `what` is equal on all ranks if they have taken the same step.
  void note_step(std::uint64_t what) {
    ++steps_;
    trace_ = mixed(trace_, what);
  }

  /// Order    after take().
  void begin() { std::fill_n(bytes(mine_), size(), std::uint8_t{0}); }

  void set(std::size_t i, Use use) { bytes(mine_)[i] = static_cast<std::uint8_t>(use); }

  /// `certain`: by what all ranks know, everything is announced, and expected on every rank.
  void start(std::span<const std::uint8_t> arrived, bool certain, bool is_ending) {
    const bool lacks = std::find(arrived.begin(), arrived.end(), 0) != arrived.end();
    bytes(mine_)[parameters_] = lacks ? 1 : 0;
    put_bounds(1, steps_);
    put_bounds(3, static_cast<std::uint8_t>(trace_ >> 56));
    bytes(mine_)[parameters_ + 5] = is_ending ? 1 : 0;
    if constexpr (is_ahead) witness_.say(bytes(mine_) + witness_place());
    if (comes_by_copy()) message_.copy_(mine_, /*non_blocking=*/true);
    waits_ = !comes_by_copy() || !certain || lacks;
    work_.emplace(backend_->all_reduce(message_, ReduceOp::max));
  }

  /// What all have said; or, where it can be nothing else, what this rank has.
  ///
  /// Throws   InvalidArgument, as take(), if it is read already.
  [[nodiscard]] std::span<const Use> wait() {
    work_->wait();
    pending_ = true;
    if constexpr (is_ahead)
      witness_.compare(arrived_witness_, lost_);
    else
      work_.reset();
    if (comes_by_copy()) read_.copy_(message_, /*non_blocking=*/true);
    if (!message_.is_cpu()) {
      if (!copied_) copied_.emplace(message_.device().type());
      copied_->record(c10::impl::VirtualGuardImpl(message_.device().type()).getStream(message_.device()));
    }
    if (waits_) read();
    return {reinterpret_cast<const Use*>(bytes(waits_ ? read_ : mine_)), parameters_};
  }

  /// f32[] on the device, of a backend whose host does not wait: 1 if the last answer never came, and so what was
  /// reduced before it is not what it should be. Else undefined.
  [[nodiscard]] const at::Tensor& lost() const { return lost_; }

  /// The host waits for the last answer, where it has not yet.
  ///
  /// Throws   CommError if it never came.
  void await() {
    if constexpr (is_ahead) {
      if (!work_) return;
      backend::wait_on_host(*backend_, *work_);
      work_.reset();
    }
  }

  /// The answer has been read.
  [[nodiscard]] bool is_read() const { return waits_; }

  /// The answer that nobody has taken yet, or null.
  ///
  /// Throws   InvalidArgument, on every rank, if they have not taken the same number of steps.
  [[nodiscard]] const Answer* take() {
    if (!pending_) return nullptr;
    if (!waits_) read();
    pending_ = false;
    for (std::size_t i = 0; i < parameters_; ++i) answer_.used[i] = bytes(read_)[i] == 0 ? 0 : 1;
    answer_.complete = bytes(read_)[parameters_] == 0;
    answer_.is_ending = bytes(read_)[parameters_ + 5] != 0;
    return &answer_;
  }

 private:
  static constexpr std::size_t extras = 6;
  static constexpr bool is_ahead = backend::waits_on_stream<B>;  // the host, of the answer

  [[nodiscard]] std::size_t size() const { return is_ahead ? witness_place() + witness_.size() : parameters_ + extras; }
  /// A multiple of 8, as it is read in words.
  [[nodiscard]] std::size_t witness_place() const { return (parameters_ + extras + 7) / 8 * 8; }

  /// Else the answer is on the host when it was waited for.
  [[nodiscard]] bool comes_by_copy() const { return is_ahead || !message_.is_cpu(); }

  /// Pinned for a GPU, so that copies need not wait.
  [[nodiscard]] static at::TensorOptions host_options(const B& backend) {
    return at::TensorOptions(at::kByte).pinned_memory(backend.device().is_cuda());
  }

  [[nodiscard]] static std::uint8_t* bytes(const at::Tensor& tensor) {
    return tensor.template mutable_data_ptr<std::uint8_t>();
  }

  /// Extra bytes for a number, of which both bounds over the ranks will be known: a maximum is all that is reduced.
  void put_bounds(std::size_t extra, std::uint8_t number) {
    bytes(mine_)[parameters_ + extra] = number;
    bytes(mine_)[parameters_ + extra + 1] = static_cast<std::uint8_t>(255 - number);
  }
  /// The least and the most.
  [[nodiscard]] std::pair<int, int> bounds(std::size_t extra) const {
    return {255 - bytes(read_)[parameters_ + extra + 1], bytes(read_)[parameters_ + extra]};
  }

  void read() {
    await();
    if (copied_) copied_->synchronize();
    if (const auto [least, most] = bounds(1); most != least) {
      pending_ = false;
      throw InvalidArgument(message("backward: the ranks have not taken the same number of optimizer steps: this one ",
                                    static_cast<int>(steps_), ", others from ", least, " to ", most,
                                    " (modulo 256), so their weights differ; an optimizer.step() was left out on ",
                                    "some rank, or what it threw was caught; let every rank take the same steps"));
    }
    if (const auto [least, most] = bounds(3); most == least) return;
    pending_ = false;
    throw InvalidArgument(
        "backward: the ranks have taken other optimizer steps, so their weights differ: of another optimizer, of other "
        "parameters, with another learning rate, or divided by another loss scale; let every rank take the same steps, "
        "and change rates, groups and scales on all of them alike");
  }

  B* backend_ = nullptr;
  std::size_t parameters_ = 0;
  backend::Witness witness_;
  at::Tensor mine_;                         // u8[size()], on the host
  at::Tensor message_;                      // the same on the device; the same tensor where that is the host
  at::Tensor read_;                         // the answer, on the host
  at::Tensor arrived_witness_;              // of the message, see Witness::compare
  at::Tensor lost_;                         // f32[] on the device
  std::optional<backend::WorkOf<B>> work_;  // until the host has seen its end
  std::optional<c10::Event> copied_;
  Answer answer_;
  std::uint8_t steps_ = 0;
  std::uint64_t trace_ = 0;  // of all steps
  bool pending_ = false;     // there is an answer that nobody has taken
  bool waits_ = true;        // and it was waited for
};

}  // namespace accel::inline v0_1::gradient
