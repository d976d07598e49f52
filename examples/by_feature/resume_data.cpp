// A run that is stopped in the middle of an epoch goes on with the very batches that were left: same rows, same order,
// same augmentation. It takes no longer at the end of an epoch than at its beginning. Run it as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/resume_data
#include <torch/torch.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <accel/accelerator.hpp>

using accel::data::DataLoader;
namespace safetensors = accel::tensor::safetensors;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;

struct Noisy {
  std::size_t size() const { return 100; }
  std::pair<torch::Tensor, std::int64_t> get(std::size_t row, at::Generator& random) const {
    return {torch::rand({}, random), static_cast<std::int64_t>(row)};
  }
};

// What stands in for a training: it notes what it is given, and stops after some batches.
std::vector<std::string> walk(Accelerator& accelerator, const std::string& state_file, int stop_after) {
  auto loader = accelerator.prepare(DataLoader{Noisy{}, {.batch_size = 8, .shuffle = true, .seed = 1, .workers = 2}});
  if (std::filesystem::exists(state_file)) {
    const safetensors::File file(state_file);
    accel::tensor::StateDict state;
    for (const auto& name : file.names()) state.add(name, file.read(name));
    loader.load_state_dict(state);  // on every rank
  }
  std::vector<std::string> seen;
  while (loader.epoch() < 3)
    for (auto& [noise, rows] : loader) {
      seen.push_back(accel::message(rows, noise));
      if (static_cast<int>(seen.size()) < stop_after) continue;
      safetensors::write(state_file, loader.state_dict().entries());
      return seen;
    }
  return seen;
}

int main() {
  Accelerator accelerator;
  // Of a real run rank 0 writes one file for all: every rank's state is the same.
  const auto state_file =
      (std::filesystem::temp_directory_path() / ("accel_resume_data_" + std::to_string(::getpid()) + ".safetensors"))
          .string();
  const int never = std::numeric_limits<int>::max();
  const auto whole = walk(accelerator, state_file, never);

  auto in_parts = walk(accelerator, state_file, 5);
  const auto stopped = in_parts.size();
  for (auto& batch : walk(accelerator, state_file, never)) in_parts.push_back(std::move(batch));
  std::filesystem::remove(state_file);

  if (in_parts != whole) accelerator.set_trigger();  // any rank may say it, and all hear it
  const bool same = !accelerator.check_trigger();
  accelerator.print("stopped behind ", stopped, " of ", whole.size(), " batches, went on with ",
                    in_parts.size() - stopped, ": ", same ? "all the same" : "NOT THE SAME");
  return same ? 0 : 1;
}
