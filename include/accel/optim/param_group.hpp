// ParamGroup: parameters that are stepped with the same options.
#pragma once

#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace accel::inline v0_1::optim {

template <class Options>
class ParamGroup {
 public:
  explicit ParamGroup(std::vector<at::Tensor> parameters) : parameters_(std::move(parameters)) {}
  ParamGroup(std::vector<at::Tensor> parameters, Options options)
      : parameters_(std::move(parameters)), options_(std::move(options)), has_options_(true) {}

  [[nodiscard]] std::vector<at::Tensor>& params() { return parameters_; }
  [[nodiscard]] const std::vector<at::Tensor>& params() const { return parameters_; }
  [[nodiscard]] Options& options() { return options_; }
  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] bool has_options() const { return has_options_; }

 private:
  std::vector<at::Tensor> parameters_;
  Options options_{};
  bool has_options_ = false;  // else the optimizer's defaults are taken
};

/// The usual two groups: matrices and what has more dimensions decay as `options` say; biases and the weights of
/// norms, which have one dimension, do not.
///
/// Source   Karpathy 2023, nanoGPT, which decays what has two dimensions or more.
template <class Options, class Net>
[[nodiscard]] std::vector<ParamGroup<Options>> decay_groups(Net& net, Options options) {
  std::vector<at::Tensor> decayed, others;
  for (const auto& parameter : net.parameters())
    if (parameter.requires_grad()) (parameter.dim() >= 2 ? decayed : others).push_back(parameter);
  Options without = options;
  without.weight_decay = 0;
  return {ParamGroup(std::move(decayed), std::move(options)), ParamGroup(std::move(others), std::move(without))};
}

}  // namespace accel::inline v0_1::optim
