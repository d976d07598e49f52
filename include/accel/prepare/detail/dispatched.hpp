// Dispatched: a stream that rank 0 reads for all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/data/round.hpp>
#include <accel/prepare/detail/dealt_rounds.hpp>
#include <accel/prepare/detail/in_order.hpp>
#include <accel/prepare/feed.hpp>
#include <accel/prepare/link.hpp>
#include <accel/tensor/packed.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::prepare::detail {

/// Rank 0 reads and sends: while the ranks compute on one round, the next is on its way.
///
/// Cost     of a round one exchange over the control plane, and a broadcast of all its rows.
template <class L>
class Dispatched {
 public:
  using Own = OwnRows<typename L::Row>;

  Dispatched(const std::shared_ptr<L>& loader, const std::shared_ptr<Link>& link, const PassStart& start)
      : link_(link),
        deal_(loader->deal(start.world_size)),
        rank_(start.rank),
        patience_(Seconds(loader->options().timeout_s)) {
    if (rank_ != 0) return;
    // What the stream throws here, too, is for all ranks.
    auto make = [loader, start, deal = deal_, dealt = std::shared_ptr<Dealt>()]() mutable {
      const c10::AutoGradMode no_grad(false);
      if (!dealt) dealt = std::make_shared<Dealt>(loader->dataset(), deal, start);
      auto round = dealt->next();
      Message message{.rows = std::ssize(round.rows), .is_last = round.is_last};
      std::vector<at::Tensor> parcels;
      if (message.rows > 0)
        for (int rank = 0; rank < start.world_size; ++rank) {
          parcels.push_back(tensor::pack(dealt->rows_of(round, deal.part(message.rows, rank))));
          message.sizes.push_back(parcels.back().numel());
        }
      if (!parcels.empty()) message.bytes = at::cat(parcels);
      message.state = std::move(round.state);
      return message;
    };
    messages_.emplace(std::move(make), loader->options().prefetch, loader->options().timeout_s);
  }
  Dispatched(const Dispatched&) = delete;
  Dispatched& operator=(const Dispatched&) = delete;
  ~Dispatched() {
    // What is on its way comes to all ranks, or none would be done with it.
    try {
      if (arriving_) (void)arriving_->wait();
    } catch (const std::exception&) {
      // The group was given up; who asks for anything of it hears why.
    }
  }

  [[nodiscard]] Own next() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (!current_) announce(/*may_wait=*/true);
    auto message = *std::exchange(current_, std::nullopt);
    if (message.rows == 0) return {};
    const at::Tensor bytes = std::exchange(arriving_, nullptr)->wait();
    std::int64_t begin = 0;
    for (int rank = 0; rank < rank_; ++rank) begin += message.sizes[static_cast<std::size_t>(rank)];
    const at::Tensor own = bytes.narrow(0, begin, message.sizes[static_cast<std::size_t>(rank_)]);
    Own result{tensor::unpack<std::vector<typename L::Row>>(own), std::make_shared<const OneRound>(deal_, message.rows),
               message.rows, message.is_last, std::move(message.state)};
    // Not now: this round is whole. All ranks hear of it alike.
    try {
      if (!result.is_last) announce(/*may_wait=*/false);
    } catch (...) {
      failure_ = std::current_exception();
    }
    return result;
  }

  [[nodiscard]] bool is_ready() const { return false; }

 private:
  using Dealt = DealtRounds<typename L::Stream>;

  struct Message {
    std::int64_t rows = 0;  // of the round; 0: the epoch is over
    bool is_last = false;
    std::vector<std::int64_t> sizes{};  // of each rank's part of the bytes
    at::Tensor bytes{};                 // on rank 0
    std::optional<tensor::StateDict> state{};
  };

  /// All ranks hear what the next round is like, and it is sent. If rank 0 has not read it yet, and does not have to
  /// wait, they hear that.
  void announce(bool may_wait) {
    std::optional<Message> message;
    std::exception_ptr error;
    std::string text = "later";
    if (rank_ == 0 && (may_wait || messages_->is_ready())) {
      try {
        message = messages_->take();
        text = "";
        for (const std::int64_t number : {message->rows, std::int64_t{message->is_last}})
          text += std::to_string(number) + " ";
        for (const std::int64_t size : message->sizes) text += std::to_string(size) + " ";
      } catch (const std::exception& thrown) {
        error = std::current_exception();
        text = "!" + first_line(thrown);
      }
    }
    text = link_->broadcast("dispatch: the next round", text, patience_);
    if (error) std::rethrow_exception(error);
    ACCEL_CHECK(!text.starts_with('!'), DataError, "rank 0, which reads the stream, failed: ", text.substr(1));
    if (text == "later") return;
    if (!message) {
      std::istringstream numbers(text);
      message.emplace();
      numbers >> message->rows >> message->is_last;
      for (std::int64_t size = 0; numbers >> size;) message->sizes.push_back(size);
    }
    std::int64_t total = 0;
    for (const std::int64_t size : message->sizes) total += size;
    if (message->rows > 0) arriving_ = link_->send(message->bytes, total);
    message->bytes = at::Tensor();
    current_ = std::move(message);
  }

  std::shared_ptr<Link> link_;
  data::Deal deal_;
  int rank_;
  Seconds patience_;
  std::optional<InOrder<Message>> messages_;  // on rank 0
  std::optional<Message> current_;            // announced
  std::unique_ptr<ArrivingBytes> arriving_;   // its bytes
  std::exception_ptr failure_;                // of the announcement that nobody has asked for yet
};

}  // namespace accel::inline v0_1::prepare::detail
