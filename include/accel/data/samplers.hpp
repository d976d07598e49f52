// Samplers: orders that weigh, balance, group or mix the rows. Opt-in: accelerator.hpp does not include it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/data/order.hpp>
#include <accel/data/random.hpp>
#include <accel/data/sampler.hpp>

namespace accel::inline v0_1::data::sampler {

namespace detail {

inline void check_length(const char* what, std::size_t found, std::int64_t rows) {
  ACCEL_CHECK(static_cast<std::int64_t>(found) == rows, InvalidArgument, what,
              ": expected one per row of the dataset, ", rows, ", found ", found);
}

}  // namespace detail

struct RandomOptions {
  std::int64_t samples = 0;  // of an epoch; 0: as many as there are rows
  bool replacement = false;  // a row may come again before all have come
};

/// As many rows as wanted; without replacement one permutation after the other.
///
/// Source   torch.utils.data.RandomSampler 2.11, index for index.
[[nodiscard]] inline Sampler random(const RandomOptions& options) {
  ACCEL_CHECK(options.samples >= 0, InvalidArgument, "random: expected samples >= 0, found ", options.samples);
  return {.name = message("random ", options.samples, options.replacement ? " with replacement" : ""),
          .order =
              [options](const Draw& draw) {
                const std::int64_t samples = options.samples == 0 ? draw.rows : options.samples;
                ACCEL_CHECK(draw.rows > 0 || samples == 0, InvalidArgument, "random: ", samples,
                            " samples are wanted of a dataset without rows");
                const auto generator = at::detail::createCPUGenerator(draw.epoch_seed());
                const auto kind = at::TensorOptions(at::kLong).device(at::kCPU);
                if (options.replacement) return Order::of(at::randint(draw.rows, {samples}, generator, kind));
                std::vector<at::Tensor> parts;
                for (std::int64_t left = samples; left > 0; left -= draw.rows)
                  parts.push_back(at::randperm(draw.rows, generator, kind).narrow(0, 0, std::min(left, draw.rows)));
                return parts.empty() ? Order::sequential(0) : Order::of(at::cat(parts));
              },
          .samples = [options](std::int64_t rows) { return options.samples == 0 ? rows : options.samples; }};
}

struct WeightedOptions {
  std::int64_t samples = 0;  // of an epoch; 0: as many as there are weights
  bool replacement = true;
};

/// Row i with a probability proportional to weights[i].
///
/// Throws   InvalidArgument if there is not one weight per row, or one is negative or not finite, or all are 0.
/// Source   torch.utils.data.WeightedRandomSampler 2.11, index for index (torch.multinomial of f64 weights).
[[nodiscard]] inline Sampler weighted(const std::vector<double>& weights, const WeightedOptions& options = {}) {
  std::int64_t positive = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    ACCEL_CHECK(weights[i] >= 0 && weights[i] <= std::numeric_limits<double>::max(), InvalidArgument,
                "weighted: expected weights that are finite and not negative, found ", weights[i], " for row ", i);
    positive += weights[i] > 0 ? 1 : 0;
  }
  const auto count = static_cast<std::int64_t>(weights.size());
  const std::int64_t samples = options.samples == 0 ? count : options.samples;
  ACCEL_CHECK(samples >= 1 && positive >= 1, InvalidArgument, "weighted: expected at least one sample and one weight ",
              "above 0, found ", samples, " samples of ", positive, " such weights");
  ACCEL_CHECK(options.replacement || samples <= positive, InvalidArgument, "weighted: ", samples,
              " samples without replacement need as many weights above 0, found ", positive);
  const at::Tensor table = at::tensor(weights, at::kDouble);
  return {.name = message("weighted ", samples, options.replacement ? " with replacement" : "", " by ", fnv1a(weights)),
          .order =
              [table, samples, options](const Draw& draw) {
                return Order::of(at::multinomial(table, samples, options.replacement,
                                                 at::detail::createCPUGenerator(draw.epoch_seed())));
              },
          .samples =
              [samples, size = weights.size()](std::int64_t rows) {
                detail::check_length("weighted: weights", size, rows);
                return samples;
              }};
}

