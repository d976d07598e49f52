// PartState: what one rank has of a part, and which rank writes what of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include <accel/checkpoint/manifest.hpp>
#include <accel/checkpoint/part.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/named_tensor.hpp>
#include <accel/tensor/safetensors.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::checkpoint::detail {

/// A state's number that a manifest holds itself.
[[nodiscard]] inline std::optional<std::variant<std::int64_t, double>> value_of(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.dim() != 0 || !tensor.is_cpu()) return std::nullopt;
  if (tensor.scalar_type() == at::kLong) return tensor.item<std::int64_t>();
  if (tensor.scalar_type() != at::kDouble) return std::nullopt;
  const auto number = tensor.item<double>();  // JSON has no others
  return std::isfinite(number) ? std::optional<std::variant<std::int64_t, double>>(number) : std::nullopt;
}

/// What one rank has of a part.
struct PartState {
  std::string name;
  Sharing sharing = Sharing::compared;
  std::vector<ValueEntry> values;
  std::vector<tensor::NamedTensor> tensors;

  [[nodiscard]] static PartState of(const Part& part) {
    PartState result{part.name, part.sharing, {}, {}};
    const tensor::StateDict state = part.state();
    for (const auto& [name, tensor] : state.entries())
      if (const auto value = value_of(tensor))
        result.values.push_back({name, *value});
      else
        result.tensors.push_back({name, tensor});
    return result;
  }

  /// To compare it between the ranks: of those that are compared all they hold, of others what they look like.
  [[nodiscard]] std::uint32_t trace() const {
    std::string text;
    for (const auto& [number_name, value] : values) {
      text += message(number_name, " is ");
      text += std::visit([](auto number) { return nlohmann::json(number).dump(); }, value);
    }
    std::uint32_t sum = 0;
    for (const auto& [tensor_name, tensor] : tensors) {
      text += message(tensor_name, " ", tensor::spec(tensor), "\n");
      if (sharing != Sharing::compared) continue;
      const at::Tensor bytes = tensor::safetensors::in_file_order(tensor);
      sum = crc32c({static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()}, sum);
    }
    return crc32c(std::as_bytes(std::span(text)), sum);
  }
};

/// The ranks that write to one folder, which all of them see: every one of the job, or those of one host.
struct Writers {
  std::vector<int> ranks;  // the first leads
  [[nodiscard]] int leader() const { return ranks.front(); }
};

/// Who writes what of the shared tensors, so that all have about the same: by part and tensor, a rank.
[[nodiscard]] inline std::vector<std::vector<int>> shared_out(const std::vector<PartState>& parts,
                                                              const std::vector<bool>& is_shared,
                                                              const Writers& writers) {
  std::map<int, std::uint64_t> load;
  for (const int rank : writers.ranks) load[rank] = 0;
  std::vector<std::vector<int>> who(parts.size());
  for (std::size_t p = 0; p < parts.size(); ++p) {
    if (!is_shared[p]) continue;
    for (const auto& [name, tensor] : parts[p].tensors) {
      const auto least =
          std::min_element(load.begin(), load.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
      // What has not been compared byte by byte may be anybody's; what was is the leader's, who has it at hand.
      const int rank = parts[p].sharing == Sharing::replicated ? least->first : writers.leader();
      load[rank] += tensor.nbytes();
      who[p].push_back(rank);
    }
  }
  return who;
}

}  // namespace accel::inline v0_1::checkpoint::detail
