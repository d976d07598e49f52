// Spec: dtype, shape and device of a tensor as a value; prints as f32[8, 128]@cuda:0.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <accel/core/error.hpp>

namespace accel::inline v0_1::tensor {

/// The short name of a dtype in messages: `f32`, `bf16`, `i64`, `bool`. LibTorch's own name where
/// there is no usual short one (quantized types and the like).
[[nodiscard]] inline std::string dtype_name(c10::ScalarType dtype) {
  using enum c10::ScalarType;
  // -Wswitch-enum of a consumer must stay quiet: LibTorch has over forty, most never seen here.
  if (dtype == Float) return "f32";
  if (dtype == Double) return "f64";
  if (dtype == Half) return "f16";
  if (dtype == BFloat16) return "bf16";
  if (dtype == Bool) return "bool";
  if (dtype == Byte) return "u8";
  if (dtype == Char) return "i8";
  if (dtype == Short) return "i16";
  if (dtype == Int) return "i32";
  if (dtype == Long) return "i64";
  if (dtype == UInt16) return "u16";
  if (dtype == UInt32) return "u32";
  if (dtype == UInt64) return "u64";
  if (dtype == ComplexFloat) return "c64";
  if (dtype == ComplexDouble) return "c128";
  if (dtype == Float8_e4m3fn) return "f8_e4m3";
  if (dtype == Float8_e5m2) return "f8_e5m2";
  return c10::toString(dtype);
}

/// Whether the elements of such tensors are plain bytes, which are the same wherever they are copied to.
[[nodiscard]] inline bool is_plain(c10::ScalarType dtype) {
  using enum c10::ScalarType;
  constexpr std::array plain = {Byte,        Char,          Short,           Int,
                                Long,        Half,          Float,           Double,
                                ComplexHalf, ComplexFloat,  ComplexDouble,   Bool,
                                BFloat16,    UInt16,        UInt32,          UInt64,
                                Float8_e5m2, Float8_e4m3fn, Float8_e5m2fnuz, Float8_e4m3fnuz};
  return std::find(plain.begin(), plain.end(), dtype) != plain.end();
}

/// What a tensor looks like without what it holds: to compare between ranks and to print.
struct Spec {
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<std::int64_t> shape;
  c10::Device device = c10::Device(c10::DeviceType::CPU);

  /// Throws   InvalidArgument if `tensor` is undefined.
  [[nodiscard]] static Spec of(const at::Tensor& tensor) {
    ACCEL_CHECK(tensor.defined(), InvalidArgument,
                "expected a tensor, found an undefined one; assign it before it is used");
    return {tensor.scalar_type(), tensor.sizes().vec(), tensor.device()};
  }

  /// `f32[8, 128]`: without the device, which often differs between ranks for a good reason.
  [[nodiscard]] std::string text() const {
    std::string text = dtype_name(dtype) + "[";
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
      if (dim != 0) text += ", ";
      text += std::to_string(shape[dim]);
    }
    return text += "]";
  }

  bool operator==(const Spec&) const = default;

  friend std::ostream& operator<<(std::ostream& out, const Spec& spec) {
    return out << spec.text() << '@' << spec.device.str();
  }
};

/// `f32[8, 3]` for messages; `undefined` for a tensor that holds nothing.
[[nodiscard]] inline std::string spec(const at::Tensor& tensor) {
  return tensor.defined() ? Spec::of(tensor).text() : "undefined";
}

/// `f32[*, 3]`: of `tensor`, which has dimensions, without the size of the first, of which ranks may have any.
[[nodiscard]] inline std::string spec_without_rows(const at::Tensor& tensor) {
  const std::string text = spec(tensor);
  const std::size_t bracket = text.find('[');
  return text.substr(0, bracket) + "[*" + text.substr(text.find_first_of(",]", bracket));
}

/// `f32[8, 3] with strides [1, 8]` where they are not those of rows one after the other: how its
/// elements lie in memory, too.
[[nodiscard]] inline std::string layout(const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided) return message(spec(tensor), " of layout ", tensor.layout());
  if (tensor.is_contiguous()) return spec(tensor);
  std::string strides;
  for (const std::int64_t stride : tensor.strides()) strides += (strides.empty() ? "" : ", ") + std::to_string(stride);
  return message(spec(tensor), " with strides [", strides, "]");
}

}  // namespace accel::inline v0_1::tensor
