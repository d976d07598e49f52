// A precision of your own: Fp64 keeps weights, activations and gradients in double. Nobody trains so for long, but it
// answers a question: is what my loss does the model, or rounding? Run it as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/own_precision
#include <torch/torch.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <accel/accelerator.hpp>

struct Fp64 : accel::precision::Passthrough {
  using Passthrough::Passthrough;
  static constexpr std::string_view name = "fp64";

  // What parameters and buffers of floating point become in prepare().
  std::optional<c10::ScalarType> weights_dtype() const { return torch::kDouble; }

  // What forward gets for its arguments: tensors of floating point as double, all else as it is.
  template <class Argument>
  decltype(auto) input(Argument&& argument) const {
    if constexpr (std::is_same_v<std::remove_cvref_t<Argument>, torch::Tensor>)
      return argument.is_floating_point() ? argument.to(torch::kDouble) : argument;
    else
      return std::forward<Argument>(argument);
  }
};

static_assert(accel::Precision<Fp64>);

#ifndef ACCEL_EXAMPLE_AS_HEADER  // the tests hold Fp64 to the laws of a precision
int main() {
  accel::Accelerator<accel::backend::Gloo, Fp64> accelerator;

  torch::manual_seed(0);
  const auto x = torch::linspace(-1, 1, 64).view({64, 1});
  auto net = std::make_shared<torch::nn::LinearImpl>(1, 1);
  auto [model, optimizer] = accelerator.prepare(net, accel::optim::SGD{{.lr = 0.2}});
  for (int step = 0; step < 200; ++step) {
    // Every rank sees rows of its own.
    const auto rows = x.slice(0, accelerator.rank(), std::nullopt, accelerator.world_size());
    optimizer.zero_grad();
    accelerator.backward(torch::mse_loss(model(rows), (3 * rows + 1).to(torch::kDouble)));
    optimizer.step();
  }
  accelerator.print("y = ", net->weight.item<double>(), " x + ", net->bias.item<double>());
}
#endif
