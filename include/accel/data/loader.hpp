// DataLoader: a dataset, how it is visited, and how its rows become batches.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/data/access.hpp>
#include <accel/data/ahead.hpp>
#include <accel/data/batch_list.hpp>
#include <accel/data/batch_plan.hpp>
#include <accel/data/collate.hpp>
#include <accel/data/cursor.hpp>
#include <accel/data/fetch.hpp>
#include <accel/data/order.hpp>
#include <accel/data/random.hpp>
#include <accel/data/sampler.hpp>

namespace accel::inline v0_1::data {

struct DataLoaderOptions {
  std::int64_t batch_size = 1;  // rows of one rank's batch

  // The order of an epoch, the same on all ranks: row by row, or
  bool shuffle = false;                 // a new permutation every epoch, PyTorch's, or
  std::optional<Sampler> sampler{};     // what this draws
  std::optional<std::uint64_t> seed{};  // of the order; unset: LibTorch's seed on rank 0, for all

  // What becomes of rows that do not fill the last round. Neither: they are split evenly, every row
  // counts once, and gradients are weighted by rows.
  bool drop_last = false;     // they are left out
  bool even_batches = false;  // the round is filled up with the first rows of the epoch again
  bool uneven = false;        // some ranks get a short batch or none: for evaluation without collectives in the loop

  bool split_batches = false;          // batch_size is that of all ranks together
  std::optional<Batching> batching{};  // batches of different sizes, in place of batch_size

  // Threads that ask the dataset ahead of time. None: the training thread asks, when it needs a batch.
  int workers = 0;
  int prefetch = 2;         // batches that each of them may be ahead
  double timeout_s = 1800;  // for a batch of theirs

  [[nodiscard]] Tail tail() const {
    if (drop_last) return Tail::drop;  // where both are set, as in Accelerate
    if (even_batches) return Tail::wrap_around;
    return uneven ? Tail::uneven : Tail::every_row;
  }
};

namespace compat {

/// The options with Accelerate's defaults in place of ours: the last round is filled up with rows that come again.
///
/// Source   accelerate 1.15.0, DataLoaderConfiguration: even_batches = True.
[[nodiscard]] inline DataLoaderOptions accelerate(DataLoaderOptions options) {
  options.even_batches = !options.uneven;
  return options;
}

}  // namespace compat

/// One epoch, planned: which rows, and who gets which of them when. A pure function of options, seed and epoch.
class EpochPlan {
 public:
  EpochPlan(Order order, BatchPlan plan) : order_(std::move(order)), plan_(std::move(plan)) {}
  EpochPlan(Order order, BatchList plan) : order_(std::move(order)), plan_(std::move(plan)) {}

  [[nodiscard]] const Order& order() const { return order_; }
  /// Who holds what.
  [[nodiscard]] const Rounds& parts() const {
    return std::visit([](const auto& plan) -> const Rounds& { return plan; }, plan_);
  }
  [[nodiscard]] std::int64_t rounds() const {
    return std::visit([](const auto& plan) { return plan.rounds(); }, plan_);
  }
  [[nodiscard]] std::int64_t batches(int rank) const {
    return std::visit([&](const auto& plan) { return plan.batches(rank); }, plan_);
  }
  [[nodiscard]] std::int64_t remainder() const {
    return std::visit([](const auto& plan) { return plan.remainder(); }, plan_);
  }
  [[nodiscard]] Share share(std::int64_t round, int rank) const {
    return std::visit([&](const auto& plan) { return plan.share(round, rank); }, plan_);
  }
  [[nodiscard]] std::int64_t rows_after(std::int64_t rounds_done) const {
    return std::visit([&](const auto& plan) { return plan.rows_after(rounds_done); }, plan_);
  }