/// Only these rows, in their order or shuffled.
///
/// Source   torch.utils.data.SubsetRandomSampler 2.11, index for index, where shuffled.
[[nodiscard]] inline Sampler subset(std::vector<std::int64_t> rows, bool shuffle = true) {
  for (const std::int64_t row : rows)
    ACCEL_CHECK(row >= 0, InvalidArgument, "subset: expected rows of the dataset, found ", row);
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t largest = rows.empty() ? -1 : *std::max_element(rows.begin(), rows.end());
  const auto name = message("subset of ", count, shuffle ? ", shuffled, " : ", ", fnv1a(rows));
  return {.name = name,
          .order =
              [list = std::make_shared<const std::vector<std::int64_t>>(std::move(rows)), shuffle](const Draw& draw) {
                const auto size = static_cast<std::int64_t>(list->size());
                const Order places = shuffle ? Order::shuffled(size, draw.epoch_seed()) : Order::sequential(size);
                return Order::computed(size, [list, places](std::int64_t position) {
                  return (*list)[static_cast<std::size_t>(places[position])];
                });
              },
          .samples =
              [count, largest](std::int64_t dataset_rows) {
                ACCEL_CHECK(largest < dataset_rows, InvalidArgument, "subset: expected rows below ", dataset_rows,
                            ", found ", largest);
                return count;
              }};
}

/// Every row once, so mixed that any stretch of the epoch has the classes in the proportions of the whole: of n rows in
/// a row, a class that makes up the share p has about n x p; with a few classes give or take 2.
///
/// `labels`  the class of each row.
/// Source   within a class torch.randperm; the classes spaced evenly, as in systematic sampling: Madow 1949.
[[nodiscard]] inline Sampler stratified(std::vector<std::int64_t> labels) {
  const auto name = message("stratified by ", fnv1a(labels));
  const std::size_t size = labels.size();
  return {.name = name,
          .order =
              [labels = std::move(labels)](const Draw& draw) {
                std::map<std::int64_t, std::vector<std::int64_t>> classes;
                for (std::size_t row = 0; row < labels.size(); ++row)
                  classes[labels[row]].push_back(static_cast<std::int64_t>(row));
                std::vector<std::pair<double, std::int64_t>> places;  // in the epoch, from 0 to 1, and the row
                places.reserve(labels.size());
                const std::uint64_t seed = draw.epoch_seed();
                for (const auto& [label, rows] : classes) {
                  const std::uint64_t own = derived_seed(seed, static_cast<std::uint64_t>(label));
                  const auto count = static_cast<std::int64_t>(rows.size());
                  const Order shuffled = Order::shuffled(count, own);
                  const double phase = static_cast<double>(scrambled(own) >> 11) * 0x1p-53;  // in [0, 1)
                  for (std::int64_t i = 0; i < count; ++i)
                    places.emplace_back((static_cast<double>(i) + phase) / static_cast<double>(count),
                                        rows[static_cast<std::size_t>(shuffled[i])]);
                }
                std::sort(places.begin(), places.end());
                std::vector<std::int64_t> order;
                order.reserve(places.size());
                for (const auto& [place, row] : places) order.push_back(row);
                return Order::of(std::move(order));
              },
          .samples =
              [size](std::int64_t rows) {
                detail::check_length("stratified: labels", size, rows);
                return rows;
              }};
}

struct LengthGroupOptions {
  std::int64_t batch_size = 0;    // rows that are to be of like length; 0: the global batch
  std::int64_t mega_batches = 0;  // batches among which rows are sorted; 0: a quarter of the epoch, at most 50
};

