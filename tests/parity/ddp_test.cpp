// Against PyTorch's DistributedDataParallel, run live.
#include "support/folder.hpp"
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

using namespace accel;
using namespace accel::testing;

namespace {

constexpr int ddp_steps = 20;
constexpr std::int64_t ddp_rows = 8;

void write(const std::filesystem::path& path, const torch::Tensor& tensor) {
  const auto flat = tensor.detach().contiguous();
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(flat.const_data_ptr()), static_cast<std::streamsize>(flat.nbytes()));
}

torch::Tensor flat(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> rows_of;
  for (const auto& tensor : tensors) rows_of.push_back(tensor.detach().flatten());
  return torch::cat(rows_of);
}

/// The gradients after every backward of DDP, as ddp.py writes them.
torch::Tensor recorded(int world_size, const std::filesystem::path& folder) {
  torch::manual_seed(3);
  const Noise data(ddp_steps * ddp_rows * world_size);
  write(folder / "parameters.bin", flat(Mlp().parameters()));
  write(folder / "data.bin", data.all.data);
  write(folder / "target.bin", data.all.target);
  ReservedPort port;
  const auto result =
      run_program({ACCEL_TEST_PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", std::to_string(world_size),
                   "--master-port", std::to_string(port.number()), ACCEL_TEST_DIR "/parity/ddp.py", folder.string(),
                   std::to_string(ddp_steps), std::to_string(ddp_rows)},
                  {.deadline = Seconds(120), .variables = {{"OMP_NUM_THREADS", "1"}}});
  INFO(result.output);
  REQUIRE(result.succeeded());
  std::ifstream file(folder / "gradients.bin", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  auto gradients = torch::empty({static_cast<std::int64_t>(bytes.size() / sizeof(float))});
  std::memcpy(gradients.mutable_data_ptr(), bytes.data(), bytes.size());
  return gradients;
}

}  // namespace

TEST_CASE(".grad after backward is what PyTorch's DDP leaves: bit for bit at 2 ranks, within 1e-6 at 3", "[parity]") {
  if (std::string(ACCEL_TEST_PYTHON).empty())
    accel::testing::skip_without("torchrun", "no Python with torch was found, so DDP cannot run");
  for (const int world_size : {2, 3}) {
    std::optional<Folder> own;  // of the test; its ranks are told where it is
    if (std::getenv("RANK") == nullptr) {
      own.emplace();
      write(own->path() / "expected.bin", recorded(world_size, own->path()));
      ::setenv("ACCEL_TEST_DDP_FOLDER", own->path().c_str(), 1);
    }
    const std::filesystem::path folder = std::getenv("ACCEL_TEST_DDP_FOLDER");
    on_ranks({world_size}, [&](Rank rank) {
      torch::manual_seed(3);
      Accelerator<backend::Gloo, precision::Fp32> accelerator;
      auto net = std::make_shared<Mlp>();
      auto [model, loader] = accelerator.prepare(
          net, data::DataLoader{Noise(ddp_steps * ddp_rows * world_size), {.batch_size = ddp_rows}});
      std::vector<torch::Tensor> seen;
      for (auto& batch : loader) {
        net->zero_grad();
        accelerator.backward(cross_entropy(model(batch.data), batch.target));
        torch::NoGradGuard no_grad;
        for (auto& parameter : net->parameters()) {
          seen.push_back(parameter.grad().clone());
          parameter.sub_(parameter.grad() * 0.5);
        }
      }
      std::ifstream file(folder / "expected.bin", std::ios::binary);
      const std::string bytes((std::istreambuf_iterator<char>(file)), {});
      const auto ours = flat(seen);
      REQUIRE(bytes.size() == ours.nbytes());
      if (rank.world_size == 2) {
        REQUIRE(bits({ours})[0] == bytes);
      } else {
        auto theirs = torch::empty_like(ours);
        std::memcpy(theirs.mutable_data_ptr(), bytes.data(), bytes.size());
        REQUIRE(distance({ours}, {theirs}) < 1e-6);
      }
    });
  }
}
