// save_model and load_model: a model's weights come back bit for bit, on every rank, or not at all.
#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "checkpoint/training.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

namespace fs = std::filesystem;
using accel::CheckpointError;
using accel::testing::bits;
using accel::testing::Folder;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::thrown_by;
using accel::testing::checkpoints::on_ranks_in_folder;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;
using Tensors = std::vector<torch::Tensor>;

namespace {

/// Parameters and buffers of several dtypes, empty and scalar ones among them.
struct Mixed : torch::nn::Module {
  Mixed() {
    first = register_parameter("first", torch::randn({5, 3}));
    second = register_parameter("second", torch::randn({2}, torch::kDouble));
    empty = register_parameter("empty", torch::randn({0, 4}));
    scalar = register_parameter("scalar", torch::randn({}));
    frozen = register_parameter("frozen", torch::randn({4}, torch::kBFloat16), /*requires_grad=*/false);
    steps = register_buffer("steps", torch::randint(1000, {3}, torch::kLong));
    mask = register_buffer("mask", torch::randint(2, {7}).to(torch::kBool));
    norm = register_module("norm", torch::nn::BatchNorm1d(3));
  }
  torch::Tensor forward(const torch::Tensor& x) { return norm->forward(x.matmul(first)); }

  torch::Tensor first, second, empty, scalar, frozen, steps, mask;
  torch::nn::BatchNorm1d norm{nullptr};
};

/// Two names for one weight.
struct Tied : torch::nn::Module {
  Tied() : weight(register_parameter("embedding", torch::randn({4, 3}))) { register_parameter("head", weight); }

  torch::Tensor weight;
};

/// A model of these parameters alone.
struct Only : torch::nn::Module {
  explicit Only(const std::vector<std::pair<std::string, torch::Tensor>>& parameters) {
    for (const auto& [name, tensor] : parameters) register_parameter(name, tensor.clone());
  }
};

Tensors all_tensors(const torch::nn::Module& net) {
  Tensors tensors = net.parameters();
  for (const auto& buffer : net.buffers()) tensors.push_back(buffer);
  return tensors;
}

void scramble(const torch::nn::Module& net) {
  const torch::NoGradGuard no_grad;
  for (auto& tensor : all_tensors(net)) tensor.zero_();
}

}  // namespace

TEST_CASE("weights come back bit for bit on every rank", "[checkpoint]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& folder) {
    Accelerator accelerator;
    torch::manual_seed(static_cast<std::uint64_t>(rank.rank));
    auto net = std::make_shared<Mixed>();
    auto model = accelerator.prepare(net);  // rank 0's weights on all
    const auto saved = bits(all_tensors(*net));
    accelerator.save_model(model, folder / "a");
    CHECK(fs::exists(folder / "a" / "model.safetensors"));

    scramble(*net);
    CHECK(bits(all_tensors(*net)) != saved);
    const auto storage = net->first.data_ptr();
    accelerator.load_model(model, folder / "a");
    CHECK(bits(all_tensors(*net)) == saved);
    CHECK(net->first.data_ptr() == storage);  // in place: optimizers and gradient views stay right
    CHECK(net->first.requires_grad());
    CHECK_FALSE(net->frozen.requires_grad());

    // Into a model of another process, with other weights.
    torch::manual_seed(static_cast<std::uint64_t>(100 + rank.rank));
    auto other = std::make_shared<Mixed>();
    auto other_model = accelerator.prepare(other);
    CHECK(bits(all_tensors(*other)) != saved);
    accelerator.load_model(other_model, folder / "a");
    CHECK(bits(all_tensors(*other)) == saved);
  });
}

TEST_CASE("bits that are no numbers survive", "[checkpoint]") {
  on_ranks_in_folder({1, 2}, [](Rank, const fs::path& folder) {
    Accelerator accelerator;
    const auto strange =
        torch::tensor({0x7fc00001, -1, 0x7f800000, 1, -2147483647 - 1}, torch::kInt).view(torch::kFloat);
    auto net = std::make_shared<Only>(std::vector{std::pair(std::string("w"), strange)});
    auto model = accelerator.prepare(net);
    const auto saved = bits(net->parameters());
    CHECK(saved == bits({strange}));
    accelerator.save_model(model, folder / "a");
    scramble(*net);
    accelerator.load_model(model, folder / "a");
    CHECK(bits(net->parameters()) == saved);
  });
}

