// Model: the user's module behind a call operator that runs forward in the accelerator's precision.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <accel/precision/precision.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/record.hpp>

namespace accel::inline v0_1::prepare {

/// What accel asks of a model: torch::nn::Module has it all, and nothing else is needed of it.
template <class M>
concept Trainable = requires(M& model, c10::Device device) {
  model.parameters();
  model.named_parameters();
  model.named_buffers();
  model.to(device);
  model.train(true);
  model.is_training();
};

namespace detail {

/// `TORCH_MODULE(Net)` makes a holder of this shape.
template <class H>
concept ModuleHolder = requires(H& holder) {
  { *holder.ptr() } -> Trainable;
};

template <class T>
inline constexpr bool is_shared_module = false;
template <Trainable M>
inline constexpr bool is_shared_module<std::shared_ptr<M>> = true;

}  // namespace detail

/// shared_ptr to a module, a module holder, or a module itself.
template <class T>
concept ModelArgument = detail::is_shared_module<T> || detail::ModuleHolder<T> || Trainable<T>;

/// The module of a ModelArgument. An lvalue module is borrowed, an rvalue owned.
template <class T>
[[nodiscard]] auto share_module(T&& model) {
  using M = std::remove_cvref_t<T>;
  if constexpr (detail::is_shared_module<M>) {
    ACCEL_CHECK(model != nullptr, InvalidArgument, "prepare: the pointer to the model is null");
    return std::shared_ptr(std::forward<T>(model));
  } else if constexpr (detail::ModuleHolder<M>) {
    return model.ptr();
  } else if constexpr (std::is_lvalue_reference_v<T>) {
    return std::shared_ptr<M>(std::addressof(model), [](M*) {});
  } else {
    return std::make_shared<M>(std::forward<T>(model));
  }
}

/// A prepared model. `model(x, ...)` runs forward in the accelerator's precision and gives what comes out in f32;
/// `model->encode(x)` is any other entry point, in the precision of who calls it: accelerator.autocast(). Either way
/// backward reduces. A handle: copies mean the same module.
template <class Net, class P>
class Model {
 public:
  Model(std::shared_ptr<Net> net, std::shared_ptr<PreparedModel> prepared, std::shared_ptr<Session> session,
        P& precision)
      : net_(std::move(net)), prepared_(std::move(prepared)), session_(std::move(session)), precision_(&precision) {}

  template <class... Args>
  decltype(auto) operator()(Args&&... args) {
    return session_->at_rank([&]() -> decltype(auto) {
      session_->put_buffers(*prepared_);
      const auto guard = precision_->autocast(/*enabled=*/true, /*cache=*/!session_->may_be_capturing());
      if constexpr (requires { net_->forward(precision_->input(std::forward<Args>(args))...); }) {
        return precision_->output(net_->forward(precision_->input(std::forward<Args>(args))...));
      } else {
        static_assert(
            requires { (*net_)(precision_->input(std::forward<Args>(args))...); },
            "the model has no forward for these arguments");
        return precision_->output((*net_)(precision_->input(std::forward<Args>(args))...));
      }
    });
  }

  [[nodiscard]] Net* operator->() const { return std::addressof(**this); }
  [[nodiscard]] Net& operator*() const {
    session_->put_buffers(*prepared_);
    return *net_;
  }

  /// The module itself, for torch::save and the like.
  [[nodiscard]] const std::shared_ptr<Net>& ptr() const { return net_; }

  /// Each parameter once, unlike the module's own list where some are tied.
  [[nodiscard]] std::vector<at::Tensor> parameters() const { return record().parameter_tensors(); }
  [[nodiscard]] const tensor::Record& record() const { return prepared_->record; }
  [[nodiscard]] PreparedModel& prepared() const { return *prepared_; }

  void train(bool on = true) { net_->train(on); }
  void eval() { net_->train(false); }

 private:
  std::shared_ptr<Net> net_;
  std::shared_ptr<PreparedModel> prepared_;
  std::shared_ptr<Session> session_;  // owns what precision_ points to
  P* precision_;
};

}  // namespace accel::inline v0_1::prepare
