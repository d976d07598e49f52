// Flat: groups of tensors, and views of one buffer.
#include <cstdint>
#include <vector>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <accel/core/units.hpp>
#include <accel/tensor/flat.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::Bytes;
using accel::tensor::flat_buffer;
using accel::tensor::for_each_group;
using accel::tensor::view_like;
using Groups = std::vector<std::vector<std::int64_t>>;
using enum c10::ScalarType;

namespace {

at::Tensor of_bytes(std::int64_t bytes) {
  return at::empty({bytes}, Byte);
}

/// The sizes in bytes of the groups' members.
Groups groups(const std::vector<at::Tensor>& tensors, std::int64_t cap) {
  Groups result;
  for_each_group(tensors, Bytes{cap}, [&](const std::vector<at::Tensor>& group) {
    auto& sizes = result.emplace_back();
    for (const auto& tensor : group) sizes.push_back(static_cast<std::int64_t>(tensor.nbytes()));
  });
  return result;
}

}  // namespace

TEST_CASE("groups are filled in order up to the cap", "[tensor]") {
  CHECK(groups({of_bytes(4), of_bytes(4), of_bytes(4)}, 8) == Groups{{4, 4}, {4}});
  CHECK(groups({of_bytes(4), of_bytes(4)}, 7) == Groups{{4}, {4}});
  CHECK(groups({of_bytes(1), of_bytes(2), of_bytes(3)}, 100) == Groups{{1, 2, 3}});
  CHECK(groups({}, 8).empty());
}

TEST_CASE("a tensor above the cap has a group to itself", "[tensor]") {
  CHECK(groups({of_bytes(4), of_bytes(20), of_bytes(4)}, 8) == Groups{{4}, {20}, {4}});
  CHECK(groups({of_bytes(20)}, 8) == Groups{{20}});
}

TEST_CASE("empty tensors belong to groups, too", "[tensor]") {
  CHECK(groups({of_bytes(0), of_bytes(8), of_bytes(0), of_bytes(1)}, 8) == Groups{{0, 8, 0}, {1}});
}

TEST_CASE("a group has one dtype, and order is kept within it", "[tensor]") {
  const std::vector<at::Tensor> tensors = {at::empty({1}, Float), at::empty({1}, Double), at::empty({2}, Float),
                                           at::empty({3}, Double), at::empty({4}, Float)};
  std::vector<std::vector<const void*>> found;
  for_each_group(tensors, Bytes{1000}, [&](const std::vector<at::Tensor>& group) {
    auto& members = found.emplace_back();
    for (const auto& tensor : group) {
      CHECK(tensor.scalar_type() == group.front().scalar_type());
      members.push_back(tensor.unsafeGetTensorImpl());
    }
  });
  const auto of = [&](std::vector<std::size_t> indices) {
    std::vector<const void*> members;
    for (const auto i : indices) members.push_back(tensors[i].unsafeGetTensorImpl());
    return members;
  };
  CHECK(found == std::vector{of({0, 2, 4}), of({1, 3})});
}

TEST_CASE("every tensor is in exactly one group, whatever the sizes", "[tensor]") {
  for (const std::int64_t cap : {1, 7, 16, 50}) {
    std::vector<at::Tensor> tensors;
    for (std::int64_t i = 0; i < 40; ++i) tensors.push_back(at::empty({(i * 7) % 11}, i % 3 == 0 ? Long : Byte));
    std::size_t count = 0;
    for_each_group(tensors, Bytes{cap}, [&](const std::vector<at::Tensor>& group) {
      std::int64_t bytes = 0;
      for (const auto& tensor : group) bytes += static_cast<std::int64_t>(tensor.nbytes());
      CHECK((bytes <= cap || group.size() == 1 || bytes == static_cast<std::int64_t>(group.front().nbytes())));
      count += group.size();
    });
    CHECK(count == tensors.size());
  }
}

TEST_CASE("a flat buffer has room for all, and no gradient", "[tensor]") {
  const std::vector<at::Tensor> tensors = {at::ones({2, 3}, Half).requires_grad_(true), at::ones({}, Half),
                                           at::ones({0}, Half)};
  const at::Tensor flat = flat_buffer(tensors);
  CHECK(flat.sizes() == at::IntArrayRef{7});
  CHECK(flat.scalar_type() == Half);
  CHECK_FALSE(flat.requires_grad());
}

TEST_CASE("a view of a buffer has the shape, the strides and the place asked for", "[tensor]") {
  at::Tensor flat = at::arange(30);
  const at::Tensor plain = at::empty({2, 3});
  CHECK(view_like(flat, 5, plain).equal(at::arange(5, 11).view({2, 3})));
  const at::Tensor transposed = at::empty({2, 3}).t();  // [3, 2], dense
  const at::Tensor view = view_like(flat, 5, transposed);
  CHECK(view.strides() == transposed.strides());
  CHECK(view.equal(at::arange(5, 11).view({2, 3}).t()));
  const at::Tensor channels_last = at::empty({1, 2, 2, 2}).contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(view_like(flat, 0, channels_last).strides() == channels_last.strides());
  const at::Tensor gaps = at::empty({4, 6}).slice(1, 0, 6, 2);  // [4, 3], not dense
  CHECK(view_like(flat, 2, gaps).equal(at::arange(2, 14).view({4, 3})));
  CHECK(view_like(flat, 29, at::empty({})).item<std::int64_t>() == 29);
  CHECK(view_like(flat, 30, at::empty({0, 3})).sizes() == at::IntArrayRef{0, 3});
  view.zero_();  // it is the buffer's memory
  CHECK(flat.sum().item<std::int64_t>() == 435 - (5 + 6 + 7 + 8 + 9 + 10));
}

TEST_CASE("views of a buffer that is a part of a storage stay in it, whatever their strides", "[tensor]") {
  const at::Tensor pool = at::arange(100, Float);
  const at::Tensor flat = pool.narrow(0, 40, 30);  // as a pool or an arena cuts it
  const at::Tensor rows = at::empty({2, 3}, Float);
  CHECK(view_like(flat, 5, rows).equal(at::arange(45, 51, Float).view({2, 3})));
  CHECK(view_like(flat, 5, rows.t()).equal(at::arange(45, 51, Float).view({2, 3}).t()));
  CHECK(view_like(flat, 5, rows.expand({4, 2, 3}).narrow(0, 0, 1)).equal(at::arange(45, 51, Float).view({1, 2, 3})));
  CHECK(view_like(flat, 29, at::empty({}, Float)).item<float>() == 69);
}

TEST_CASE("of an expanded tensor the elements with memory of their own are left", "[tensor]") {
  using accel::tensor::without_expansion;
  const at::Tensor base = at::arange(6, Float).view({2, 1, 3});
  const at::Tensor expanded = base.expand({5, 2, 4, 3});
  const at::Tensor left = without_expansion(expanded);
  CHECK(left.sizes() == at::IntArrayRef({1, 2, 1, 3}));
  CHECK(left.const_data_ptr() == base.const_data_ptr());
  CHECK(without_expansion(base).sizes() == base.sizes());
  CHECK(without_expansion(at::zeros({0, 3}, Float)).numel() == 0);
}
