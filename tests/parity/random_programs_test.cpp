// Random programs of backward, no_sync, zero_grad, clipping and steps, against a reference of thirty lines.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <random>
#include <string>

using namespace accel;
using namespace accel::testing;
using Gloo = Accelerator<backend::Gloo, precision::Fp32>;

namespace {

/// Parameters of odd sizes; the loss is linear in them, so that gradients are what it is made of.
struct Linear : torch::nn::Module {
  explicit Linear(const std::vector<std::vector<std::int64_t>>& shapes) {
    for (std::size_t p = 0; p < shapes.size(); ++p)
      weights.push_back(register_parameter("w" + std::to_string(p), torch::zeros(shapes[p], torch::kDouble)));
  }
  std::vector<torch::Tensor> weights;
};

using Value = std::optional<double>;  // all elements of a gradient are equal; none: undefined

/// What every rank's gradients of one model must be. Every rank computes those of all.
struct Reference {
  Reference(int world_size, std::size_t parameters)
      : world(world_size), means(ranks(), std::vector<Value>(parameters)), added(means), weights(parameters, 0.0) {}

  [[nodiscard]] std::size_t ranks() const { return static_cast<std::size_t>(world); }

  [[nodiscard]] bool waits(std::size_t rank) const {
    return std::any_of(added[rank].begin(), added[rank].end(), [](const Value& one) { return one.has_value(); });
  }

  [[nodiscard]] bool anybody_waits() const {
    for (std::size_t rank = 0; rank < ranks(); ++rank)
      if (waits(rank)) return true;
    return false;
  }

  /// `.grad` on a rank: means that stand, or its share of them where something was added to the model.
  [[nodiscard]] Value gradient(std::size_t rank, std::size_t p) const {
    if (!means[rank][p] && !added[rank][p]) return std::nullopt;
    return means[rank][p].value_or(0) / (waits(rank) ? world : 1) + added[rank][p].value_or(0);
  }

  void add(std::size_t rank, const std::vector<Value>& contributions) {
    for (std::size_t p = 0; p < contributions.size(); ++p)
      if (contributions[p]) added[rank][p] = added[rank][p].value_or(0) + *contributions[p] / world;
  }

  /// What nobody has added to is the mean it was.
  void reduce() {
    for (std::size_t p = 0; p < weights.size(); ++p) {
      bool news = false;
      double sum = 0;
      for (std::size_t rank = 0; rank < ranks(); ++rank) {
        news = news || added[rank][p];
        sum += means[rank][p].value_or(0) / world + added[rank][p].value_or(0);
      }
      for (std::size_t rank = 0; rank < ranks(); ++rank) {
        if (news) means[rank][p] = sum;
        added[rank][p].reset();
      }
    }
  }

  /// Means go, on every rank; what waits stays.
  void zero_grad(bool set_to_none) {
    for (std::size_t rank = 0; rank < ranks(); ++rank) {
      const bool waiting = waits(rank);
      for (std::size_t p = 0; p < weights.size(); ++p) {
        if (!means[rank][p]) continue;
        means[rank][p] = set_to_none || waiting ? Value() : Value(0.0);
        if (waiting && !set_to_none) added[rank][p] = added[rank][p].value_or(0);
      }
    }
  }

  void clear() {
    for (auto* values : {&means, &added})
      for (auto& rank : *values) rank.assign(rank.size(), std::nullopt);
  }

  int world;
  std::vector<std::vector<Value>> means;  // [rank][parameter], of the last reduction
  std::vector<std::vector<Value>> added;  // since then
  std::vector<double> weights;
};

/// What somebody keeps of a gradient that was cleared.
struct Kept {
  torch::Tensor tensor;
  double value;
};

bool all_near(const torch::Tensor& tensor, double value) {
  return tensor.numel() == 0 || (tensor.detach() - value).abs().max().item<double>() <= 1e-9 * (1 + std::abs(value));
}

struct Program {
  Program(Rank own, std::uint64_t seed) : rank(own), random(seed) {}

  [[nodiscard]] int up_to(int most) { return static_cast<int>(random() % static_cast<std::uint64_t>(most + 1)); }
  [[nodiscard]] bool one_in(int n) { return up_to(n - 1) == 0; }

  void run() {
    const int model_count = 1 + up_to(2);
    std::vector<Bytes> caps{25_MiB, 200_B, 64_B};
    const Bytes cap = caps[static_cast<std::size_t>(up_to(2))];
    Gloo accelerator({.gradient = {.caps = {.bucket_cap = cap, .last_bucket_cap = cap}, .overlap = !one_in(3)},
                      .log = Log::Level::off});
    for (int m = 0; m < model_count; ++m) {
      const std::vector<std::vector<std::int64_t>> all{{3, 4}, {1}, {}, {0, 2}, {7}, {2, 2, 2}, {1, 1}};
      std::vector<std::vector<std::int64_t>> shapes{all[0]};
      for (int p = up_to(4); p-- > 0;) shapes.push_back(all[static_cast<std::size_t>(up_to(6))]);
      nets.push_back(std::make_shared<Linear>(shapes));
      references.emplace_back(rank.world_size, shapes.size());
      models.push_back(accelerator.prepare(nets.back()));
      optimizers.push_back(accelerator.prepare(torch::optim::SGD(nets.back()->parameters(), 1.0)));
    }
    for (int i = 0; i < 25; ++i) {
      done += one_operation(accelerator);
      check();
    }
  }

