// Loader: this rank's batches, on its device, epoch by epoch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/data/cursor.hpp>
#include <accel/data/loader.hpp>
#include <accel/data/position.hpp>
#include <accel/prepare/device_copy.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/prepare/link.hpp>
#include <accel/prepare/saved_parts.hpp>
#include <accel/prepare/session.hpp>
#include <accel/prepare/stream_feed.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare {

/// A prepared DataLoader or StreamLoader: `for (auto& batch : loader)`, or `for (auto& [data, target] : loader)`.
///
/// Every begin() starts the next epoch, whether the one before was finished or left by `break`. Only a stream that has
/// no start(epoch) goes on where it was left. A loader that was borrowed, as an lvalue, and its dataset have to live as
/// long as this one, or as a worker that does not return.
/// Order    of a DataLoader no communication: its order depends on seed and epoch, which all ranks share. But the first
///          begin() after load_state_dict() or skip_first() compares the position between the ranks, in one round over
///          the control plane. A stream that is dispatched, or sharded by the dataset, takes one for every batch.
/// State    the position: seed, epoch, rows and batches of it that were handed out. In the loop it is behind the
///          current batch; outside of it at the begin of the epoch that the next begin() starts. Of a DataLoader it
///          takes O(1) to go on from, and may be saved at one number of ranks and loaded at another.
template <class L>
class Loader {
  static constexpr bool is_stream = data::is_stream_loader<L>;

 public:
  using Batch = typename L::Batch;
  class Iterator;

  Loader(std::shared_ptr<L> loader, std::shared_ptr<Session> session, std::shared_ptr<Link> link, std::uint64_t seed)
      : loader_(std::move(loader)), session_(std::move(session)), link_(std::move(link)) {
    course_->seed = seed;
    checkpoint::Part part;
    part.turn = detail::Turn::states;
    part.keeps = true;
    part.state = [self = LoaderParts(*this)] { return self.locked().state_dict(); };
    part.mismatch = [self = LoaderParts(*this)](const checkpoint::SavedPart& saved) {
      return error_of([&] { (void)data::SavedCursor::from(saved.own(), self.loader.lock()->describe()); });
    };
    part.load = [self = LoaderParts(*this)](const checkpoint::SavedPart& saved) -> std::string {
      self.locked().load_state_dict(saved.own());
      return {};
    };
    part.load_obstacle = [course = std::weak_ptr(course_)]() -> std::string {
      return course.lock()->pass != nullptr
                 ? "a loop over it is under way, which would go on as it was; leave that first"
                 : "";
    };
    session_->checkpointing->add("loader", course_, std::move(part));
  }

  [[nodiscard]] Iterator begin();
  [[nodiscard]] std::default_sentinel_t end() const { return {}; }

  /// Batches of a whole epoch, on this rank; with batches of different sizes of the epoch that the next begin() starts.
  [[nodiscard]] std::int64_t size() const
    requires(!is_stream)
  {
    return whole_epoch([&](const auto& plan) { return plan.batches(session_->topology.rank); });
  }
  /// Rows of the last round if it is not full, over all ranks; else 0.
  [[nodiscard]] std::int64_t remainder() const
    requires(!is_stream)
  {
    return whole_epoch([](const auto& plan) { return plan.remainder(); });
  }
  /// Rows of the dataset.
  [[nodiscard]] std::int64_t rows() const
    requires(!is_stream)
  {
    return loader_->rows();
  }
  /// Where the batch that was handed out last stands in its epoch; `position().is_last()` inside the
  /// loop says whether another one follows, `position().rows` how many of its rows are valid.
  [[nodiscard]] const data::Position& position() const { return course_->position; }

  /// The epoch that the next begin() starts, and a way to choose it.
  [[nodiscard]] std::int64_t epoch() const { return course_->next.epoch; }
  void set_epoch(std::int64_t epoch) { course_->start_next_at({.epoch = epoch}); }

  /// The next begin() starts its epoch behind its first `batches` batches; the epochs after it are whole again.
  ///
  /// Cost     of a DataLoader O(1) (with batches of different sizes: a pass over the order); a stream is read, or its
  ///          skip() is called. Behind its end there is nothing left.
  void skip_first(std::int64_t batches) {
    session_->at_rank([&] {
      constexpr auto most = std::numeric_limits<std::int64_t>::max() / 2;
      ACCEL_CHECK(batches >= 0, InvalidArgument, "skip_first: expected 0 or more batches, found ", batches);
      data::Cursor next{.epoch = epoch(), .batches = batches};
      if constexpr (is_stream) {
        const std::int64_t full = loader_->deal(session_->topology.world_size).full();
        ACCEL_CHECK(batches <= most / full, InvalidArgument, "skip_first: expected at most ", most / full,
                    " batches of ", full, " rows, found ", batches);
        next.rows = batches * full;
      } else {
        next.global_batch = loader_->global_batch(session_->topology.world_size);
        const auto place = [&](const auto& plan) {
          next.batches = std::min(batches, plan.rounds());
          return plan.rows_after(batches);
        };
        next.rows = whole_epoch(place);
      }
      course_->start_next_at(next);
      course_->is_moved = true;
      course_->is_known = false;
    });
  }

