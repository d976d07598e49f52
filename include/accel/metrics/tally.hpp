// Tally: what a metric has added up on this rank. Totals: what all ranks have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::metrics {

/// What the ranks have added up, on the host.
struct Totals {
  std::vector<std::int64_t> counts;  // [n], added up over the ranks
  std::vector<std::vector<double>> numbers =
      {};  // [world][m], of each rank: how they are merged is the metric's affair

  /// In the order of the ranks, so that it is the same bits on all of them, whatever the engine.
  [[nodiscard]] double sum(std::size_t i) const {
    double sum = 0;
    for (const auto& own : numbers) sum += own[i];
    return sum;
  }
};

/// While it lives nothing is recorded for a backward, and what is made are ordinary tensors also inside of an
/// InferenceMode: those that it makes could not be added to outside of it.
struct Unrecorded {
  c10::InferenceMode ordinary{false};
  c10::AutoGradMode no_grad{false};  // after it, which turns gradients on
};

/// The part that all metrics have in common, and the base of one of your own: counts, which are exact, and numbers, on
/// the device of what is counted. A metric is a class that derives from it and has
///
///   update(...)              under an Unrecorded, behind a use_device(): adds to counts_ and numbers_
///   result(totals) const     makes the value out of everybody's, on the host
///
/// State    this rank's part, so that a resume in the middle of an epoch, with as many ranks, goes on exactly.
/// Example  tests/metrics/compute_test.cpp
class Tally {
 public:
  Tally(const Tally&) = delete;  // a copy would share what is added up
  Tally& operator=(const Tally&) = delete;
  Tally(Tally&&) noexcept = default;
  Tally& operator=(Tally&&) noexcept = default;

  /// Name and options: equal on all ranks, and where a state is loaded.
  [[nodiscard]] const std::string& describe() const { return description_; }

  [[nodiscard]] std::int64_t count_size() const { return count_size_; }
  [[nodiscard]] std::int64_t number_size() const { return number_size_; }

  /// i64[count_size] and f64[number_size]; undefined where nothing has been added yet.
  [[nodiscard]] const at::Tensor& counts() const { return counts_; }
  [[nodiscard]] const at::Tensor& numbers() const { return numbers_; }

  void reset() {
    counts_ = at::Tensor();
    numbers_ = at::Tensor();
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    const Unrecorded guard;
    tensor::StateDict state;
    at::Tensor options = at::empty({static_cast<std::int64_t>(description_.size())}, at::kByte);
    std::memcpy(options.mutable_data_ptr(), description_.data(), description_.size());
    state.add("options", std::move(options));
    state.add("counts", counts_.defined() ? counts_.clone() : at::zeros({count_size_}, at::kLong));
    state.add("numbers", numbers_.defined() ? numbers_.clone() : at::zeros({number_size_}, at::kDouble));
    return state;
  }

  /// That is the state of one to which nothing was added.
  [[nodiscard]] static bool holds_nothing(const tensor::StateDict& state) {
    return !state.tensor("counts").any().item<bool>() && !state.tensor("numbers").any().item<bool>();
  }

  /// Throws   CheckpointError for the state of another metric, or of other options; then nothing has changed.
  void load_state_dict(const tensor::StateDict& state) {
    const std::string saved = text(state.tensor("options"));
    ACCEL_CHECK(saved == description_, CheckpointError, "metric: expected the state of ", description_,
                ", found that of ", saved.substr(0, 200), "; make it with the options that it was saved with");
    const at::Tensor& counts = expect(state, "counts", at::kLong, count_size_);
    const at::Tensor& numbers = expect(state, "numbers", at::kDouble, number_size_);
    ACCEL_CHECK(!counts.lt(0).any().item<bool>(), CheckpointError, "metric: the state of ", description_,
                " has a count below 0; its file is damaged");
    const Unrecorded guard;
    counts_ = counts.clone();
    numbers_ = numbers.clone();
  }

 protected:
  Tally(std::string description, std::int64_t count_size, std::int64_t number_size)
      : description_(std::move(description)), count_size_(count_size), number_size_(number_size) {}
  ~Tally() = default;

  /// Before something is added that lies on `device`. A state that was loaded lies where it was read.
  void use_device(c10::Device device) {
    const auto put = [&](at::Tensor& own, std::int64_t size, at::ScalarType dtype) {
      own = own.defined() ? own.to(device) : at::zeros({size}, at::TensorOptions().dtype(dtype).device(device));
    };
    put(counts_, count_size_, at::kLong);
    put(numbers_, number_size_, at::kDouble);
  }

  at::Tensor counts_;
  at::Tensor numbers_;

 private:
  [[nodiscard]] static std::string text(const at::Tensor& bytes) {
    ACCEL_CHECK(bytes.defined() && bytes.scalar_type() == at::kByte && bytes.dim() == 1, CheckpointError,
                "metric: options is ", tensor::spec(bytes), ", expected a text, u8[n]");
    const at::Tensor host = bytes.cpu().contiguous();
    return {static_cast<const char*>(host.const_data_ptr()), host.nbytes()};
  }

  [[nodiscard]] const at::Tensor& expect(const tensor::StateDict& state, std::string_view name, at::ScalarType dtype,
                                         std::int64_t size) const {
    const at::Tensor& found = state.tensor(name);
    ACCEL_CHECK(found.defined() && found.scalar_type() == dtype && found.sizes() == at::IntArrayRef{size},
                CheckpointError, "metric: ", name, " of ", description_, " is ", tensor::spec(found), ", expected ",
                tensor::dtype_name(dtype), "[", size, "]");
    return found;
  }

  std::string description_;
  std::int64_t count_size_;
  std::int64_t number_size_;
};

static_assert(tensor::Stateful<Tally>);

}  // namespace accel::inline v0_1::metrics
