// Samplers against PyTorch's, and loaders against HF Accelerate's with torchdata, run live on two ranks.
#include "support/folder.hpp"
#include "support/orders.hpp"
#include "support/ranks.hpp"

#include <accel/accelerator.hpp>
#include <accel/data/samplers.hpp>

#include <nlohmann/json.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using namespace accel;
using namespace accel::testing;

namespace {

namespace loaders {

using Json = nlohmann::json;
using Rows = std::vector<std::int64_t>;

Json read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return Json::parse(file);
}

struct Numbers {
  std::int64_t rows;
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(rows); }
  [[nodiscard]] torch::Tensor get(std::size_t row) const { return torch::tensor(static_cast<std::int64_t>(row)); }
};

struct Stream {
  std::int64_t rows, next_ = 0;
  void start(std::int64_t) { next_ = 0; }
  std::optional<torch::Tensor> next() {
    if (next_ == rows) return std::nullopt;
    return torch::tensor(next_++);
  }
};

/// Every way in which an Accelerate loader may be told to deal rows, on sizes with and without remainders.
Json cases() {
  Json all = Json::array();
  for (const std::int64_t rows : {24, 22, 21, 17, 7, 3})
    for (const bool split : {false, true})
      for (const std::string kind : {"rows", "stream", "dispatched"})
        for (const std::string tail : {"even", "uneven", "drop"}) {
          if (kind != "rows" && tail == "uneven") continue;  // of streams Accelerate knows no such thing
          if (kind == "dispatched" && tail == "drop" && rows < 6) continue;  // where nothing is left, it throws
          all.push_back({{"rows", rows},
                         {"batch_size", split ? 4 : 3},
                         {"split_batches", split},
                         {"even_batches", tail != "uneven"},
                         {"drop_last", tail == "drop"},
                         {"dispatched", kind == "dispatched"},
                         {"iterable", kind != "rows"},
                         {"shuffle", rows % 2 == 1}});
        }
  return all;
}

Rows listed(const torch::Tensor& tensor) {
  const auto row = tensor.contiguous();
  return {row.const_data_ptr<std::int64_t>(), row.const_data_ptr<std::int64_t>() + row.numel()};
}

/// What this rank is given, in the words of loaders.py.
template <class Accelerator, class Make>
Json walk(Accelerator& accelerator, const Json& one, const Json& expected, const Make& make) {
  Json seen{{"epochs", Json::array()}, {"gathered", Json::array()}};
  auto loader = make();
  for (int epoch = 0; epoch < 2; ++epoch) {
    Json batches = Json::array();
    for (auto& batch : loader) {
      batches.push_back(listed(batch));
      if (epoch == 0 && !expected.at("gathered").empty())
        for (const auto row : listed(accelerator.gather_for_metrics(batch))) seen["gathered"].push_back(row);
    }
    seen["epochs"].push_back(batches);
  }
  const auto rest = [&](auto& of) {
    Json batches = Json::array();
    for (auto& batch : of) batches.push_back(listed(batch));
    return batches;
  };
  if (expected.contains("skipped")) {
    auto skipping = make();
    skipping.skip_first(2);
    seen["skipped"] = rest(skipping);
    auto stopped = make();
    tensor::StateDict state;
    for ([[maybe_unused]] auto& batch : stopped)
      if (stopped.position().index == 1) {
        state = stopped.state_dict();
        break;
      }
    auto resumed = make();
    resumed.load_state_dict(state);
    seen["resumed"] = rest(resumed);
  }
  if constexpr (requires { loader.size(); }) {
    // Accelerate's length is wrong where batches are split and uneven: it counts those of rank 0.
    const bool is_known = !one.at("split_batches") || one.at("even_batches") || one.at("drop_last");
    seen["length"] = is_known ? Json(loader.size()) : expected.at("length");
  } else {
    seen["length"] = -1;
  }
  return seen;
}

}  // namespace loaders

}  // namespace

