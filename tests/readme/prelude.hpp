// What README's program leaves to its reader: Net and Digits. And one line about the result, which the
// program itself does not print.
#pragma once

// The quickstart's, under another name: Net below is it, and speaks at its end.
#define Net QuickstartNet
#include "digits.hpp"
#undef Net

#include <cstdio>
#include <cstdlib>

struct Net : QuickstartNet {
  Net() = default;
  Net(const Net&) = delete;
  Net& operator=(const Net&) = delete;

  ~Net() override {
    const torch::NoGradGuard no_grad;
    const Digits held_out("digits.csv", Digits::test);
    const Batch batch = held_out.get_batch(torch::arange(static_cast<std::int64_t>(held_out.size())));
    const auto right = forward(batch.data).argmax(1).eq(batch.target).to(torch::kDouble).mean().item<double>();
    double sum = 0;
    for (const auto& parameter : parameters()) sum += parameter.to(torch::kDouble).sum().item<double>();
    const char* rank = std::getenv("RANK");
    std::printf("rank %s: accuracy %.3f, sum of the parameters %a\n", rank == nullptr ? "alone" : rank, right, sum);
  }
};
