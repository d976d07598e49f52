// Gradients of every kind: complex, sparse, strided, without an element.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <limits>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;
using Catch::Matchers::ContainsSubstring;

namespace {

struct Holding : torch::nn::Module {
  explicit Holding(const torch::Tensor& tensor) : weight(register_parameter("weight", tensor)) {}
  torch::Tensor weight;
};

}  // namespace

TEST_CASE("complex parameters are broadcast and reduced", "[dtypes]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    for (const auto dtype : {torch::kComplexFloat, torch::kComplexDouble}) {
      Gloo accelerator;
      auto net = std::make_shared<Holding>(torch::full({3}, c10::complex<double>(rank.rank + 1, 2), dtype));
      auto [model, line] = accelerator.prepare(net, std::make_shared<Line>());
      REQUIRE(torch::equal(net->weight, torch::full({3}, c10::complex<double>(1, 2), dtype)));
      for (int step = 1; step <= 2; ++step) {
        // d|w|^2 = 2 w, by a factor of the rank
        accelerator.backward(torch::real((net->weight * net->weight.conj()).sum()) * (rank.rank + 1) +
                             line->weight.sum());
        const double mean = step * (rank.world_size + 1);
        REQUIRE(distance({torch::view_as_real(net->weight.grad())},
                         {torch::view_as_real(torch::full({3}, c10::complex<double>(mean, 2 * mean), dtype))}) < 1e-5);
      }
      const double norm = accelerator.clip_grad_norm_(model, 1e9).item<double>();
      REQUIRE(std::abs(norm - 2 * (rank.world_size + 1) * std::sqrt(15.0)) < 1e-4);
    }
  });
}

TEST_CASE("a sparse gradient is reduced as a dense one", "[dtypes]") {
  on_ranks({2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<torch::nn::EmbeddingImpl>(torch::nn::EmbeddingOptions(4, 2).sparse(true));
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 1.0));
    for (int step = 0; step < 2; ++step) {
      const auto half = [&] { accelerator.backward(model(torch::tensor({rank.rank, 3})).sum() / 2); };
      {
        auto local = accelerator.no_sync();
        half();
      }
      half();
      auto expected = torch::zeros({4, 2});
      for (int r = 0; r < rank.world_size; ++r) {
        expected[r] += 1.0 / rank.world_size;
        expected[3] += 1.0 / rank.world_size;
      }
      REQUIRE(net->weight.grad().layout() == torch::kStrided);
      REQUIRE(torch::allclose(net->weight.grad(), expected));
      optimizer.step();
      optimizer.zero_grad();
    }
    REQUIRE(bits({accelerator.broadcast(net->weight.detach().clone())}) == bits({net->weight}));
  });
}

TEST_CASE("what cannot be reduced is refused by prepare, before anything is sent", "[dtypes]") {
  on_ranks({1, 2}, [](Rank rank) {
    Gloo accelerator;
    auto sparse = std::make_shared<Holding>(torch::eye(3).to_sparse());
    REQUIRE_THROWS_WITH(accelerator.prepare(sparse), ContainsSubstring("weight") && ContainsSubstring("Sparse"));
    // The group is as it was.
    auto model = accelerator.prepare(std::make_shared<Line>());
    accelerator.backward((model(torch::ones({1}, torch::kDouble)) * (rank.rank + 1)).sum());
    REQUIRE(model->weight.grad().item<double>() == (rank.world_size + 1) / 2.0);
  });
}

TEST_CASE("channels-last weights and parameters without an element are reduced and clipped", "[dtypes]") {
  on_ranks({1, 2, 3}, [](Rank rank) {
    Gloo accelerator;
    auto net = std::make_shared<torch::nn::Conv2dImpl>(torch::nn::Conv2dOptions(3, 4, 2));
    net->weight.set_data(net->weight.detach().clone(torch::MemoryFormat::ChannelsLast));
    auto [model, empty] = accelerator.prepare(net, std::make_shared<Holding>(torch::zeros({0, 3})));
    accelerator.backward(model(torch::full({1, 3, 3, 3}, rank.rank + 1.0)).sum() + empty->weight.sum());
    REQUIRE(torch::allclose(net->weight.grad(), torch::full({4, 3, 2, 2}, 4 * (rank.world_size + 1) / 2.0)));
    REQUIRE(net->weight.grad().strides() == net->weight.strides());
    const double largest = std::numeric_limits<double>::infinity();
    REQUIRE(std::abs(accelerator.clip_grad_norm_(model, 1e9, largest).item<double>() - 2.0 * (rank.world_size + 1)) <
            1e-5);
    REQUIRE(accelerator.clip_grad_norm_(empty, 1.0, largest).item<double>() == 0);
  });
}