TEST_CASE("samplers and loaders give what PyTorch, Accelerate and torchdata give, index for index", "[parity]") {
  const Folder folder;
  const char* shared = std::getenv("ACCEL_LOADERS_FOLDER");
  if (shared == nullptr) {  // not a rank
    if (std::string(ACCEL_TEST_PYTHON).empty()) skip_without("torchrun", "no Python can import torch");
    std::ofstream(folder / "cases.json") << loaders::cases();
    const ReservedPort port;
    const auto python = run_program(
        {ACCEL_TEST_PYTHON, ACCEL_TEST_DIR "/parity/loaders.py", folder.path().string(), std::to_string(port.number())},
        {.deadline = Seconds(900), .variables = {{"OMP_NUM_THREADS", "1"}}});
    CAPTURE(python.output);
    if (python.exit_code == 3) skip_without("accelerate", "HF Accelerate or torchdata is not installed");
    REQUIRE(python.exit_code == 0);
    const auto drawn = loaders::read(folder / "samplers.json");
    REQUIRE(drawn.size() == 21);
    std::vector<double> weights;
    for (int row = 0; row < 30; ++row) weights.push_back(1 + row % 5);
    loaders::Rows twelve;
    for (std::int64_t row = 0; row < 12; ++row) twelve.push_back(2 * row);
    namespace sampler = data::sampler;
    const std::map<std::string, data::Sampler> samplers{
        {"random", sampler::random()},
        {"random 70", sampler::random({.samples = 70})},
        {"random 7", sampler::random({.samples = 7})},
        {"replacement 70", sampler::random({.samples = 70, .replacement = true})},
        {"weighted", sampler::weighted(weights, {.samples = 50})},
        {"weighted once", sampler::weighted(weights, {.samples = 20, .replacement = false})},
        {"subset", sampler::subset(twelve)}};
    for (const auto& one : drawn) {
      const auto order = samplers.at(one.at("name")).order({.rows = 30, .seed = one.at("seed")});
      INFO(one.dump());
      CHECK(listed(order) == one.at("order").get<loaders::Rows>());
    }
  }
  on_ranks(
      {2},
      [](Rank rank) {
        const std::filesystem::path results = std::getenv("ACCEL_LOADERS_FOLDER");
        const auto cases = loaders::read(results / "cases.json");
        const auto expected = loaders::read(results / ("loaders." + std::to_string(rank.rank) + ".json"));
        REQUIRE(cases.size() == loaders::cases().size());
        Accelerator<backend::Gloo, precision::Fp32> accelerator;
        for (std::size_t i = 0; i < cases.size(); ++i) {
          const auto& one = cases[i];
          INFO(one.dump());
          const auto rows = one.at("rows").get<std::int64_t>();
          loaders::Json found;
          if (one.at("iterable")) {
            const data::StreamLoaderOptions options{
                .batch_size = one.at("batch_size"),
                .reading = one.at("dispatched") ? data::Reading::dispatched : data::Reading::by_rank,
                .drop_last = one.at("drop_last"),
                .split_batches = one.at("split_batches")};
            found = loaders::walk(accelerator, one, expected[i], [&] {
              return accelerator.prepare(data::StreamLoader{loaders::Stream{rows}, data::compat::accelerate(options)});
            });
          } else {
            const data::DataLoaderOptions options{.batch_size = one.at("batch_size"),
                                                  .shuffle = one.at("shuffle"),
                                                  .seed = 42,
                                                  .drop_last = one.at("drop_last"),
                                                  .uneven = !one.at("even_batches"),
                                                  .split_batches = one.at("split_batches")};
            found = loaders::walk(accelerator, one, expected[i], [&] {
              return accelerator.prepare(data::DataLoader{loaders::Numbers{rows}, data::compat::accelerate(options)});
            });
          }
          REQUIRE(found == expected[i]);
        }
      },
      {.variables = {{"ACCEL_LOADERS_FOLDER", shared != nullptr ? shared : folder.path().string()}}});
}
