// Weights in shards, under other names, in another dtype, and files that only partly fit.
#include <torch/torch.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/shards.hpp>
#include <accel/tensor/safetensors.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

namespace {

namespace shards {

namespace fs = std::filesystem;
using accel::Bytes;
using accel::CheckpointError;
using accel::InvalidArgument;
using accel::checkpoint::ShardedFile;
using accel::testing::bits;
using accel::testing::Folder;
using accel::testing::Mlp;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using A = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

/// The files of a folder.
std::set<std::string> files_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

void zero(torch::nn::Module& net) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : net.parameters()) parameter.zero_();
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace shards

TEST_CASE("a save in shards, in fewer and in one file leaves what belongs to the newest alone, and loads bit for bit",
          "[checkpoint]") {
  using namespace shards;
  on_ranks({1, 2}, [](Rank rank) {
    A accelerator;
    const Folder own;
    const auto folder = accelerator.broadcast_object(own.path().string());
    auto net = std::make_shared<Mlp>();  // of 140, 28, 84 and 12 bytes
    auto model = accelerator.prepare(net);
    const std::string one = "model.safetensors", index = "model.safetensors.index.json";
    const auto shard = [](int number, int count, const char* more = "") {
      return accel::message("model-0000", number, "-of-0000", count, more, ".safetensors");
    };
    const std::vector<std::pair<std::int64_t, std::set<std::string>>> saves{
        {1000, {one}},
        {1, {shard(1, 4), shard(2, 4), shard(3, 4), shard(4, 4), index}},
        {100, {shard(1, 3), shard(2, 3), shard(3, 3), index}},
        // The same number again: the old ones are whole until the new are, so the new have other names.
        {100, {shard(1, 3, "-2"), shard(2, 3, "-2"), shard(3, 3, "-2"), index}},
        {264, {one}},
    };
    for (const auto& [most, files] : saves) {
      {
        const torch::NoGradGuard no_grad;
        for (auto& parameter : net->parameters()) parameter.add_(1);
      }
      const auto before = bits(net->parameters());
      accelerator.save_model(model, folder, {.max_shard_size = Bytes{most}});
      if (rank.rank == 0) CHECK(files_in(folder) == files);
      zero(*net);
      CHECK(accelerator.load_model(model, folder).fits());
      CHECK(bits(net->parameters()) == before);
    }
    accelerator.wait_for_everyone();
  });
}

TEST_CASE("an index that is damaged, points elsewhere, or lacks a file is refused before anything has changed",
          "[checkpoint]") {
  using namespace shards;
  A accelerator;
  const Folder folder;
  auto net = std::make_shared<Mlp>();
  auto model = accelerator.prepare(net);
  accelerator.save_model(model, folder.path(), {.max_shard_size = Bytes{100}});
  const fs::path index = folder / "model.safetensors.index.json";
  const std::string good = text_of(index);
  const auto before = bits(net->parameters());
  const auto refused = [&](const std::string& text) {
    std::ofstream(index) << text;
    auto error = thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder.path()); });
    CHECK(bits(net->parameters()) == before);
    return error;
  };
  const auto with = [&](std::string from, const std::string& to) {
    std::string text = good;
    const auto at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
  };
  CHECK_THAT(refused("{"), ContainsSubstring("model.safetensors.index.json"));
  CHECK_THAT(refused("{}"), ContainsSubstring("model.safetensors.index.json"));
  CHECK_THAT(refused(with("\"first.bias\"", "\"third.bias\"")), ContainsSubstring("third.bias"));
  CHECK_THAT(refused(with("model-00001-of", "../model-00001-of")), ContainsSubstring("../model-00001-of"));
  CHECK_THAT(refused(with("model-00001-of-00003", "model-00009-of-00003")), ContainsSubstring("model-00009-of-00003"));
  std::ofstream(index) << good;
  fs::remove(folder / "model-00002-of-00003.safetensors");
  CHECK_THAT(thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder.path()); }),
             ContainsSubstring("model-00002-of-00003.safetensors"));
}

