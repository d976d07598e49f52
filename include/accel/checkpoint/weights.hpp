// Weights: a prepared model's parameters and buffers in a safetensors file, and back.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::checkpoint {

/// The name that Accelerate and the Hub use, too.
inline constexpr std::string_view weights_file = "model.safetensors";

namespace detail {

/// Copies the file's tensors into the model's. Everything is checked before anything is overwritten.
inline void read_weights(const tensor::Record& record, const std::filesystem::path& path) {
  const tensor::safetensors::File file(path);
  std::set<std::string> expected;
  std::vector<std::pair<std::string, at::Tensor>> plan;  // name in the file, tensor of the model
  const auto want = [&](const tensor::NamedTensor& own) {
    std::string name = own.name;
    expected.insert(own.name);
    for (const auto& [alias, of] : record.aliases) {
      if (of != own.name) continue;
      expected.insert(alias);
      if (!file.contains(name)) name = alias;  // a file may keep the other name of a tied tensor
    }
    ACCEL_CHECK(file.contains(name), CheckpointError, path.string(), ": ", own.name, " is missing; the model has ",
                tensor::spec(own.tensor), " of that name");
    const auto found = file.spec(name).text();
    ACCEL_CHECK(found == tensor::spec(own.tensor), CheckpointError, path.string(), ": ", name, " is ", found,
                " but the model's is ", tensor::spec(own.tensor));
    plan.emplace_back(name, own.tensor);
  };
  for (const auto& parameter : record.parameters) want(parameter);
  for (const auto& buffer : record.buffers) want(buffer);
  for (const auto& name : file.names())
    ACCEL_CHECK(expected.contains(name), CheckpointError, path.string(), ": ", name,
                " is in the file but not in the model");
  const c10::AutoGradMode no_grad(false);
  std::vector<at::Tensor> values;  // all of them, before the first is used: reading may fail midway
  for (const auto& [name, tensor] : plan) values.push_back(file.read(name));
  for (std::size_t i = 0; i < plan.size(); ++i) plan[i].second.copy_(values[i]);
}

}  // namespace detail

/// Writes `folder/model.safetensors` from the main rank, atomically: the file is there whole or as it
/// was. Tied tensors are written once; the metadata names their aliases.
///
/// Order    collective: every rank calls it, and returns when the file is complete.
/// Throws   CheckpointError on every rank if the main rank cannot write.
template <Backend B>
void save_weights(B& backend, const tensor::Record& record, const std::filesystem::path& folder) {
  collective::all_or_none<CheckpointError>(backend.control(), "save_model", Deadline::in(backend.timeout()), [&] {
    if (backend.rank() != 0) return;
    std::error_code failed;
    std::filesystem::create_directories(folder, failed);
    ACCEL_CHECK(!failed && std::filesystem::is_directory(folder), CheckpointError, "save_model: ", folder.string(),
                " is no folder and cannot be made one", failed ? ": " + failed.message() : "");
    std::vector<tensor::NamedTensor> tensors;
    for (const auto& [name, tensor] : record.parameters) tensors.push_back({name, tensor});
    for (const auto& [name, tensor] : record.buffers) tensors.push_back({name, tensor});
    std::map<std::string, std::string> metadata{{"format", "pt"}};  // Python's readers ask for it
    for (const auto& [name, of] : record.aliases) metadata[name] = of;
    tensor::safetensors::write(folder / weights_file, tensors, metadata);
  });
}

/// Reads `folder/model.safetensors` on the main rank and broadcasts it, so only that rank needs the
/// file. Names, shapes and dtypes must be those of the model.
///
/// Order    collective.
/// Throws   CheckpointError on every rank, before any parameter has changed.
template <Backend B>
void load_weights(B& backend, const tensor::Record& record, const std::filesystem::path& folder) {
  collective::all_or_none<CheckpointError>(backend.control(), "load_model", Deadline::in(backend.timeout()), [&] {
    if (backend.rank() == 0) detail::read_weights(record, folder / weights_file);
  });
  collective::broadcast_coalesced(backend, record.tensors(), 0);
}

}  // namespace accel::inline v0_1::checkpoint
