// Replays of recorded orders, batches and splits: what every rank gets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/range.hpp>
#include <accel/data/batch_plan.hpp>
#include <accel/data/distributed_sampler.hpp>
#include <accel/data/round.hpp>
#include <accel/data/sampler.hpp>
#include <accel/prepare/stream_feed.hpp>

#include <nlohmann/json.hpp>

#include "parity/replay_optimizers.hpp"

namespace accel::testing {

using Indices = std::vector<std::int64_t>;

/// What the ranks have, or one list, in the file's own words.
inline Differences compare_lists(const std::string& what, const nlohmann::json& found, const nlohmann::json& expected) {
  if (found == expected) return {};
  return {message(what, ": expected ", expected.dump(), ", found ", found.dump())};
}

/// SeedableRandomSampler's order of an epoch, or the indices of each rank of a DistributedSampler.
inline Differences replay_shuffle(const nlohmann::json& one) {
  const auto samples = one.at("samples").get<std::int64_t>();
  const auto seed = one.at("seed").get<std::uint64_t>();
  const auto epoch = one.at("epoch").get<std::int64_t>();
  if (one.at("kind") == "seedable_random_sampler") {
    const auto order = data::sampler::random().order({.rows = samples, .seed = seed, .epoch = epoch});
    return compare_lists("order", order.rows(), one.at("order"));
  }
  if (one.at("kind") != "distributed_sampler")
    throw std::runtime_error(message("there is no sampler ", one.at("kind").dump(), " here"));
  std::vector<Indices> ranks;
  const auto world_size = one.at("world_size").get<int>();
  for (int rank = 0; rank < world_size; ++rank) {
    data::DistributedSampler sampler(
        samples, rank, world_size,
        {.shuffle = one.at("shuffle").get<bool>(), .seed = seed, .drop_last = one.at("drop_last").get<bool>()});
    sampler.set_epoch(epoch);
    ranks.push_back(sampler.indices());
  }
  return compare_lists("ranks", ranks, one.at("ranks"));
}

/// The batches of each rank over rows in their order.
inline Differences replay_batch_sampler_shard(const nlohmann::json& one) {
  const bool drop = one.at("drop_last").get<bool>();
  const bool even = one.at("even_batches").get<bool>();
  const data::BatchPlan plan({.rows = one.at("samples").get<std::int64_t>(),
                              .batch_size = one.at("batch_size").get<std::int64_t>(),
                              .world_size = one.at("world_size").get<int>(),
                              .tail = drop   ? data::Tail::drop
                                      : even ? data::Tail::wrap_around
                                             : data::Tail::uneven,
                              .split_batches = one.at("split_batches").get<bool>()});
  std::vector<std::vector<Indices>> ranks(static_cast<std::size_t>(plan.world_size()));
  for (int rank = 0; rank < plan.world_size(); ++rank)
    for (std::int64_t round = 0; round < plan.batches(rank); ++round)
      ranks[static_cast<std::size_t>(rank)].push_back(plan.share(round, rank).positions);
  return compare_lists("ranks", ranks, one.at("ranks"));
}

/// The samples of each rank of a stream that every rank reads.
inline Differences replay_iterable_shard(const nlohmann::json& one) {
  struct Stream {
    std::int64_t rows, next_ = 0;
    void start(std::int64_t) { next_ = 0; }
    std::optional<std::int64_t> next() { return next_ < rows ? std::optional(next_++) : std::nullopt; }
  };
  const data::Deal deal({.batch_size = one.at("batch_size").get<std::int64_t>(),
                         .world_size = one.at("world_size").get<int>(),
                         .tail = one.at("drop_last").get<bool>() ? data::Tail::drop : data::Tail::wrap_around,
                         .split_batches = one.at("split_batches").get<bool>()});
  const int world_size = deal.options().world_size;
  Stream stream{one.at("samples").get<std::int64_t>()};
  prepare::detail::DealtRounds<Stream> rounds(stream, deal, {});
  std::vector<Indices> ranks(static_cast<std::size_t>(world_size));
  while (true) {
    const auto round = rounds.next();
    if (round.rows.empty()) break;
    for (int rank = 0; rank < world_size; ++rank)
      for (const auto row : rounds.rows_of(round, deal.part(std::ssize(round.rows), rank)))
        ranks[static_cast<std::size_t>(rank)].push_back(row);
  }
  return compare_lists("ranks", ranks, one.at("ranks"));
}

/// The parts of 0, 1, 2, ...
inline Differences replay_split(const nlohmann::json& one) {
  const auto samples = one.at("samples").get<std::int64_t>();
  const auto world_size = one.at("world_size").get<int>();
  std::vector<Indices> ranks(static_cast<std::size_t>(world_size));
  for (int rank = 0; rank < world_size; ++rank) {
    const auto range = split_range(samples, rank, world_size);
    for (std::int64_t i = range.begin; i < range.end; ++i) ranks[static_cast<std::size_t>(rank)].push_back(i);
  }
  return compare_lists("ranks", ranks, one.at("ranks"));
}

}  // namespace accel::testing
