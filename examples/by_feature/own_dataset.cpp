// A dataset of your own: images from a binary file, turned and shifted at random, read by four threads. The file has
// CIFAR-10's format; this program writes a small one of its own, so that it runs anywhere. Run it as any other program:
//
//   torchrun --nproc-per-node 2 --no-python build/quickstart/examples/own_dataset
#include <torch/torch.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include <accel/accelerator.hpp>
#include <accel/core/mapped_file.hpp>

using accel::data::DataLoader;
namespace fs = std::filesystem;

struct Row {
  torch::Tensor image;  // f32[3, 32, 32], from -1 to 1; the loader makes f32[rows, 3, 32, 32] of it
  torch::Tensor label;  // i64[]
};

// What a loader asks for: size() and get(). Both are const, so that its threads can share one dataset.
class Cifar10 {
 public:
  Cifar10(const fs::path& path, bool augment) : file_(path, accel::Access::random), augment_(augment) {
    if (file_.size() % record != 0) throw accel::DataError(path.string() + ": no whole number of records");
  }

  std::size_t size() const { return file_.size() / record; }

  // `random` belongs to this row in this epoch: the same row is drawn alike by any number of threads and ranks, and
  // after a resume. A dataset that draws nothing has get(row) alone.
  Row get(std::size_t row, at::Generator& random) const {
    const auto bytes = file_.bytes(row * record, record);  // throws, if they are not there
    auto image = torch::empty({3, 32, 32}, torch::kByte);
    std::memcpy(image.data_ptr(), bytes.data() + 1, record - 1);
    image = image.to(torch::kFloat) / 127.5 - 1;
    if (augment_) {
      const auto draw = [&](std::int64_t end) { return torch::randint(end, {1}, random).item<std::int64_t>(); };
      if (draw(2) == 1) image = image.flip(2);
      image = torch::constant_pad_nd(image, {4, 4, 4, 4}).narrow(1, draw(9), 32).narrow(2, draw(9), 32);
    }
    return {image, torch::tensor(static_cast<std::int64_t>(bytes[0]))};
  }

 private:
  static constexpr std::size_t record = 1 + 3 * 32 * 32;  // label, then red, green and blue pixels

  accel::MappedFile file_;
  bool augment_;
};

// Ten classes of noise, each in a colour of its own. Equal on every rank, which each write one.
fs::path write_images(int count) {
  const auto path = fs::temp_directory_path() / ("accel_own_dataset_" + std::to_string(::getpid()) + ".bin");
  std::ofstream file(path, std::ios::binary);
  torch::manual_seed(1);
  for (int i = 0; i < count; ++i) {
    const int label = i % 10;
    const auto colour = torch::tensor({label % 3, label / 3 % 3, label / 9}).view({3, 1, 1});
    const auto image = (75 * colour + torch::rand({3, 32, 32}) * 100).to(torch::kByte);
    file.put(static_cast<char>(label)).write(static_cast<const char*>(image.const_data_ptr()), image.numel());
  }
  return path;
}

int main() {
  const fs::path path = write_images(640);
  torch::manual_seed(0);  // equal weights at the start
  accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32> accelerator;

  torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 32, 4).stride(4)), torch::nn::ReLU(),
                            torch::nn::AdaptiveAvgPool2d(1), torch::nn::Flatten(), torch::nn::Linear(32, 10));
  auto [model, optimizer, batches, all] = accelerator.prepare(
      net.ptr(), accel::optim::AdamW{{.lr = 1e-2}},
      DataLoader{Cifar10(path, /*augment=*/true), {.batch_size = 16, .shuffle = true, .workers = 4}},
      DataLoader{Cifar10(path, /*augment=*/false), {.batch_size = 80}});
  fs::remove(path);  // what is mapped stays

  for (int epoch = 0; epoch < 5; ++epoch)
    for (auto& [image, label] : batches) {
      optimizer.zero_grad();
      accelerator.backward(torch::cross_entropy_loss(model(image), label));
      optimizer.step();
    }

  const torch::NoGradGuard no_grad;
  double right = 0;
  for (auto& [image, label] : all) {
    const auto [guess, truth] = accelerator.gather_for_metrics(model(image).argmax(1), label);
    right += guess.eq(truth).sum().item<double>();
  }
  accelerator.print("accuracy ", right / static_cast<double>(all.rows()), " of ", all.rows(), " images");
}
