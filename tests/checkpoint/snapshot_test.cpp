// Snapshot: copies of what tensors were, and no copy that a write has torn goes unnoticed.
#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/snapshot.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

namespace {

namespace snapshots {

using accel::checkpoint::CopyMemory;
using accel::checkpoint::Snapshot;
using accel::tensor::NamedTensor;
using Names = std::vector<std::string>;

TEST_CASE("a write that begins before a copy and is counted behind it tears that copy", "[snapshot]") {
  CopyMemory memory;
  const torch::Tensor early = torch::zeros({5}), late = torch::zeros({5}), untouched = torch::zeros({0, 3});
  const std::vector<NamedTensor> tensors{{"early", early}, {"late", late}, {"untouched", untouched}};
  Snapshot snapshot(tensors, {}, memory);
  early.add_(1);
  snapshot.copy();
  CHECK(snapshot.torn() == Names{"early"});
  late.mutable_data_ptr<float>()[0] = 1;  // the write goes on ...
  CHECK(snapshot.torn() == Names{"early"});
  late.unsafeGetTensorImpl()->bump_version();  // ... and only its end is counted
  SECTION("seen by who looks last") {
    CHECK(snapshot.torn() == Names{"early", "late"});
  }
  SECTION("seen when the tensors may be written to") {
    snapshot.settle();
    untouched.add_(1);
    CHECK(snapshot.torn() == Names{"early", "late"});
  }
}

TEST_CASE("behind settle() everything may be written to, and what is copied at once always", "[snapshot]") {
  CopyMemory memory;
  const torch::Tensor strided = torch::arange(12, torch::kFloat).view({3, 4}).t(), plain = torch::arange(5);
  const torch::Tensor at_once = torch::ones({2}), before = strided.clone();
  const std::vector<NamedTensor> later{{"strided", strided}, {"plain", plain}}, now{{"at once", at_once}};
  Snapshot snapshot(later, now, memory);
  at_once.zero_();
  CHECK(plain.storage().use_count() > 1);
  snapshot.settle();
  CHECK(plain.storage().use_count() == 1);  // or an optimizer would take it for somebody else's, too
  strided.zero_();
  plain.zero_();
  snapshot.settle();
  snapshot.copy();
  CHECK(snapshot.torn().empty());
  REQUIRE(snapshot.size() == 3);
  CHECK(torch::equal(snapshot[0], before));
  CHECK(torch::equal(snapshot[1], torch::arange(5)));
  CHECK(torch::equal(snapshot[2], torch::ones({2})));
}

TEST_CASE("behind settle() of some tensors all that lies where they do may be written to, and nothing else",
          "[snapshot]") {
  CopyMemory memory;
  const torch::Tensor all = torch::arange(64, torch::kFloat), empty = torch::zeros({0}), other = torch::ones({3});
  // Memory of their own to whoever counts versions, as parameters in flat memory are.
  const auto part = [&](std::int64_t begin, torch::IntArrayRef sizes, torch::IntArrayRef strides) {
    return torch::empty({0}).set_(all.storage(), begin, sizes, strides);
  };
  const torch::Tensor first = part(0, {8}, {1}), column = part(8, {4}, {8}), last = part(33, {31}, {1});
  const std::vector<NamedTensor> tensors{
      {"first", first}, {"column", column}, {"last", last}, {"empty", empty}, {"other", other}};
  Snapshot snapshot(tensors, {}, memory);
  const torch::Tensor written = part(32, {1}, {1}), nothing = torch::zeros({0, 2});
  snapshot.settle(std::vector{written, nothing});  // the last of the column, and right before what follows
  const auto count = [](const torch::Tensor& tensor) { tensor.unsafeGetTensorImpl()->bump_version(); };
  all.fill_(-1);
  for (const auto& tensor : {first, column, last, empty}) count(tensor);
  snapshot.settle(std::vector{other, other});
  other.zero_();
  snapshot.copy();
  CHECK(snapshot.torn() == Names{"first", "last"});
  CHECK(torch::equal(snapshot[0], torch::full({8}, -1.0)));  // it was not copied before
  CHECK(torch::equal(snapshot[1], torch::tensor({8.0F, 16.0F, 24.0F, 32.0F})));
  CHECK(torch::equal(snapshot[4], torch::ones({3})));
  snapshot.settle();
  CHECK(other.storage().use_count() == 1);
  CHECK(snapshot.torn() == Names{"first", "last"});
}

TEST_CASE("where all wait for what is done with it, nothing is copied but what lies otherwise than it is written",
          "[snapshot]") {
  CopyMemory memory;
  const torch::Tensor plain = torch::ones({5}), strided = torch::arange(6).view({2, 3}).t(), small = torch::ones({2});
  const std::vector<NamedTensor> later{{"plain", plain}, {"strided", strided}}, now{{"small", small}};
  Snapshot snapshot(later, now, memory, /*others_wait=*/true);
  snapshot.copy();
  CHECK(snapshot[0].const_data_ptr() == plain.const_data_ptr());
  CHECK(snapshot[1].const_data_ptr() != strided.const_data_ptr());
  CHECK(snapshot[1].is_contiguous());
  CHECK(torch::equal(snapshot[1], strided));
  CHECK(snapshot[2].const_data_ptr() == small.const_data_ptr());
  CHECK(snapshot.torn().empty());
  small.add_(1);  // somebody does not wait
  CHECK(snapshot.torn() == Names{"small"});
}

TEST_CASE("the step of an optimizer that was not prepared is noticed in weights and states", "[snapshot]") {
  const auto torn_by_step = [](auto optimizer, const torch::Tensor& weight) {
    const auto step = [&] {
      weight.mutable_grad() = torch::ones_like(weight);
      optimizer.step();
    };
    step();
    CopyMemory memory;
    std::vector<NamedTensor> tensors{{"weight", weight}};
    const auto state = optimizer.state_dict();
    for (const auto& entry : state.entries())
      if (entry.tensor.dim() > 0) tensors.push_back(entry);
    Snapshot snapshot(tensors, {}, memory);
    snapshot.copy();
    step();
    return snapshot.torn();
  };
  const auto weight = [](torch::ScalarType dtype) { return torch::ones({3, 4}, dtype).requires_grad_(); };
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    const torch::Tensor own = weight(dtype);
    const auto torn = torn_by_step(accel::optim::AdamW({own}, {.lr = 1e-3}), own);
    CHECK(torn.size() == (dtype == torch::kFloat ? 3U : 4U));  // exp_avg, exp_avg_sq, and a master
  }
  const torch::Tensor own = weight(torch::kFloat);
  CHECK(torn_by_step(accel::optim::SGD({own}, {.lr = 1e-3, .momentum = 0.9}), own).size() == 2);
}

}  // namespace snapshots

}  // namespace
