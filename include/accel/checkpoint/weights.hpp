// Weights: a prepared model's parameters and buffers in safetensors files, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <accel/backend/backend.hpp>
#include <accel/checkpoint/shards.hpp>
#include <accel/collective/agree.hpp>
#include <accel/collective/broadcast.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/peer.hpp>
#include <accel/tensor/record.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1 {

/// From a module's name for a tensor to that in a file: wherever `pattern` (ECMAScript) is found, `replacement` takes
/// its place, in which $1 is the first group. `{"^blocks\\.", "transformer.h."}` gives a prefix.
struct NameRule {
  std::string pattern;
  std::string replacement;
};

struct SaveModelOptions {
  Bytes max_shard_size{10'000'000'000};    // Accelerate's default; several files with an index where that is exceeded
  std::vector<NameRule> rename{};          // one after the other
  std::optional<c10::ScalarType> dtype{};  // of what is of floating point; unset: as it is
};

struct LoadModelOptions {
  bool strict = true;              // names and shapes must be those of the model; else what fits is loaded
  std::vector<NameRule> rename{};  // as for saving: from the module's names to the file's
  bool converts_dtype = false;     // else another dtype does not fit
};

/// What of a file and a model did not fit each other.
struct LoadReport {
  std::vector<std::string> missing;     // in the model only
  std::vector<std::string> unexpected;  // in the file only
  std::vector<std::string> mismatched;  // `weight is f32[3,4] in the file and f32[4,4] in the model`

  [[nodiscard]] bool fits() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }

  /// `missing in the file: a, b; not in the model: c`.
  [[nodiscard]] std::string text() const {
    std::string text;
    const auto add = [&](std::string_view kind, const std::vector<std::string>& names) {
      if (!names.empty()) text += message(text.empty() ? "" : "; ", kind, ": ", launch::listed(names));
    };
    add("missing in the file", missing);
    add("not in the model", unexpected);
    add("other tensors", mismatched);
    return text;
  }
};

}  // namespace accel::inline v0_1

namespace accel::inline v0_1::checkpoint {

namespace detail {

/// Rules, compiled.
class Renaming {
 public:
  /// Throws   InvalidArgument for a pattern that is none.
  explicit Renaming(const std::vector<NameRule>& rules) {
    for (const auto& [pattern, replacement] : rules) {
      try {
        rules_.emplace_back(std::regex(pattern), replacement);
      } catch (const std::regex_error& error) {
        throw InvalidArgument(message("rename: \"", pattern, "\" is no regular expression: ", error.what()));
      }
    }
  }

  [[nodiscard]] std::string operator()(std::string name) const {
    for (const auto& [pattern, replacement] : rules_) name = std::regex_replace(name, pattern, replacement);
    return name;
  }

