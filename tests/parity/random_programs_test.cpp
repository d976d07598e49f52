// Random programs of backward, no_sync, zero_grad, clipping and steps, against a reference of thirty lines.
#include "support/models.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <random>
#include <string>
#include <variant>

using namespace accel;
using namespace accel::testing;

namespace {

struct Kind {
  std::vector<std::int64_t> shape;
  torch::Dtype dtype = torch::kDouble;
  bool trainable = true;  // else it is frozen before prepare, for good
};

/// Parameters of odd sizes; the loss is linear in them, so that gradients are what it is made of. The `tied` one
/// has a second name.
struct Linear : torch::nn::Module {
  Linear(const std::vector<Kind>& kinds, std::optional<std::size_t> tied) {
    for (const auto& [shape, dtype, is_trainable] : kinds) {
      auto weight = torch::zeros(shape, dtype);
      if (weight.dim() == 4) weight = weight.contiguous(at::MemoryFormat::ChannelsLast);
      weights.push_back(register_parameter("w" + std::to_string(weights.size()), weight, is_trainable));
      trainable.push_back(is_trainable);
      patterns.push_back((torch::arange(weight.numel(), dtype) % 3 + 1).view(shape));
    }
    if (tied) {
      auto other = register_module("other", std::make_shared<torch::nn::Module>("other"));
      other->register_parameter("again", weights[*tied], trainable[*tied]);
    }
  }

  [[nodiscard]] torch::Tensor loss(std::size_t p, double factor) const {
    return (weights[p] * patterns[p]).sum().to(torch::kDouble) * factor;
  }

  std::vector<torch::Tensor> weights;
  std::vector<bool> trainable;          // when it was prepared
  bool rough = false;                   // f32 has taken part in a norm that multiplied all of them
  std::vector<torch::Tensor> patterns;  // what a gradient is a multiple of: 1, 2, 3, 1, ...
};

using Value = std::optional<double>;  // a gradient divided by its pattern; none: undefined

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

/// In f32 sums of some thousands cancel to what is small; what is wrong is so by a third or more.
double tolerance(bool rough) {
  return rough ? 1e-3 : 1e-9;
}

/// What somebody keeps of a gradient that was cleared.
struct Kept {
  torch::Tensor tensor;
  double value;
  torch::Tensor pattern;
  bool rough;
};

/// `rough`: a norm in which f32 takes part has multiplied it.
bool all_near(const torch::Tensor& tensor, double value, const torch::Tensor& pattern, bool rough) {
  if (tensor.numel() == 0) return true;
  const auto off = (tensor.detach() - pattern * value).abs().max().item<double>();
  return off <= tolerance(rough || tensor.scalar_type() != torch::kDouble) * (1 + std::abs(value));
}

using LibTorchSgd = prepare::Optimizer<torch::optim::SGD>;
using FusedSgd = prepare::Optimizer<optim::SGD>;

/// With a loss scale that is a power of two, and changes often, every number is that of a training without.
template <class P>
typename P::Options options_of() {
  if constexpr (P::scales_loss)
    return {.init_scale = 64, .growth_interval = 2, .max_scale = 0x1p20};
  else
    return {};
}

template <class P>
struct Program {
  using Gloo = Accelerator<backend::Gloo, P>;

  Program(Rank own, std::uint64_t seed) : rank(own), random(seed) {}

  [[nodiscard]] int up_to(int most) { return static_cast<int>(random() % static_cast<std::uint64_t>(most + 1)); }
  [[nodiscard]] std::size_t index(std::size_t size) {
    return static_cast<std::size_t>(up_to(static_cast<int>(size) - 1));
  }
  [[nodiscard]] bool one_in(int n) { return up_to(n - 1) == 0; }