/// Every row once, shuffled and then sorted by falling length within stretches of the epoch, so that a batch needs
/// little padding. The longest row of all comes first: what does not fit into memory, fails at once.
///
/// Source   transformers 5.23 LengthGroupedSampler (Apache-2.0), index for index.
[[nodiscard]] inline Sampler grouped_by_length(std::vector<std::int64_t> lengths,
                                               const LengthGroupOptions& options = {}) {
  ACCEL_CHECK(options.batch_size >= 0 && options.mega_batches >= 0, InvalidArgument,
              "grouped_by_length: expected sizes of 0 or more, found ", options.batch_size, " and ",
              options.mega_batches);
  const auto name =
      message("grouped_by_length ", options.batch_size, " ", options.mega_batches, " by ", fnv1a(lengths));
  const std::size_t size = lengths.size();
  return {.name = name,
          .order =
              [lengths = std::move(lengths), options](const Draw& draw) {
                const std::int64_t batch = options.batch_size > 0 ? options.batch_size : draw.global_batch;
                const std::int64_t rows = draw.rows;
                ACCEL_CHECK(batch >= 1, InvalidArgument, "grouped_by_length: the loader's batches are of different ",
                            "sizes; say batch_size, the rows that are to be of like length");
                const std::int64_t batches = options.mega_batches > 0
                                                 ? options.mega_batches
                                                 : std::clamp<std::int64_t>(rows / (batch * 4), 1, 50);
                auto order = Order::shuffled(rows, draw.epoch_seed()).rows();
                const auto length = [&](std::int64_t row) { return lengths[static_cast<std::size_t>(row)]; };
                std::size_t longest = 0;
                const auto stretch = static_cast<std::size_t>(batches > rows / batch ? std::max<std::int64_t>(rows, 1)
                                                                                     : batch * batches);
                for (std::size_t begin = 0; begin < order.size(); begin += stretch) {
                  const auto from = order.begin() + static_cast<std::ptrdiff_t>(begin);
                  const auto to = order.begin() + static_cast<std::ptrdiff_t>(std::min(begin + stretch, order.size()));
                  std::stable_sort(from, to, [&](std::int64_t a, std::int64_t b) { return length(a) > length(b); });
                  if (length(order[begin]) > length(order[longest])) longest = begin;
                }
                if (!order.empty()) std::swap(order[0], order[longest]);
                return Order::of(std::move(order));
              },
          .samples =
              [size](std::int64_t rows) {
                detail::check_length("grouped_by_length: lengths", size, rows);
                return rows;
              }};
}

/// When a mixture of datasets is at its end.
enum class MixtureEnd {
  first_exhausted,  // with the first of them: no row comes twice
  all_exhausted,    // when every row has come; of the others the rows come again
};

struct InterleavedOptions {
  std::vector<double> weights{};  // of the datasets in the mixture; none: their sizes
  MixtureEnd end = MixtureEnd::first_exhausted;
  bool shuffle = true;  // within each of them; a row that comes again stands elsewhere then
};

