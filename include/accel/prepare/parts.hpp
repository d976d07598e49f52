// Parts: what prepare is given, sorted by kind and brought into shape on this rank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/core/hash.hpp>
#include <accel/data/loader.hpp>
#include <accel/data/stream_loader.hpp>
#include <accel/prepare/ema.hpp>
#include <accel/prepare/group_options.hpp>
#include <accel/prepare/model.hpp>
#include <accel/prepare/optimizer.hpp>
#include <accel/prepare/scheduler.hpp>
#include <accel/prepare/session.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

template <class Net>
struct ModelPart {
  std::shared_ptr<Net> net;
  std::shared_ptr<PreparedModel> prepared;
};

template <class O>
struct OptimizerPart {
  std::shared_ptr<O> optimizer;
};

template <class S>
struct SchedulerPart {
  std::shared_ptr<S> scheduler;
};

template <class E>
struct EmaPart {
  std::shared_ptr<E> ema;
};

template <class L>
struct LoaderPart {
  std::shared_ptr<L> loader;
  std::uint64_t seed = 0;
};

namespace detail {

template <class T>
inline constexpr bool is_loader = false;
template <class D, class C>
inline constexpr bool is_loader<data::DataLoader<D, C>> = true;
template <class D, class C>
inline constexpr bool is_loader<data::StreamLoader<D, C>> = true;

template <class T>
inline constexpr bool unknown = false;

}  // namespace detail

/// The part that an argument of prepare becomes. Lvalues are borrowed, rvalues owned; models given
/// by pointer or holder are shared.
template <class T>
[[nodiscard]] auto part_of(T&& argument) {
  using Value = std::remove_cvref_t<T>;
  if constexpr (ModelArgument<Value>) {
    auto net = share_module(std::forward<T>(argument));
    return ModelPart<typename decltype(net)::element_type>{std::move(net), std::make_shared<PreparedModel>()};
  } else if constexpr (OptimizerLike<Value>) {
    return OptimizerPart<Value>{borrow_or_own(std::forward<T>(argument))};
  } else if constexpr (EmaLike<Value>) {
    return EmaPart<Value>{borrow_or_own(std::forward<T>(argument))};
  } else if constexpr (detail::is_loader<Value>) {
    return LoaderPart<Value>{borrow_or_own(std::forward<T>(argument))};
  } else if constexpr (SchedulerLike<Value>) {
    return SchedulerPart<Value>{borrow_or_own(std::forward<T>(argument))};
  } else {
    static_assert(detail::unknown<Value>,
                  "prepare takes modules (shared_ptr, module holder or the module itself), optimizers, "
                  "accel::data::DataLoader or StreamLoader, schedulers and averages");
  }
}

/// What the parts of one call of prepare have in common while they are looked at.
struct Inspection {
  Session& session;
  std::vector<std::shared_ptr<PreparedModel>> models{};  // of this call
  std::vector<std::string> lines{};                      // must be equal on all ranks
  std::optional<c10::ScalarType> weights_dtype{};        // what weights become; unset: they stay what they are
  bool moved = false;                                    // some model will change its device or dtype
  bool split_batches = false;                            // some loader has it
  int optimizers = 0;
  int loaders = 0;
  int schedulers = 0;
  int averages = 0;

  /// The model that an optimizer without parameters is for.
  ///
  /// Throws   InvalidArgument if there is none, or more than one.
  [[nodiscard]] const tensor::Record& only_model(std::string_view label) const {
    const auto& candidates = models.empty() ? session.models : models;
    ACCEL_CHECK(candidates.size() == 1, InvalidArgument, "prepare: ", label, " was made without parameters, and ",
                models.empty() ? "this accelerator has " : "it is prepared with ", candidates.size(),
                " models, so whose they should be is not known; make it with model->parameters(), or prepare it ",
                "with its model alone");
    return candidates.front()->record;
  }

  [[nodiscard]] const tensor::Record* owner(const at::Tensor& parameter) const {
    for (const auto& model : models)
      if (model->record.holds(parameter)) return &model->record;
    for (const auto& model : session.models)
      if (model->record.holds(parameter)) return &model->record;
    return nullptr;
  }
};