  void run() {
    const int model_count = 1 + up_to(2);
    const std::vector<gradient::Caps> caps{25_MiB, 200_B, 64_B, {}, {64_B, 8_B, 200_B}};
    typename Gloo::Options options{.precision = options_of<P>(), .log = Log::Level::off};
    options.gradient.caps = {.bucket_cap = caps[index(caps.size())], .last_bucket_cap = one_in(2) ? 64_B : 1_MiB};
    options.gradient.overlap = !one_in(3);
    options.gradient.broadcast_buffers = !one_in(3);
    options.backend.shared_memory = !one_in(3);
    Gloo accelerator(options);
    for (int m = 0; m < model_count; ++m) {
      const std::vector<std::vector<std::int64_t>> shapes{{3, 4}, {1},       {},     {0, 2},
                                                          {7},    {2, 2, 2}, {1, 1}, {2, 3, 2, 2}};
      std::vector<Kind> kinds{{shapes[0]}};
      for (int p = up_to(5); p-- > 0;)
        kinds.push_back(
            {shapes[index(shapes.size())], one_in(4) ? torch::kFloat : torch::kDouble, /*trainable=*/!one_in(8)});
      nets.push_back(std::make_shared<Linear>(kinds, one_in(3) ? std::optional(index(kinds.size())) : std::nullopt));
      frozen.emplace_back();
      for (const auto& kind : kinds) frozen.back().push_back(!kind.trainable);
      references.emplace_back(rank.world_size, kinds.size());
      models.push_back(accelerator.prepare(nets.back()));
      if (one_in(2))
        optimizers.emplace_back(accelerator.prepare(torch::optim::SGD(nets.back()->weights, 1.0)));
      else
        optimizers.emplace_back(accelerator.prepare(optim::SGD(nets.back()->weights, {.lr = 1.0})));
    }
    for (int i = 0; i < 25; ++i) {
      done += one_operation(accelerator);
      check();
    }
  }

  std::string one_operation(Gloo& accelerator) {
    const auto m = index(nets.size());
    auto& reference = references[m];
    const int choice = up_to(10);
    if (choice == 10) return freeze_or_thaw(m);
    if (choice <= 5) return backward(accelerator);
    if (choice == 6) {
      keep(m);
      return " keep";
    }
    if (choice == 7) {
      if (one_in(4)) {
        std::visit([](auto& optimizer) { optimizer->zero_grad(); }, optimizers[m]);  // the wrapped one keeps nothing
        reference.clear();
        return " wrapped_zero_grad";
      }
      const bool to_none = !one_in(3);
      std::visit([&](auto& optimizer) { optimizer.zero_grad(to_none); }, optimizers[m]);
      reference.zero_grad(to_none);
      return to_none ? " zero_grad" : " zero_grad(false)";
    }
    if (reference.anybody_waits()) return " -";
    if (choice == 8) {
      double sum = 0;
      for (std::size_t p = 0; p < reference.weights.size(); ++p) {
        const double value = reference.means[0][p].value_or(0);
        sum += value * value * nets[m]->patterns[p].to(torch::kDouble).square().sum().template item<double>();
      }
      const double norm = std::sqrt(sum);
      const bool clips = norm + 1e-6 > 5;
      const bool rough = nets[m]->rough || std::ranges::any_of(nets[m]->weights, [](const torch::Tensor& weight) {
                           return weight.scalar_type() != torch::kDouble;
                         });
      REQUIRE(std::abs(accelerator.clip_grad_norm_(models[m], 5.0).template item<double>() - norm) <=
              tolerance(rough) * (1 + norm));
      nets[m]->rough = rough && (nets[m]->rough || clips);
      for (auto& means : reference.means)
        for (auto& mean : means)
          if (mean && clips) *mean *= 5 / (norm + 1e-6);
      return " clip";
    }
    std::visit([](auto& optimizer) { optimizer.step(); }, optimizers[m]);
    for (std::size_t p = 0; p < reference.weights.size(); ++p)
      reference.weights[p] -= reference.means[0][p].value_or(0);
    return " step";
  }

  /// Of this rank's weights; on every rank alike.
  std::string freeze_or_thaw(std::size_t m) {
    const auto p = index(frozen[m].size());
    if (!nets[m]->trainable[p]) return " -";
    frozen[m][p] = !frozen[m][p];
    nets[m]->weights[p].set_requires_grad(!frozen[m][p]);
    return frozen[m][p] ? " freeze" : " thaw";
  }