  std::string one_operation(Gloo& accelerator) {
    const auto m = static_cast<std::size_t>(up_to(static_cast<int>(nets.size()) - 1));
    auto& reference = references[m];
    const int choice = up_to(9);
    if (choice <= 2) {
      backward(accelerator, /*synchronises=*/false);
      return " no_sync";
    }
    if (choice <= 5) {
      backward(accelerator, /*synchronises=*/true);
      return " backward";
    }
    if (choice == 6) {
      keep(m);
      return " keep";
    }
    if (choice == 7) {
      if (one_in(4)) {
        optimizers[m]->zero_grad();  // the wrapped one keeps nothing
        reference.clear();
        return " wrapped_zero_grad";
      }
      const bool to_none = !one_in(3);
      optimizers[m].zero_grad(to_none);
      reference.zero_grad(to_none);
      return to_none ? " zero_grad" : " zero_grad(false)";
    }
    if (reference.anybody_waits()) return " -";
    if (choice == 8) {
      double sum = 0;
      for (std::size_t p = 0; p < reference.weights.size(); ++p) {
        const double value = reference.means[0][p].value_or(0);
        sum += value * value * static_cast<double>(nets[m]->weights[p].numel());
      }
      const double norm = std::sqrt(sum);
      REQUIRE(std::abs(accelerator.clip_grad_norm_(models[m], 5.0).item<double>() - norm) <= 1e-9 * (1 + norm));
      for (auto& means : reference.means)
        for (auto& mean : means)
          if (mean && norm + 1e-6 > 5) *mean *= 5 / (norm + 1e-6);
      return " clip";
    }
    optimizers[m].step();
    for (std::size_t p = 0; p < reference.weights.size(); ++p)
      reference.weights[p] -= reference.means[0][p].value_or(0);
    return " step";
  }

  /// Through some of the models, and on each rank through some of their parameters.
  void backward(Gloo& accelerator, bool synchronises) {
    torch::Tensor loss = torch::zeros({}, torch::kDouble).requires_grad_();
    for (std::size_t m = 0; m < nets.size(); ++m) {
      const bool passed_over = nets.size() > 1 && one_in(3);
      std::vector<std::vector<Value>> contributions(references[m].ranks());
      for (std::size_t r = 0; r < references[m].ranks(); ++r) {
        contributions[r].resize(nets[m]->weights.size());
        for (std::size_t p = 0; p < nets[m]->weights.size(); ++p) {
          const double factor = up_to(40) - 20;
          if (passed_over || one_in(3)) continue;
          contributions[r][p] = factor;
          if (r == static_cast<std::size_t>(rank.rank)) loss = loss + nets[m]->weights[p].sum() * factor;
        }
        references[m].add(r, contributions[r]);
      }
      if (synchronises) references[m].reduce();
    }
    if (synchronises) {
      accelerator.backward(loss);
    } else {
      auto local = accelerator.no_sync();
      accelerator.backward(loss);
    }
  }

  void keep(std::size_t m) {
    if (references[m].anybody_waits()) return;
    for (std::size_t p = 0; p < nets[m]->weights.size(); ++p) {
      const auto& gradient = nets[m]->weights[p].grad();
      if (!gradient.defined()) continue;
      const double value = *references[m].gradient(static_cast<std::size_t>(rank.rank), p);
      kept.push_back({one_in(2) ? gradient : gradient.detach().view({-1}), value});
    }
    optimizers[m].zero_grad();
    references[m].clear();
  }

  void check() const {
    INFO("world size " << rank.world_size << ", rank " << rank.rank << ", so far:" << done);
    for (std::size_t m = 0; m < nets.size(); ++m) {
      for (std::size_t p = 0; p < nets[m]->weights.size(); ++p) {
        const Value own = references[m].gradient(static_cast<std::size_t>(rank.rank), p);
        INFO("model " << m << ", parameter " << p << ": " << nets[m]->weights[p].grad() << " expected "
                      << own.value_or(-1e99));
        REQUIRE(nets[m]->weights[p].grad().defined() == own.has_value());
        if (own) REQUIRE(all_near(nets[m]->weights[p].grad(), *own));
        REQUIRE(all_near(nets[m]->weights[p], references[m].weights[p]));
      }
    }
    for (const auto& one : kept) REQUIRE(all_near(one.tensor, one.value));
  }

  Rank rank;
  std::mt19937_64 random;  // the same on all ranks
  std::vector<std::shared_ptr<Linear>> nets;
  std::vector<prepare::Model<Linear, precision::Fp32>> models;
  std::vector<prepare::Optimizer<torch::optim::SGD>> optimizers;
  std::vector<Reference> references;
  std::vector<Kept> kept;
  std::string done;
};

}  // namespace

TEST_CASE("gradients of random programs are those of a reference, at any number of ranks", "[parity]") {
  const char* const variable = std::getenv("ACCEL_PROGRAMS");  // how many; 40 take some seconds
  const int programs = variable == nullptr ? 40 : std::atoi(variable);
  on_ranks({1, 2, 3},
           [&](Rank rank) {
             for (int program = 0; program < programs; ++program) {
               INFO("program " << program);
               Program(rank, static_cast<std::uint64_t>(program)).run();
             }
           },
           {.deadline = Seconds(60 + programs)});
}