TEST_CASE("rules give a model's tensors other names in files, for both ways", "[checkpoint]") {
  using namespace shards;
  A accelerator;
  const Folder folder;
  auto net = std::make_shared<Mlp>();
  auto model = accelerator.prepare(net);
  const std::vector<accel::NameRule> rules{{"^", "bert."}, {R"(\bfirst\.(\w+))", "layer_1.$1"}};
  const auto before = bits(net->parameters());
  accelerator.save_model(model, folder.path(), {.rename = rules});
  const accel::tensor::safetensors::File file(folder / "model.safetensors");
  for (const char* name : {"bert.layer_1.weight", "bert.layer_1.bias", "bert.second.weight", "bert.second.bias"})
    CHECK(file.contains(name));
  zero(*net);
  CHECK_THAT(thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder.path()); }),
             ContainsSubstring("missing in the file: first.weight, first.bias, second.weight, second.bias") &&
                 ContainsSubstring("not in the model: bert.layer_1.bias, bert.layer_1.weight"));
  CHECK(accelerator.load_model(model, folder.path(), {.rename = rules}).fits());
  CHECK(bits(net->parameters()) == before);
  CHECK_THAT(thrown_by<InvalidArgument>([&] { accelerator.load_model(model, folder.path(), {.rename = {{"(", ""}}}); }),
             ContainsSubstring("rename: \"(\" is no regular expression"));
  // Two that would become one are none: nothing is overwritten without a word.
  CHECK_THAT(thrown_by<InvalidArgument>(
                 [&] { accelerator.save_model(model, folder.path(), {.rename = {{"^(first|second)", "x"}}}); }),
             ContainsSubstring("expected each name once, found \"x.bias\" twice"));
}

TEST_CASE("of a file that partly fits what fits is loaded if that is asked for, and the rest is listed",
          "[checkpoint]") {
  using namespace shards;
  struct Other : torch::nn::Module {
    Other()
        : first(register_module("first", torch::nn::Linear(5, 7))),
          second(register_module("second", torch::nn::Linear(8, 3))),
          third(register_module("third", torch::nn::Linear(2, 2))) {}
    torch::nn::Linear first, second, third;
    torch::Tensor forward(const torch::Tensor& x) { return first(x); }
  };
  on_ranks({1, 2}, [](Rank rank) {
    A accelerator;
    const Folder own;
    const auto folder = accelerator.broadcast_object(own.path().string());
    torch::manual_seed(1);
    auto net = std::make_shared<Mlp>();
    auto model = accelerator.prepare(net);
    accelerator.save_model(model, folder);
    torch::manual_seed(2);
    auto other = std::make_shared<Other>();
    auto its_model = accelerator.prepare(other);
    const auto second = bits({other->second->weight, other->third->weight});
    CHECK_THAT(thrown_by<CheckpointError>([&] { accelerator.load_model(its_model, folder); }),
               ContainsSubstring("missing in the file: third.weight, third.bias; other tensors: second.weight is "
                                 "f32[3, 7] in the file and f32[3, 8] in the model"));
    const auto report = accelerator.load_model(its_model, folder, {.strict = false});
    if (rank.rank == 0) {
      CHECK(report.missing == std::vector<std::string>{"third.weight", "third.bias"});
      CHECK(report.unexpected.empty());
      CHECK(report.mismatched.size() == 1);
    }
    CHECK(bits({other->first->weight, other->first->bias, other->second->bias}) ==
          bits({net->first->weight, net->first->bias, net->second->bias}));
    CHECK(bits({other->second->weight, other->third->weight}) == second);
    accelerator.wait_for_everyone();
  });
}

TEST_CASE("weights are written in another dtype, and read from one, only where that is asked for", "[checkpoint]") {
  using namespace shards;
  A accelerator;
  const Folder folder;
  auto net = std::make_shared<Mlp>();
  auto model = accelerator.prepare(net);
  std::vector<torch::Tensor> rounded;
  for (const auto& parameter : net->parameters()) rounded.push_back(parameter.detach().to(torch::kBFloat16));
  accelerator.save_model(model, folder.path(), {.dtype = torch::kBFloat16});
  const auto before = bits(net->parameters());
  CHECK_THAT(thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder.path()); }),
             ContainsSubstring("first.weight is bf16[7, 5] in the file and f32[7, 5] in the model"));
  CHECK(bits(net->parameters()) == before);
  CHECK(accelerator.load_model(model, folder.path(), {.converts_dtype = true}).fits());
  std::vector<torch::Tensor> expected;
  for (const auto& tensor : rounded) expected.push_back(tensor.to(torch::kFloat));
  CHECK(bits(net->parameters()) == bits(expected));
}

}  // namespace