  /// Through some of the models, and on each rank through some of their parameters; some graphs twice.
  std::string backward(Gloo& accelerator) {
    torch::Tensor loss = torch::zeros({}, torch::kDouble).requires_grad_();
    std::vector<std::vector<std::vector<Value>>> contributions;  // [model][rank][parameter]
    for (std::size_t m = 0; m < nets.size(); ++m) {
      const bool passed_over = nets.size() > 1 && one_in(3);
      contributions.emplace_back(references[m].ranks());
      for (std::size_t r = 0; r < references[m].ranks(); ++r) {
        contributions[m][r].resize(nets[m]->weights.size());
        for (std::size_t p = 0; p < nets[m]->weights.size(); ++p) {
          const double factor = up_to(40) - 20;
          const double again = one_in(4) ? up_to(40) - 20 : 0;  // shared by two parts of the loss
          if (passed_over || one_in(3) || frozen[m][p]) continue;
          contributions[m][r][p] = factor + again;
          if (r != static_cast<std::size_t>(rank.rank)) continue;
          loss = loss + nets[m]->loss(p, factor);
          if (again != 0) loss = loss + nets[m]->loss(p, again);
        }
      }
    }
    std::string what;
    for (int passes = one_in(4) ? 2 : 1; passes-- > 0;) {
      const bool synchronises = one_in(2);
      for (std::size_t m = 0; m < nets.size(); ++m) {
        for (std::size_t r = 0; r < references[m].ranks(); ++r) references[m].add(r, contributions[m][r]);
        if (synchronises) references[m].reduce();
      }
      const bool retain_graph = passes > 0;
      if (synchronises) {
        accelerator.backward(loss, retain_graph);
      } else {
        const auto local = accelerator.no_sync();
        accelerator.backward(loss, retain_graph);
      }
      what += synchronises ? " backward" : " no_sync";
      if (passes > 0) what += "(retain_graph)";
    }
    return what;
  }

  /// What gradients of model m are multiplied by.
  [[nodiscard]] double scale(std::size_t m) const {
    return P::scales_loss ? models[m].prepared().scaled.scale().template item<double>() : 1.0;
  }

  void keep(std::size_t m) {
    if (references[m].anybody_waits()) return;
    for (std::size_t p = 0; p < nets[m]->weights.size(); ++p) {
      const auto& gradient = nets[m]->weights[p].grad();
      if (!gradient.defined()) continue;
      const double value = *references[m].gradient(static_cast<std::size_t>(rank.rank), p) * scale(m);
      kept.push_back({one_in(2) ? gradient : gradient.detach().alias(), value, nets[m]->patterns[p], nets[m]->rough});
    }
    std::visit([](auto& optimizer) { optimizer.zero_grad(); }, optimizers[m]);
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
        if (own) REQUIRE(all_near(nets[m]->weights[p].grad() / scale(m), *own, nets[m]->patterns[p], nets[m]->rough));
        REQUIRE(all_near(nets[m]->weights[p], references[m].weights[p], nets[m]->patterns[p], nets[m]->rough));
      }
    }
    for (const auto& one : kept) REQUIRE(all_near(one.tensor, one.value, one.pattern, one.rough));
  }

  Rank rank;
  std::mt19937_64 random;  // the same on all ranks
  std::vector<std::shared_ptr<Linear>> nets;
  std::vector<prepare::Model<Linear, P>> models;
  std::vector<std::vector<bool>> frozen;  // [model][parameter], now
  std::vector<std::variant<LibTorchSgd, FusedSgd>> optimizers;
  std::vector<Reference> references;
  std::vector<Kept> kept;
  std::string done;
};

}  // namespace

TEMPLATE_TEST_CASE("gradients of random programs are those of a reference, at any number of ranks", "[parity]",
                   precision::Fp32, precision::Fp16) {
  const auto number = [](const char* variable, int otherwise) {
    const char* const text = std::getenv(variable);
    return text == nullptr ? otherwise : std::atoi(text);
  };
  const int count = number("ACCEL_PROGRAMS", 40);  // 40 take some seconds
  const int first = number("ACCEL_FIRST_PROGRAM", 0);
  on_ranks({1, 2, 3},
           [&](Rank rank) {
             for (int program = first; program < first + count; ++program) {
               INFO("ACCEL_PROGRAMS=1 ACCEL_FIRST_PROGRAM=" << program << " runs this one alone");
               Program<TestType>(rank, static_cast<std::uint64_t>(program)).run();
             }
           },
           {.deadline = Seconds(300 + count)});
}
