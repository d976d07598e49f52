// SGD: stochastic gradient descent with momentum, in one fused call over flat memory.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_sgd.h>

#include <accel/core/error.hpp>
#include <accel/core/number.hpp>
#include <accel/optim/optimizer.hpp>

namespace accel::inline v0_1::optim {

struct SGDOptions {
  double lr = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
  bool maximize = false;

  [[nodiscard]] std::string describe() const {
    return message("SGD, lr = ", shortest(lr), ", momentum = ", shortest(momentum),
                   ", dampening = ", shortest(dampening), ", weight_decay = ", shortest(weight_decay),
                   nesterov ? ", nesterov" : "", maximize ? ", maximize" : "");
  }
};

/// State    per parameter momentum_buffer, if there is momentum, and a count of steps.
/// Source   Sutskever et al. 2013, On the importance of initialization and momentum in deep learning; the
///          defaults are PyTorch's. The arithmetic is that of torch.optim.SGD(fused=True).
class SGD : public FusedOptimizer<SGD, SGDOptions> {
 public:
  static constexpr std::string_view name = "SGD";

  explicit SGD(std::vector<at::Tensor> parameters, SGDOptions options = {})
      : FusedOptimizer({Group(std::move(parameters))}, options) {}
  explicit SGD(std::vector<Group> groups, SGDOptions defaults = {}) : FusedOptimizer(std::move(groups), defaults) {}

  static void check(const SGDOptions& options) {
    ACCEL_CHECK(options.lr >= 0, InvalidArgument, "SGD: lr = ", options.lr, " must be at least 0");
    ACCEL_CHECK(options.momentum >= 0, InvalidArgument, "SGD: momentum = ", options.momentum, " must be at least 0");
    ACCEL_CHECK(options.weight_decay >= 0, InvalidArgument, "SGD: weight_decay = ", options.weight_decay,
                " must be at least 0");
    ACCEL_CHECK(!options.nesterov || (options.momentum > 0 && options.dampening == 0), InvalidArgument,
                "SGD: nesterov needs momentum above 0 and no dampening; found momentum = ", options.momentum,
                ", dampening = ", options.dampening);
  }

  [[nodiscard]] static std::size_t states(const SGDOptions& options) { return options.momentum > 0 ? 1 : 0; }

  static void apply(Batch& batch, const SGDOptions& options) {
    at::_fused_sgd_(batch.parameters, batch.gradients,
                    options.momentum > 0 ? at::TensorList(batch.states[0]) : at::TensorList(), options.weight_decay,
                    options.momentum, options.lr, options.dampening, options.nesterov, options.maximize,
                    /*is_first_step=*/batch.count == 1);
  }
};

}  // namespace accel::inline v0_1::optim