  [[nodiscard]] tensor::StateDict state_dict() const {
    const Place place = course_->current ? *course_->current : Place{course_->next, course_->state};
    auto state = data::SavedCursor{place.cursor, course_->seed, fnv1a(loader_->describe())}.state_dict();
    if (place.state) state.add("stream.", *place.state);
    return state;
  }

  /// The next begin() goes on from there.
  ///
  /// Order    on every rank, with the same state; of a stream that is sharded by the dataset with that rank's own.
  /// Throws   CheckpointError for the state of another dataset or order.
  void load_state_dict(const tensor::StateDict& state) {
    session_->at_rank([&] {
      const auto saved = data::SavedCursor::from(state, loader_->describe());
      course_->seed = saved.seed;
      course_->start_next_at(saved.cursor);
      const auto of_stream = state.below("stream.");
      if (!of_stream.empty()) course_->state = of_stream;
      course_->is_moved = true;
    });
  }

  [[nodiscard]] auto& dataset() { return loader_->dataset(); }

 private:
  friend class Iterator;

  /// A position, and that of the stream there.
  struct Place {
    data::Cursor cursor;
    std::optional<tensor::StateDict> state;
  };

  /// What the loader shares with its passes.
  struct Course {
    std::uint64_t seed = 0;
    data::Cursor next;                       // where the next pass begins
    std::optional<tensor::StateDict> state;  // of the stream there
    bool is_moved = false;                   // the user has chosen it,
    bool is_known = true;                    // and it was reached before
    bool is_read = false;                    // some pass has begun
    std::unique_ptr<Feed<L>> kept;           // of a stream that was left and cannot be begun again
    std::optional<DeviceCopy> copy;          // made by the first pass
    std::optional<Place> current;            // of the pass under way, behind its last batch
    const void* pass = nullptr;              // whose that is
    data::Position position;
    // A whole epoch by its seed and number, where batching cuts it.
    std::optional<std::pair<std::pair<std::uint64_t, std::int64_t>, data::EpochPlan>> planned;

    void start_next_at(const data::Cursor& cursor) {
      next = cursor;
      state.reset();
      is_known = true;
    }
  };

  /// What `ask` finds in the plan of the next epoch, as if nothing of it were done.
  template <class Ask>
  [[nodiscard]] std::int64_t whole_epoch(const Ask& ask) const {
    const int world_size = session_->topology.world_size;
    if (!loader_->options().batching) return ask(loader_->plan(world_size));
    // Asked again and again, as in a loop, and a pass over the order.
    auto& planned = course_->planned;
    const std::pair of{course_->seed, epoch()};
    if (!planned || planned->first != of)
      planned.emplace(of, loader_->epoch(course_->seed, {.epoch = epoch()}, world_size));
    return ask(planned->second);
  }

  /// What a loader is made of, for who must not keep it alive.
  struct LoaderParts {
    explicit LoaderParts(const Loader& own)
        : loader(own.loader_), session(own.session_), link(own.link_), course(own.course_) {}

    [[nodiscard]] Loader locked() const { return Loader(loader.lock(), session.lock(), link.lock(), course.lock()); }

    std::weak_ptr<L> loader;
    std::weak_ptr<Session> session;
    std::weak_ptr<Link> link;
    std::weak_ptr<Course> course;
  };

  Loader(std::shared_ptr<L> loader, std::shared_ptr<Session> session, std::shared_ptr<Link> link,
         std::shared_ptr<Course> course)
      : loader_(std::move(loader)), session_(std::move(session)), link_(std::move(link)), course_(std::move(course)) {}

  std::shared_ptr<L> loader_;
  std::shared_ptr<Session> session_;
  std::shared_ptr<Link> link_;
  std::shared_ptr<Course> course_ = std::make_shared<Course>();
};

/// An input iterator that owns the pass: when it goes, the pass is over.
template <class L>
class Loader<L>::Iterator {
 public:
  using value_type = Batch;
  using difference_type = std::ptrdiff_t;

  Batch& operator*() const { return *run_->batch; }

  Iterator& operator++() {
    run_->session->at_rank([&] { run_->advance(); });
    return *this;
  }
  void operator++(int) { ++*this; }

  bool operator==(std::default_sentinel_t) const { return !run_->batch.has_value(); }

 private:
  friend class Loader;