TEST_CASE("a file with a bool that is neither 0 nor 1 changes nobody's weights", "[checkpoint]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<Mixed>();
    auto model = accelerator.prepare(net);
    accelerator.save_model(model, folder / "a");
    const fs::path path = folder / "a" / "model.safetensors";
    if (rank.rank == 0) {
      const auto at = accel::tensor::safetensors::File(path).offset("mask");
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(at) + 3);
      file.put('\2');
    }
    scramble(*net);
    const auto before = bits(all_tensors(*net));
    CHECK_THAT(thrown_by<CheckpointError>([&] { (void)accelerator.load_model(model, path); }),
               ContainsSubstring("\"mask\": expected 0 or 1 at offset"));
    CHECK(bits(all_tensors(*net)) == before);
  });
}

TEST_CASE("a second save replaces the first and leaves nothing else", "[checkpoint]") {
  on_ranks_in_folder({1, 2}, [](Rank rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<accel::testing::Mlp>();
    auto model = accelerator.prepare(net);
    accelerator.save_model(model, folder / "deep/er");
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : net->parameters()) parameter.add_(1);
    }
    const auto second = bits(net->parameters());
    accelerator.save_model(model, folder / "deep/er");
    scramble(*net);
    accelerator.load_model(model, folder / "deep/er");
    CHECK(bits(net->parameters()) == second);
    if (rank.rank == 0) {
      const fs::directory_iterator entries(folder / "deep/er");
      CHECK(std::distance(begin(entries), end(entries)) == 1);
    }
  });
}

TEST_CASE("the ranks' weights are those of the file, though only rank 0 has it", "[checkpoint]") {
  on_ranks({2, 3}, [](Rank rank) {
    Accelerator accelerator;
    const Folder own;  // another on every rank
    auto net = std::make_shared<accel::testing::Mlp>();
    auto model = accelerator.prepare(net);
    const auto saved = bits(net->parameters());
    accelerator.save_model(model, own.path());
    CHECK(own.count() == (rank.rank == 0 ? 1 : 0));
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : net->parameters()) parameter.fill_(rank.rank);
    }
    accelerator.load_model(model, own.path());
    CHECK(bits(net->parameters()) == saved);
  });
}

TEST_CASE("a tied parameter is written once and comes back tied", "[checkpoint]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<Tied>();
    auto model = accelerator.prepare(net);
    const auto saved = bits({net->weight});
    accelerator.save_model(model, folder / "a");
    const accel::tensor::safetensors::File file(folder / "a" / "model.safetensors");
    CHECK(file.names() == std::vector<std::string>{"embedding"});
    CHECK(file.metadata().at("head") == "embedding");
    CHECK(file.metadata().at("format") == "pt");
    scramble(*net);
    accelerator.load_model(model, folder / "a");
    CHECK(bits({net->weight}) == saved);
    CHECK(net->named_parameters()["head"].is_same(net->named_parameters()["embedding"]));
  });
}

TEST_CASE("a file that keeps the other name of a tied parameter is taken", "[checkpoint]") {
  on_ranks_in_folder({1, 2}, [](Rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<Tied>();
    auto model = accelerator.prepare(net);
    auto stranger =
        accelerator.prepare(std::make_shared<Only>(std::vector{std::pair(std::string("head"), torch::ones({4, 3}))}));
    accelerator.save_model(stranger, folder / "a");
    accelerator.load_model(model, folder / "a");
    CHECK(net->weight.detach().equal(torch::ones({4, 3})));
  });
}