 private:
  Order order_;
  std::variant<BatchPlan, BatchList> plan_;
};

/// A dataset, its options, and how rows become a batch. `accelerator.prepare` makes it iterable, with this rank's
/// batches.
///
/// A batch is what get_batch returns; rows of get(i) are collated: see Stack, which is the default, and Pad. Any
/// function of a std::vector of rows will do. Whatever makes it, a batch holds all rows that were asked for, in their
/// order: they are what it is weighted and counted by.
///
/// Workers  share the dataset if a const one can be asked, as std::vector can; it is then asked by several threads at
///          once. Otherwise each has a copy. The batches are the same, and in the same order, however many there are.
/// Throws   InvalidArgument for options that contradict each other, and for more than one worker of a dataset that can
///          neither be shared nor copied.
template <class D, class C = Stack>
class DataLoader {
 public:
  static_assert(Dataset<D>,
                "a dataset needs size(), and get(std::size_t row) or get_batch(std::vector<std::int64_t> rows)");

  explicit DataLoader(D dataset, DataLoaderOptions options = {}, C collate = {})
      : dataset_(std::move(dataset)),
        options_(std::move(options)),
        sampler_(options_.sampler   ? *options_.sampler
                 : options_.shuffle ? sampler::random()
                                    : sampler::sequential()),
        collate_(std::move(collate)) {
    ACCEL_CHECK(!options_.shuffle || !options_.sampler, InvalidArgument,
                "shuffle and a sampler are set, and both say what the order is; leave one of them out");
    ACCEL_CHECK(!options_.batching || (!options_.split_batches && options_.batch_size == 1), InvalidArgument,
                "batching says what the batches are; leave batch_size and split_batches out");
    ACCEL_CHECK(!options_.uneven || !options_.even_batches, InvalidArgument,
                "uneven and even_batches contradict each other; set one of them");
    ACCEL_CHECK(options_.workers >= 0 && options_.workers <= 1024, InvalidArgument,
                "workers: expected 0 to 1024 threads, found ", options_.workers);
    ACCEL_CHECK(options_.prefetch >= 1 && options_.prefetch <= most_prefetched, InvalidArgument,
                "prefetch: expected 1 to ", most_prefetched, " batches, found ", options_.prefetch);
    ACCEL_CHECK(options_.timeout_s > 0, InvalidArgument, "timeout_s: expected more than 0, found ", options_.timeout_s);
    if constexpr (!SharedDataset<D> && !std::copy_constructible<D>)
      ACCEL_CHECK(options_.workers <= 1, InvalidArgument, "workers: a dataset that is not const when it is asked, and ",
                  "that can not be copied, has room for 1, found ", options_.workers,
                  "; make get or get_batch const, if threads may call it at once");
  }

  [[nodiscard]] D& dataset() { return dataset_; }
  [[nodiscard]] const DataLoaderOptions& options() const { return options_; }

  /// Rows of the dataset.
  ///
  /// Throws   InvalidArgument if the dataset does not know its size.
  [[nodiscard]] std::int64_t rows() const { return size_of(dataset_); }

  /// Rows of an epoch.
  [[nodiscard]] std::int64_t samples() const { return sampler_.samples(rows()); }

  /// What is the same on every rank, and in a run that goes on from this one.
  [[nodiscard]] std::string describe() const {
    return message(rows(), " rows, ", sampler_.name, options_.batching ? ", " + options_.batching->name : "");
  }
  /// What is the same on every rank, and may change between runs.
  [[nodiscard]] std::string describe_batches() const {
    if (options_.batching) return message(", tail ", static_cast<int>(options_.tail()));
    return message(", batch_size ", options_.batch_size, options_.drop_last ? ", drop_last" : "",
                   options_.even_batches ? ", even_batches" : "", options_.uneven ? ", uneven" : "",
                   options_.split_batches ? ", split_batches" : "");
  }

  /// How its epochs are cut for `world_size` ranks, by arithmetic alone.
  ///
  /// Throws   InvalidArgument if batching cuts them.
  [[nodiscard]] BatchPlan plan(int world_size, std::int64_t done_rows = 0, std::int64_t done_rounds = 0) const {
    ACCEL_CHECK(!options_.batching, InvalidArgument, "how batching cuts an epoch depends on its order");
    return BatchPlan({.rows = samples(),
                      .batch_size = options_.batch_size,
                      .world_size = world_size,
                      .tail = options_.tail(),
                      .split_batches = options_.split_batches,
                      .done_rows = done_rows,
                      .done_rounds = done_rounds});
  }

