// FileStream: one rank's files, one after the other, from any place on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/data/order.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::dataset {

/// Which files a stream reads, and in which order.
struct StreamOptions {
  bool shuffle = false;    // another order of the files every epoch, from seed + epoch
  std::uint64_t seed = 0;  // equal on all ranks

  // Of every `shards` files in the order of the epoch this stream reads the one of number `shard`. For ranks:
  // .shard = topology.rank, .shards = topology.world_size.
  int shard = 0;
  int shards = 1;
};

namespace detail {

/// `Reader(file, offset)` gives the items of a mapped file: next(), and offset() of the next one.
template <class Reader>
class FileStream {
 public:
  using Item = typename Reader::Item;

  FileStream(std::vector<std::filesystem::path> files, StreamOptions options)
      : files_(std::move(files)), options_(options) {
    ACCEL_CHECK(options.shards >= 1 && options.shard >= 0 && options.shard < options.shards, InvalidArgument,
                "shard: expected 0 to shards - 1 = ", options.shards - 1, ", found ", options.shard);
    ACCEL_CHECK(files_.size() >= static_cast<std::size_t>(options.shards), InvalidArgument,
                "files: expected at least one for each of ", options.shards, " shards (ranks), found ", files_.size(),
                "; write more and smaller files, or use fewer ranks");
    start(0);
  }

  /// Begins the pass of that epoch from its first row.
  void start(std::int64_t epoch) {
    const auto count = static_cast<std::int64_t>(files_.size());
    std::vector<std::int64_t> all(files_.size());
    std::iota(all.begin(), all.end(), std::int64_t{0});
    if (options_.shuffle) all = data::Order::shuffled(count, options_.seed + static_cast<std::uint64_t>(epoch)).rows();
    order_.clear();
    for (auto place = static_cast<std::size_t>(options_.shard); place < all.size();
         place += static_cast<std::size_t>(options_.shards))
      order_.push_back(static_cast<std::size_t>(all[place]));
    epoch_ = epoch;
    row_ = 0;
    go_to(0, 0);
  }

  /// The next item. What it points to stays until the next call.
  [[nodiscard]] std::optional<Item> next() {
    for (; place_ < order_.size(); go_to(place_ + 1, 0)) {
      open();
      if (auto item = reader_->next()) {
        offset_ = reader_->offset();
        ++row_;
        return item;
      }
    }
    return std::nullopt;
  }

  /// Passes `rows` items, or as many as there are.
  void skip(std::int64_t rows) {
    for (std::int64_t i = 0; i < rows; ++i)
      if (!next()) return;
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    tensor::StateDict state;
    state.add("epoch", epoch_);
    state.add("row", row_);
    state.add("place", place_);
    state.add("offset", offset_);
    for (const auto& [name, value] : identity()) state.add(name, value);
    return state;
  }

  /// Throws   CheckpointError if the stream had other files or options.
  void load_state_dict(const tensor::StateDict& state) {
    for (const auto& [name, value] : identity())
      ACCEL_CHECK(state.integer(name) == value, CheckpointError, "state: expected ", name, " = ", value,
                  ", as this stream has it, found ", state.integer(name), "; the position is that of another stream");
    const auto row = state.integer("row"), place = state.integer("place"), offset = state.integer("offset");
    start(state.integer("epoch"));
    ACCEL_CHECK(row >= 0 && offset >= 0 && place >= 0 && place <= static_cast<std::int64_t>(order_.size()),
                CheckpointError, "state: expected place from 0 to ", order_.size(), ", row and offset from 0, found ",
                place, ", ", row, ", ", offset);
    row_ = row;
    go_to(static_cast<std::size_t>(place), static_cast<std::uint64_t>(offset));
  }

 private:
  [[nodiscard]] std::vector<std::pair<const char*, std::int64_t>> identity() const {
    return {{"files", static_cast<std::int64_t>(files_.size())},
            {"shuffle", options_.shuffle ? 1 : 0},
            {"seed", static_cast<std::int64_t>(options_.seed)},
            {"shard", options_.shard},
            {"shards", options_.shards}};
  }

  void go_to(std::size_t place, std::uint64_t offset) {
    reader_.reset();
    file_.reset();
    place_ = place;
    offset_ = offset;
  }

  void open() {
    if (reader_) return;
    file_ = std::make_unique<const MappedFile>(files_[order_[place_]], Access::sequential);
    reader_ = std::make_unique<Reader>(*file_, offset_);
  }

  std::vector<std::filesystem::path> files_;
  StreamOptions options_;
  std::vector<std::size_t> order_;  // this stream's files
  std::int64_t epoch_ = 0;
  std::int64_t row_ = 0;      // of this epoch and stream, the next
  std::size_t place_ = 0;     // in order_
  std::uint64_t offset_ = 0;  // in that file, of the next item
  std::unique_ptr<const MappedFile> file_;
  std::unique_ptr<Reader> reader_;
};

}  // namespace detail

}  // namespace accel::inline v0_1::dataset
