// Prepared schedulers: when they advance, and by which value.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using torch::optim::SGD;

namespace {

double rate(SGD& sgd) {
  return sgd.param_groups()[0].options().get_lr();
}

}  // namespace

TEST_CASE("a scheduler advances with optimizer steps, not with micro-steps", "[scheduler]") {
  on_ranks({1, 2}, [](Rank) {
    Gloo accelerator({.accumulation_steps = 3});
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    torch::optim::StepLR halving(sgd, /*step_size=*/1, /*gamma=*/0.5);
    torch::optim::ReduceLROnPlateauScheduler plateau(sgd);
    auto [model, optimizer, scheduler, on_plateau, loader] = accelerator.prepare(
        net, sgd, halving, plateau, data::DataLoader{Doubles{14 * accelerator.world_size()}, {.batch_size = 2}});
    std::vector<double> rates;    // LibTorch's StepLR changes nothing at its first step
    for (auto& batch : loader) {  // 7 micro-steps: windows of 3, 3 and 1
      auto micro_step = accelerator.accumulate(batch);
      accelerator.backward(model(batch.x).mean() * 0);
      optimizer.step();
      scheduler.step();
      rates.push_back(sgd.param_groups()[0].options().get_lr());
    }
    on_plateau.step(1.0F);
    REQUIRE(rates == std::vector<double>{1, 1, 1, 1, 1, 0.5, 0.25});
  });
}

TEST_CASE("after the loop a scheduler advances at every call, wherever the window stands", "[scheduler]") {
  on_ranks({1, 2}, [](Rank) {
    for (const bool by_loader : {true, false}) {
      Gloo accelerator({.accumulation_steps = 4});
      auto net = std::make_shared<Line>();
      SGD sgd(net->parameters(), 1.0);
      torch::optim::StepLR halving(sgd, /*step_size=*/1, /*gamma=*/0.5);
      auto [model, optimizer, scheduler, loader] = accelerator.prepare(
          net, sgd, halving, data::DataLoader{Doubles{10 * accelerator.world_size()}, {.batch_size = 1}});
      std::vector<double> rates;
      for (int epoch = 0; epoch < 5; ++epoch) {
        for (auto& batch : loader) {
          auto micro_step = by_loader ? accelerator.accumulate(batch) : accelerator.accumulate();
          accelerator.backward(model(batch.x).mean() * 0);
          optimizer.step();
        }
        scheduler.step();  // once per epoch; LibTorch's StepLR changes nothing at its first step
        rates.push_back(rate(sgd));
      }
      REQUIRE(rates == std::vector<double>{1, 0.5, 0.25, 0.125, 0.0625});
    }
  });
}

TEST_CASE("a plateau is judged by the mean over the ranks, so that all have one rate", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    Plateau plateau(sgd, Plateau::min, /*factor=*/0.5F, /*patience=*/0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    // The last rank's own losses get better, those of the others do not; the mean falls once.
    const std::vector<float> own =
        rank.rank == rank.world_size - 1 ? std::vector<float>{9, 6, 3, 1} : std::vector<float>{3, 3, 6, 9};
    const auto expected = rank.world_size == 1 ? std::vector<double>{1, 1, 1, 1} : std::vector<double>{1, 1, 0.5, 0.25};
    std::vector<double> rates;
    for (const float loss : own) {
      scheduler.step(loss);
      rates.push_back(rate(sgd));
    }
    REQUIRE(rates == expected);
    const auto everywhere = accelerator.gather(torch::tensor(rate(sgd)));
    for (int r = 0; r < rank.world_size; ++r) REQUIRE(everywhere[r].item<double>() == rate(sgd));
  });
}

TEST_CASE("a value that all ranks share is judged as it is", "[scheduler]") {
  on_ranks({1, 2, 3}, [](Rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    // Not better by one bit is not better.
    Plateau plateau(sgd, Plateau::min, 0.5F, 0, 0.0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    scheduler.step(0.1F);
    scheduler.step(std::nextafter(0.1F, 0.0F));
    REQUIRE(rate(sgd) == 1);
    scheduler.step(std::nextafter(0.1F, 0.0F));
    REQUIRE(rate(sgd) == 0.5);
  });
}

TEST_CASE("whole numbers are averaged, too", "[scheduler]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    SGD sgd(net->parameters(), 1.0);
    using Plateau = torch::optim::ReduceLROnPlateauScheduler;
    Plateau plateau(sgd, Plateau::max, 0.5F, /*patience=*/0);
    auto [model, optimizer, scheduler] = accelerator.prepare(net, sgd, plateau);
    for (int right : {10, 20, 30}) scheduler.step(rank.rank == 0 ? right : 10 * rank.world_size);
    scheduler.step(std::int64_t{1});
    REQUIRE(rate(sgd) == 0.5);
    const auto everywhere = accelerator.gather(torch::tensor(rate(sgd)));
    for (int r = 0; r < rank.world_size; ++r) REQUIRE(everywhere[r].item<double>() == rate(sgd));
  });
}