  /// Stays in place while the iterator moves: accumulate(batch) knows the batch by its address.
  struct Run {
    Run(const Loader& from, const PassStart& start)
        : session(from.session_),
          course(from.course_),
          cursor(start.from),
          feed(course->kept ? std::move(course->kept) : make_feed(from, start)) {
      if (!course->copy) course->copy.emplace(session->device);
      if constexpr (!is_stream)
        if (cursor.global_batch == 0) cursor.global_batch = from.loader_->global_batch(start.world_size);
      course->current.emplace(Place{start.from, start.state});
      course->pass = this;
      try {
        advance();
      } catch (...) {
        end();
        throw;
      }
    }

    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() { end(); }

    static std::unique_ptr<Feed<L>> make_feed(const Loader& from, const PassStart& start) {
      if constexpr (is_stream)
        return std::make_unique<Feed<L>>(from.loader_, from.link_, start);
      else
        return std::make_unique<Feed<L>>(from.loader_, start);
    }

    void advance() {
      session->in_flight.leave(&pass);
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      auto delivery = upcoming ? std::exchange(upcoming, std::nullopt) : fetch();
      if (!delivery) {
        batch.reset();
        return end();
      }
      course->copy->finish(delivery->batch);
      batch.emplace(std::move(delivery->batch));
      rounds = std::move(delivery->rounds);
      pass.rounds = rounds.get();
      pass.position = delivery->position;
      pass.batch_begin = reinterpret_cast<const std::byte*>(std::addressof(*batch));  // only compared
      pass.batch_end = pass.batch_begin + sizeof(Batch);
      course->position = pass.position;
      cursor.rows = delivery->rows_after;
      cursor.batches = pass.position.index + 1;
      if (course->pass == this) course->current = Place{cursor, std::move(delivery->state)};
      session->in_flight.enter(&pass);
      if (!keeps && course->copy->is_apart() && feed->is_ready()) {
        try {
          upcoming = fetch();
        } catch (...) {
          failure = std::current_exception();  // of the next batch: this one is whole
        }
      }
    }

    /// The next batch, on its way to the device.
    std::optional<Delivery<Batch>> fetch() {
      auto delivery = feed->next();
      if (delivery) delivery->batch = course->copy->start(std::move(delivery->batch));
      return delivery;
    }

    void end() {
      session->in_flight.leave(&pass);
      if (course->pass != this) return;
      course->pass = nullptr;
      if constexpr (keeps) {
        if (!feed->is_over()) {
          course->next = course->current->cursor;
          course->state = course->current->state;
          course->kept = std::move(feed);
        }
      }
      course->current.reset();
    }

    /// What a stream was read ahead it would not give again.
    static constexpr bool keeps = [] {
      if constexpr (is_stream) return !data::Restarts<typename L::Stream>;
      return false;
    }();

    std::shared_ptr<Session> session;
    std::shared_ptr<Course> course;
    data::Cursor cursor;
    std::unique_ptr<Feed<L>> feed;
    std::optional<Delivery<Batch>> upcoming;  // on a GPU, where it was ready,
    std::exception_ptr failure;               // or what there was instead
    std::optional<Batch> batch;
    std::shared_ptr<const data::Rounds> rounds;
    data::Pass pass;
  };

  Iterator(const Loader& loader, const PassStart& start) : run_(std::make_unique<Run>(loader, start)) {}

  std::unique_ptr<Run> run_;
};

template <class L>
typename Loader<L>::Iterator Loader<L>::begin() {
  return session_->at_rank([&] {
    Course& course = *course_;
    ACCEL_CHECK(course.pass == nullptr || !loader_->has_one_reader(), InvalidArgument,
                "loader: another loop over it is under way, and there is one ", is_stream ? "stream" : "dataset",
                " for both; end that first, or prepare a loader of its own");
    if constexpr (is_stream) {
      ACCEL_CHECK(data::Restarts<typename L::Stream> || !course.is_moved || !course.is_read || course.state,
                  InvalidArgument,
                  "loader: its stream has been read, and has no start(epoch) to be read from another place; give it ",
                  "one, or go there with a new loader");
      if (course.is_moved) course.kept.reset();
    }
    course.is_read = true;
    const PassStart start{.rank = session_->topology.rank,
                          .world_size = session_->topology.world_size,
                          .seed = course.seed,
                          .from = course.next,
                          .is_known = course.is_known,
                          .pins_memory = session_->device.is_cuda(),
                          .state = course.state};
    if (std::exchange(course.is_moved, false))
      link_->require_equal("loader: where it goes on", message("epoch ", start.from.epoch, ", behind ", start.from.rows,
                                                               " rows in ", start.from.batches, " batches, seed ",
                                                               start.seed, ", drawn for ", start.from.global_batch));
    course.start_next_at({.epoch = start.from.epoch + 1});
    return Iterator(*this, start);
  });
}

}  // namespace accel::inline v0_1::prepare