// Models first: what optimizers may hold follows from them.

template <class Net>
void inspect_model(ModelPart<Net>& part, Inspection& inspection) {
  const c10::Device device = inspection.session.device;
  const auto becomes_other = [&](const at::Tensor& parameter) {
    return parameter.device() != device || (inspection.weights_dtype && parameter.is_floating_point() &&
                                            parameter.scalar_type() != *inspection.weights_dtype);
  };
  for (const auto& parameter : part.net->parameters()) inspection.moved |= becomes_other(parameter);
  const auto number = inspection.session.models.size() + inspection.models.size();
  part.prepared->record = tensor::record(*part.net, message("model ", number));
  part.prepared->record.check_layouts();
  for (const auto& [name, parameter] : part.prepared->record.parameters)
    ACCEL_CHECK(inspection.owner(parameter) == nullptr, InvalidArgument, "prepare: ", name, " of model ", number,
                " belongs to a model that is prepared already; prepare each model once");
  part.prepared->record.describe(inspection.lines);
  inspection.models.push_back(part.prepared);
}

template <class Part>
void inspect_model(Part&, Inspection&) {}

// Once all ranks have agreed: what is refused stays where it is. LibTorch's tensors keep their identity.

template <class Net>
void move_model(ModelPart<Net>& part, c10::Device device) {
  part.net->to(device);
}

template <class Part>
void move_model(Part&, c10::Device) {}

/// Their models, each once.
///
/// Throws   InvalidArgument for one that belongs to none; `otherwise` says what comes of that.
[[nodiscard]] inline std::vector<const tensor::Record*> owners_of(std::span<const at::Tensor> parameters,
                                                                  const Inspection& inspection, std::string_view label,
                                                                  std::string_view otherwise) {
  std::vector<const tensor::Record*> owners;
  for (const auto& parameter : parameters) {
    const tensor::Record* owner = inspection.owner(parameter);
    ACCEL_CHECK(owner != nullptr, InvalidArgument, "prepare: ", label, " holds a parameter ", tensor::spec(parameter),
                " that belongs to no prepared model", otherwise,
                "; pass its model to the same prepare, or to an earlier one");
    if (std::find(owners.begin(), owners.end(), owner) == owners.end()) owners.push_back(owner);
  }
  return owners;
}

/// As they are called in their model; where there are several, behind its number among them.
template <class Named>
void name_parameters(Named& object, std::span<const tensor::Record* const> owners) {
  if constexpr (requires(std::span<const tensor::NamedTensor> named) { object.name_parameters(named); }) {
    for (std::size_t m = 0; m < owners.size(); ++m) {
      std::vector<tensor::NamedTensor> named = owners[m]->parameters;
      for (auto& one : named)
        if (owners.size() > 1) one.name.insert(0, message(m, "/"));
      object.name_parameters(named);
    }
  }
}

/// Ranks whose optimizers go on from other states would train apart. LibTorch's do not tell theirs by name.
template <class O>
[[nodiscard]] std::string trace_of_state(const O& optimizer) {
  std::string text;
  if constexpr (requires { optimizer.state_dict().entries(); }) {
    const tensor::StateDict state = optimizer.state_dict();
    for (const auto& [name, tensor] : state.entries())
      if (name.starts_with("state.")) text += message(name, " ", detail::text_of(tensor), " ");
  }
  return text.empty() ? text : message(", with hash ", fnv1a(text));
}

