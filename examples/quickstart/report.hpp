// What both programs show and write down. Nothing of accel, and nothing that training needs.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

/// Prints one line per epoch: rewritten while it lasts on a terminal, once when it is over in a log.
/// Only where `shown`; the other ranks keep quiet.
class Report {
 public:
  Report(int epochs, bool shown) : epochs_(epochs), shown_(shown) {}

  void step(int epoch, std::int64_t step, std::int64_t steps) {
    if (epoch != epoch_) {
      epoch_ = epoch;
      begin_ = Clock::now();
    }
    if (!shown_ || !isatty(STDOUT_FILENO)) return;
    std::printf("\repoch %2d/%d  step %lld/%lld", epoch + 1, epochs_, static_cast<long long>(step),
                static_cast<long long>(steps));
    std::fflush(stdout);
  }

  /// Call it before evaluating: the time of training ends here.
  void trained(std::int64_t samples) {
    samples_per_s_ = static_cast<double>(samples) / std::chrono::duration<double>(Clock::now() - begin_).count();
  }

  void epoch(double loss, double accuracy) {
    loss_.push_back(loss);
    accuracy_ = accuracy;
    if (!shown_) return;
    if (isatty(STDOUT_FILENO)) std::printf("\r");
    std::printf("epoch %2d/%d  loss %.4f  accuracy %5.1f %%  %7.0f samples/s\n", static_cast<int>(loss_.size()),
                epochs_, loss, 100 * accuracy, samples_per_s_);
    std::fflush(stdout);
  }

  void write(const std::string& path) const {
    if (!shown_) return;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream file(path);
    file.precision(17);
    file << "{\"loss\": [";
    for (std::size_t i = 0; i < loss_.size(); ++i) file << (i > 0 ? ", " : "") << loss_[i];
    file << "], \"accuracy\": " << accuracy_ << ", \"samples_per_s\": " << samples_per_s_ << "}\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
  }

 private:
  using Clock = std::chrono::steady_clock;

  int epochs_;
  bool shown_;
  int epoch_ = -1;
  Clock::time_point begin_;
  double samples_per_s_ = 0;
  std::vector<double> loss_;
  double accuracy_ = 0;
};