/// Several datasets that lie one behind the other, as in a concatenation, mixed by weight: of every n rows n x weight
/// are of a dataset, give or take two, and not only in the mean.
///
/// `sizes`   rows of each of them.
/// Source   what is furthest behind its share comes next: the greedy rule beside Tijdeman's of 1980, The chairman
///          assignment problem, which would hold one.
[[nodiscard]] inline Sampler interleaved(std::vector<std::int64_t> sizes, const InterleavedOptions& options = {}) {
  std::vector<double> weights = options.weights;
  if (weights.empty())
    for (const std::int64_t size : sizes) weights.push_back(static_cast<double>(size));
  ACCEL_CHECK(weights.size() == sizes.size() && !sizes.empty(), InvalidArgument,
              "interleaved: expected a weight for each of ", sizes.size(), " datasets, found ", weights.size());
  double total = 0;
  std::int64_t all_rows = 0;
  for (std::size_t k = 0; k < sizes.size(); ++k) {
    ACCEL_CHECK(sizes[k] >= 1 && weights[k] > 0 && weights[k] <= std::numeric_limits<double>::max(), InvalidArgument,
                "interleaved: expected datasets with rows and weights above 0, found dataset ", k, " with ", sizes[k],
                " rows and weight ", weights[k]);
    total += weights[k];
    all_rows += sizes[k];
  }
  std::vector<std::int64_t> taken(sizes.size());
  std::vector<std::int32_t> choices;  // the dataset of each position
  std::size_t unexhausted = sizes.size();
  for (bool over = false; !over;) {
    const auto t = static_cast<double>(choices.size() + 1);
    std::size_t chosen = 0;
    double most = -std::numeric_limits<double>::infinity();
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      const double behind = weights[k] / total * t - static_cast<double>(taken[k]);
      if (behind > most) most = behind, chosen = k;
    }
    if (options.end == MixtureEnd::first_exhausted && taken[chosen] == sizes[chosen]) break;
    choices.push_back(static_cast<std::int32_t>(chosen));
    if (++taken[chosen] == sizes[chosen]) --unexhausted;
    over = options.end == MixtureEnd::all_exhausted && unexhausted == 0;
  }
  const auto samples = static_cast<std::int64_t>(choices.size());
  return {.name = message("interleaved ", samples, " of ", fnv1a(sizes), " by ", fnv1a(weights),
                          options.shuffle ? ", shuffled" : ""),
          .order =
              [sizes, choices = std::move(choices), shuffle = options.shuffle](const Draw& draw) {
                struct Source {
                  std::int64_t begin, size, next, pass;
                  Order order;
                };
                const auto order_of = [&](std::size_t k, std::int64_t pass) {
                  if (!shuffle) return Order::sequential(sizes[k]);
                  const auto own = derived_seed(draw.epoch_seed(), k);
                  return Order::shuffled(sizes[k], derived_seed(own, static_cast<std::uint64_t>(pass)));
                };
                std::vector<Source> sources;
                std::int64_t begin = 0;
                for (std::size_t k = 0; k < sizes.size(); ++k) {
                  sources.push_back({begin, sizes[k], 0, 0, order_of(k, 0)});
                  begin += sizes[k];
                }
                std::vector<std::int64_t> order;
                order.reserve(choices.size());
                for (const std::int32_t choice : choices) {
                  const auto k = static_cast<std::size_t>(choice);
                  Source& source = sources[k];
                  if (source.next == source.size) {
                    source.order = order_of(k, ++source.pass);
                    source.next = 0;
                  }
                  order.push_back(source.begin + source.order[source.next++]);
                }
                return Order::of(std::move(order));
              },
          .samples =
              [samples, all_rows](std::int64_t rows) {
                ACCEL_CHECK(rows == all_rows, InvalidArgument, "interleaved: its datasets have ", all_rows,
                            " rows together, the dataset of the loader has ", rows);
                return samples;
              }};
}

/// One epoch without an end: the epochs of `inner`, one after the other.
///
/// Cost     where a pass of `inner` begins, its order is drawn; a resume draws one.
[[nodiscard]] inline Sampler endless(Sampler inner) {
  const auto name = "endless " + inner.name;
  return {.name = name,
          .order =
              [inner = std::move(inner)](const Draw& draw) {
                const std::int64_t size = inner.samples(draw.rows);
                ACCEL_CHECK(size > 0, InvalidArgument, "endless: the dataset has no rows, so an epoch without an end ",
                            "would never give one");
                // The pass that was looked at last; positions mostly rise.
                auto current = std::make_shared<std::pair<std::int64_t, std::optional<Order>>>(-1, std::nullopt);
                const auto row_at = [inner, draw, size, current](std::int64_t position) {
                  if (const std::int64_t pass = position / size; pass != current->first) {
                    Draw own = draw;
                    own.epoch += pass;
                    current->second.emplace(inner.order(own));
                    current->first = pass;
                  }
                  return (*current->second)[position % size];
                };
                return Order::computed(endless_samples, row_at);
              },
          .samples = [](std::int64_t) { return endless_samples; }};
}

}  // namespace accel::inline v0_1::data::sampler
