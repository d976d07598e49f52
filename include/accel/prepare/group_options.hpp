// Group options: what an optimizer's parameter group is set to, as text to compare between ranks.
#pragma once

#include <concepts>
#include <exception>
#include <ios>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <accel/core/error.hpp>
#include <accel/core/fields.hpp>
#include <accel/core/hash.hpp>
#include <accel/core/number.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::prepare {

namespace detail {

// LibTorch's archives by the functions that take them: their headers are heavy, and whoever has an
// optimizer has them.
template <class Options, class Archive>
Archive output_archive(void (Options::*)(Archive&) const);
template <class Options, class Archive>
Archive input_archive(void (Options::*)(Archive&));

template <class Options>
concept Serializable = requires {
  detail::output_archive<Options>(&Options::serialize);
  detail::input_archive<Options>(&Options::serialize);
};

/// `f32[3] 9c2e03a41b7d55f0`: what it looks like, and a hash of its bytes.
[[nodiscard]] inline std::string text_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor::spec(tensor);
  const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
  const std::string_view bytes(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
  return message(tensor::spec(tensor), " ", std::hex, fnv1a(bytes));
}

template <std::same_as<c10::IValue> Value>  // not instantiated where LibTorch's value is only declared
[[nodiscard]] std::string text_of(const Value& value) {
  if (value.isDouble()) return shortest(value.toDouble());
  if (value.isBool()) return value.toBool() ? "true" : "false";
  if (value.isTensor()) return text_of(value.toTensor());
  if (value.isObject()) return "an object";  // prints as an address
  if (!value.isTuple()) return message(value);
  std::string text;
  for (const auto& element : value.toTupleRef().elements()) text += (text.empty() ? "" : ", ") + text_of(element);
  return "(" + text + ")";
}

template <Serializable Options>
[[nodiscard]] std::string written(const Options& options) {
  decltype(output_archive<Options>(&Options::serialize)) output;
  options.serialize(output);
  std::stringstream bytes;
  output.save_to(bytes);
  decltype(input_archive<Options>(&Options::serialize)) input;
  input.load_from(bytes);
  std::string text;
  for (const auto& key : input.keys())
    if (c10::IValue value; input.try_read(key, value))
      text += message(text.empty() ? "" : ", ", key, " = ", text_of(value));
  return text;
}

}  // namespace detail

/// `lr = 0.001, betas = (0.9, 0.999), ...`: all that a checkpoint of the optimizer would hold of the
/// options of `group`; the learning rate alone where they do not serialize; nothing where there is none.
template <class Group>
[[nodiscard]] std::string options_text(Group& group) {
  if constexpr (requires { group.options(); }) {
    auto& options = group.options();
    using Options = std::remove_cvref_t<decltype(options)>;
    if constexpr (HasFields<Options>) return accel::describe(options);
    try {
      if constexpr (detail::Serializable<Options>) return detail::written(options);
    } catch (const std::exception&) {
      // Options of the user's own need not be able to, and LibTorch's base class throws for them.
    }
    try {
      if constexpr (requires { options.get_lr(); }) return "lr = " + shortest(options.get_lr());
    } catch (const std::exception&) {
      // Nor need they have a rate.
    }
  }
  return {};
}

}  // namespace accel::inline v0_1::prepare
