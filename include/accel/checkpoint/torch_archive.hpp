// TorchArchive: what torch::save and torch.save have written, read once to go on with safetensors. Not part of
// accelerator.hpp: these files are pickles, so read those that you have written yourself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/serialize/input-archive.h>

#include <accel/core/error.hpp>
#include <accel/core/file.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::checkpoint {

namespace detail {

inline void collect(torch::serialize::InputArchive& archive, const std::string& prefix, tensor::StateDict& state) {
  for (const auto& key : archive.keys()) {
    c10::IValue value;
    if (!archive.try_read(key, value)) continue;
    if (value.isTensor()) {
      state.add(prefix + key, value.toTensor());
    } else if (value.isModule()) {
      torch::serialize::InputArchive below;
      if (archive.try_read(key, below)) collect(below, prefix + key + ".", state);
    }
  }
}

/// What `read` gives, or an error with the path: LibTorch's own speak of its insides.
template <class Read>
[[nodiscard]] auto read_archive(const std::filesystem::path& path, std::string_view what, Read&& read) {
  const InputFile exists(path);
  try {
    return std::forward<Read>(read)();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CheckpointError(message(path.string(), ": expected ", what, "; LibTorch says: ", first_line(error)));
  }
}

/// Options and states of one parameter or group, as PyTorch has them, to those of an optimizer of this library.
inline void add_entry(const std::string& name, const c10::IValue& value, tensor::StateDict& state) {
  if (value.isTensor()) {
    const bool is_count = name.ends_with(".step");
    is_count ? state.add(name, static_cast<std::int64_t>(value.toTensor().item<double>()))
             : state.add(name, value.toTensor());
  } else if (value.isDouble()) {
    state.add(name, value.toDouble());
  } else if (value.isInt()) {
    state.add(name, value.toInt());
  } else if (value.isBool()) {
    state.add(name, value.toBool());
  } else if (value.isTuple()) {
    std::size_t k = 0;
    for (const auto& element : value.toTupleRef().elements()) add_entry(message(name, ".", k++), element, state);
  }
}

}  // namespace detail

/// The tensors of a module that torch::save has written, by name: `fc1.weight`.
///
/// Throws   CheckpointError for a file that is none.
[[nodiscard]] inline tensor::StateDict read_torch_archive(const std::filesystem::path& path) {
  return detail::read_archive(path, "an archive of torch::save(module, path)", [&] {
    torch::serialize::InputArchive archive;
    archive.load_from(path.string());
    tensor::StateDict state;
    detail::collect(archive, "", state);
    ACCEL_CHECK(!state.empty(), CheckpointError, path.string(), ": it holds no tensor of a module");
    return state;
  });
}

/// Writes those of `archive` to the safetensors file `file`, which load_model and Python read.
///
/// Throws   CheckpointError.
inline void convert_torch_archive(const std::filesystem::path& archive, const std::filesystem::path& file) {
  const tensor::StateDict state = read_torch_archive(archive);
  std::vector<tensor::NamedTensor> tensors;
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  std::map<std::pair<const void*, std::string>, std::string> first;  // of tied tensors one name is enough
  for (const auto& [name, tensor] : state.entries()) {
    const std::pair place(tensor.numel() > 0 ? tensor.const_data_ptr() : nullptr, message(tensor::spec(tensor)));
    const auto [at, is_new] = first.emplace(place, name);
    if (is_new || tensor.numel() == 0)
      tensors.push_back({name, tensor});
    else
      metadata[name] = at->second;
  }
  tensor::safetensors::write(file, tensors, metadata);
}

/// The state of one of PyTorch's optimizers, which Python has written by torch.save(optimizer.state_dict(), path), for
/// the same one here: `optimizer.load_state_dict(read_torch_optimizer(path, names, optimizer.state_dict()))`.
///
/// names    of the parameters, in the order in which Python's optimizer got them
/// now      the state of the optimizer here; options that PyTorch does not have stay as in it
/// Throws   CheckpointError for a file that is none, or with another number of parameters or groups.
[[nodiscard]] inline tensor::StateDict read_torch_optimizer(const std::filesystem::path& path,
                                                            std::span<const std::string> names,
                                                            const tensor::StateDict& now) {
  const std::string_view what = "a file of torch.save(optimizer.state_dict(), path)";
  return detail::read_archive(path, what, [&] {
    const InputFile file(path);
    std::vector<char> bytes(static_cast<std::size_t>(file.size()));
    file.read(bytes.data(), bytes.size(), 0);
    const auto saved = torch::jit::pickle_load(bytes).toGenericDict();
    tensor::StateDict state;
    for (const auto& of_parameter : saved.at("state").toGenericDict()) {
      const std::int64_t number = of_parameter.key().toInt();
      ACCEL_CHECK(number >= 0 && static_cast<std::size_t>(number) < names.size(), CheckpointError, path.string(),
                  ": it has a state of parameter ", number, ", counted from 0, and ", names.size(), " names are given");
      for (const auto& entry : of_parameter.value().toGenericDict())
        detail::add_entry(message("state.", names[static_cast<std::size_t>(number)], ".", entry.key().toStringRef()),
                          entry.value(), state);
    }
    tensor::StateDict options;
    std::size_t parameters = 0, groups = 0;
    for (const c10::IValue& group : saved.at("param_groups").toListRef()) {
      for (const auto& option : group.toGenericDict()) {
        const std::string& name = option.key().toStringRef();
        if (name == "params")
          parameters += option.value().toListRef().size();
        else
          detail::add_entry(message("param_groups.", groups, ".", name), option.value(), options);
      }
      ++groups;
    }
    ACCEL_CHECK(parameters == names.size(), CheckpointError, path.string(), ": it is of ", parameters,
                " parameters, and ", names.size(), " names are given");
    ACCEL_CHECK(
        !now.has(message("param_groups.", groups, ".lr")) && now.has(message("param_groups.", groups - 1, ".lr")),
        CheckpointError, path.string(), ": it has ", groups, " groups of parameters, and the optimizer here has not");
    for (const auto& [name, tensor] : now.entries())
      if (name.starts_with("param_groups.")) state.add(name, options.has(name) ? options.tensor(name) : tensor);
    return state;
  });
}

}  // namespace accel::inline v0_1::checkpoint
