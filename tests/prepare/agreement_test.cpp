// What prepare compares between the ranks: every setting and layout that a wrong number could come from.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <functional>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

/// `change` is made on the last rank alone; every rank must refuse, and name both values.
void differ(Rank rank, const std::function<void(Gloo::Options&)>& change, const std::string& first,
            const std::string& last) {
  Gloo::Options options{.accumulation_steps = 4};
  if (rank.rank == rank.world_size - 1) change(options);
  Gloo accelerator(options);
  REQUIRE_THROWS_WITH(accelerator.prepare(std::make_shared<Line>()),
                      ContainsSubstring("rank 0 has " + first) &&
                          ContainsSubstring("rank " + std::to_string(rank.world_size - 1) + " has " + last));
}

/// The same for what prepare is given: `make(true)` on the last rank.
void refuse(Rank rank, const std::function<void(Gloo&, bool)>& prepare, const std::string& first,
            const std::string& last) {
  Gloo accelerator;
  REQUIRE_THROWS_WITH(prepare(accelerator, rank.rank == rank.world_size - 1),
                      ContainsSubstring(first) && ContainsSubstring(last) && ContainsSubstring("rank 0 has"));
}

}  // namespace

TEST_CASE("settings that differ between ranks are refused by prepare", "[agreement]") {
  on_ranks({2, 3}, [](Rank rank) {
    differ(
        rank, [](auto& options) { options.gradient.caps.bucket_cap = 1_MiB; },
        "buckets of an eighth of the gradients (1 to 25 MiB)", "buckets of 1 MiB");
    differ(
        rank, [](auto& options) { options.gradient.caps.last_bucket_cap = 64_B; },
        "buckets of an eighth of the gradients (1 to 25 MiB), the last of 1 MiB",
        "buckets of an eighth of the gradients (1 to 25 MiB), the last of 64 B");
    differ(rank, [](auto& options) { options.gradient.overlap = false; }, "overlap = true", "overlap = false");
    differ(
        rank, [](auto& options) { options.gradient.broadcast_buffers = false; }, "broadcast_buffers = true",
        "broadcast_buffers = false");
    differ(
        rank, [](auto& options) { options.accumulation_steps = 2; }, "accumulation_steps = 4",
        "accumulation_steps = 2");
    differ(
        rank, [](auto& options) { options.loss_normalization = gradient::LossNormalization::fixed_steps; },
        "loss_normalization = window_length", "loss_normalization = fixed_steps");
  });
}

TEST_CASE("options of an optimizer's groups that differ between ranks are refused", "[agreement]") {
  on_ranks({2, 3}, [](Rank rank) {
    const auto with = [&](auto make, const std::string& first, const std::string& last) {
      refuse(
          rank,
          [&](Gloo& accelerator, bool other) {
            auto net = std::make_shared<Line>();
            (void)accelerator.prepare(net, make(net, other));
          },
          first, last);
    };
    with([](auto& net, bool other) { return torch::optim::SGD(net->parameters(), other ? 0.5 : 1.0); }, "lr = 1",
         "lr = 0.5");
    with(
        [](auto& net, bool other) {
          return torch::optim::SGD(net->parameters(), torch::optim::SGDOptions(1.0).momentum(other ? 0.9 : 0));
        },
        "momentum = 0", "momentum = 0.9");
    with(
        [](auto& net, bool other) {
          return torch::optim::AdamW(net->parameters(),
                                     torch::optim::AdamWOptions(1e-3).betas({0.9, other ? 0.99 : 0.999}));
        },
        "0.999", "0.99");
    with(
        [](auto& net, bool other) {
          return torch::optim::Adam(net->parameters(), torch::optim::AdamOptions(1e-3).amsgrad(other));
        },
        "amsgrad = false", "amsgrad = true");
    // The second group alone, and its options alone.
    with(
        [](auto& net, bool other) {
          torch::optim::SGD sgd(std::vector<torch::Tensor>{}, 1.0);
          sgd.add_param_group(torch::optim::OptimizerParamGroup(
              net->parameters(), std::make_unique<torch::optim::SGDOptions>(other ? 0.25 : 0.125)));
          return sgd;
        },
        "lr = 0.125", "lr = 0.25");
  });
}

