// Shards: a model's tensors in one safetensors file, or in several with an index, as Hugging Face's libraries lay them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include <accel/core/error.hpp>
#include <accel/core/file.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::checkpoint {

/// The names that Accelerate, transformers and the Hub use, too.
inline constexpr std::string_view weights_file = "model.safetensors";
inline constexpr std::string_view weights_index = "model.safetensors.index.json";

namespace detail {

/// The tensors of each file: as many as stay within `most`, in their order; one that is larger has a file to itself.
[[nodiscard]] inline std::vector<std::vector<tensor::NamedTensor>> split_into_shards(
    std::span<const tensor::NamedTensor> tensors, Bytes most) {
  std::vector<std::vector<tensor::NamedTensor>> shards(1);
  std::int64_t bytes = 0;
  for (const auto& named : tensors) {
    const auto own = static_cast<std::int64_t>(named.tensor.nbytes());
    if (!shards.back().empty() && bytes + own > most.count) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(named);
    bytes += own;
  }
  return shards;
}

/// `model-00001-of-00003.safetensors`; what of `taken` has that name already keeps it.
[[nodiscard]] inline std::string shard_name(std::size_t number, std::size_t count, const std::set<std::string>& taken) {
  const auto padded = [](std::size_t value) {
    const std::string digits = std::to_string(value);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  const std::string stem = message("model-", padded(number + 1), "-of-", padded(count));
  std::string name = stem + ".safetensors";
  for (int copy = 2; taken.contains(name); ++copy) name = message(stem, "-", copy, ".safetensors");
  return name;
}

/// A file of weights that some save has made.
[[nodiscard]] inline bool is_weights_file(const std::string& name) {
  static const std::regex shard(R"(model-\d{5,}-of-\d{5,}(-\d+)?\.safetensors)");
  return name == weights_file || std::regex_match(name, shard);
}

[[nodiscard]] inline std::set<std::string> weights_files_in(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& name : names_in(folder))
    if (is_weights_file(name)) names.insert(name);
  return names;
}

inline void write_index(const std::filesystem::path& folder, const std::map<std::string, std::string>& file_of,
                        std::uint64_t bytes) {
  const nlohmann::ordered_json index{{"metadata", {{"total_size", bytes}}}, {"weight_map", file_of}};
  const std::string text = index.dump(2) + "\n";
  DurableFile file(folder / weights_index);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace detail

/// Writes `tensors` to `folder`: to model.safetensors, or where they are more than `most` bytes to
/// model-00001-of-0000N.safetensors and so on with an index. What was there before is whole until all of the new is
/// there, and then gone: where there is an index, it says which files count.
///
/// Throws   CheckpointError with path and reason.
inline void write_shards(const std::filesystem::path& folder, std::span<const tensor::NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata, Bytes most) {
  const auto shards = detail::split_into_shards(tensors, most);
  const std::set<std::string> before = detail::weights_files_in(folder);
  const bool had_index = std::filesystem::exists(folder / weights_index);
  std::map<std::string, std::string> file_of;
  std::set<std::string> now;
  std::uint64_t bytes = 0;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string name =
        shards.size() == 1 ? std::string(weights_file) : detail::shard_name(s, shards.size(), before);
    tensor::safetensors::write(folder / name, shards[s], metadata);
    now.insert(name);
    for (const auto& [tensor_name, tensor] : shards[s]) {
      file_of.emplace(tensor_name, name);
      bytes += tensor.nbytes();
    }
  }
  if (shards.size() > 1 || had_index) detail::write_index(folder, file_of, bytes);
  for (const auto& name : before)
    if (!now.contains(name)) std::filesystem::remove(folder / name);
  if (shards.size() == 1 && had_index) std::filesystem::remove(folder / weights_index);
  flush_folder(folder);
}

/// The tensors of a model as they lie in one file or in several: looked up by name.
///
/// Throws   CheckpointError for files or an index that are missing or damaged, or do not fit each other.
class ShardedFile {
 public:
  /// `path`: a file, or a folder with one or with an index.
  explicit ShardedFile(const std::filesystem::path& path) {
    ACCEL_CHECK(std::filesystem::exists(path), CheckpointError, path.string(), ": there is no such file or folder");
    if (!std::filesystem::is_directory(path))
      add(path);
    else if (!std::filesystem::exists(path / weights_index))
      add(path / weights_file);
    else
      read_index(path);
  }

  [[nodiscard]] bool contains(const std::string& name) const { return place_of_.contains(name); }
  /// Sorted.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, file] : place_of_) all.push_back(name);
    return all;
  }
  [[nodiscard]] tensor::Spec spec(const std::string& name) const { return file_of(name).spec(name); }
  [[nodiscard]] at::Tensor read(const std::string& name) const { return file_of(name).read(name); }
  /// Without a copy, as a rule: see tensor::safetensors::File.
  [[nodiscard]] at::Tensor view(const std::string& name) const {
    const auto& file = file_of(name);
    return file.spec(name).dtype == at::kBool ? file.read(name) : file.view(name);
  }
  /// For messages.
  [[nodiscard]] const std::string& label() const { return label_; }

 private:
  void add(const std::filesystem::path& path) {
    label_ = path.string();
    files_.emplace_back(path);
    for (const auto& name : files_.back().names()) place_of_.emplace(name, files_.size() - 1);
  }

  void read_index(const std::filesystem::path& folder) {
    label_ = (folder / weights_index).string();
    const InputFile file(folder / weights_index);
    ACCEL_CHECK(file.size() <= tensor::safetensors::max_header_size, CheckpointError, label_, ": expected at most ",
                tensor::safetensors::max_header_size, " bytes, found ", file.size());
    std::string text(static_cast<std::size_t>(file.size()), '\0');
    file.read(text.data(), text.size(), 0);
    std::map<std::string, std::size_t> number_of;
    try {
      const auto index = nlohmann::json::parse(text);
      for (const auto& [name, value] : index.at("weight_map").items()) {
        const auto shard = value.template get<std::string>();
        ACCEL_CHECK(shard.find('/') == std::string::npos && shard != "..", CheckpointError, label_, ": ", name,
                    " should be in \"", shard, "\", which is no file of this folder");
        if (!number_of.contains(shard)) {
          number_of.emplace(shard, files_.size());
          files_.emplace_back(folder / shard);
        }
        const std::size_t number = number_of.at(shard);
        ACCEL_CHECK(files_[number].contains(name), CheckpointError, (folder / shard).string(), ": ", name,
                    " is missing, which ", weights_index, " says is there");
        place_of_.emplace(name, number);
      }
    } catch (const nlohmann::json::exception& error) {
      throw CheckpointError(message(label_, ": ", error.what()));
    }
  }

  [[nodiscard]] const tensor::safetensors::File& file_of(const std::string& name) const {
    return files_[place_of_.at(name)];
  }

  std::string label_;
  std::vector<tensor::safetensors::File> files_;
  std::map<std::string, std::size_t> place_of_;  // which file has it
};

}  // namespace accel::inline v0_1::checkpoint
