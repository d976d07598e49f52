// Scatter: a part for each rank of what one rank has; and gather_split, which joins what ranks made of their parts.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/backend/backend.hpp>
#include <accel/collective/agree_on_trees.hpp>
#include <accel/collective/all_gather.hpp>
#include <accel/collective/object.hpp>
#include <accel/collective/split.hpp>
#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/tensor/packed.hpp>
#include <accel/tensor/tree.hpp>

namespace accel::inline v0_1::collective {

/// What the ranks made of their parts, joined in the order of ranks: of each the first `valid` rows.
///
/// Takes    tensors and what holds them, or a vector, whose elements are then the rows.
/// Shape    [rows of this rank, ...] -> [sum of valid, ...]
/// Cost     of all_gather; of a vector that of gather_object.
/// Throws   InvalidArgument on every rank, if trees, dtypes or shapes differ, or if a rank has fewer rows than `valid`.
/// Differs  Accelerate's recipe, to keep the first rows of what is gathered, keeps padding if two ranks have some.
template <Backend B, class Tree>
[[nodiscard]] Tree gather_split(B& backend, Tree tree, std::int64_t valid) {
  constexpr std::string_view subject = "gather_split";
  const auto check = [&](std::string_view path, std::int64_t rows) {
    ACCEL_CHECK(0 <= valid && valid <= rows, InvalidArgument, subject, ": expected at least ", valid,
                " rows, of which the first are kept, found ", rows < 0 ? "a scalar" : std::to_string(rows),
                detail::at_path(path));
  };
  if constexpr (tensor::is_a<Tree, std::vector>) {
    Tree joined;
    for (auto& part : detail::gather_made<Tree>(backend, subject, [&]() -> const Tree& {
           check("", detail::rows_of(tree));
           detail::keep(tree, {0, valid}, valid);
           return tree;
         }))
      joined.insert(joined.end(), std::make_move_iterator(part.begin()), std::make_move_iterator(part.end()));
    return joined;
  } else {
    detail::for_each_holder(tree, [](const std::string&, const auto& holder) {
      static_assert(std::derived_from<std::remove_cvref_t<decltype(holder)>, at::Tensor>,
                    "accel joins tensors, and what holds them, or one vector: join each vector of a tree by itself");
    });
    return detail::gather(backend, subject, std::move(tree), [&](const std::string& path, const at::Tensor& tensor) {
      check(path, detail::rows_of(tensor));
      return tensor.narrow(0, 0, valid);
    });
  }
}

/// This rank's part, as of split(), of what rank `root` has; what the others bring is not looked at. Tensors are on the
/// backend's device, and have no history.
///
/// Shape    ragged: parts differ in size, and rows of a vector may be of any shape.
/// Cost     one round over the control plane, then one message from `root` to each other rank.
/// Throws   InvalidArgument on every rank if the tree cannot be split or sent, or if roots differ.
template <Backend B, class Tree>
[[nodiscard]] Tree scatter(B& backend, const Tree& tree, int root) {
  std::vector<at::Tensor> parts;  // on the root
  const auto said = agree_on_trees(backend.control(), "scatter", "name the same rank everywhere",
                                   Deadline::in(backend.timeout()), [&](Brought& own) {
                                     own.outline.add("the call", message("from rank ", root));
                                     if (backend.rank() != root) return;
                                     (void)detail::common_rows("scatter", tree);
                                     for (int rank = 0; rank < backend.world_size(); ++rank) {
                                       parts.push_back(tensor::pack(split(tree, rank, backend.world_size())));
                                       own.said.sizes.push_back(parts.back().numel());
                                     }
                                   });
  backend::check_peer("scatter", root, backend.world_size());
  const auto own = static_cast<std::size_t>(backend.rank());
  if (backend.rank() != root) {
    const std::int64_t size = said[static_cast<std::size_t>(root)].sizes[own];
    at::Tensor bytes = at::empty({size}, at::TensorOptions().dtype(at::kByte).device(backend.device()));
    auto work = backend.recv(bytes, root);
    backend::wait_on_host(backend, work);
    return tensor::unpack<Tree>(bytes);
  }
  for (auto& part : parts) part = part.to(backend.device());
  std::vector<backend::WorkOf<B>> works;
  for (int rank = 0; rank < backend.world_size(); ++rank)
    if (rank != root) works.push_back(backend.send(parts[static_cast<std::size_t>(rank)], rank));
  for (auto& work : works) backend::wait_on_host(backend, work);
  return tensor::unpack<Tree>(parts[own]);
}

}  // namespace accel::inline v0_1::collective
