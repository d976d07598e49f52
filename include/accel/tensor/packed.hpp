// Packed: any tree as one run of bytes, and back.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/tensor/detail/tree_packer.hpp>
#include <accel/tensor/detail/tree_unpacker.hpp>

namespace accel::inline v0_1::tensor {

/// The whole of `tree` in one buffer: its tensors, numbers, texts, lengths, and which optionals and map entries there
/// are. Equal trees give equal bytes.
///
/// Takes    what visit() does, with texts as std::string and structs that can be made without arguments. Tensors of any
///          usual dtype, shape, strides and device; undefined ones stay so. They lose their history.
/// Shape    u8[bytes] on the CPU; each tensor begins at a multiple of 16 bytes.
/// Cost     one copy of every tensor; of vectors of numbers too, else some 10 bytes and a call per value.
/// Throws   InvalidArgument, with the path, for sparse, quantized and meta tensors.
template <class Tree>
[[nodiscard]] at::Tensor pack(const Tree& tree) {
  detail::TreePacker packer;
  packer.put(tree);
  at::Tensor bytes = at::empty({packer.size()}, at::kByte);
  packer.write(bytes);
  return bytes;
}

/// How many bytes pack() would give.
template <class Tree>
[[nodiscard]] std::int64_t packed_size(const Tree& tree) {
  detail::TreePacker packer;
  packer.put(tree);
  return packer.size();
}

/// The tree that was packed, of the same C++ type. `bytes` may have been moved to a device since: the tensors of the
/// tree are views of it, and are where it is.
///
/// Cost     the description of the tree is copied to the host, where `bytes` is elsewhere; of tensors nothing, unless
///          `bytes` begins in the midst of its storage, where no number of 16 bytes could.
/// Throws   InvalidArgument, with the path, for bytes that are cut off, of another type, or not packed ones at all.
///          What the tensors hold is not looked at.
template <class Tree>
[[nodiscard]] Tree unpack(const at::Tensor& bytes) {
  detail::TreeUnpacker unpacker(bytes);
  Tree tree{};
  unpacker.take(tree);
  unpacker.end();
  return tree;
}

}  // namespace accel::inline v0_1::tensor
