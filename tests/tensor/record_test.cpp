// Record: a module's tensors, each once, and what must be equal on all ranks.
#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include <accel/tensor/record.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>

using accel::tensor::Record;
using accel::tensor::record;
using Names = std::vector<std::string>;

namespace {

struct Inner : torch::nn::Module {
  Inner() : w(register_parameter("w", torch::ones({2, 3}))) {
    register_buffer("count", torch::zeros({}, torch::kLong));
  }

  torch::Tensor w;
};

struct Net : torch::nn::Module {
  Net() {
    top = register_parameter("top", torch::ones({4}, torch::kHalf));
    frozen = register_parameter("frozen", torch::ones({1}), /*requires_grad=*/false);
    inner = register_module("inner", std::make_shared<Inner>());
    register_parameter("absent", torch::Tensor(), /*requires_grad=*/false);
  }

  torch::Tensor top, frozen;
  std::shared_ptr<Inner> inner;
};

/// One weight under three names, in two modules, and a buffer under two.
struct Tied : torch::nn::Module {
  Tied() {
    weight = register_parameter("embedding", torch::ones({3, 2}));
    other = register_parameter("other", torch::ones({3, 2}));
    register_parameter("head", weight);
    inner = register_module("inner", std::make_shared<torch::nn::Module>());
    inner->register_parameter("w", weight);
    buffer = register_buffer("mask", torch::ones({2}));
    register_buffer("mask again", buffer);
  }

  torch::Tensor weight, other, buffer;
  std::shared_ptr<torch::nn::Module> inner;
};

Names names(const std::vector<accel::tensor::NamedTensor>& list) {
  Names result;
  for (const auto& [name, tensor] : list) result.push_back(name);
  return result;
}

}  // namespace

TEST_CASE("a record lists parameters and buffers by LibTorch's names, undefined ones left out", "[tensor]") {
  Net net;
  const Record found = record(net, "model 3");
  CHECK(names(found.parameters) == Names{"top", "frozen", "inner.w"});
  CHECK(names(found.buffers) == Names{"inner.count"});
  CHECK(found.aliases.empty());
  CHECK(found.trainable == std::vector<bool>{true, false, true});
  CHECK(found.dtypes == std::vector{at::kHalf, at::kFloat, at::kFloat});
  CHECK(found.parameters[2].tensor.is_same(net.inner->w));
  CHECK(names(found.trainable_parameters()) == Names{"top", "inner.w"});
  CHECK(found.parameter_tensors().size() == 3);
  CHECK(found.tensors().size() == 4);
  CHECK(found.tensors().back().scalar_type() == at::kLong);
}

TEST_CASE("a tied tensor is listed once, with its further names", "[tensor]") {
  Tied net;
  CHECK(net.parameters().size() == 4);  // what LibTorch makes of it
  const Record found = record(net, "m");
  CHECK(names(found.parameters) == Names{"embedding", "other"});
  CHECK(names(found.buffers) == Names{"mask"});
  REQUIRE(found.aliases.size() == 3);
  for (const auto& [name, of] : found.aliases) CHECK(of == (name == "mask again" ? "mask" : "embedding"));
  CHECK(found.aliases[0].name == "head");
  CHECK(found.aliases[1].name == "inner.w");
}

TEST_CASE("equal values are no tie", "[tensor]") {
  Tied net;
  CHECK(net.weight.equal(net.other));
  CHECK(record(net, "m").parameters.size() == 2);
}

TEST_CASE("a record knows the tensors it holds, not their equals", "[tensor]") {
  Tied net;
  const Record found = record(net, "m");
  CHECK(found.holds(net.weight));
  CHECK(found.holds(net.named_parameters()["inner.w"]));
  CHECK_FALSE(found.holds(net.weight.clone()));
  CHECK_FALSE(found.holds(net.weight.detach()));
  CHECK_FALSE(found.holds(net.buffer));
  CHECK_FALSE(found.holds(torch::Tensor()));
}

TEST_CASE("a description has a line for everything that must be equal", "[tensor]") {
  Net net;
  Names lines = {"before"};
  record(net, "model 0").describe(lines);
  CHECK(lines == Names{"before", "model 0: top f16[4] requires_grad", "model 0: frozen f32[1] frozen",
                       "model 0: inner.w f32[2, 3] requires_grad", "model 0: buffer inner.count i64[]"});
  Tied tied;
  Names ties;
  record(tied, "m").describe(ties);
  CHECK(ties == Names{"m: embedding f32[3, 2] requires_grad", "m: other f32[3, 2] requires_grad",
                      "m: buffer mask f32[2]", "m: head tied to embedding", "m: inner.w tied to embedding",
                      "m: mask again tied to mask"});
}

TEST_CASE("an empty module has an empty record", "[tensor]") {
  torch::nn::Module net;
  const Record found = record(net, "m");
  CHECK(found.tensors().empty());
  Names lines;
  found.describe(lines);
  CHECK(lines.empty());
}
