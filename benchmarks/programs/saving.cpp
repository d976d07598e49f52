// Trains, saves while it trains, and loads again: a line of JSON with nanoseconds.
//
//   saving FOLDER MEGABYTES STEPS
//
// MEGABYTES are those of weights and AdamW's state together.
#include <torch/torch.h>

#include <accel/accelerator.hpp>
#include <accel/checkpoint/reader.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/file.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

namespace {

namespace fs = std::filesystem;
using Accelerator = accel::Accelerator<accel::backend::Single, accel::precision::Fp32>;
using Clock = std::chrono::steady_clock;

std::int64_t since(Clock::time_point begin) {
  return std::chrono::nanoseconds(Clock::now() - begin).count();
}

constexpr std::int64_t width = 1024;

struct Training {
  Training(const fs::path& folder, std::int64_t megabytes)
      : accelerator({.checkpoint = {.folder = folder, .keep = {.total_limit = 1}}, .log = accel::Log::Level::warning}) {
    const std::int64_t layers = std::max<std::int64_t>(megabytes * 1'000'000 / (3 * 4 * width * (width + 1)), 1);
    for (std::int64_t i = 0; i < layers; ++i) net->push_back(torch::nn::Linear(width, width));
    auto [prepared_model, prepared_optimizer] =
        accelerator.prepare(net.ptr(), accel::optim::AdamW(net->parameters(), {.lr = 1e-4}));
    model = std::make_unique<Model>(std::move(prepared_model));
    optimizer = std::make_unique<Optimizer>(std::move(prepared_optimizer));
  }

  void step() {
    optimizer->zero_grad();
    accelerator.backward((*model)(input).square().mean());
    optimizer->step();
  }

  using Model = accel::prepare::Model<torch::nn::SequentialImpl, accel::precision::Fp32>;
  using Optimizer = accel::prepare::Optimizer<accel::optim::AdamW>;

  Accelerator accelerator;
  torch::nn::Sequential net;
  std::unique_ptr<Model> model;
  std::unique_ptr<Optimizer> optimizer;
  torch::Tensor input = torch::randn({16, width});
};

std::string list(const std::vector<std::int64_t>& values) {
  std::string text;
  for (const auto value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

std::uint64_t bytes_in(const fs::path& folder) {
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) bytes += entry.file_size();
  return bytes;
}

/// As many bytes as fast as the disk takes them: what no checkpoint can be faster than.
std::int64_t write_raw(const fs::path& path, std::uint64_t bytes) {
  const std::vector<char> block(8 << 20, 'x');
  const auto begin = Clock::now();
  accel::OutputFile file(path);
  while (bytes > 0) {
    const auto count = std::min<std::uint64_t>(bytes, block.size());
    file.write(block.data(), count);
    bytes -= count;
  }
  file.flush();
  file.close();
  const auto taken = since(begin);
  fs::remove(path);
  return taken;
}

/// The bytes of a file in memory of their own, with a checksum, by all threads: what no load can be faster than.
std::int64_t read_raw(const fs::path& path, int threads) {
  constexpr std::uint64_t piece = 256 << 10;  // in the cache when it is looked at
  const auto begin = Clock::now();
  const accel::InputFile file(path);
  const torch::Tensor memory = torch::empty({static_cast<std::int64_t>(file.size())}, torch::kByte);
  auto* const bytes = static_cast<std::byte*>(memory.mutable_data_ptr());
  std::atomic<std::uint64_t> next = 0, sums = 0;
  const auto work = [&] {
    for (std::uint64_t at = next++ * piece; at < file.size(); at = next++ * piece) {
      const auto count = static_cast<std::size_t>(std::min(piece, file.size() - at));
      file.read(bytes + at, count, at);
      sums += accel::crc32c({bytes + at, count});
    }
  };
  std::vector<std::jthread> others;
  while (static_cast<int>(others.size()) + 1 < threads) others.emplace_back(work);
  work();
  others.clear();
  return sums == 0 ? 0 : since(begin);
}

}  // namespace

int main(int argc, char* argv[]) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() != 3) return 2;
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  torch::set_num_threads(1);  // a core is left to the writer
  const fs::path folder = arguments[0];
  const std::int64_t megabytes = std::stoll(arguments[1]), steps = std::stoll(arguments[2]);
  std::vector<std::int64_t> alone, during, whole, written, raw;
  std::int64_t call = 0, first = 0;
  fs::path place;
  {
    Training training(folder, megabytes);
    for (int i = 0; i < 2; ++i) training.step();
    for (std::int64_t i = 0; i < steps; ++i) {
      const auto begin = Clock::now();
      training.step();
      alone.push_back(since(begin));
    }
    // In the background. The step behind it waits for what is not copied yet.
    (void)training.accelerator.save_state();
    training.step();
    training.accelerator.wait_for_save();
    auto begin = Clock::now();
    (void)training.accelerator.save_state();
    call = since(begin);
    begin = Clock::now();
    training.step();
    first = since(begin);
    for (std::int64_t i = 0; i < steps && training.accelerator.is_saving(); ++i) {
      begin = Clock::now();
      training.step();
      during.push_back(since(begin));
    }
    training.accelerator.wait_for_save();
    // In turns, each behind a disk that has nothing left to do.
    for (int turn = 0; turn < 3; ++turn) {
      ::sync();
      begin = Clock::now();
      place = training.accelerator.save_state(std::nullopt, {.asynchronous = false});
      whole.push_back(since(begin));
      ::sync();
      begin = Clock::now();  // the same without removing an older one
      const fs::path named = training.accelerator.save_state(folder / "named", {.asynchronous = false});
      written.push_back(since(begin));
      fs::remove_all(named);
      ::sync();
      raw.push_back(write_raw(folder / "raw", bytes_in(place)));
    }
  }
  torch::set_num_threads(threads);  // nothing else is to be done meanwhile
  const auto read = read_raw(place / "rank0.safetensors", threads);
  Training again(folder, megabytes);
  auto begin = Clock::now();
  (void)again.accelerator.load_state();
  const auto load = since(begin);
  begin = Clock::now();
  const accel::checkpoint::Reader reader(place);
  const auto first_tensor = reader.part("model", 0)->own().tensor("0.weight");
  const auto open = since(begin);
  std::cout << R"({"alone_ns": )" << list(alone) << R"(, "during_ns": )" << list(during) << R"(, "call_ns": )" << call
            << R"(, "first_ns": )" << first << R"(, "whole_ns": )" << list(whole) << R"(, "written_ns": )"
            << list(written) << R"(, "raw_ns": )" << list(raw) << R"(, "read_ns": )" << read << R"(, "load_ns": )"
            << load << R"(, "open_ns": )" << open << "}\n";
}