TEST_CASE("a file of another model is refused on every rank, and nothing is overwritten", "[checkpoint]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank, const fs::path& folder) {
    using List = std::vector<std::pair<std::string, torch::Tensor>>;
    Accelerator accelerator;
    const auto a = torch::full({2, 3}, 1.0F);
    const auto b = torch::full({4}, 2.0F);
    auto net = std::make_shared<Only>(List{{"a", a}, {"b", b}});
    auto model = accelerator.prepare(net);
    const auto before = bits(net->parameters());
    const auto refused = [&](const List& in_file, const std::vector<std::string>& words) {
      auto other = accelerator.prepare(std::make_shared<Only>(in_file));
      accelerator.save_model(other, folder / "other");
      const auto error = thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder / "other"); });
      for (const auto& word : words) CHECK_THAT(error, ContainsSubstring(word));
      CHECK_THAT(error, ContainsSubstring((folder / "other" / "model.safetensors").string()));
      CHECK(bits(net->parameters()) == before);
    };
    refused({{"a", a + 7}}, {"missing in the file: b"});
    refused({{"a", a + 7}, {"b", b + 7}, {"c", b}}, {"not in the model: c"});
    refused({{"a", a + 7}, {"b", torch::ones({5})}}, {"b is f32[5] in the file and f32[4] in the model"});
    refused({{"a", a + 7}, {"b", torch::ones({4, 1})}}, {"b is f32[4, 1] in the file and f32[4] in the model"});
    refused({{"a", a + 7}, {"b", torch::ones({4}, torch::kDouble)}},
            {"b is f64[4] in the file and f32[4] in the model"});
  });
}

TEST_CASE("a file that is missing, cut short or no safetensors is an error on every rank", "[checkpoint]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<accel::testing::Mlp>();
    auto model = accelerator.prepare(net);
    const auto before = bits(net->parameters());
    const auto refused = [&](const char* name) {
      const auto error = thrown_by<CheckpointError>([&] { accelerator.load_model(model, folder / name); });
      CHECK_THAT(error, ContainsSubstring((folder / name).string()));
      if (rank.rank > 0) CHECK_THAT(error, ContainsSubstring("load_model failed on rank 0"));
      CHECK(bits(net->parameters()) == before);
    };
    refused("nowhere");
    accelerator.save_model(model, folder / "cut");
    if (rank.rank == 0) fs::resize_file(folder / "cut" / "model.safetensors", 200);
    refused("cut");
    if (rank.rank == 0) {
      fs::create_directories(folder / "text");
      std::ofstream(folder / "text" / "model.safetensors") << "these are no weights at all";
      fs::create_directories(folder / "folder" / "model.safetensors");
    }
    refused("text");
    refused("folder");
    accelerator.save_model(model, folder / "good");  // and everybody goes on
    accelerator.load_model(model, folder / "good");
    CHECK(bits(net->parameters()) == before);
  });
}

// Not by permissions: tests may run as root, whom they do not stop.
TEST_CASE("a folder that cannot be written is an error on every rank", "[checkpoint]") {
  on_ranks_in_folder({1, 2, 3}, [](Rank rank, const fs::path& folder) {
    Accelerator accelerator;
    auto net = std::make_shared<accel::testing::Mlp>();
    auto model = accelerator.prepare(net);
    if (rank.rank == 0) {
      std::ofstream(folder / "file") << "a file";
      fs::create_directories(folder / "taken" / "model.safetensors" / "by a folder");
    }
    accelerator.wait_for_everyone();
    const auto refused = [&](const char* name) {
      const auto error = thrown_by<CheckpointError>([&] { accelerator.save_model(model, folder / name); });
      CHECK_THAT(error, ContainsSubstring((folder / name).string()));
      if (rank.rank > 0) CHECK_THAT(error, ContainsSubstring("save_model failed on rank 0"));
      if (rank.world_size > 1)
        CHECK_THAT(error,
                   ContainsSubstring("[rank " + std::to_string(rank.rank) + "/" + std::to_string(rank.world_size)));
    };
    refused("file");
    refused("file/below");
    refused("taken");
    if (rank.rank == 0) {
      CHECK(fs::file_size(folder / "file") == 6);
      const fs::directory_iterator entries(folder / "taken");
      CHECK(std::distance(begin(entries), end(entries)) == 1);  // no temporary file is left
    }
    accelerator.save_model(model, folder / "good");  // and everybody goes on
    CHECK(fs::exists(folder / "good" / "model.safetensors"));
  });
}
