// Loads data as a training does, and says what of it the training had to wait for: a line of JSON.
//
//   loading waiting FILE WORKERS STEPS WIDTH    batches of 64 images of FILE (CIFAR-10's records), flipped and shifted
//   loading resume ORDER ROWS PLACE             from a saved position to the first batch: ns
//   loading memory ORDER ROWS                   a shuffled epoch begun and walked for a while: bytes that this took
//
// ORDER is shuffled (PyTorch's) or permuted.
#include <torch/torch.h>

#include <accel/accelerator.hpp>

#include <sys/resource.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Accelerator = accel::Accelerator<accel::backend::Single, accel::precision::Fp32>;
using accel::data::DataLoader;
using accel::data::DataLoaderOptions;
using Clock = std::chrono::steady_clock;

std::int64_t since(Clock::time_point begin) {
  return std::chrono::nanoseconds(Clock::now() - begin).count();
}

/// A byte of label and 3 x 32 x 32 of image, one record after the other.
class Images {
 public:
  explicit Images(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    if (bytes.empty() || bytes.size() % record != 0) throw std::runtime_error(path + " holds no records");
    records_ = torch::empty({static_cast<std::int64_t>(bytes.size() / record), record}, torch::kByte);
    std::memcpy(records_.mutable_data_ptr(), bytes.data(), bytes.size());
  }

  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(records_.size(0)); }

  [[nodiscard]] std::pair<torch::Tensor, std::int64_t> get(std::size_t row, at::Generator& random) const {
    const auto bytes = records_[static_cast<std::int64_t>(row)];
    auto image = bytes.narrow(0, 1, record - 1).view({3, 32, 32}).to(torch::kFloat).div_(255);
    if (torch::rand({1}, random).item<float>() < 0.5F) image = image.flip(2);
    image = torch::constant_pad_nd(image, {4, 4, 4, 4});
    const auto place = torch::randint(9, {2}, random);
    image = image.narrow(1, place[0].item<std::int64_t>(), 32).narrow(2, place[1].item<std::int64_t>(), 32);
    return {image, bytes[0].item<std::int64_t>()};
  }

 private:
  static constexpr std::int64_t record = 3073;
  torch::Tensor records_;
};

/// Row i is i: what it takes to be there is the loader's own.
struct Numbers {
  std::int64_t rows;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] torch::Tensor get_batch(const std::vector<std::int64_t>& of) const { return torch::tensor(of); }
};

DataLoaderOptions options_of(const std::string& order) {
  DataLoaderOptions options{.batch_size = 64, .seed = 1};
  if (order == "shuffled")
    options.shuffle = true;
  else
    options.sampler = accel::data::sampler::permuted();
  return options;
}

void wait_for_data(const std::string& path, int workers, std::int64_t steps, std::int64_t width) {
  Accelerator accelerator;
  torch::nn::Sequential net(torch::nn::Flatten(), torch::nn::Linear(3072, width), torch::nn::ReLU(),
                            torch::nn::Linear(width, width), torch::nn::ReLU(), torch::nn::Linear(width, 10));
  torch::optim::SGD sgd(net->parameters(), 0.01);
  auto loader = accelerator.prepare(
      DataLoader{Images(path), {.batch_size = 64, .shuffle = true, .seed = 1, .workers = workers, .prefetch = 4}});
  std::vector<std::int64_t> waits, walls;
  while (std::ssize(waits) < steps) {
    auto batch = loader.begin();  // the first batch of an epoch has nothing to hide behind
    for (auto begin = Clock::now(); batch != loader.end() && std::ssize(waits) < steps;) {
      sgd.zero_grad();
      torch::nn::functional::cross_entropy(net->forward((*batch).first), (*batch).second).backward();
      sgd.step();
      const auto asked = Clock::now();
      ++batch;
      waits.push_back(since(asked));
      walls.push_back(since(begin));
      begin = Clock::now();
    }
  }
  const auto list = [](const std::vector<std::int64_t>& values) {
    std::string text;
    for (const auto value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
    return "[" + text + "]";
  };
  std::cout << R"({"wait_ns": )" << list(waits) << R"(, "step_ns": )" << list(walls) << "}\n";
}

void resume(const std::string& order, std::int64_t rows, double place) {
  Accelerator accelerator;
  const auto loader_of = [&] { return accelerator.prepare(DataLoader{Numbers{rows}, options_of(order)}); };
  auto stopped = loader_of();
  stopped.skip_first(static_cast<std::int64_t>(place * static_cast<double>(rows) / 64));
  const auto state = stopped.state_dict();
  auto loader = loader_of();
  const auto begin = Clock::now();
  loader.load_state_dict(state);
  auto batch = loader.begin();
  const auto taken = since(begin);
  std::cout << R"({"ns": )" << taken << R"(, "row": )" << (*batch)[0].item<std::int64_t>() << "}\n";
}

std::int64_t peak_bytes() {
  rusage usage{};
  (void)::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

void memory(const std::string& order, std::int64_t rows) {
  Accelerator accelerator;
  auto loader = accelerator.prepare(DataLoader{Numbers{rows}, options_of(order)});
  {
    auto small = accelerator.prepare(DataLoader{Numbers{1000}, options_of(order)});
    for ([[maybe_unused]] auto& batch : small) break;
  }
  const auto before = peak_bytes();
  for ([[maybe_unused]] auto& batch : loader)
    if (loader.position().index == 1000) break;
  std::cout << R"({"bytes": )" << peak_bytes() - before << "}\n";
}

}  // namespace

int main(int argc, char* argv[]) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  torch::set_num_threads(1);
  const std::string what = arguments.empty() ? "" : arguments[0];
  if (what == "waiting" && arguments.size() == 5)
    wait_for_data(arguments[1], std::stoi(arguments[2]), std::stoll(arguments[3]), std::stoll(arguments[4]));
  else if (what == "resume" && arguments.size() == 4)
    resume(arguments[1], std::stoll(arguments[2]), std::stod(arguments[3]));
  else if (what == "memory" && arguments.size() == 3)
    memory(arguments[1], std::stoll(arguments[2]));
  else
    return 2;
}