namespace {

/// Says nothing about its options but the rate.
struct SilentOptions : torch::optim::OptimizerCloneableOptions<SilentOptions> {
  explicit SilentOptions(double rate) : lr(rate) {}
  [[nodiscard]] double get_lr() const override { return lr; }
  double lr;
};

/// Holds a tensor, of which a text shows four digits, and something nested.
struct RichOptions : torch::optim::OptimizerCloneableOptions<RichOptions> {
  explicit RichOptions(double weight) : weights(torch::full({2}, weight, torch::kDouble)) {}
  void serialize(torch::serialize::OutputArchive& archive) const override {
    archive.write("weights", weights);
    torch::serialize::OutputArchive nested(archive.compilation_unit());
    nested.write("more", weights);
    archive.write("nested", nested);
  }
  void serialize(torch::serialize::InputArchive&) override {}
  torch::Tensor weights;
};

struct Rich : torch::optim::Optimizer {
  Rich(std::vector<torch::Tensor> parameters, double weight)
      : Optimizer(std::move(parameters), std::make_unique<RichOptions>(weight)) {}
  torch::Tensor step(LossClosure = nullptr) override { return {}; }
};

struct Silent : torch::optim::Optimizer {
  Silent(std::vector<torch::Tensor> parameters, double lr)
      : Optimizer(std::move(parameters), std::make_unique<SilentOptions>(lr)) {}
  torch::Tensor step(LossClosure = nullptr) override { return {}; }
};

}  // namespace

TEST_CASE("an optimizer that does not serialize its options is compared by its rate", "[agreement]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, Silent(net->parameters(), 0.1));
    if (rank.world_size == 1) return;
    auto other = std::make_shared<Line>();
    REQUIRE_THROWS_WITH(accelerator.prepare(other, Silent(other->parameters(), 0.1 * (rank.rank + 1))),
                        ContainsSubstring("lr = 0.1") && ContainsSubstring("lr = 0.2"));
  });
}

TEST_CASE("tensors among an optimizer's options are compared to the last bit", "[agreement]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<Line>();
    auto [model, optimizer] = accelerator.prepare(net, Rich(net->parameters(), 1.5));
    if (rank.world_size == 1) return;
    auto other = std::make_shared<Line>();
    REQUIRE_THROWS_WITH(accelerator.prepare(other, Rich(other->parameters(), 1.5 + 1e-15 * rank.rank)),
                        ContainsSubstring("weights = f64[2] "));
  });
}

TEST_CASE("strides that differ between ranks are refused: the same place of a bucket is another weight",
          "[agreement]") {
  on_ranks({2, 3}, [](Rank rank) {
    refuse(
        rank,
        [](Gloo& accelerator, bool other) {
          auto net = std::make_shared<torch::nn::Conv2dImpl>(torch::nn::Conv2dOptions(3, 4, 2));
          if (other) net->weight.set_data(net->weight.detach().clone(torch::MemoryFormat::ChannelsLast));
          (void)accelerator.prepare(net);
        },
        "weight f32[4, 3, 2, 2] requires_grad", "weight f32[4, 3, 2, 2] with strides [12, 1, 6, 3]");
  });
}

namespace {

struct HoldingBuffer : torch::nn::Module {
  explicit HoldingBuffer(const torch::Tensor& tensor) : buffer(register_buffer("buffer", tensor)) {}
  torch::Tensor buffer;
};

}  // namespace

TEST_CASE("expanded buffers are broadcast, and refused where one rank's alone is one", "[agreement]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    const auto own = torch::full({2, 1, 3}, rank.rank + 5, torch::kLong);
    auto model = accelerator.prepare(std::make_shared<HoldingBuffer>(own.expand({2, 4, 3})));
    REQUIRE(torch::equal(model->buffer, torch::full({2, 4, 3}, 5, torch::kLong)));
    REQUIRE(model->buffer.stride(1) == 0);
  });
  on_ranks({2, 3}, [](Rank rank) {
    refuse(
        rank,
        [](Gloo& accelerator, bool other) {
          const auto one = torch::ones({1, 3});
          (void)accelerator.prepare(std::make_shared<HoldingBuffer>(other ? one.expand({4, 3}) : torch::ones({4, 3})));
        },
        "buffer f32[4, 3]", "buffer f32[4, 3] with strides [0, 1]");
  });
}

TEST_CASE("ranks that agree are prepared, whatever their settings are", "[agreement]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator({.accumulation_steps = 1,
                      .loss_normalization = gradient::LossNormalization::fixed_steps,
                      .gradient = {.caps = {.bucket_cap = 64_B}, .overlap = false, .broadcast_buffers = false}});
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::LBFGS(net->parameters(), 0.5));
    accelerator.backward(model(torch::full({1, 5}, rank.rank + 1.0)).sum());
    REQUIRE(net->first->weight.grad().defined());
  });
}
