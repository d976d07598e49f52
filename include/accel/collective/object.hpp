// Object: values of any kind between the ranks, as JSON or packed. Who receives one need not know its size.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <nlohmann/json.hpp>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/packed.hpp>

namespace accel::inline v0_1::collective {

/// What becomes JSON and comes back: a JSON value, numbers, texts, containers of them, types with to_json and
/// from_json. Nothing that holds tensors does.
template <class T>
concept JsonLike = std::constructible_from<nlohmann::json, const T&> && requires(const nlohmann::json& json) {
  { json.template get<T>() } -> std::same_as<T>;
};

namespace detail {

/// What is larger does not go over the control plane, whose rank 0 holds what all have brought.
inline constexpr Bytes largest_small_object = 64_KiB;

/// u8[bytes] on the CPU. JSON as CBOR, which keeps NaN, every bit of a number and any characters of a text.
template <class T>
[[nodiscard]] at::Tensor encoded(const T& value) {
  if constexpr (JsonLike<T>) {
    const nlohmann::json json = value;
    ACCEL_CHECK(!json.is_discarded(), InvalidArgument, "expected a JSON value, found the rest of a text that was none");
    const auto cbor = nlohmann::json::to_cbor(json);
    at::Tensor bytes = at::empty({static_cast<std::int64_t>(cbor.size())}, at::kByte);
    std::memcpy(bytes.mutable_data_ptr(), cbor.data(), cbor.size());
    return bytes;
  } else {
    return tensor::pack(value);
  }
}

/// `bytes`: on the CPU. Tensors in the value are on `device`.
template <class T>
[[nodiscard]] T decoded(const at::Tensor& bytes, c10::Device device) {
  if constexpr (JsonLike<T>) {
    const auto* const begin = bytes.const_data_ptr<std::uint8_t>();
    return nlohmann::json::from_cbor(begin, begin + bytes.numel()).template get<T>();
  } else {
    return tensor::unpack<T>(bytes.to(device));
  }
}

/// What a rank says of `bytes` that it brings: small ones as they are.
[[nodiscard]] inline Said said_of(const at::Tensor& bytes) {
  Said said{.sizes = {bytes.numel()}};
  if (bytes.numel() <= largest_small_object.count)
    said.bytes.assign(static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.numel()));
  return said;
}

/// The bytes of rank `root`, which has said `said` of them, on every rank. `own`: this rank's, if it is that one.
template <Backend B>
[[nodiscard]] at::Tensor received(B& backend, const Said& said, const at::Tensor& own, int root) {
  if (backend.rank() == root) return own;
  const std::int64_t size = said.sizes.front();
  at::Tensor bytes = at::empty({size}, at::kByte);
  if (size <= largest_small_object.count) std::memcpy(bytes.mutable_data_ptr(), said.bytes.data(), said.bytes.size());
  return bytes;
}

/// Where they are large, the bytes of rank `root` go from there to every rank.
template <Backend B>
void send_large(B& backend, at::Tensor& bytes, int root) {
  if (bytes.numel() <= largest_small_object.count || backend.world_size() == 1) return;
  at::Tensor sent = bytes.to(backend.device());
  auto work = backend.broadcast(sent, root);
  backend::wait_on_host(backend, work);
  bytes = sent.to(c10::DeviceType::CPU);
}

}  // namespace detail

namespace detail {

/// Everybody's `make()`, by rank.
template <class T, Backend B, class Make>
[[nodiscard]] std::vector<T> gather_made(B& backend, std::string_view subject, Make&& make) {
  at::Tensor own;
  const auto said = agree_on_trees(backend.control(), subject, "call the same on every rank",
                                   Deadline::in(backend.timeout()), [&](Brought& brought) {
                                     own = encoded<T>(std::forward<Make>(make)());
                                     brought.said = said_of(own);
                                   });
  std::vector<T> values;
  for (int root = 0; root < backend.world_size(); ++root) {
    at::Tensor bytes = received(backend, said[static_cast<std::size_t>(root)], own, root);
    send_large(backend, bytes, root);
    values.push_back(decoded<T>(bytes, backend.device()));
  }
  return values;
}

}  // namespace detail

/// Everybody's `value`, by rank. Values may be JSON, or any tree, whose numbers, texts and tensors go along; these then
/// are on the backend's device.
///
/// Cost     one round over the control plane, on which values of up to 64 KiB go; one broadcast for each larger one.
/// Throws   InvalidArgument on every rank, with the rank, if a value cannot be sent.
/// Differs  Accelerate joins lists by one level, and of a map keeps the keys only: here it is one value per rank.
template <Backend B, class T>
[[nodiscard]] std::vector<T> gather_object(B& backend, const T& value) {
  return detail::gather_made<T>(backend, "gather_object", [&]() -> const T& { return value; });
}

/// Rank `root`'s `value` on every rank; what the others bring is not looked at. Values are those of gather_object.
///
/// Cost     one round over the control plane, on which values of up to 64 KiB go; one broadcast for a larger one.
/// Throws   InvalidArgument on every rank if the value cannot be sent, or if roots differ.
template <Backend B, class T>
[[nodiscard]] T broadcast_object(B& backend, const T& value, int root) {
  at::Tensor own;
  const auto said = agree_on_trees(backend.control(), "broadcast_object", "name the same rank everywhere",
                                   Deadline::in(backend.timeout()), [&](Brought& brought) {
                                     brought.outline.add("the call", message("from rank ", root));
                                     if (backend.rank() != root) return;
                                     own = detail::encoded(value);
                                     (void)detail::decoded<T>(own, own.device());  // or the others alone would throw
                                     brought.said = detail::said_of(own);
                                   });
  backend::check_peer("broadcast_object", root, backend.world_size());
  at::Tensor bytes = detail::received(backend, said[static_cast<std::size_t>(root)], own, root);
  detail::send_large(backend, bytes, root);
  return detail::decoded<T>(bytes, backend.device());
}

}  // namespace accel::inline v0_1::collective
