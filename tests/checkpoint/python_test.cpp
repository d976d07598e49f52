// What Python writes is read here and what is written here Python reads, run live: files of tensors, models, optimizers,
// and whole checkpoints by a reader of the standard library.
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/checkpoint/torch_archive.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/tensor/safetensors.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "checkpoint/training.hpp"
#include "support/folder.hpp"
#include "support/group.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

namespace {

namespace python {

namespace fs = std::filesystem;
namespace safetensors = accel::tensor::safetensors;
using accel::CheckpointError;
using accel::testing::bits;
using accel::testing::Folder;
using accel::testing::on_ranks;
using accel::testing::Rank;
using accel::testing::run_program;
using accel::testing::Seconds;
using accel::testing::thrown_by;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

std::string interchange(const std::string& what, const fs::path& folder) {
  const std::string interpreter = ACCEL_TEST_PYTHON;
  if (interpreter.empty()) accel::testing::skip_without("safetensors", "no Python was given to the tests");
  const auto result =
      run_program({interpreter, "-B", ACCEL_TEST_DIR "/checkpoint/interchange.py", what, folder.string()},
                  {.deadline = Seconds(300), .variables = {{"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  REQUIRE(result.succeeded());
  return result.output;
}

void need_packages() {
  if (const auto missing = interchange("missing", "."); missing != "\n")
    accel::testing::skip_without("safetensors", "Python has no " + missing);
}

/// The grid of interchange.py, in its order.
const std::vector<std::pair<const char*, c10::ScalarType>> dtypes{
    {"bool", at::kBool},
    {"uint8", at::kByte},
    {"int8", at::kChar},
    {"int16", at::kShort},
    {"uint16", at::kUInt16},
    {"float16", at::kHalf},
    {"bfloat16", at::kBFloat16},
    {"int32", at::kInt},
    {"uint32", at::kUInt32},
    {"float32", at::kFloat},
    {"float64", at::kDouble},
    {"int64", at::kLong},
    {"uint64", at::kUInt64},
    {"complex64", at::kComplexFloat},
    {"float8_e4m3fn", at::kFloat8_e4m3fn},
    {"float8_e5m2", at::kFloat8_e5m2},
    {"float8_e4m3fnuz", at::kFloat8_e4m3fnuz},
    {"float8_e5m2fnuz", at::kFloat8_e5m2fnuz},
    {"float8_e8m0fnu", at::kFloat8_e8m0fnu},
    {"float4_e2m1fn_x2", at::kFloat4_e2m1fn_x2},
};
const std::vector<std::vector<std::int64_t>> shapes{{},       {0}, {1}, {3}, {2, 3}, {0, 3}, {2, 0, 4}, {1, 1, 1, 1, 2},
                                                    {7, 5, 3}};

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const auto extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

at::Tensor filled(c10::ScalarType dtype, const std::vector<std::int64_t>& shape, int number) {
  const auto result = at::empty(shape, dtype);
  auto* const bytes = static_cast<std::uint8_t*>(result.mutable_data_ptr());
  for (std::size_t i = 0; i < result.nbytes(); ++i) {
    bytes[i] = static_cast<std::uint8_t>((31 * i + 7 * static_cast<std::size_t>(number)) % 251);
    if (dtype == at::kBool) bytes[i] %= 2;
  }
  return result;
}

std::vector<accel::tensor::NamedTensor> grid() {
  std::vector<accel::tensor::NamedTensor> tensors;
  for (const auto& [name, dtype] : dtypes)
    for (const auto& shape : shapes)
      if (dtype != at::kFloat4_e2m1fn_x2 || !shape.empty())  // of two numbers in a byte there is no scalar
        tensors.push_back(
            {std::string(name) + " " + text_of(shape), filled(dtype, shape, static_cast<int>(tensors.size()))});
  return tensors;
}

std::string_view bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

/// The module of interchange.py.
struct Net : torch::nn::Module {
  Net()
      : first(register_module("first", torch::nn::Linear(5, 7))),
        norm(register_module("norm", torch::nn::BatchNorm1d(7))),
        second(register_module("second", torch::nn::Linear(7, 3))) {}
  torch::Tensor forward(const torch::Tensor& x) { return second(torch::relu(norm(first(x)))); }

  torch::nn::Linear first;
  torch::nn::BatchNorm1d norm;
  torch::nn::Linear second;
};

std::map<std::string, std::string> contents(const fs::path& path) {
  std::map<std::string, std::string> all;
  const safetensors::File file(path);
  for (const auto& name : file.names()) all[name] = bytes_of(file.read(name));
  return all;
}

std::map<std::string, std::string> contents(const torch::nn::Module& net) {
  std::map<std::string, std::string> all;
  for (const auto& item : net.named_parameters()) all[item.key()] = bytes_of(item.value());
  for (const auto& item : net.named_buffers()) all[item.key()] = bytes_of(item.value());
  return all;
}

}  // namespace python

TEST_CASE("a grid of dtypes and shapes that Python's safetensors writes is read, and ours is read by it", "[python]") {
  using namespace python;
  need_packages();
  const Folder folder;
  (void)interchange("grid", folder.path());
  const safetensors::File theirs(folder / "grid.safetensors");
  const auto own = grid();
  CHECK(theirs.names().size() == own.size());
  CHECK(theirs.metadata().at("who") == "Python");
  CHECK(theirs.metadata().at("quote\"") == "漢\n");
  for (const auto& [name, tensor] : own) {
    INFO(name);
    const auto read = theirs.read(name);
    CHECK(accel::tensor::spec(read) == accel::tensor::spec(tensor));
    CHECK(bytes_of(read) == bytes_of(tensor));
    if (read.scalar_type() != at::kBool) CHECK(bytes_of(theirs.view(name)) == bytes_of(tensor));
  }
  safetensors::write(folder / "ours.safetensors", own, theirs.metadata());
  CHECK(contents(folder / "ours.safetensors") == contents(folder / "grid.safetensors"));
  const std::string told = interchange("tell", folder.path());
  CHECK_THAT(told, ContainsSubstring("\"who\": \"Python\""));
  std::map<std::string, std::string> lines;  // of each file
  std::istringstream text(told);
  for (std::string line; std::getline(text, line);)
    lines[line.substr(0, line.find('|'))] += line.substr(line.find('|')) + "\n";
  CHECK(lines.at("ours") == lines.at("grid"));
  CHECK(std::count(lines["ours"].begin(), lines["ours"].end(), '\n') == static_cast<std::ptrdiff_t>(own.size()) + 1);
}

TEST_CASE("a state_dict of Python's, in one file or in shards, is the same C++ module's, and back, bit for bit",
          "[python]") {
  using namespace python;
  need_packages();
  const Folder folder;
  (void)interchange("model", folder.path());
  Accelerator accelerator;
  for (const char* const from : {"model.safetensors", "sharded"}) {
    auto net = std::make_shared<Net>();
    auto model = accelerator.prepare(net);
    const auto report = accelerator.load_model(model, folder / from);
    CHECK(report.fits());
    CHECK(contents(*net) == contents(folder / "model.safetensors"));
    const std::string name = std::string("ours_of_") + from;
    accelerator.save_model(model, folder / name);
    accelerator.save_model(model, folder / (name + "_sharded"), {.max_shard_size = accel::Bytes{200}});
    CHECK(fs::exists(folder / (name + "_sharded") / "model.safetensors.index.json"));
  }
  const std::string told = interchange("back", folder.path());
  CHECK(std::count(told.begin(), told.end(), '\n') == 4);
}

TEST_CASE("a training of PyTorch's goes on here: its weights, and its AdamW's state", "[python]") {
  using namespace python;
  need_packages();
  const Folder folder;
  (void)interchange("optimizer", folder.path());
  at::set_num_threads(1);
  Accelerator accelerator;
  const std::vector<std::string> names{"first.weight", "second.weight", "first.bias",
                                       "norm.weight",  "norm.bias",     "second.bias"};
  const auto goes_on = [&](auto make, auto load) {
    auto net = std::make_shared<Net>();
    const std::vector<torch::Tensor> decayed{net->first->weight, net->second->weight};
    const std::vector<torch::Tensor> others{net->first->bias, net->norm->weight, net->norm->bias, net->second->bias};
    auto [model, optimizer] = accelerator.prepare(net, make(decayed, others));
    accelerator.load_model(model, folder / "three.safetensors");
    load(optimizer.unwrap());
    for (int number = 3; number < 6; ++number) {
      const auto x = torch::arange(20, torch::kFloat).reshape({4, 5}).sub(9.5).mul(0.1 + 0.01 * number);
      optimizer.zero_grad();
      accelerator.backward(model(x).square().mean());
      optimizer.step();
    }
    const safetensors::File expected(folder / "six.safetensors");
    double largest = 0;
    for (const auto& item : net->named_parameters())
      largest = std::max(largest, (item.value() - expected.read(item.key())).abs().max().item<double>());
    return largest;
  };
  // The options here are others than those of the file, which it brings.
  const double ours = goes_on(
      [](const auto& decayed, const auto& others) {
        using Group = accel::optim::ParamGroup<accel::optim::AdamWOptions>;
        return accel::optim::AdamW({Group(decayed), Group(others)}, {.lr = 1});
      },
      [&](auto& optimizer) {
        optimizer.load_state_dict(
            accel::checkpoint::read_torch_optimizer(folder / "adamw.pt", names, optimizer.state_dict()));
        CHECK(optimizer.state_dict().integer("state.first.weight.step") == 3);
        CHECK(optimizer.state_dict().number("param_groups.0.weight_decay") == 0.1);
        CHECK(optimizer.state_dict().number("param_groups.1.betas.1") == 0.95);
      });
  CHECK(ours == 0);
  std::cout << "three steps after PyTorch's three: largest difference " << ours << "\n";

  const auto short_names = std::vector<std::string>(names.begin(), names.end() - 1);
  accel::optim::AdamW other(std::vector<torch::Tensor>{torch::zeros({3}, torch::requires_grad())}, {});
  const auto refused = [&](const fs::path& path, const std::vector<std::string>& given) {
    return thrown_by<CheckpointError>(
        [&] { (void)accel::checkpoint::read_torch_optimizer(path, given, other.state_dict()); });
  };
  CHECK_THAT(refused(folder / "adamw.pt", short_names), ContainsSubstring("5 names are given"));
  CHECK_THAT(refused(folder / "adamw.pt", names), ContainsSubstring("it has 2 groups of parameters"));
  CHECK_THAT(refused(folder / "three.safetensors", names),
             ContainsSubstring("expected a file of torch.save(optimizer.state_dict(), path)"));
  CHECK_THAT(refused(folder / "nowhere.pt", names), ContainsSubstring("nowhere.pt: cannot open it"));
}

TEST_CASE("an archive of torch::save becomes a file of weights", "[checkpoint]") {
  using namespace python;
  const Folder folder;
  const auto old = std::make_shared<Net>();
  torch::save(old, (folder / "old.pt").string());
  accel::checkpoint::convert_torch_archive(folder / "old.pt", folder / "new.safetensors");
  CHECK(contents(folder / "new.safetensors") == contents(*old));
  Accelerator accelerator;
  auto net = std::make_shared<Net>();
  auto model = accelerator.prepare(net);
  accelerator.load_model(model, folder / "new.safetensors");
  CHECK(contents(*net) == contents(*old));
  CHECK_THAT(thrown_by<CheckpointError>(
                 [&] { accel::checkpoint::convert_torch_archive(folder / "new.safetensors", folder / "x"); }),
             ContainsSubstring("new.safetensors: expected an archive of torch::save(module, path)"));
  CHECK_FALSE(fs::exists(folder / "x"));
}

TEST_CASE("a reader of a hundred lines of Python, of its standard library, reads a checkpoint of two ranks",
          "[python][saver]") {
  using namespace python;
  using accel::testing::checkpoints::Training;
  accel::testing::checkpoints::on_ranks_in_folder({2}, [](Rank rank, const fs::path& base) {
    accel::testing::Group<accel::backend::Gloo> group;
    accel::checkpoint::Saver saver(group->control(), rank.rank, accel::Log(), {.folder = base}, accel::Seconds(20));
    Training training(rank.rank);
    const auto place = saver.save(std::nullopt, training.parts(), 5, {.asynchronous = false}, {}, {});
    if (rank.rank != 0) return;
    const std::string interpreter = ACCEL_TEST_PYTHON;
    const auto read = [&] {
      return run_program({interpreter.empty() ? "python3" : interpreter, "-B",
                          ACCEL_TEST_DIR "/checkpoint/read_checkpoint.py", place.string()});
    };
    const auto result = read();
    INFO(result.output);
    CHECK(result.succeeded());
    const auto crc = [](const torch::Tensor& tensor) {
      return accel::checkpoint::detail::hex(
          accel::crc32c({static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}));
    };
    for (const std::string& line :
         {std::string("checkpoint 5 2"), std::string("model - steps int [] 3"),
          std::string("model - rate float [] 0.1"), "model - weight F32 [25, 40] " + crc(training.weight),
          "model - half BF16 [33] " + crc(training.half), std::string("model - empty F32 [0, 3] 00000000"),
          std::string("loader - rows int [] 12"), "random 0 cpu I64 [7] " + crc(Training(0).random),
          "random 1 cpu I64 [7] " + crc(Training(1).random)})
      CHECK_THAT(result.output, ContainsSubstring(line + "\n"));
    {
      std::fstream file(place / "rank1.safetensors", std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-1, std::ios::end);
      file.put('!');
    }
    CHECK_FALSE(read().succeeded());
  });
}

}  // namespace