  /// The epoch from there on.
  ///
  /// Cost     what the sampler and the batching take: by default O(1), whatever is done; with shuffle O(rows).
  [[nodiscard]] EpochPlan epoch(std::uint64_t seed, const Cursor& from, int world_size) const {
    const std::int64_t all = samples();
    const std::int64_t global = from.global_batch > 0 ? from.global_batch : global_batch(world_size);
    Order order = sampler_.order({.rows = rows(), .seed = seed, .epoch = from.epoch, .global_batch = global});
    ACCEL_CHECK(order.size() == all, InvalidArgument, "the sampler ", sampler_.name, " gave ", order.size(),
                " rows for an epoch, and had said ", all);
    if (!options_.batching) return {std::move(order), plan(world_size, from.rows, from.batches)};
    ACCEL_CHECK(all < endless_samples, InvalidArgument,
                "batching cuts an epoch from its first row to its last, and the ", "sampler ", sampler_.name,
                " has none; batch the epochs of the sampler in it");
    BatchList list({.rows = all,
                    .sizes = options_.batching->sizes(order),
                    .world_size = world_size,
                    .tail = options_.tail(),
                    .done_rows = from.rows,
                    .done_rounds = from.batches});
    return {std::move(order), std::move(list)};
  }

  /// Rows of a full round over all ranks; 0 with batches of different sizes.
  [[nodiscard]] std::int64_t global_batch(int world_size) const {
    if (options_.batching) return 0;
    return options_.split_batches ? options_.batch_size : options_.batch_size * std::int64_t{world_size};
  }

  /// Someone who asks the dataset: a worker thread, or the thread that trains.
  class Reader {
   public:
    using Source = std::conditional_t<SharedDataset<D>, const D, D>;  // of which all may be asked at once

    /// The batch of a share of an epoch, and which rows of the dataset these are.
    auto operator()(const std::vector<std::int64_t>& rows, const std::vector<std::int64_t>& positions) {
      return data::fetch(own_ ? *own_ : *shared_, rows, positions, random_, *collate_);
    }

   private:
    friend class DataLoader;

    Reader(Source& shared, const C& collate, SampleRandom random)
        : shared_(&shared), collate_(&collate), random_(std::move(random)) {}

    Source* shared_;
    const C* collate_;
    std::shared_ptr<Source> own_;
    SampleRandom random_;
  };

  /// Readers for `workers` threads, or for the thread that trains.
  [[nodiscard]] std::vector<Reader> readers(std::uint64_t seed, std::int64_t epoch) {
    std::vector<Reader> readers;
    const int count = std::max(options_.workers, 1);
    for (int i = 0; i < count; ++i) {
      readers.push_back(Reader(dataset_, collate_, SampleRandom(seed, epoch)));
      if constexpr (!SharedDataset<D> && std::copy_constructible<D>)
        if (options_.workers > 0) readers.back().own_ = std::make_shared<D>(dataset_);
    }
    return readers;
  }

  /// Whether passes that are under way at once would ask one dataset on two threads.
  [[nodiscard]] bool has_one_reader() const {
    return options_.workers > 0 && !SharedDataset<D> && !std::copy_constructible<D>;
  }

  /// The batch of these rows of the dataset, of which no epoch knows.
  [[nodiscard]] auto fetch(const std::vector<std::int64_t>& rows) {
    SampleRandom random(0, 0);
    return data::fetch(dataset_, rows, rows, random, collate_);
  }

  using Batch = decltype(std::declval<Reader&>()(std::vector<std::int64_t>(), std::vector<std::int64_t>()));

 private:
  D dataset_;
  DataLoaderOptions options_;
  Sampler sampler_;
  C collate_;
};

}  // namespace accel::inline v0_1::data
