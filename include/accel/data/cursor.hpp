// Cursor: where in which epoch a loader stands.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::data {

/// The position of a loader between two batches, the same on every rank. Everything that is to come follows from it:
/// orders and random streams are pure functions of seed, epoch and position.
struct Cursor {
  std::int64_t epoch = 0;
  std::int64_t rows = 0;     // of the epoch, of all ranks together, in batches that were handed out
  std::int64_t batches = 0;  // that this rank was handed of the epoch
  std::int64_t global_batch =
      0;  // that the epoch's order was drawn for, if any of it is done; samplers may depend on it

  bool operator==(const Cursor&) const = default;
};

/// A cursor and what it belongs to, as it is saved.
struct SavedCursor {
  Cursor cursor;
  std::uint64_t seed = 0;
  std::uint64_t dataset = 0;  // a hash of its size, and of the order and the batches that are made of it

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("epoch", cursor.epoch);
    state.add("rows", cursor.rows);
    state.add("batches", cursor.batches);
    state.add("global_batch", cursor.global_batch);
    state.add("seed", static_cast<std::int64_t>(seed));
    state.add("dataset", static_cast<std::int64_t>(dataset));
    return state;
  }

  /// Throws   CheckpointError if a number is missing or can not be, or if the state is of another dataset or order;
  ///          `description` says which this one is.
  [[nodiscard]] static SavedCursor from(const tensor::StateDict& state, std::string_view description) {
    const SavedCursor saved{
        {state.integer("epoch"), state.integer("rows"), state.integer("batches"), state.integer("global_batch")},
        static_cast<std::uint64_t>(state.integer("seed")),
        static_cast<std::uint64_t>(state.integer("dataset"))};
    const Cursor& at = saved.cursor;
    ACCEL_CHECK(at.epoch >= 0 && at.rows >= 0 && at.batches >= 0 && at.global_batch >= 0, CheckpointError,
                "loader: the saved position, epoch ", saved.cursor.epoch, ", ", saved.cursor.rows, " rows, ",
                saved.cursor.batches, " batches, can not be");
    ACCEL_CHECK(saved.dataset == fnv1a(description), CheckpointError, "loader: the saved position belongs to another ",
                "dataset or order; this one is ", description,
                "; load it into a loader of the same rows, sampler and batching, whatever the number of ranks");
    return saved;
  }
};

}  // namespace accel::inline v0_1::data