template <class O>
void inspect(OptimizerPart<O>& part, Inspection& inspection) {
  O& optimizer = *part.optimizer;
  const std::string label = message("optimizer ", inspection.optimizers++);
  if (const std::size_t dropped = drop_repeated(optimizer); dropped > 0)
    inspection.session.log.info("prepare: ", label, " listed ", dropped,
                                " tied parameter(s) twice, and would have stepped them twice; each is listed once now");
  if constexpr (requires { optimizer.is_unbound(); })
    if (optimizer.is_unbound())
      optimizer.add_param_group(
          typename O::Group(tensor::tensors_of(inspection.only_model(label).trainable_parameters())));
  std::vector<at::Tensor> all;
  for (const auto& group : optimizer.param_groups())
    all.insert(all.end(), group.params().begin(), group.params().end());
  name_parameters(optimizer, owners_of(all, inspection, label, ", so its gradient would stay on this rank"));
  std::size_t group_number = 0;
  for (auto& group : optimizer.param_groups()) {
    std::string line = message(label, ": group ", group_number, ":");
    for (const auto& parameter : group.params()) {
      const tensor::Record* owner = inspection.owner(parameter);
      for (const auto& [name, tensor] : owner->parameters)
        if (tensor.is_same(parameter)) line += message(" ", owner->label, "/", name);
    }
    inspection.lines.push_back(std::move(line));
    inspection.lines.push_back(message(label, ": group ", group_number++, ": ", options_text(group)));
  }
  ACCEL_CHECK(!inspection.moved || optimizer.state().empty(), InvalidArgument, "prepare: ", label,
              " has state from earlier steps, and its model would be moved to ", inspection.session.device.str(),
              " or to another dtype without it; prepare before the first step, or move the model yourself before ",
              "making the optimizer");
  if constexpr (!requires { optimizer.param_groups().front().options().low_precision; })
    ACCEL_CHECK(inspection.weights_dtype != at::kBFloat16 && inspection.weights_dtype != at::kHalf, InvalidArgument,
                "prepare: ", label, " would step weights of ", tensor::dtype_name(*inspection.weights_dtype),
                " in their own dtype, where most steps are lost in rounding; take one of accel::optim, which keeps ",
                "f32 master weights, or a precision that keeps weights in f32");
  inspection.lines.push_back(
      message(label, ": state of ", optimizer.state().size(), " parameters", trace_of_state(optimizer)));
}

template <class E>
void inspect(EmaPart<E>& part, Inspection& inspection) {
  E& ema = *part.ema;
  const std::string label = message("average ", inspection.averages++);
  if (ema.is_unbound()) ema.bind(tensor::tensors_of(inspection.only_model(label).parameters));
  name_parameters(ema, owners_of(ema.parameters(), inspection, label, ""));
  inspection.lines.push_back(message(label, ": ", describe(ema.options()), ", of ", ema.parameters().size(),
                                     " parameters, after ", ema.updates(), " updates"));
}

template <class L>
void inspect(LoaderPart<L>& part, Inspection& inspection) {
  const auto& options = part.loader->options();
  const int world_size = inspection.session.topology.world_size;
  if constexpr (data::is_stream_loader<L>)
    (void)part.loader->deal(world_size);  // its checks
  else if (!options.batching)
    (void)part.loader->plan(world_size);
  inspection.split_batches |= options.split_batches;
  inspection.lines.push_back(
      message("loader ", inspection.loaders++, ": ", part.loader->describe(), part.loader->describe_batches()));
}

template <class S>
void inspect(SchedulerPart<S>& part, Inspection& inspection) {
  const std::string label = message("scheduler ", inspection.schedulers++);
  if constexpr (requires { part.scheduler->describe(); })
    inspection.lines.push_back(message(label, ": ", part.scheduler->describe()));
}

template <class Part>
void inspect(Part&, Inspection&) {}

// The seeds of loaders that left theirs open are rank 0's, for all.

template <class L>
void propose_seed(const LoaderPart<L>& part, std::uint64_t fallback, std::string& text) {
  std::optional<std::uint64_t> seed;
  if constexpr (!data::is_stream_loader<L>) seed = part.loader->options().seed;
  text += std::to_string(seed.value_or(fallback)) + " ";
}
template <class Part>
void propose_seed(const Part&, std::uint64_t, std::string&) {}

template <class L>
void accept_seed(LoaderPart<L>& part, std::istringstream& seeds) {
  seeds >> part.seed;
}
template <class Part>
void accept_seed(Part&, std::istringstream&) {}

}  // namespace accel::inline v0_1::prepare