 private:
  std::vector<std::pair<std::regex, std::string>> rules_;
};

/// Tensors of a model and where in a file each comes from.
struct LoadPlan {
  std::vector<std::pair<std::string, at::Tensor>> copies;  // name in the file, tensor of the model
  LoadReport report;
};

[[nodiscard]] inline LoadPlan plan_load(const tensor::Record& record, const ShardedFile& file,
                                        const LoadModelOptions& options) {
  const Renaming renamed(options.rename);
  LoadPlan plan;
  std::set<std::string> expected;
  const auto want = [&](const tensor::NamedTensor& own) {
    std::string name = renamed(own.name);
    expected.insert(name);
    for (const auto& [alias, of] : record.aliases) {
      if (of != own.name) continue;
      expected.insert(renamed(alias));
      if (!file.contains(name)) name = renamed(alias);  // a file may keep the other name of a tied tensor
    }
    if (!file.contains(name)) {
      plan.report.missing.push_back(renamed(own.name));
      return;
    }
    const tensor::Spec found = file.spec(name);
    const bool is_same_dtype = found.dtype == own.tensor.scalar_type();
    const bool converts = options.converts_dtype && own.tensor.is_floating_point() && c10::isFloatingType(found.dtype);
    if (found.shape == own.tensor.sizes().vec() && (is_same_dtype || converts))
      plan.copies.emplace_back(name, own.tensor);
    else
      plan.report.mismatched.push_back(
          message(name, " is ", found.text(), " in the file and ", tensor::spec(own.tensor), " in the model"));
  };
  for (const auto& parameter : record.parameters) want(parameter);
  for (const auto& buffer : record.buffers) want(buffer);
  for (const auto& name : file.names())
    if (!expected.contains(name)) plan.report.unexpected.push_back(name);
  return plan;
}

/// Copies the file's tensors into the model's. Everything is checked before anything is overwritten.
[[nodiscard]] inline LoadReport read_weights(const tensor::Record& record, const std::filesystem::path& path,
                                             const LoadModelOptions& options) {
  const ShardedFile file(path);
  const LoadPlan plan = plan_load(record, file, options);
  ACCEL_CHECK(!options.strict || plan.report.fits(), CheckpointError, file.label(), " does not fit ", record.label,
              ": ", plan.report.text(), "; load what fits with {.strict = false}");
  const c10::AutoGradMode no_grad(false);
  std::vector<at::Tensor> sources;  // of those that are no views the bytes are read here, and may be refused
  for (const auto& copy : plan.copies) sources.push_back(file.view(copy.first));
  for (std::size_t i = 0; i < sources.size(); ++i) plan.copies[i].second.detach().copy_(sources[i]);
  return plan.report;
}

/// The tensors of a model under the names of a file.
[[nodiscard]] inline std::vector<tensor::NamedTensor> to_write(const tensor::Record& record,
                                                               const SaveModelOptions& options) {
  const Renaming renamed(options.rename);
  std::vector<tensor::NamedTensor> tensors;
  const auto add = [&](const tensor::NamedTensor& named) {
    const bool converts = options.dtype && named.tensor.is_floating_point();
    tensors.push_back({renamed(named.name), converts ? named.tensor.detach().to(*options.dtype) : named.tensor});
  };
  for (const auto& parameter : record.parameters) add(parameter);
  for (const auto& buffer : record.buffers) add(buffer);
  return tensors;
}

}  // namespace detail

/// Writes `folder/model.safetensors`, or several files with an index, from the main rank: the old ones are there until
/// all of the new are. Tied tensors are written once; the metadata names their aliases.
///
/// Order    collective: every rank calls it, and returns when the files are complete.
/// Throws   CheckpointError on every rank if the main rank cannot write.
template <Backend B>
void save_weights(B& backend, const tensor::Record& record, const std::filesystem::path& folder,
                  const SaveModelOptions& options = {}) {
  collective::all_or_none<CheckpointError>(backend.control(), "save_model", Deadline::in(backend.timeout()), [&] {
    if (backend.rank() != 0) return;
    ACCEL_CHECK(options.max_shard_size.count > 0, InvalidArgument, "save_model: max_shard_size must be above 0");
    std::error_code failed;
    std::filesystem::create_directories(folder, failed);
    ACCEL_CHECK(!failed && std::filesystem::is_directory(folder), CheckpointError, "save_model: ", folder.string(),
                " is no folder and cannot be made one", failed ? ": " + failed.message() : "");
    const detail::Renaming renamed(options.rename);
    std::map<std::string, std::string> metadata{{"format", "pt"}};  // Python's readers ask for it
    for (const auto& [name, of] : record.aliases) metadata[renamed(name)] = renamed(of);
    write_shards(folder, detail::to_write(record, options), metadata, options.max_shard_size);
  });
}

/// Reads a file, or a folder's model.safetensors or what its index names, on the main rank and broadcasts it, so only
/// that rank needs the files. Gives, on the main rank, what did not fit.
///
/// Order    collective.
/// Throws   CheckpointError on every rank, before any parameter has changed.
template <Backend B>
LoadReport load_weights(B& backend, const tensor::Record& record, const std::filesystem::path& path,
                        const LoadModelOptions& options = {}) {
  LoadReport report;
  collective::all_or_none<CheckpointError>(backend.control(), "load_model", Deadline::in(backend.timeout()), [&] {
    if (backend.rank() == 0) report = detail::read_weights(record, path, options);
  });
  collective::broadcast_coalesced(backend, record.tensors(), 0);
  return report;
}

}  // namespace accel::inline v0_1::checkpoint
